//! Calls about processes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use nullspace_guest_proto as pb;
use pb::failed::Reason;
use pb::run_event::Event;
use tonic::Status;

use super::{Adopted, Service, check_environment};
use crate::account::Account;
use crate::file::make_directories;
use crate::path::{self, WORKSPACE};
use crate::process::follow::{Events, Follow, Record};
use crate::process::listing;
use crate::process::output::Cursor;
use crate::process::table::{DEFAULT_PATH, Launch, LaunchError};

const SHELL: &str = "/bin/sh";

impl Service {
    pub(super) async fn do_run(&self, request: pb::RunRequest, arrived: Instant) -> Result<Events, Status> {
        // Absent while the machine is being prepared: then with no environment or directory of its own.
        let adopted = self.adopted.get();
        check_environment(&request.envs)?;
        let has_nul = |text: &String| text.contains('\0');
        if has_nul(&request.command) || request.args.iter().any(has_nul) {
            return Err(Status::invalid_argument("the command contains a NUL byte"));
        }
        if request.command.is_empty() {
            return Err(Status::invalid_argument("the command is empty"));
        }
        if request.shell && !request.args.is_empty() {
            return Err(Status::invalid_argument("a shell command takes no args: they belong into the line"));
        }
        let Some(account) = Account::find(&request.user) else {
            return Ok(failed(Reason::BadUser, format!("there is no user {}", request.user)));
        };
        let default = adopted.and_then(|adopted| adopted.cwd.as_deref()).unwrap_or(WORKSPACE);
        let directory = if request.cwd.is_empty() {
            PathBuf::from(default)
        } else {
            match path::resolve(&request.cwd, default) {
                Ok(directory) => directory,
                Err(error) => return Ok(failed(Reason::BadCwd, format!("cwd: {}", error.message()))),
            }
        };
        let launch = Arc::new(Launch {
            shown: shown(&request),
            environment: environment(adopted, &account, request.envs),
            arguments: if request.shell {
                vec![SHELL.into(), "-c".into(), request.command]
            } else {
                std::iter::once(request.command).chain(request.args).collect()
            },
            directory,
            account,
            timeout: (request.timeout_ms > 0).then(|| Duration::from_millis(request.timeout_ms)),
            stdin: request.background,
            arrived,
        });
        let elsewhere = self.mounts.may_hang();
        let mut started = self.table.launch(Arc::clone(&launch), elsewhere).await;
        // The machine's own directory need not exist before the first use.
        if request.cwd.is_empty() && matches!(started, Err(LaunchError::Directory(Errno::ENOENT))) {
            let owner = (!request.user.is_empty()).then(|| launch.account.clone());
            let directory = launch.directory.clone();
            let made = self.mounts.run(false, move || make_directories(&directory, owner.as_ref())).await;
            if let Err(error) = made {
                return Ok(failed(Reason::BadCwd, format!("cwd: {}", error.message())));
            }
            started = self.table.launch(Arc::clone(&launch), elsewhere).await;
        }
        match started {
            Ok(process) if request.background => {
                Ok(Events::One(Some(Event::Started(pb::Started { pid: process.pid }))))
            }
            Ok(process) => {
                process.ended_within(Duration::from_millis(request.hold_ms)).await;
                Ok(Events::Follow(Follow::of_starter(process, request.inline_limit)))
            }
            Err(error) => Ok(explain(&error, &launch)),
        }
    }

    pub(super) fn do_attach(&self, request: &pb::AttachRequest) -> Result<Follow, Status> {
        let process = self.table.find(request.pid)?;
        Ok(Follow::new(process, Cursor::from_offsets(request.stdout_offset, request.stderr_offset), 0))
    }

    pub(super) fn do_read_log(&self, request: &pb::ReadLogRequest) -> Result<Record, Status> {
        Record::new(self.table.find(request.pid)?, request.stream(), request.offset)
    }

    pub(super) async fn do_list_processes(&self) -> Result<pb::ListProcessesReply, Status> {
        let table = Arc::clone(&self.table);
        let processes = self.mounts.run(false, move || Ok(listing::list(&table))).await?;
        Ok(pb::ListProcessesReply { processes })
    }

    pub(super) fn do_kill_process(&self, pid: u32) -> Result<(), Status> {
        let missing = || Status::not_found(format!("there is no process {pid}"));
        if let Ok(process) = self.table.find(pid) {
            process.kill();
            return Ok(());
        }
        // Zero and negative numbers mean groups to the kernel, and 1 is the agent.
        let number = i32::try_from(pid).ok().filter(|number| *number > 1).ok_or_else(missing)?;
        if pid == std::process::id() {
            return Err(missing());
        }
        let number = Pid::from_raw(number);
        let sent = if listing::leads_group(pid).ok_or_else(missing)? {
            killpg(number, Signal::SIGKILL)
        } else {
            kill(number, Signal::SIGKILL)
        };
        match sent {
            Ok(()) => Ok(()),
            Err(Errno::ESRCH) => Err(missing()),
            Err(error) => Err(Status::permission_denied(format!("process {pid}: {}", error.desc()))),
        }
    }
}

/// The command line as it was asked for.
fn shown(request: &pb::RunRequest) -> String {
    let mut shown = request.command.clone();
    for arg in &request.args {
        shown.push(' ');
        shown.push_str(arg);
    }
    shown
}

/// The user's own variables, the machine's over them, the call's over those.
fn environment(
    adopted: Option<&Adopted>,
    account: &Account,
    envs: impl IntoIterator<Item = (String, String)>,
) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::from([
        ("PATH".to_string(), DEFAULT_PATH.to_string()),
        ("HOME".to_string(), account.home.clone()),
        ("USER".to_string(), account.name.clone()),
        ("LOGNAME".to_string(), account.name.clone()),
    ]);
    let own = adopted.into_iter().flat_map(|adopted| &adopted.envs);
    environment.extend(own.map(|(name, value)| (name.clone(), value.clone())));
    environment.extend(envs);
    environment
}

fn failed(reason: Reason, message: String) -> Events {
    Events::One(Some(Event::Failed(pb::Failed { reason: reason.into(), message })))
}

fn explain(error: &LaunchError, launch: &Launch) -> Events {
    let program = &launch.arguments[0];
    match error {
        LaunchError::NotFound => failed(Reason::CommandNotFound, format!("command not found: {program}")),
        LaunchError::NotExecutable(error) => {
            failed(Reason::NotExecutable, format!("{program} cannot be executed: {}", error.desc()))
        }
        LaunchError::Directory(error) => {
            failed(Reason::BadCwd, format!("cwd {}: {}", launch.directory.display(), error.desc()))
        }
        LaunchError::User(error) => {
            failed(Reason::BadUser, format!("user {}: {}", launch.account.name, error.desc()))
        }
        LaunchError::Resources(what) => {
            failed(Reason::NoResources, format!("{program} cannot be started: {what}"))
        }
    }
}

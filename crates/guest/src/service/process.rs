//! Calls about processes, and what all programs that the agent starts have in common: who runs them,
//! where, and with which environment.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nullspace_guest_proto as pb;
use pb::failed::Reason;
use pb::run_event::Event;
use tonic::Status;

use super::{Service, check_environment};
use crate::account::Account;
use crate::file::make_directories;
use crate::path::{self, WORKSPACE};
use crate::process::follow::{Events, Follow, Record};
use crate::process::launch::{DEFAULT_PATH, Launch, LaunchError};
use crate::process::name::Turn;
use crate::process::output::Cursor;
use crate::process::signal::Signal;
use crate::process::table::{Standard, Start};
use crate::process::{Process, listing};

/// What takes a command line, whoever's it is.
pub(super) const SHELL: &str = "/bin/sh";

/// Why a program does not run.
pub(super) struct Refusal {
    pub reason: Reason,
    pub message: String,
}

pub(super) fn refusal(reason: Reason, message: String) -> Refusal {
    Refusal { reason, message }
}

impl From<Refusal> for Events {
    fn from(Refusal { reason, message }: Refusal) -> Self {
        Events::One(Some(Event::Failed(pb::Failed { reason: reason.into(), message })))
    }
}

/// What the caller of Run wants to hear.
#[derive(Clone, Copy)]
struct Wanted {
    background: bool,
    inline_limit: u64,
    hold: Duration,
    paced: bool,
}

impl Wanted {
    async fn of(self, process: Arc<Process>, starter: bool) -> Events {
        if self.background {
            return Events::One(Some(Event::Started(pb::Started { pid: process.pid })));
        }
        // Before anything is waited for: from here on the process waits too, where that is wanted.
        let follow = if starter {
            Follow::of_starter(process, self.inline_limit, self.paced)
        } else {
            Follow::new(process, Cursor::default(), self.inline_limit, self.paced)
        };
        follow.process().spoken_within(self.hold).await;
        Events::Follow(follow)
    }
}

impl Service {
    pub(super) async fn do_run(&self, request: pb::RunRequest, arrived: Instant) -> Result<Events, Status> {
        check_environment(&request.envs)?;
        check_command(&request.command, &request.args, request.shell)?;
        if request.command.is_empty() {
            return Err(Status::invalid_argument("the command is empty"));
        }
        let wanted = Wanted {
            background: request.background,
            inline_limit: request.inline_limit,
            hold: Duration::from_millis(request.hold_ms),
            paced: request.paced,
        };
        let name = if request.run_id.is_empty() {
            None
        } else {
            let turn = self.table.turn(&request.run_id).await?;
            if let Some(process) = self.table.named(&request.run_id) {
                drop(turn);
                return Ok(wanted.of(process, false).await);
            }
            Some((request.run_id.clone(), turn))
        };
        match self.run(request, name, arrived).await {
            Ok(process) => Ok(wanted.of(process, true).await),
            Err(refusal) => Ok(refusal.into()),
        }
    }

    async fn run(
        &self,
        request: pb::RunRequest,
        name: Option<(String, Turn)>,
        arrived: Instant,
    ) -> Result<Arc<Process>, Refusal> {
        let (account, directory) = self.setting(&request.user, &request.cwd)?;
        let start = Arc::new(Start {
            shown: shown(&request.command, &request.args),
            timeout: (request.timeout_ms > 0).then(|| Duration::from_millis(request.timeout_ms)),
            standard: Standard::Recorded { stdin: request.background || request.stdin },
            arrived,
            name,
            launch: Launch {
                program: if request.shell { SHELL.into() } else { request.command.clone() },
                environment: self.environment(&account, request.envs),
                arguments: if request.shell {
                    vec![SHELL.into(), "-c".into(), request.command]
                } else {
                    std::iter::once(request.command).chain(request.args).collect()
                },
                directory,
                account,
                admission: self.freezer.admit().await,
            },
        });
        let own_directory = request.cwd.is_empty().then_some(request.user.as_str());
        self.start(&start.launch, own_directory, |elsewhere| self.table.launch(Arc::clone(&start), elsewhere))
            .await
    }

    /// The account and the directory of a program that is to run as `user` in `cwd`.
    pub(super) fn setting(&self, user: &str, cwd: &str) -> Result<(Account, PathBuf), Refusal> {
        let account = Account::find(user)
            .ok_or_else(|| refusal(Reason::BadUser, format!("there is no user {user}")))?;
        // Absent while the machine is being prepared: then without a directory of its own.
        let adopted = self.adoption.current();
        let own = adopted.as_ref().and_then(|adopted| adopted.cwd.as_deref()).unwrap_or(WORKSPACE);
        let directory = if cwd.is_empty() {
            PathBuf::from(own)
        } else {
            path::resolve(cwd, own)
                .map_err(|error| refusal(Reason::BadCwd, format!("cwd: {}", error.message())))?
        };
        Ok((account, directory))
    }

    /// The user's own variables, the machine's over them, the call's over those.
    pub(super) fn environment(
        &self,
        account: &Account,
        envs: HashMap<String, String>,
    ) -> BTreeMap<String, String> {
        let adopted = self.adoption.current();
        let trusted = self.adoption.authority().environment();
        environment(account, trusted, adopted.iter().flat_map(|adopted| &adopted.envs), &envs)
    }

    /// Starts a program; what it is told is whether that may hang. `own_directory`: it is to run in the
    /// machine's own directory, which need not exist before its first use, as this user.
    pub(super) async fn start<T, F: Future<Output = Result<T, LaunchError>>>(
        &self,
        launch: &Launch,
        own_directory: Option<&str>,
        start: impl Fn(bool) -> F,
    ) -> Result<T, Refusal> {
        let elsewhere = self.mounts.may_hang();
        let mut started = start(elsewhere).await;
        if let Some(user) = own_directory
            && matches!(started, Err(LaunchError::Directory(Errno::ENOENT)))
        {
            let owner = (!user.is_empty()).then(|| launch.account.clone());
            let directory = launch.directory.clone();
            self.mounts
                .run(false, move || make_directories(&directory, owner.as_ref()))
                .await
                .map_err(|error| refusal(Reason::BadCwd, format!("cwd: {}", error.message())))?;
            started = start(elsewhere).await;
        }
        started.map_err(|error| explain(&error, launch))
    }

    pub(super) fn do_attach(&self, request: &pb::AttachRequest) -> Result<Follow, Status> {
        let process = self.table.find(request.pid)?;
        let cursor = Cursor::from_offsets(request.stdout_offset, request.stderr_offset);
        Ok(Follow::new(process, cursor, 0, request.paced))
    }

    pub(super) fn do_read_log(&self, request: &pb::ReadLogRequest) -> Result<Record, Status> {
        Record::new(self.table.find(request.pid)?, request.stream(), request.offset)
    }

    pub(super) async fn do_list_processes(&self) -> Result<pb::ListProcessesReply, Status> {
        let table = Arc::clone(&self.table);
        let processes = self.mounts.run(false, move || Ok(listing::list(&table))).await?;
        Ok(pb::ListProcessesReply { processes })
    }

    pub(super) fn do_kill_process(&self, pid: u32, signal: Signal) -> Result<(), Status> {
        let missing = || Status::not_found(format!("there is no process {pid}"));
        if let Ok(process) = self.table.find(pid) {
            process.signal(signal);
            return Ok(());
        }
        // Zero and negative numbers mean groups to the kernel, and 1 is the agent.
        let number = i32::try_from(pid).ok().filter(|number| *number > 1).ok_or_else(missing)?;
        if pid == std::process::id() {
            return Err(missing());
        }
        let sent = if listing::leads_group(pid).ok_or_else(missing)? {
            signal.to_group(number)
        } else {
            signal.to_process(number)
        };
        match sent {
            Ok(()) => Ok(()),
            Err(Errno::ESRCH) => Err(missing()),
            Err(error) => Err(Status::permission_denied(format!("process {pid}: {}", error.desc()))),
        }
    }
}

/// What no program can be started by.
pub(super) fn check_command(command: &String, args: &[String], shell: bool) -> Result<(), Status> {
    if std::iter::once(command).chain(args).any(|text| text.contains('\0')) {
        return Err(Status::invalid_argument("the command contains a NUL byte"));
    }
    if shell && !args.is_empty() {
        return Err(Status::invalid_argument("a shell command takes no args: they belong into the line"));
    }
    Ok(())
}

/// The environment of a program that `account` runs: its own variables and those of what the machine trusts,
/// the machine's over them, more over those.
pub(super) fn environment<'a>(
    account: &Account,
    trusted: Vec<(String, String)>,
    machine: impl IntoIterator<Item = (&'a String, &'a String)>,
    more: &'a HashMap<String, String>,
) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::from([
        ("PATH".to_string(), DEFAULT_PATH.to_string()),
        ("HOME".to_string(), account.home.clone()),
        ("USER".to_string(), account.name.clone()),
        ("LOGNAME".to_string(), account.name.clone()),
    ]);
    environment.extend(trusted);
    let over = machine.into_iter().chain(more);
    environment.extend(over.map(|(name, value)| (name.clone(), value.clone())));
    environment
}

/// The command line as it was asked for.
pub(super) fn shown(command: &str, args: &[String]) -> String {
    let mut shown = command.to_string();
    for arg in args {
        shown.push(' ');
        shown.push_str(arg);
    }
    shown
}

pub(super) fn explain(error: &LaunchError, launch: &Launch) -> Refusal {
    let program = &launch.program;
    match error {
        LaunchError::NotFound => refusal(Reason::CommandNotFound, format!("command not found: {program}")),
        LaunchError::NotExecutable(error) => {
            refusal(Reason::NotExecutable, format!("{program} cannot be executed: {}", error.desc()))
        }
        LaunchError::Directory(error) => {
            refusal(Reason::BadCwd, format!("cwd {}: {}", launch.directory.display(), error.desc()))
        }
        LaunchError::User(error) => {
            refusal(Reason::BadUser, format!("user {}: {}", launch.account.name, error.desc()))
        }
        LaunchError::Resources(what) => {
            refusal(Reason::NoResources, format!("{program} cannot be started: {what}"))
        }
    }
}

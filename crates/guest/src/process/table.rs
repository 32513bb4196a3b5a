//! The set of processes started through the API.
//!
//! The table owns who is in it and how long an ended process is remembered: records are bounded in
//! number, memory and disk, and the longest unused are forgotten first. A running process never is.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot};
use tonic::Status;

use super::output::{OUTPUT_BYTES, Output};
use super::spawn::{self, Program, Stage};
use super::supervise::{Ends, supervise};
use super::{Process, State};
use crate::account::Account;
use crate::watch::watch;

/// Processes of the API that may run at once.
const RUNNING: usize = 1024;
/// What is kept of processes that have ended.
const KEPT: usize = 1000;
const KEPT_MEMORY_BYTES: u64 = 16 << 20;
const KEPT_DISK_BYTES: u64 = 512 << 20;

/// The path of programs where the environment has none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process to start, checked and complete.
pub struct Launch {
    /// As it is listed.
    pub shown: String,
    /// The first is the program, looked up in `PATH` when it has no slash.
    pub arguments: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub directory: PathBuf,
    pub account: Account,
    pub timeout: Option<Duration>,
    /// Whether standard input is a pipe.
    pub stdin: bool,
    pub arrived: Instant,
}

/// Why a process was not started.
#[derive(Debug)]
pub enum LaunchError {
    NotFound,
    NotExecutable(Errno),
    Directory(Errno),
    User(Errno),
    Resources(String),
}

/// A record this small does not have the bounds looked at by itself.
const LITTLE_BYTES: u64 = 64 << 10;
/// But this many of them do.
const UNCHECKED: usize = 64;

/// See the module.
pub struct Table {
    inner: Mutex<Inner>,
    directory: PathBuf,
    change_user: bool,
    /// Told whenever a child of the agent was reaped.
    pub any_reaped: Notify,
}

#[derive(Default)]
struct Inner {
    processes: BTreeMap<u32, Arc<Process>>,
    waiting: BTreeMap<u32, oneshot::Sender<i32>>,
    /// Starts under way on other threads. Their process may end before it is in the table.
    starting: usize,
    unclaimed: BTreeMap<u32, i32>,
    running: usize,
    uses: u64,
    /// How many have ended since the bounds were looked at.
    unchecked: usize,
}

impl Table {
    /// Records that outgrow memory go to files in `directory`, which is made when it is needed.
    pub fn new(directory: PathBuf, change_user: bool) -> Self {
        Self { inner: Mutex::default(), directory, change_user, any_reaped: Notify::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// Where records go that outgrow memory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts a process and the task that looks after it. `elsewhere`: the system calls may hang, so
    /// they are made on another thread.
    pub async fn launch(
        self: &Arc<Self>,
        launch: Arc<Launch>,
        elsewhere: bool,
    ) -> Result<Arc<Process>, LaunchError> {
        {
            let mut inner = self.inner();
            if inner.running >= RUNNING {
                return Err(LaunchError::Resources(format!("{RUNNING} processes run already")));
            }
            inner.running += 1;
            inner.starting += 1;
        }
        let started = if elsewhere {
            let table = Arc::clone(self);
            tokio::task::spawn_blocking(move || table.start(launch)).await
        } else {
            Ok(self.start(launch))
        };
        let started = started.unwrap_or_else(|error| Err(LaunchError::Resources(error.to_string())));
        let mut inner = self.inner();
        inner.starting -= 1;
        let outcome = started.map(|started| self.enter(&mut inner, started));
        if outcome.is_err() {
            inner.running -= 1;
        }
        if inner.starting == 0 {
            inner.unclaimed.clear();
        }
        outcome
    }

    fn enter(self: &Arc<Self>, inner: &mut Inner, started: Started) -> Arc<Process> {
        let Started { pid, launch, stdin, stdout, stderr } = started;
        let (sender, exit) = oneshot::channel();
        inner.uses += 1;
        let process = Arc::new(Process {
            pid,
            command: launch.shown.clone(),
            arrived: launch.arrived,
            has_stdin: stdin.is_some(),
            stdin: tokio::sync::Mutex::new(stdin),
            ended: Notify::new(),
            state: Mutex::new(State {
                output: Output::new(OUTPUT_BYTES),
                reaped: false,
                exit: None,
                followers: Vec::new(),
                used: inner.uses,
            }),
        });
        // A number that comes again belongs to the newer process.
        inner.processes.insert(pid, Arc::clone(&process));
        match inner.unclaimed.remove(&pid) {
            Some(code) => {
                process.set_reaped();
                // The receiver is in this function, so it is there.
                let _ = sender.send(code);
            }
            None => {
                inner.waiting.insert(pid, sender);
            }
        }
        let ends = Ends { stdout, stderr, exit };
        tokio::spawn(supervise(Arc::clone(self), Arc::clone(&process), ends, launch.timeout));
        process
    }

    /// The system calls of a start. May block.
    fn start(&self, launch: Arc<Launch>) -> Result<Started, LaunchError> {
        let resources = |what: &'static str| {
            move |error: Errno| LaunchError::Resources(format!("{what}: {}", error.desc()))
        };
        let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(resources("no pipe"));
        // Made ready before the start: after it nothing may fail.
        let ours = |end: OwnedFd, interest| -> Result<AsyncFd<OwnedFd>, LaunchError> {
            fcntl(&end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(resources("no pipe"))?;
            watch(end, interest)
                .map_err(|error| LaunchError::Resources(format!("a pipe cannot be watched: {error}")))
        };
        let (stdin, stdin_ours) = if launch.stdin {
            let (read, write) = pipe()?;
            (read, Some(ours(write, Interest::WRITABLE)?))
        } else {
            let null = File::open("/dev/null")
                .map_err(|error| LaunchError::Resources(format!("/dev/null cannot be opened: {error}")))?;
            (OwnedFd::from(null), None)
        };
        let (stdout_ours, stdout) = pipe()?;
        let (stderr_ours, stderr) = pipe()?;
        let stdout_ours = ours(stdout_ours, Interest::READABLE)?;
        let stderr_ours = ours(stderr_ours, Interest::READABLE)?;
        let string = |text: String| CString::new(text).map_err(|_| LaunchError::NotFound);
        let path = launch.environment.get("PATH").map_or(DEFAULT_PATH, String::as_str);
        let candidates = candidates(&launch.arguments[0], path);
        let environment = launch
            .environment
            .iter()
            .map(|(name, value)| string(format!("{name}={value}")))
            .collect::<Result<_, _>>()?;
        let program = Program {
            candidates: present(candidates).into_iter().map(string).collect::<Result<_, _>>()?,
            arguments: launch.arguments.iter().cloned().map(string).collect::<Result<_, _>>()?,
            environment,
            directory: string(launch.directory.to_string_lossy().into_owned())?,
            account: &launch.account,
            change_user: self.change_user,
            stdin: stdin.as_fd(),
            stdout: stdout.as_fd(),
            stderr: stderr.as_fd(),
        };
        let pid = spawn::spawn(&program).map_err(|(stage, error)| match (stage, error) {
            (Stage::Directory, error) => LaunchError::Directory(error),
            (Stage::User, error) => LaunchError::User(error),
            (Stage::Execute, Errno::ENOENT | Errno::ENOTDIR) => LaunchError::NotFound,
            (Stage::Execute, Errno::E2BIG) => {
                LaunchError::Resources("the arguments and the environment are too long".into())
            }
            (Stage::Execute, error @ (Errno::ENOMEM | Errno::EAGAIN | Errno::EMFILE | Errno::ENFILE)) => {
                LaunchError::Resources(error.desc().into())
            }
            (Stage::Execute, error) => LaunchError::NotExecutable(error),
            (Stage::Prepare, error) => LaunchError::Resources(error.desc().into()),
        })?;
        Ok(Started { pid, launch, stdin: stdin_ours, stdout: stdout_ours, stderr: stderr_ours })
    }

    /// The reaper took this status.
    pub fn reaped(&self, pid: u32, code: i32) {
        let mut inner = self.inner();
        if let Some(exit) = inner.waiting.remove(&pid) {
            if let Some(process) = inner.processes.get(&pid) {
                process.set_reaped();
            }
            // Its task may be gone only with the agent.
            let _ = exit.send(code);
        } else if inner.starting > 0 {
            inner.unclaimed.insert(pid, code);
        }
        drop(inner);
        self.any_reaped.notify_waiters();
    }

    /// One process less runs.
    pub fn process_ended(&self) {
        self.inner().running -= 1;
    }

    /// Forgets the longest unused of the ended until what is kept is within bounds. Looking at all of
    /// them is not for every command: one that left little waits for others.
    pub fn enforce_bounds(&self, ended: &Process) {
        let left = {
            let state = ended.state();
            state.output.memory_bytes() + state.output.disk_bytes()
        };
        let mut inner = self.inner();
        inner.unchecked += 1;
        if left <= LITTLE_BYTES && inner.unchecked < UNCHECKED {
            return;
        }
        inner.unchecked = 0;
        let mut ended: Vec<_> = inner
            .processes
            .values()
            .filter_map(|process| {
                let state = process.state();
                let size = (state.output.memory_bytes(), state.output.disk_bytes());
                state.exit.map(|_| (state.used, process.pid, size))
            })
            .collect();
        let mut memory: u64 = ended.iter().map(|(.., size)| size.0).sum();
        let mut disk: u64 = ended.iter().map(|(.., size)| size.1).sum();
        ended.sort_unstable();
        let mut kept = ended.len();
        for (_, pid, size) in ended {
            if kept <= KEPT && memory <= KEPT_MEMORY_BYTES && disk <= KEPT_DISK_BYTES {
                break;
            }
            inner.processes.remove(&pid);
            (kept, memory, disk) = (kept - 1, memory - size.0, disk - size.1);
        }
    }

    /// Forgets all that have ended.
    pub fn forget_ended(&self) {
        self.inner().processes.retain(|_, process| process.state().exit.is_none());
    }

    /// The process with this number, which counts as used now.
    pub fn find(&self, pid: u32) -> Result<Arc<Process>, Status> {
        let mut inner = self.inner();
        inner.uses += 1;
        let process = inner
            .processes
            .get(&pid)
            .ok_or_else(|| Status::not_found(format!("there is no process {pid}")))?;
        process.state().used = inner.uses;
        Ok(Arc::clone(process))
    }

    /// All that are known, by number.
    pub fn all(&self) -> Vec<Arc<Process>> {
        self.inner().processes.values().cloned().collect()
    }
}

struct Started {
    pid: u32,
    launch: Arc<Launch>,
    stdin: Option<AsyncFd<OwnedFd>>,
    stdout: AsyncFd<OwnedFd>,
    stderr: AsyncFd<OwnedFd>,
}

/// Where a program may be, in order, as `execvp` has it: an empty part of the path is the current
/// directory.
fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.is_empty() || program.contains('/') {
        return vec![program.into()];
    }
    path.split(':')
        .map(|directory| if directory.is_empty() { program.into() } else { format!("{directory}/{program}") })
        .collect()
}

/// Without those that are not there: a failed execution costs the kernel far more than a look. A
/// relative one depends on the child's directory and stays; so does the last, for its error.
fn present(mut candidates: Vec<String>) -> Vec<String> {
    let last = candidates.pop();
    candidates.retain(|path| !path.starts_with('/') || Path::new(path).exists());
    candidates.extend(last);
    candidates
}

#[cfg(test)]
mod tests {
    use super::{candidates, present};

    #[test]
    fn what_is_not_there_is_not_tried_but_for_the_last() {
        let all = ["/nowhere/sh", "/bin/sh", "sh", "/nowhere/else/sh"].map(str::to_owned).to_vec();
        assert_eq!(present(all), ["/bin/sh", "sh", "/nowhere/else/sh"]);
    }

    #[test]
    fn a_program_with_a_slash_is_not_looked_up() {
        assert_eq!(candidates("./x", "/bin"), ["./x"]);
        assert_eq!(candidates("x", "/bin::/opt/b"), ["/bin/x", "x", "/opt/b/x"]);
    }
}

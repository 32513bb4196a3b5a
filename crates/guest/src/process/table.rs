//! The set of processes started through the API.
//!
//! The table owns who is in it, which start has which name, and how long an ended process is remembered:
//! records are bounded in number, memory and disk, and the longest unused are forgotten first. A running
//! process never is.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tonic::Status;

use super::Process;
use super::children::{Child, Children};
use super::launch::{Files, Launch, LaunchError};
use super::name::{Names, Turn};
use super::supervise::{Ends, supervise};
use crate::watch::watch;

/// Processes of the API that may run at once.
const RUNNING: usize = 1024;
/// What is kept of processes that have ended.
const KEPT: usize = 1000;
const KEPT_MEMORY_BYTES: u64 = 16 << 20;
const KEPT_DISK_BYTES: u64 = 512 << 20;

/// A record this small does not have the bounds looked at by itself.
const LITTLE_BYTES: u64 = 64 << 10;
/// But this many of them do.
const UNCHECKED: usize = 64;

/// What makes a program a process of the API.
pub struct Start {
    pub launch: Launch,
    /// As it is listed.
    pub shown: String,
    pub timeout: Option<Duration>,
    /// Whether standard input is a pipe.
    pub stdin: bool,
    pub arrived: Instant,
    /// The start's name and the right to start under it, if it has one.
    pub name: Option<(String, Turn)>,
}

/// See the module.
pub struct Table {
    inner: Mutex<Inner>,
    children: Arc<Children>,
    names: Names,
    directory: PathBuf,
    change_user: bool,
}

#[derive(Default)]
struct Inner {
    processes: BTreeMap<u32, Arc<Process>>,
    named: HashMap<String, u32>,
    running: usize,
    uses: u64,
    /// How many have ended since the bounds were looked at.
    unchecked: usize,
}

impl Inner {
    fn forget(&mut self, pid: u32) {
        if let Some(process) = self.processes.remove(&pid)
            && let Some(name) = &process.name
        {
            self.named.remove(name);
        }
    }
}

impl Table {
    /// Records that outgrow memory go to files in `directory`, which is made when it is needed.
    pub fn new(directory: PathBuf, change_user: bool, children: Arc<Children>) -> Self {
        Self { inner: Mutex::default(), children, names: Names::default(), directory, change_user }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// Where records go that outgrow memory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Waits until no other start under this name is under way.
    pub async fn turn(&self, run_id: &str) -> Result<Turn, Status> {
        self.names.turn("run_id", run_id).await
    }

    /// What was started under this name before.
    pub fn named(&self, run_id: &str) -> Option<Arc<Process>> {
        let pid = self.inner().named.get(run_id).copied()?;
        self.find(pid).ok()
    }

    /// Starts a process and the task that looks after it. `elsewhere`: the system calls may hang, so
    /// they are made on another thread. A start that was begun is completed, whatever becomes of its caller.
    pub async fn launch(
        self: &Arc<Self>,
        start: Arc<Start>,
        elsewhere: bool,
    ) -> Result<Arc<Process>, LaunchError> {
        if !elsewhere {
            return self.launch_here(&start);
        }
        let table = Arc::clone(self);
        tokio::task::spawn_blocking(move || table.launch_here(&start))
            .await
            .unwrap_or_else(|error| Err(LaunchError::Resources(error.to_string())))
    }

    fn launch_here(self: &Arc<Self>, start: &Start) -> Result<Arc<Process>, LaunchError> {
        {
            let mut inner = self.inner();
            if inner.running >= RUNNING {
                return Err(LaunchError::Resources(format!("{RUNNING} processes run already")));
            }
            inner.running += 1;
        }
        let process = self.execute(start).map(|started| self.enter(start, started));
        if process.is_err() {
            self.inner().running -= 1;
        }
        process
    }

    fn enter(self: &Arc<Self>, start: &Start, started: Started) -> Arc<Process> {
        let Started { child, stdin, stdout, stderr } = started;
        let pid = child.leader.pid;
        let process = {
            let mut inner = self.inner();
            inner.uses += 1;
            let process = Arc::new(Process::new(child.leader, start, stdin, inner.uses));
            // A number that comes again belongs to the newer process.
            inner.forget(pid);
            inner.processes.insert(pid, Arc::clone(&process));
            if let Some(name) = &process.name {
                inner.named.insert(name.clone(), pid);
            }
            process
        };
        let ends = Ends { stdout, stderr, exit: child.exit };
        tokio::spawn(supervise(Arc::clone(self), Arc::clone(&process), ends, start.timeout));
        process
    }

    /// The system calls of a start. May block.
    fn execute(&self, start: &Start) -> Result<Started, LaunchError> {
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
        let (stdin, stdin_ours) = if start.stdin {
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
        let files = Files::Three { stdin: stdin.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd() };
        let beginning = self.children.begin();
        let child = beginning.child(start.launch.execute(&files, self.change_user)?);
        Ok(Started { child, stdin: stdin_ours, stdout: stdout_ours, stderr: stderr_ours })
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
            inner.forget(pid);
            (kept, memory, disk) = (kept - 1, memory - size.0, disk - size.1);
        }
    }

    /// Forgets all that have ended.
    pub fn forget_ended(&self) {
        let mut inner = self.inner();
        let ended: Vec<u32> =
            inner.processes.values().filter(|process| process.exit().is_some()).map(|p| p.pid).collect();
        ended.into_iter().for_each(|pid| inner.forget(pid));
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
    child: Child,
    stdin: Option<AsyncFd<OwnedFd>>,
    stdout: AsyncFd<OwnedFd>,
    stderr: AsyncFd<OwnedFd>,
}

//! The set of processes started through the API.
//!
//! The table owns who is in it, which start has which name, and how long an ended process is remembered:
//! records are bounded in number, memory and disk, and the longest unused are forgotten first. A running
//! process never is.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tonic::Status;

use super::Process;
use super::children::{Child, Children};
use super::launch::{Files, Launch, LaunchError};
use super::name::{Names, Turn};
use super::pipe::{self, Pipe};
use super::supervise::{Ends, supervise};

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
    pub standard: Standard,
    pub arrived: Instant,
    /// The start's name and the right to start under it, if it has one.
    pub name: Option<(String, Turn)>,
}

/// What a process has as its standard files.
pub enum Standard {
    /// Its output is recorded. Whether standard input is a pipe, or empty.
    Recorded { stdin: bool },
    /// Those of the caller, who looks after their other ends.
    Given([OwnedFd; 3]),
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
        let stdin_is_pipe = match &start.standard {
            Standard::Given([stdin, stdout, stderr]) => {
                let files =
                    Files::Three { stdin: stdin.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd() };
                let child = self.begin(start, &files)?;
                return Ok(Started { child, stdin: None, stdout: None, stderr: None });
            }
            Standard::Recorded { stdin } => *stdin,
        };
        let (stdin, ours) = if stdin_is_pipe {
            let pipe = Pipe::to_program()?;
            (pipe.theirs, Some(pipe.ours))
        } else {
            (pipe::nothing()?, None)
        };
        let (stdout, stderr) = (Pipe::from_program()?, Pipe::from_program()?);
        let files = Files::Three {
            stdin: stdin.as_fd(),
            stdout: stdout.theirs.as_fd(),
            stderr: stderr.theirs.as_fd(),
        };
        let child = self.begin(start, &files)?;
        Ok(Started { child, stdin: ours, stdout: Some(stdout.ours), stderr: Some(stderr.ours) })
    }

    fn begin(&self, start: &Start, files: &Files<'_>) -> Result<Child, LaunchError> {
        let beginning = self.children.begin();
        Ok(beginning.child(start.launch.execute(files, self.change_user)?))
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
    stdout: Option<AsyncFd<OwnedFd>>,
    stderr: Option<AsyncFd<OwnedFd>>,
}

//! Processes started through the API: their output, their end, and who follows them.
//!
//! - `table` owns the set of processes, starts them, and forgets the oldest that ended.
//! - `children` owns who waits for which exit status, and `reaper` waiting itself: the only place that
//!   takes exit statuses, of orphans as well. `name` owns whose turn it is to start under a name.
//! - `supervise` owns one process's pipes and time limit, in a task of its own.
//! - `follow` reads what is recorded, for streams. It owns nothing but its place in `pace`, by which a
//!   process waits for followers that ask for it; a dropped stream means nothing.
//! - `piped` owns the streams of a program that is not recorded.
//! - `output` and `store` are the record; `launch`, `pipe` and `spawn` are the start of any program, `window`
//!   is what readers of any pace have still to take, for terminals too; `listing` shows all processes.

pub mod children;
pub mod follow;
pub mod launch;
pub mod listing;
pub mod name;
pub mod output;
mod pace;
pub mod pipe;
pub mod piped;
pub mod reaper;
pub mod signal;
mod spawn;
mod store;
mod supervise;
pub mod table;
pub mod window;

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tonic::Status;

use children::Leader;
use output::{Channel, OUTPUT_BYTES, Output};
use pace::Pace;
use signal::Signal;
use table::Start;

/// A process started through the API, running or ended.
pub struct Process {
    pub pid: u32,
    leader: Arc<Leader>,
    /// As it was asked for.
    pub command: String,
    /// Of its start, if it has one.
    name: Option<String>,
    /// When the call that started it came.
    arrived: Instant,
    has_stdin: bool,
    stdin: tokio::sync::Mutex<Option<AsyncFd<OwnedFd>>>,
    ended: Notify,
    /// A follower that the process waits for has moved or is gone.
    moved: Notify,
    state: Mutex<State>,
}

struct State {
    output: Output,
    pace: Pace,
    exit: Option<Exit>,
    followers: Vec<Waker>,
    /// Counts up with each use, for forgetting the longest unused.
    used: u64,
}

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// 128 + signal for one that was killed.
    pub code: i32,
    pub timed_out: bool,
    /// Since the call came.
    pub duration: Duration,
    pub stdout_bytes: u64,
    pub stderr_bytes: u64,
}

impl Process {
    fn new(leader: Arc<Leader>, start: &Start, stdin: Option<AsyncFd<OwnedFd>>, used: u64) -> Self {
        Self {
            pid: leader.pid,
            leader,
            command: start.shown.clone(),
            name: start.name.as_ref().map(|(name, _)| name.clone()),
            arrived: start.arrived,
            has_stdin: stdin.is_some(),
            stdin: tokio::sync::Mutex::new(stdin),
            ended: Notify::new(),
            moved: Notify::new(),
            state: Mutex::new(State {
                output: Output::new(OUTPUT_BYTES),
                pace: Pace::default(),
                exit: None,
                followers: Vec::new(),
                used,
            }),
        }
    }

    #[cfg(test)]
    fn for_test(leader: Arc<Leader>, output: Output) -> Self {
        let launch = launch::Launch {
            program: "true".into(),
            arguments: Vec::new(),
            environment: Default::default(),
            directory: "/".into(),
            account: crate::account::Account::root(),
            admission: crate::freezer::Freezer::without_groups().admit_hook(),
        };
        let arrived = Instant::now();
        let start = Start {
            launch,
            shown: "true".into(),
            timeout: None,
            standard: table::Standard::Recorded { stdin: false },
            arrived,
            name: None,
        };
        let process = Self::new(leader, &start, None, 0);
        process.state().output = output;
        process
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// How it ended; none while it runs.
    pub fn exit(&self) -> Option<Exit> {
        self.state().exit
    }

    /// Waits until it has ended or written something, at most this long.
    pub async fn spoken_within(&self, time: Duration) {
        if time.is_zero() {
            return;
        }
        let spoken = poll_fn(|context| {
            let mut state = self.state();
            if state.exit.is_some() || state.pace.came() > 0 {
                return Poll::Ready(());
            }
            state.wake_later(context.waker());
            Poll::Pending
        });
        // Over is over, whichever came first.
        let _ = tokio::time::timeout(time, spoken).await;
    }

    /// Sends SIGKILL to the whole group. Nothing happens once the process was reaped.
    pub fn kill(&self) {
        self.leader.kill();
    }

    /// Sends a signal to the whole group. Nothing happens once the process was reaped.
    pub fn signal(&self, signal: Signal) {
        self.leader.signal(signal);
    }

    /// Waits until it has ended.
    pub async fn ended(&self) {
        let ended = self.ended.notified();
        tokio::pin!(ended);
        // Registered before the state is looked at, so the end cannot fall between.
        ended.as_mut().enable();
        if self.exit().is_none() {
            ended.await;
        }
    }

    /// The process has ended and what it had written is recorded.
    fn finish(&self, code: i32, timed_out: bool, directory: &Path) {
        let mut state = self.state();
        state.output.mark(directory);
        state.pace.end();
        state.exit = Some(Exit {
            code,
            timed_out,
            duration: self.arrived.elapsed(),
            stdout_bytes: state.output.len(Channel::Stdout),
            stderr_bytes: state.output.len(Channel::Stderr),
        });
        wake(state);
        self.ended.notify_waiters();
    }

    /// Writes to the process's standard input, all of it, and closes it where asked to.
    /// Waits as long as the process does not read; ends with it.
    pub async fn write_stdin(&self, data: &[u8], close: bool) -> Result<(), Status> {
        let closed =
            || Status::failed_precondition(format!("standard input of process {} is closed", self.pid));
        if !self.has_stdin {
            return Err(Status::failed_precondition(format!(
                "process {} has no standard input: it was not started with one",
                self.pid
            )));
        }
        let ended = self.ended.notified();
        tokio::pin!(ended);
        // Registered before the state is looked at, so the end cannot fall between.
        ended.as_mut().enable();
        if self.exit().is_some() {
            return Err(closed());
        }
        let write = async {
            let mut stdin = self.stdin.lock().await;
            let Some(pipe) = stdin.as_ref() else { return Err(closed()) };
            let mut left = data;
            while !left.is_empty() {
                let mut ready = pipe.writable().await.map_err(|e| Status::internal(e.to_string()))?;
                match ready.try_io(|pipe| Ok(nix::unistd::write(pipe, left)?)) {
                    Ok(Ok(written)) => left = &left[written..],
                    Ok(Err(error)) if error.raw_os_error() == Some(libc::EPIPE) => {
                        *stdin = None;
                        return Err(closed());
                    }
                    Ok(Err(error)) => {
                        return Err(Status::internal(format!(
                            "standard input of process {}: {error}",
                            self.pid
                        )));
                    }
                    Err(_not_yet) => {}
                }
            }
            if close {
                *stdin = None;
            }
            Ok(())
        };
        tokio::select! {
            result = write => result,
            () = ended => Err(closed()),
        }
    }
}

impl State {
    /// Output came; what was to be written of it to a file is there.
    fn commit(&mut self, channel: Channel, data: &[u8], directory: &Path) {
        if self.output.commit(channel, data, directory) {
            self.pace.recorded(data.len());
        } else {
            self.pace.left_out(channel, data);
        }
    }

    /// Output came for which the log has no room.
    fn leave_out(&mut self, channel: Channel, data: &[u8]) {
        self.output.leave_out(channel, data.len());
        self.pace.left_out(channel, data);
    }

    /// Has a follower woken at the next change.
    fn wake_later(&mut self, follower: &Waker) {
        if !self.followers.iter().any(|waker| waker.will_wake(follower)) {
            self.followers.push(follower.clone());
        }
    }
}

/// Lets go of the state and wakes those who wait for it.
fn wake(mut state: MutexGuard<'_, State>) {
    let followers = std::mem::take(&mut state.followers);
    drop(state);
    for follower in followers {
        follower.wake();
    }
}

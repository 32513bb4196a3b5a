//! Processes started through the API: their output, their end, and who follows them.
//!
//! - `table` owns the set of processes, starts them, and forgets the oldest that ended.
//! - `reaper` owns waiting: the only place that takes exit statuses, of orphans as well.
//! - `supervise` owns one process's pipes and time limit, in a task of its own.
//! - `follow` reads what is recorded, for streams; it owns nothing, so a dropped stream means nothing.
//! - `output` and `store` are the record; `spawn` is the system calls; `listing` shows all processes.

pub mod follow;
pub mod listing;
pub mod output;
pub mod reaper;
mod spawn;
mod store;
mod supervise;
pub mod table;

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard};
use std::task::Waker;
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tonic::Status;

use output::{Channel, Output};

/// A process started through the API, running or ended.
pub struct Process {
    pub pid: u32,
    /// As it was asked for.
    pub command: String,
    /// When the call that started it came.
    arrived: Instant,
    has_stdin: bool,
    stdin: tokio::sync::Mutex<Option<AsyncFd<OwnedFd>>>,
    ended: Notify,
    state: Mutex<State>,
}

struct State {
    output: Output,
    /// The kernel's process is gone: its number may belong to another one.
    reaped: bool,
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
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// How it ended; none while it runs.
    pub fn exit(&self) -> Option<Exit> {
        self.state().exit
    }

    /// Waits for its end, at most this long.
    pub async fn ended_within(&self, time: Duration) {
        let ended = self.ended.notified();
        tokio::pin!(ended);
        // Registered before the state is looked at, so the end cannot fall between.
        ended.as_mut().enable();
        if !time.is_zero() && self.exit().is_none() {
            // Over is over, whichever came first.
            let _ = tokio::time::timeout(time, ended).await;
        }
    }

    /// Sends SIGKILL to the whole group. Nothing happens once the process was reaped.
    pub fn kill(&self) {
        let state = self.state();
        if !state.reaped {
            // The group exists at least until its leader is reaped, so the only error is none.
            let _ = nix::sys::signal::killpg(
                nix::unistd::Pid::from_raw(self.pid as i32),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }

    /// The process has been reaped: from now on nobody sends signals to its number.
    fn set_reaped(&self) {
        self.state().reaped = true;
    }

    /// The process has ended and what it had written is recorded.
    fn finish(&self, code: i32, timed_out: bool, directory: &std::path::Path) {
        let mut state = self.state();
        state.output.mark(directory);
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
                "process {} has no standard input: it was not started in the background",
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

/// Lets go of the state and wakes those who wait for it.
fn wake(mut state: MutexGuard<'_, State>) {
    let followers = std::mem::take(&mut state.followers);
    drop(state);
    for follower in followers {
        follower.wake();
    }
}

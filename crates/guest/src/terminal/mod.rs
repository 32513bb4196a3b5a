//! Terminal sessions: a program on a pseudo-terminal, and whoever looks at it.
//!
//! - `sessions` owns the set: how many there are, and how long one that ended is remembered.
//! - `drive` owns one session's terminal, in a task of its own: it reads what the program writes, and says
//!   when the session has ended.
//! - `screen` is what the terminal shows now, with `modes`, so that a viewer who comes later can be shown
//!   it; `viewer` is the stream that a viewer sees.
//! - `pty` is the system calls.
//!
//! A session does not depend on its viewers. One that is behind holds the program back, as a slow terminal
//! does, but not for long if it does not move at all: then it no longer counts, and is shown the screen
//! anew when it moves again.

mod drive;
mod modes;
mod pty;
mod screen;
pub mod sessions;
pub mod viewer;

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nullspace_guest_proto as pb;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tonic::Status;

use crate::mounts::elsewhere;
use crate::process::children::Leader;
use crate::process::listing;
use crate::process::window::Window;
use screen::Screen;

/// Most columns or rows.
const SIDE_MAX: u32 = 1000;

/// Columns and rows of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub cols: u16,
    pub rows: u16,
}

impl Size {
    /// Errors: a side that is out of bounds.
    pub fn new(cols: u32, rows: u32) -> Result<Self, Status> {
        for (name, side) in [("cols", cols), ("rows", rows)] {
            if !(1..=SIDE_MAX).contains(&side) {
                return Err(Status::invalid_argument(format!(
                    "{name} is {side}; it must be 1 to {SIDE_MAX}"
                )));
            }
        }
        Ok(Self { cols: cols as u16, rows: rows as u16 })
    }
}

/// A session, running or ended.
pub struct Session {
    id: String,
    leader: Arc<Leader>,
    begun: Instant,
    /// Of two messages that are typed at once, one comes first as a whole.
    typing: tokio::sync::Mutex<()>,
    ended: Notify,
    /// A viewer has moved or is gone.
    moved: Notify,
    state: Mutex<State>,
}

struct State {
    size: Size,
    shows: Shows,
    /// What viewers have still to see.
    window: Window,
    viewers: Vec<Waker>,
}

enum Shows {
    Running { screen: Box<Screen>, terminal: Arc<AsyncFd<OwnedFd>> },
    Ended { last: Bytes, exit: Exit },
}

/// How a session ended.
#[derive(Clone, Copy)]
struct Exit {
    /// 128 + signal for one whose program was killed.
    code: i32,
    duration: Duration,
}

impl Session {
    fn new(id: String, leader: Arc<Leader>, size: Size, terminal: Arc<AsyncFd<OwnedFd>>) -> Self {
        let shows = Shows::Running { screen: Box::new(Screen::new(size)), terminal };
        let state = State { size, shows, window: Window::default(), viewers: Vec::new() };
        Self {
            id,
            leader,
            begun: Instant::now(),
            typing: tokio::sync::Mutex::default(),
            ended: Notify::new(),
            moved: Notify::new(),
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// The session as the protocol has it.
    pub fn info(&self) -> pb::Terminal {
        let size = self.state().size;
        pb::Terminal {
            session_id: self.id.clone(),
            pid: self.leader.pid,
            cols: size.cols.into(),
            rows: size.rows.into(),
        }
    }

    /// The terminal, as long as the session runs.
    fn terminal(&self) -> Result<Arc<AsyncFd<OwnedFd>>, Status> {
        match &self.state().shows {
            Shows::Running { terminal, .. } => Ok(Arc::clone(terminal)),
            Shows::Ended { .. } => Err(self.has_ended()),
        }
    }

    fn has_ended(&self) -> Status {
        Status::failed_precondition(format!("terminal session {} has ended", self.id))
    }

    /// Types into the terminal. Waits as long as the program does not read; ends with the session.
    pub async fn write(&self, data: &[u8]) -> Result<(), Status> {
        let ended = self.ended.notified();
        tokio::pin!(ended);
        // Registered before the state is looked at, so the end cannot fall between.
        ended.as_mut().enable();
        let terminal = self.terminal()?;
        let write = async {
            let _whole = self.typing.lock().await;
            let mut left = data;
            while !left.is_empty() {
                let mut ready = terminal.writable().await.map_err(|e| Status::internal(e.to_string()))?;
                match ready.try_io(|terminal| Ok(nix::unistd::write(terminal, left)?)) {
                    Ok(Ok(written)) => left = &left[written..],
                    Ok(Err(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                        return Err(self.has_ended());
                    }
                    Ok(Err(error)) => {
                        return Err(Status::internal(format!("terminal session {}: {error}", self.id)));
                    }
                    Err(_not_yet) => {}
                }
            }
            Ok(())
        };
        tokio::select! {
            result = write => result,
            () = ended => Err(self.has_ended()),
        }
    }

    /// Gives the terminal another size, of which its program is told by a signal.
    fn resize(&self, size: Size) -> Result<(), Status> {
        let mut state = self.state();
        let Shows::Running { screen, terminal } = &mut state.shows else { return Err(self.has_ended()) };
        pty::resize(terminal.get_ref(), size)
            .map_err(|error| Status::internal(format!("terminal session {}: {}", self.id, error.desc())))?;
        screen.resize(size);
        state.size = size;
        Ok(())
    }

    /// Sends SIGKILL to every process of the session. Nothing happens to one that has ended.
    pub async fn kill(&self) -> Result<(), Status> {
        if matches!(self.state().shows, Shows::Ended { .. }) {
            return Ok(());
        }
        self.leader.kill();
        let leader = self.leader.pid;
        elsewhere(move || kill_session(leader)).await
    }
}

/// A shell gives each of its jobs a group of its own, so its own group is not all. What was killed starts
/// nothing more: in the end no process is found that was not there before. May take long.
fn kill_session(leader: u32) {
    let mut killed = HashSet::new();
    loop {
        let found = listing::session(leader);
        let new: Vec<_> = found.into_iter().filter(|pid| killed.insert(*pid)).collect();
        if new.is_empty() {
            return;
        }
        for pid in new {
            // It may have ended just now.
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
    }
}

/// Lets go of the state and wakes the viewers.
fn wake(mut state: MutexGuard<'_, State>) {
    let viewers = std::mem::take(&mut state.viewers);
    drop(state);
    for viewer in viewers {
        viewer.wake();
    }
}

//! The set of terminal sessions.
//!
//! Those that run are bounded in number and in what their screens take; of those that have ended the last
//! are kept, so that a viewer who comes back late learns how one ended. A session's ID is the caller's, and
//! names it as long as it is remembered.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};

use nix::errno::Errno;
use nullspace_guest_proto as pb;
use tokio::io::Interest;
use tonic::Status;

use super::drive::{Ends, drive};
use super::screen::SCROLLBACK;
use super::{Session, Shows, Size, pty};
use crate::process::children::Children;
use crate::process::launch::{Files, Launch, LaunchError};
use crate::process::name::{Names, Turn};
use crate::watch::watch;

/// Sessions that may run at once.
const RUNNING: usize = 64;
/// Cells of all their screens together, with what is kept above them: some 64 MiB.
const CELLS: usize = 4 << 20;
/// What is kept of sessions that have ended.
const KEPT: usize = 64;
const KEPT_BYTES: usize = 4 << 20;

/// A session to start.
pub struct Start {
    /// Its ID, and the right to start under it.
    pub name: (String, Turn),
    pub size: Size,
    pub launch: Launch,
}

/// See the module.
pub struct Sessions {
    inner: Mutex<Inner>,
    children: Arc<Children>,
    names: Names,
    change_user: bool,
}

#[derive(Default)]
struct Inner {
    running: BTreeMap<String, Arc<Session>>,
    ended: VecDeque<Arc<Session>>,
    /// Those that run or are being started, and their cells.
    count: usize,
    cells: usize,
}

impl Inner {
    fn known(&self, session_id: &str) -> Option<Arc<Session>> {
        let ended = || self.ended.iter().find(|session| session.id == session_id);
        self.running.get(session_id).or_else(ended).cloned()
    }

    /// Makes room for a screen in place of others.
    fn reserve(&mut self, size: Size, instead_of: usize) -> Result<(), String> {
        let after = self.cells - instead_of + cells(size);
        if after > CELLS {
            return Err(format!(
                "the screens of all terminals together would have {after} cells; at most {CELLS}"
            ));
        }
        self.cells = after;
        Ok(())
    }
}

/// Cells of both screens and of what is kept above the primary one.
fn cells(size: Size) -> usize {
    usize::from(size.cols) * (2 * usize::from(size.rows) + SCROLLBACK)
}

impl Sessions {
    /// `change_user`: the agent may become another user.
    pub fn new(change_user: bool, children: Arc<Children>) -> Self {
        Self { inner: Mutex::default(), children, names: Names::default(), change_user }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// Waits until no other start of this session is under way.
    pub async fn turn(&self, session_id: &str) -> Result<Turn, Status> {
        self.names.turn("session_id", session_id).await
    }

    /// The session with this ID, if there is one.
    pub fn known(&self, session_id: &str) -> Option<Arc<Session>> {
        self.inner().known(session_id)
    }

    /// The session with this ID. Errors: there is none.
    pub fn find(&self, session_id: &str) -> Result<Arc<Session>, Status> {
        self.known(session_id)
            .ok_or_else(|| Status::not_found(format!("there is no terminal session {session_id}")))
    }

    /// Those that run.
    pub fn running(&self) -> Vec<pb::Terminal> {
        self.inner().running.values().map(|session| session.info()).collect()
    }

    /// Starts a session and the task that looks after it. `elsewhere`: the system calls may hang, so they
    /// are made on another thread. A start that was begun is completed, whatever becomes of its caller.
    pub async fn launch(
        self: &Arc<Self>,
        start: Arc<Start>,
        elsewhere: bool,
    ) -> Result<Arc<Session>, LaunchError> {
        if !elsewhere {
            return self.launch_here(&start);
        }
        let sessions = Arc::clone(self);
        tokio::task::spawn_blocking(move || sessions.launch_here(&start))
            .await
            .unwrap_or_else(|error| Err(LaunchError::Resources(error.to_string())))
    }

    fn launch_here(self: &Arc<Self>, start: &Start) -> Result<Arc<Session>, LaunchError> {
        {
            let mut inner = self.inner();
            if inner.count >= RUNNING {
                return Err(LaunchError::Resources(format!("{RUNNING} terminal sessions run already")));
            }
            inner.reserve(start.size, 0).map_err(LaunchError::Resources)?;
            inner.count += 1;
        }
        let session = self.execute(start);
        if session.is_err() {
            let mut inner = self.inner();
            inner.count -= 1;
            inner.cells -= cells(start.size);
        }
        session
    }

    /// May block.
    fn execute(self: &Arc<Self>, start: &Start) -> Result<Arc<Session>, LaunchError> {
        let no_terminal =
            |error: Errno| LaunchError::Resources(format!("no pseudo-terminal: {}", error.desc()));
        let owner = self.change_user.then_some(start.launch.account.uid);
        let (ours, theirs) = pty::open_pair(start.size, owner).map_err(no_terminal)?;
        // Made ready before the start: after it nothing may fail.
        let ours = watch(ours, Interest::READABLE | Interest::WRITABLE)
            .map_err(|error| LaunchError::Resources(format!("a terminal cannot be watched: {error}")))?;
        let ours = Arc::new(ours);
        let beginning = self.children.begin();
        let files = Files::Terminal(theirs.as_fd());
        let child = beginning.child(start.launch.execute(&files, self.change_user)?);
        let id = start.name.0.clone();
        let session = Arc::new(Session::new(id.clone(), child.leader, start.size, Arc::clone(&ours)));
        self.inner().running.insert(id, Arc::clone(&session));
        tokio::spawn(drive(Arc::clone(self), Arc::clone(&session), Ends { ours, theirs, exit: child.exit }));
        Ok(session)
    }

    /// Gives a session another size. Errors: it has ended; there is no room for so large a screen.
    pub fn resize(&self, session: &Session, size: Size) -> Result<(), Status> {
        let mut inner = self.inner();
        let before = cells(session.state().size);
        if !inner.running.contains_key(&session.id) {
            return Err(session.has_ended());
        }
        inner.reserve(size, before).map_err(Status::resource_exhausted)?;
        let resized = session.resize(size);
        if resized.is_err() {
            inner.cells = inner.cells - cells(size) + before;
        }
        resized
    }

    /// A session has ended.
    pub(super) fn ended(&self, session: &Arc<Session>) {
        let mut inner = self.inner();
        if inner.running.remove(&session.id).is_none() {
            return;
        }
        inner.count -= 1;
        inner.cells -= cells(session.state().size);
        inner.ended.push_front(Arc::clone(session));
        let mut bytes = 0;
        let kept = inner.ended.iter().take(KEPT).take_while(|session| {
            bytes += match &session.state().shows {
                Shows::Ended { last, .. } => last.len(),
                Shows::Running { .. } => 0,
            };
            bytes <= KEPT_BYTES
        });
        let kept = kept.count();
        // The newest is kept whatever its size.
        inner.ended.truncate(kept.max(1));
    }
}

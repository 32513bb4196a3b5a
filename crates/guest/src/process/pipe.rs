//! Pipes between the agent and a program: our end, which the event loop watches, and the program's.
//!
//! Both are made ready before the program is started: after its start nothing may fail.

use std::fs::File;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::launch::LaunchError;
use crate::watch::watch;

/// One pipe.
pub struct Pipe {
    pub ours: AsyncFd<OwnedFd>,
    pub theirs: OwnedFd,
}

impl Pipe {
    /// One that the program reads.
    pub fn to_program() -> Result<Self, LaunchError> {
        let (theirs, ours) = ends()?;
        Ok(Self { ours: watched(ours, Interest::WRITABLE)?, theirs })
    }

    /// One that the program writes.
    pub fn from_program() -> Result<Self, LaunchError> {
        let (ours, theirs) = ends()?;
        Ok(Self { ours: watched(ours, Interest::READABLE)?, theirs })
    }

    /// Has it hold so much, where the kernel allows that; else it holds less and is only slower.
    pub fn holding(self, bytes: i32) -> Self {
        let _ = fcntl(&self.theirs, FcntlArg::F_SETPIPE_SZ(bytes));
        self
    }
}

/// A standard input that is empty.
pub fn nothing() -> Result<OwnedFd, LaunchError> {
    let null = File::open("/dev/null");
    null.map(OwnedFd::from)
        .map_err(|error| LaunchError::Resources(format!("/dev/null cannot be opened: {error}")))
}

fn ends() -> Result<(OwnedFd, OwnedFd), LaunchError> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(no_pipe)
}

fn watched(end: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>, LaunchError> {
    fcntl(&end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(no_pipe)?;
    watch(end, interest).map_err(|error| LaunchError::Resources(format!("a pipe cannot be watched: {error}")))
}

fn no_pipe(error: Errno) -> LaunchError {
    LaunchError::Resources(format!("no pipe: {}", error.desc()))
}

//! Bytes from a pipe to a connection and back, moved by the kernel: `splice(2)`. The agent never sees them,
//! and copies none.
//!
//! Both sides are descriptors that do not block and that the event loop watches. One of the two must be a
//! pipe.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::unix::AsyncFd;

/// Bytes moved at once: what a pipe holds, and no more in one turn of the event loop.
pub const PIECE: usize = 256 << 10;
/// What is read at once of what nobody wants.
const DISCARDED: usize = 16 << 10;

/// Moves what comes until `from` ends. Errors: either side broke.
pub async fn carry(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        // Others have their turn, whatever comes here.
        tokio::task::coop::consume_budget().await;
        let mut room = to.writable().await?;
        let mut data = from.readable().await?;
        match splice(from.get_ref(), None, to.get_ref(), None, PIECE, flags) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            // The kernel does not say which of the two it was.
            Err(Errno::EAGAIN) => {
                if !is_ready(from.get_ref(), PollFlags::POLLIN)? {
                    data.clear_ready();
                }
                if !is_ready(to.get_ref(), PollFlags::POLLOUT)? {
                    room.clear_ready();
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn is_ready(descriptor: &OwnedFd, events: PollFlags) -> io::Result<bool> {
    Ok(poll(&mut [PollFd::new(descriptor.as_fd(), events)], PollTimeout::ZERO)? > 0)
}

/// Reads what comes until `from` ends or breaks, and lets it fall. A connection that is closed with
/// something unread in it is reset, and what was sent last may be lost with it.
pub async fn discard(from: &AsyncFd<OwnedFd>) {
    let mut buffer = [0; DISCARDED];
    loop {
        tokio::task::coop::consume_budget().await;
        let Ok(mut ready) = from.readable().await else { return };
        match ready.try_io(|from| Ok(nix::unistd::read(from.get_ref(), &mut buffer)?)) {
            Ok(Ok(0)) => return,
            Ok(Err(error)) if error.kind() != io::ErrorKind::Interrupted => return,
            Ok(_) | Err(_) => {}
        }
    }
}

//! The system calls of a pseudo-terminal.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::sys::termios::{InputFlags, SetArg, tcgetattr, tcsetattr};
use nix::unistd::{Uid, fchown};

use super::Size;

/// A pseudo-terminal: our side, which does not block, and the program's. A program that opens its terminal
/// by name, as `tmux` does, needs it to be its user's: `owner`, if the agent may give it away.
pub fn open_pair(size: Size, owner: Option<u32>) -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let ours = posix_openpt(flags | OFlag::O_NONBLOCK)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let theirs = open(ptsname_r(&ours)?.as_str(), flags, Mode::empty())?;
    if let Some(owner) = owner {
        fchown(&theirs, Some(Uid::from_raw(owner)), None)?;
    }
    // Erasing a character then erases all of its bytes.
    let mut settings = tcgetattr(&theirs)?;
    settings.input_flags |= InputFlags::IUTF8;
    tcsetattr(&theirs, SetArg::TCSANOW, &settings)?;
    let ours = OwnedFd::from(ours);
    resize(&ours, size)?;
    Ok((ours, theirs))
}

/// Sets the size. The kernel sends SIGWINCH to the group in the foreground.
pub fn resize(terminal: &impl AsFd, size: Size) -> Result<(), Errno> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is borrowed, so it is open, and the pointer is to a live `winsize`.
    Errno::result(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })
        .map(drop)
}

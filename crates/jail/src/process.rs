//! A process that is not our child: found by PID and start time, watched and killed through a
//! descriptor that cannot come to mean another process.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::Error;

/// A running process.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    start_time: u64,
    pidfd: OwnedFd,
}

impl Process {
    /// The process that has this PID now.
    pub fn find(pid: u32) -> Result<Self, Error> {
        let pidfd = pidfd_open(pid).map_err(|_| Error::Gone(pid))?;
        let start_time = start_time(pid).ok_or(Error::Gone(pid))?;
        Ok(Self { pid, start_time, pidfd })
    }

    /// The process that had this PID and this start time; another one with the same PID is not it.
    pub fn find_again(pid: u32, since: u64) -> Result<Self, Error> {
        let found = Self::find(pid)?;
        if found.start_time == since && !found.ended() { Ok(found) } else { Err(Error::Gone(pid)) }
    }

    /// The PID, in the host's numbering.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When it started, in clock ticks since the host's boot: with the PID, its identity.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Kills it. A process that has ended is no error.
    #[allow(unsafe_code, reason = "no safe wrapper for pidfd_send_signal")]
    pub fn kill(&self) {
        // SAFETY: the descriptor is open for the life of `self`; no memory is passed.
        let done = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), libc::SIGKILL, 0, 0)
        };
        if done != 0 {
            let error = std::io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::ESRCH) {
                tracing::error!(pid = self.pid, %error, "a process could not be killed");
            }
        }
    }

    /// Whether it has ended.
    pub fn ended(&self) -> bool {
        let mut fds = [nix::poll::PollFd::new(self.pidfd.as_fd(), nix::poll::PollFlags::POLLIN)];
        matches!(nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO), Ok(n) if n > 0)
    }
}

impl AsRawFd for Process {
    fn as_raw_fd(&self) -> i32 {
        self.pidfd.as_raw_fd()
    }
}

impl AsFd for Process {
    /// Readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

#[allow(unsafe_code, reason = "no safe wrapper for pidfd_open")]
fn pidfd_open(pid: u32) -> std::io::Result<OwnedFd> {
    // SAFETY: takes two integers; the descriptor it answers is new and owned by nobody else.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid, 0) {
            fd if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd as i32)),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

/// Field 22 of `/proc/PID/stat`; the name before it may hold anything, so it is cut at its last `)`.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_again_only_with_its_start_time() {
        let me = Process::find(std::process::id()).unwrap();
        assert!(Process::find_again(me.pid(), me.start_time()).is_ok());
        assert!(Process::find_again(me.pid(), me.start_time() + 1).is_err());
    }

    #[test]
    fn a_killed_process_has_ended() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::find(child.id()).unwrap();
        assert!(!process.ended());
        process.kill();
        child.wait().unwrap();
        assert!(process.ended());
        process.kill();
    }
}

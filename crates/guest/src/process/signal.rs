//! Signals by their number. The typed ones of `nix` end before the real-time signals, which a caller may
//! name as well.
#![allow(unsafe_code)]

use nix::errno::Errno;
use tonic::Status;

/// The last number that the kernel knows.
const LAST: u32 = 64;

/// A signal that can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(libc::c_int);

impl Signal {
    pub const KILL: Self = Self(libc::SIGKILL);
    /// The other end of a program's terminal, or of its streams, is gone.
    pub const HANG_UP: Self = Self(libc::SIGHUP);
    pub const CONTINUE: Self = Self(libc::SIGCONT);

    /// As a request has it: 0 is SIGKILL.
    pub fn of_request(number: u32) -> Result<Self, Status> {
        match number {
            0 => Ok(Self::KILL),
            1..=LAST => Ok(Self(number as libc::c_int)),
            _ => Err(Status::invalid_argument(format!("signal is {number}; it must be 1 to {LAST}"))),
        }
    }

    /// To one process. Errors: it is gone, or not the agent's to signal.
    pub fn to_process(self, pid: i32) -> Result<(), Errno> {
        // SAFETY: the call takes plain numbers.
        Errno::result(unsafe { libc::kill(pid, self.0) }).map(drop)
    }

    /// To every process of a group. Errors: as above.
    pub fn to_group(self, leader: i32) -> Result<(), Errno> {
        // SAFETY: the call takes plain numbers.
        Errno::result(unsafe { libc::killpg(leader, self.0) }).map(drop)
    }
}

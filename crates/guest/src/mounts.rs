//! Whether file work may hang.
//!
//! The agent has one thread. Work on local file systems takes it microseconds there; a thread of its
//! own would cost more. But a program inside may mount a file system whose server is another program
//! or another machine, and then opening a file can take for ever. The kernel tells when the table of
//! mounts changes, so the table is read only then; while such a file system is there, all file work
//! goes to other threads.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Mutex;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tonic::Status;

/// File system types whose answers come from a program or from the network.
const REMOTE: [&str; 9] = ["fuse", "nfs", "cifs", "smb", "9p", "ceph", "afs", "virtiofs", "autofs"];

/// Watches the table of mounts.
pub struct Mounts {
    state: Mutex<State>,
}

struct State {
    table: Option<File>,
    may_hang: bool,
}

impl Mounts {
    /// Starts watching.
    pub fn watch() -> io::Result<Self> {
        let may_hang = any_remote(&std::fs::read_to_string("/proc/self/mountinfo")?);
        Ok(Self { state: Mutex::new(State { table: Some(File::open("/proc/self/mountinfo")?), may_hang }) })
    }

    /// Whether a file system that may hang is mounted now.
    pub fn may_hang(&self) -> bool {
        let mut state = self.state.lock().expect("no holder panics");
        if let Some(table) = &state.table {
            let mut fds = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
            match poll(&mut fds, PollTimeout::ZERO) {
                Ok(0) => return state.may_hang,
                Ok(_) => {}
                Err(_) => state.table = None,
            }
        }
        // Caution where the table cannot be read: threads are only slower.
        state.may_hang =
            std::fs::read_to_string("/proc/self/mountinfo").map_or(true, |table| any_remote(&table));
        state.may_hang
    }

    /// Does file work here, or on another thread where it may hang or is known to be long.
    pub async fn run<T: Send + 'static>(
        &self,
        long: bool,
        work: impl FnOnce() -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        if long || self.may_hang() { elsewhere(work).await? } else { work() }
    }
}

/// Does work on another thread.
pub async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Status::internal(format!("file work ended: {e}")))
}

fn any_remote(table: &str) -> bool {
    table.lines().any(|line| {
        let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or("");
        kind != "fusectl" && REMOTE.iter().any(|remote| kind.starts_with(remote))
    })
}

#[cfg(test)]
mod tests {
    use super::any_remote;

    #[test]
    fn only_file_systems_served_by_programs_or_the_network_may_hang() {
        let line = |kind: &str| format!("36 35 98:0 / /mnt rw,noatime master:1 - {kind} /dev/root rw\n");
        for kind in ["ext4", "tmpfs", "overlay", "fusectl", "proc"] {
            assert!(!any_remote(&line(kind)), "{kind}");
        }
        for kind in ["fuse.s3fs", "fuseblk", "nfs4", "9p", "virtiofs"] {
            assert!(any_remote(&(line("ext4") + &line(kind))), "{kind}");
        }
    }
}

//! The end of the machine: processes, file systems, power.

use std::time::Duration;

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::oneshot;

use crate::console::say;
use crate::process::children::Children;

/// A request to end. Whoever sent it is told when nothing is left to lose.
pub struct Stop(pub Option<oneshot::Sender<()>>);

/// How long processes may take to end on SIGTERM, and again for the kernel to clear away after SIGKILL.
const PATIENCE: Duration = Duration::from_secs(2);

/// Ends all processes and puts the file systems on the disk.
pub async fn quiesce(children: &Children) {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // All but PID 1 itself. No process left is what we want.
        match kill(Pid::from_raw(-1), signal) {
            Ok(()) => {}
            Err(Errno::ESRCH) => break,
            Err(error) => say!("processes could not be signalled: {error}"),
        }
        if tokio::time::timeout(PATIENCE, no_child_left(children)).await.is_ok() {
            break;
        }
    }
    flush().await;
}

/// As PID 1 the agent is in the end every process's parent: without children it is alone.
async fn no_child_left(children: &Children) {
    loop {
        let reaped = children.any_reaped.notified();
        tokio::pin!(reaped);
        reaped.as_mut().enable();
        if !has_children() {
            return;
        }
        reaped.await;
    }
}

/// Whether there is any child, without taking its status from the reaper.
fn has_children() -> bool {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    !matches!(
        waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT),
        Err(Errno::ECHILD)
    )
}

/// Writes all dirty pages, on another thread.
pub async fn flush() {
    if let Err(error) = tokio::task::spawn_blocking(nix::unistd::sync).await {
        say!("the file systems could not be flushed: {error}");
    }
}

/// Leaves the root file system clean and powers off. Returns only on failure.
pub fn off() {
    let none: Option<&str> = None;
    if let Err(error) = nix::mount::mount(none, "/", none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none) {
        say!("the root file system stays writable: {error}");
        nix::unistd::sync();
    }
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    say!("power off failed: {error}");
}

//! The one place that waits for processes.
//!
//! As PID 1 the agent inherits every orphan of the machine and must reap it. Exit statuses of
//! processes that the API started go to their tasks; all others are dropped. Signals are blocked and
//! read from a descriptor, so there is no signal handler in the agent at all.

use std::io;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::sync::mpsc;

use super::children::Children;
use crate::power::Stop;
use crate::watch::watch_signals;

/// The signals that reach the agent. Made before any thread, which inherits the mask.
pub fn block_signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGPWR] {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// Reaps until the agent ends, and asks for a shutdown when a signal says so.
pub async fn reap(signals: SignalFd, children: Arc<Children>, stop: mpsc::Sender<Stop>) -> io::Result<()> {
    let signals = watch_signals(signals)?;
    loop {
        reap_ended(&children);
        let mut ready = signals.readable().await?;
        // Many deaths may be one signal, so what counts is only that something came.
        let received = ready.try_io(|signals| signals.get_ref().read_signal().map_err(io::Error::from));
        match received {
            Ok(Ok(Some(info))) if info.ssi_signo != libc::SIGCHLD as u32 => {
                // A second request while the first is being followed adds nothing.
                let _ = stop.try_send(Stop(None));
            }
            Ok(Ok(Some(_))) | Err(_) => {}
            Ok(Ok(None)) => ready.clear_ready(),
            Ok(Err(error)) => return Err(error),
        }
    }
}

/// Takes every status there is now. A bare call: the typed one knows no real-time signals, and would
/// lose the status of a process that one of them killed.
#[allow(unsafe_code)]
fn reap_ended(children: &Children) {
    loop {
        let mut status = 0;
        // SAFETY: the pointer is to a live integer.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        match pid {
            // No child at all, or none that has ended.
            ..=0 if Errno::last() == Errno::EINTR && pid < 0 => {}
            ..=0 => return,
            pid if libc::WIFSIGNALED(status) => children.reaped(pid as u32, 128 + libc::WTERMSIG(status)),
            pid => children.reaped(pid as u32, libc::WEXITSTATUS(status)),
        }
    }
}

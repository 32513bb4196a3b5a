//! Descriptors that the event loop watches.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::signalfd::SignalFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the event loop watch a descriptor until it is dropped.
pub fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor is the same one, and open, as long as its owner lives.
    unsafe { Ok(AsyncFd::register_with_interest(descriptor, interest)?) }
}

/// The same for signals.
pub fn watch_signals(signals: SignalFd) -> io::Result<AsyncFd<SignalFd>> {
    // SAFETY: it owns its descriptor, and nothing here replaces it.
    unsafe { Ok(AsyncFd::register_with_interest(signals, Interest::READABLE)?) }
}

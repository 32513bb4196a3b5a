//! The agent as a process of this host, driven over a loopback connection by the generated client.
//!
//! What needs a machine (mounts, adoption of the kernel's identity, power) is not here but in
//! `tests/e2e`. Every test starts an agent of its own with directories of its own.

#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

mod adoption;
mod agent;
mod archives;
mod batch;
mod bulk;
mod doors;
mod files;
mod freezing;
mod piped;
mod processes;
mod search;
mod sftp;
mod terminals;
mod tokens;
mod uploads;
mod watch;

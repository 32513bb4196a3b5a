//! The typed Rust client of the public HTTP API: one method per operation, named `resource_verb`
//! like the operation, the CLI verb and the SDK method. Requests and answers are the types of
//! `nullspace-types`.
//!
//! A [`Client`] owns a connection pool and nothing else; it is cheap to clone. How it is configured
//! is in [`config`], how it fails in [`error`]. Every byte it sends goes through `transport`, which
//! alone decides about time limits and repeated attempts; sockets are opened there too and spoken
//! through in `socket`. What outlives a connection is taken up again where it broke: the output of
//! a process ([`ProcessStream`]), the content of a file ([`FileStream`]), an upload ([`upload`]), the log of
//! lifecycle events ([`LifecycleStream`]), a monitor ([`Monitor`]).
//!
//! Deliberately absent: printing, global state, and any knowledge of how a server works inside.

pub mod config;
pub mod error;
pub mod upload;

mod body;
mod file;
mod file_stream;
mod file_watch;
mod health;
mod lifecycle;
mod monitor;
mod network;
mod preview;
mod process;
mod process_stream;
mod reconnect;
mod sandbox;
mod snapshot;
mod socket;
mod ssh;
mod template;
mod terminal;
mod transport;
mod vault;
mod webhook;

pub use config::{Config, Explicit, RetryPolicy};
pub use error::{Error, Result};
pub use file_stream::FileStream;
pub use file_watch::FileWatch;
pub use lifecycle::LifecycleStream;
pub use monitor::Monitor;
pub use process_stream::{ProcessInput, ProcessOffsets, ProcessOutput, ProcessStream};
pub use terminal::{Terminal, TerminalInput, TerminalStart, TerminalTarget};
pub use transport::Client;

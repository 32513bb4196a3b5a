//! The typed Rust client of the public HTTP API: one method per operation, named `resource_verb`
//! like the operation, the CLI verb and the SDK method. Requests and answers are the types of
//! `nullspace-types`.
//!
//! A [`Client`] owns a connection pool and nothing else; it is cheap to clone. How it is configured
//! is in [`config`], how it fails in [`error`], and every byte it sends goes through `transport`,
//! which alone decides about time limits and repeated attempts. Deliberately absent: printing,
//! global state, and any knowledge of how a server works inside. The WebSocket protocols are not
//! spoken here.

pub mod config;
pub mod error;

mod file;
mod health;
mod process;
mod sandbox;
mod template;
mod transport;

pub use config::{Config, Explicit, RetryPolicy};
pub use error::{Error, Result};
pub use file::FileStream;
pub use transport::Client;

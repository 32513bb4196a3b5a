//! What crosses the border of the system: typed IDs, resources, requests, and the one border
//! [`Error`]. Data only: this crate does no I/O, knows no HTTP, no SQL and no virtual machine.
//!
//! One file per resource; the same file name stands in every other room.

pub mod error;
pub mod event;
pub mod file;
pub mod id;
pub mod key;
pub mod monitor;
pub mod network;
pub mod preview;
pub mod process;
pub mod sandbox;
pub mod snapshot;
pub mod socket;
pub mod ssh;
pub mod template;
pub mod terminal;
pub mod upload;
pub mod vault;
pub mod webhook;

pub use error::{Code, Error, Result};

//! The rules of the system as pure functions: what a request may say, what a sandbox may become,
//! what is shown of it. Owns no state and does no I/O: no clock, no task, no database and no socket;
//! time and limits come in as arguments. The crates around it do what is decided here.
//!
//! One file per resource; the same file name stands in every other room.

pub mod envs;
pub mod event;
pub mod file;
pub mod lifecycle;
pub mod limits;
pub mod network;
pub mod path;
pub mod preview;
pub mod process;
pub mod sandbox;
pub mod sandbox_list;
pub mod snapshot;
pub mod ssh;
pub mod status;
pub mod terminal;
pub mod upload;
pub mod vault;
pub mod webhook;

pub use limits::Limits;
pub use webhook::WebhookConfig;

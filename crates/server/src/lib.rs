//! The composition root: configuration, the order of starting and stopping, and the API's traits over
//! control. Everything is put together here and nothing is decided here.
//!
//! Deliberately absent: what verbs mean (control), routes and HTTP errors (api), machines (node), printing
//! beyond the few lines of a server in the foreground (the command line prints).

mod admin;
mod app;
pub mod args;
pub mod compose;
pub mod config;
mod config_reference;
mod data_dir;
pub mod doctor;
mod entrance;
mod http;
mod key;
mod leash;
mod log;
mod run;
mod server;

pub use admin::{GarbageReport, gc};
pub use args::{GcArgs, KeyArgs, ServerArgs};
pub use config::Config;
pub use config_reference::reference;
pub use key::{KeyAnswer, key};
pub use run::run;
pub use server::{Server, ServerOptions};

//! The jail of a monitor process: its own unprivileged user, its own mount, process, IPC, host-name
//! and network namespaces, its own control group where the host allows, and a root directory in
//! which nothing stands but what its machine needs.
//!
//! [`launch`] starts the program's own hidden `jail` command with a [`Spec`] on its standard input;
//! that process ([`main`], single-threaded, so that it may enter namespaces) builds the jail,
//! forks once into the new process namespace, drops every privilege and becomes the program. The
//! monitor is nobody's child in the end: it outlives the server, which finds it again by PID and
//! start time ([`Process`]).
//!
//! Absent on purpose: any knowledge of what the program is.

pub mod cgroup;
mod enter;
mod launch;
mod process;
mod spec;

pub use enter::main;
pub use launch::launch;
pub use process::Process;
pub use spec::{Bind, Spec};

use std::path::PathBuf;

/// Why a process could not be jailed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program's own executable could not be started.
    #[error("the jail could not be started")]
    Start(#[source] std::io::Error),
    /// The jail could not be built; the text names the step.
    #[error("{0}")]
    Build(String),
    /// The process is not there, or another has its PID now.
    #[error("process {0} is gone")]
    Gone(u32),
    /// A control group file could not be written.
    #[error("control group {path} cannot be used")]
    ControlGroup {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

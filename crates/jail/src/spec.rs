//! What a jailed process may see and be.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A file or directory of the host that is visible in the jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// On the host.
    pub source: PathBuf,
    /// In the jail, absolute.
    pub target: PathBuf,
    /// Whether it may be written to.
    pub writable: bool,
}

impl Bind {
    /// A bind that cannot be written to.
    pub fn read_only(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self { source: source.into(), target: target.into(), writable: false }
    }

    /// A bind that can be written to, as far as the file's owner and mode allow.
    pub fn writable(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self { source: source.into(), target: target.into(), writable: true }
    }
}

/// A jail and the program in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// An existing empty directory on the host; the jail's root is mounted on it, visible to the
    /// jail alone.
    pub root: PathBuf,
    /// User and group that the program runs as.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// A network namespace to enter, by path; the host's own when absent.
    pub network_namespace: Option<PathBuf>,
    /// Control group directories to join.
    pub control_groups: Vec<PathBuf>,
    /// What is visible, besides the system's programs and libraries (`/usr`), which are read-only.
    pub binds: Vec<Bind>,
    /// Device nodes that are visible, besides `null`, `zero`, `full`, `random` and `urandom`.
    pub devices: Vec<PathBuf>,
    /// The program, as a path in the jail.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// The largest file that it may write, in bytes.
    pub file_size_limit: u64,
}

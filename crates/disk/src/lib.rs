//! Reading machines' disks in user space: qcow2 layers over a raw base, and the ext4 in them.
//!
//! What is read was written by a guest, which is hostile. So the host's kernel mounts none of it; every
//! offset is checked before it is used; what is kept in memory has a bound that does not grow with what the
//! disk claims; and what takes long asks whether somebody still waits for it. No input makes this crate
//! panic: it answers or says what is broken.
//!
//! The readers are our own. The library for ext4 (ext4-view) knows only journals with checksums, which ours
//! have not, tells nothing of where a file's blocks lie, which is what makes comparing relatives quick, and
//! takes as much memory as a size field says; the one for qcow2 (imago) is asynchronous and made for writing.
//!
//! Deliberately absent: which layers belong to whom and that they stay as they are while they are read;
//! that is the node's. Nothing here writes to a disk that it was given.

mod cache;
mod chain;
mod content;
mod diff;
mod ext4;
mod field;
mod file;
mod layer;

use std::io;
use std::path::{Path, PathBuf};

pub use chain::Chain;
pub use diff::{Differences, diff};

/// Why a disk cannot be read or compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host does not give, or take, a file's content.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A layer is not one, has what this reader does not know, or contradicts itself.
    #[error("the disk layer {path} cannot be read: {reason}")]
    Layer {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// More was asked for than the disk has.
    #[error("{length} bytes at {offset} are beyond the end of a disk of {bytes} bytes")]
    PastEnd {
        /// Where.
        offset: u64,
        /// How many.
        length: u64,
        /// The disk's size.
        bytes: u64,
    },
    /// The file system is not ext4, has what this reader does not know, or contradicts itself.
    #[error("the file system cannot be read: {0}")]
    FileSystem(String),
    /// The caller did not want to wait any longer.
    #[error("the comparison was cancelled")]
    Cancelled,
}

impl Error {
    fn file(path: &Path, source: io::Error) -> Self {
        Self::File { path: path.to_owned(), source }
    }

    fn layer(path: &Path, reason: impl Into<String>) -> Self {
        Self::Layer { path: path.to_owned(), reason: reason.into() }
    }

    fn file_system(reason: impl Into<String>) -> Self {
        Self::FileSystem(reason.into())
    }
}

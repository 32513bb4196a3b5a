//! Unpacks an uncompressed tar archive into an empty directory. The archive is hostile.
//!
//! The `tar` crate reads headers and long names; what may be made, and where, is judged here (`judge`),
//! and made relative to open directories without ever following a link (`unpack`). Nothing outside of the
//! directory can be named: not by a path, not by a link, and not by a path through a link. What has been
//! made when an archive is refused is left for the caller to remove.
//!
//! Deliberately absent: hard links, devices, pipes and sparse files, which are refused; owners and
//! extended attributes, which are passed over; compression; and the modification times of directories.

mod judge;
mod metered;
#[cfg(test)]
mod tests;
mod unpack;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

pub use judge::{DEPTH_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX};
pub use unpack::{NODES_MAX, Rules, Unpacked, unpack};

/// Why an archive was not unpacked.
#[derive(Debug)]
pub struct Failure {
    /// What is wrong.
    pub fault: Fault,
    /// The entry, as far as its name is known.
    pub path: PathBuf,
    /// For people: what is wrong with the entry, to be read behind its name.
    pub message: String,
}

/// What is wrong.
#[derive(Debug)]
pub enum Fault {
    /// An entry's path is none, or leads out of the directory or through something that is no directory.
    Path,
    /// A symbolic link leads out of the directory, or may.
    Link,
    /// It is no archive, or has an entry that is no file, directory or symbolic link.
    Unsupported,
    /// There is more in it than there may be.
    TooLarge,
    /// The caller wanted no more of it.
    Stopped,
    /// The archive could not be read, or what is in it could not be made.
    System(io::Error),
}

impl Failure {
    fn new(fault: Fault, path: &Path, message: impl Into<String>) -> Self {
        Self { fault, path: path.into(), message: message.into() }
    }

    fn system(error: impl Into<io::Error>, path: &Path) -> Self {
        let error = error.into();
        Self { message: error.to_string(), fault: Fault::System(error), path: path.into() }
    }

    /// An error from reading the archive: the disk's, or one that its bytes are no archive.
    fn reading(error: io::Error, path: &Path) -> Self {
        match error.raw_os_error() {
            Some(_) => Self::system(error, path),
            None => Self::new(Fault::Unsupported, path, format!("the archive cannot be read: {error}")),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.as_os_str().is_empty() {
            formatter.write_str(&self.message)
        } else {
            write!(formatter, "{}: {}", self.path.display(), self.message)
        }
    }
}

impl std::error::Error for Failure {}

/// Opens what `path` names below `root`; empty: `root` itself. No link is followed and no other file
/// system entered: ELOOP and EXDEV say that one would have been.
pub fn open_below(
    root: impl std::os::fd::AsFd,
    path: &Path,
    flags: OFlag,
) -> nix::Result<std::os::fd::OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    openat2(root, path, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve))
}

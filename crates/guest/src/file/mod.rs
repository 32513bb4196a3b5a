//! Files of the machine.
//!
//! The agent works as root, whoever the caller names: `user` says whose home relative paths start at
//! and who owns what is made, not what may be touched. Nothing here opens a file in a way that can
//! wait for somebody: pipes and devices are recognised, not followed. All functions may block on a
//! disk; whether they run on the agent's thread or another is decided where they are called, by
//! `Mounts::run`.

pub mod batch;
pub mod change;
pub mod find;
pub mod list;
pub mod read;
pub mod remove;
pub mod replace;
pub mod search;
pub mod stream;
mod walk;
pub mod watch;
pub mod write;

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nullspace_guest_proto as pb;
use tonic::Status;

use crate::account::{Account, Accounts};

/// Bytes up to which a file is read or written on the agent's own thread.
pub const SMALL_BYTES: u64 = 1 << 20;

/// How the names begin under which things wait until they are put in place, or taken away. Lists,
/// searches and watches do not show them.
pub const HIDDEN: &str = ".nullspace-write-";

/// Bytes of a pattern that is looked for.
const PATTERN_BYTES: usize = 64 << 10;

/// Whether a name is one of those.
pub fn is_hidden(name: &OsStr) -> bool {
    name.as_bytes().starts_with(HIDDEN.as_bytes())
}

/// Who is meant by the name of a user; none when nobody was named.
pub fn owner(user: &str) -> Result<Option<Account>, Status> {
    match user.trim() {
        "" => Ok(None),
        user => Account::find(user)
            .map(Some)
            .ok_or_else(|| Status::invalid_argument(format!("there is no user {user}"))),
    }
}

/// Opens to read in a way that waits for nobody, whatever the path is. `flags`: of open(2), besides.
pub fn open_to_read(path: &Path, flags: i32) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | flags).open(path)
}

fn check_pattern(pattern: &str) -> Result<(), Status> {
    if pattern.is_empty() {
        return Err(Status::invalid_argument("pattern is empty"));
    }
    if pattern.len() > PATTERN_BYTES {
        return Err(Status::invalid_argument(format!(
            "pattern has {} bytes; at most {PATTERN_BYTES}",
            pattern.len()
        )));
    }
    Ok(())
}

/// When the content last changed, in nanoseconds since the epoch.
fn modified_ns(metadata: &Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}

/// What to tell about an error that the kernel gave for `path`.
pub fn status(error: &io::Error, path: &Path) -> Status {
    let path = path.display();
    let code = error.raw_os_error().unwrap_or(0);
    match code {
        libc::ENOENT => Status::not_found(format!("{path} does not exist")),
        libc::ENOTDIR => Status::invalid_argument(format!("a part of {path} is not a directory")),
        libc::EISDIR => Status::invalid_argument(format!("{path} is a directory")),
        libc::ENAMETOOLONG => Status::invalid_argument(format!("a name in {path} is too long")),
        libc::ELOOP => Status::invalid_argument(format!("{path} has too many symbolic links")),
        libc::EINVAL => Status::invalid_argument(format!("{path}: invalid argument")),
        libc::EEXIST => Status::already_exists(format!("{path} exists")),
        libc::EACCES | libc::EPERM => Status::permission_denied(format!("permission denied: {path}")),
        libc::EROFS => Status::permission_denied(format!("read-only file system: {path}")),
        libc::EBUSY | libc::ETXTBSY => Status::failed_precondition(format!("{path} is in use")),
        libc::ENOTEMPTY => Status::failed_precondition(format!("{path} is not empty")),
        libc::EXDEV => Status::failed_precondition(format!("{path} is on another file system")),
        libc::ENOSPC | libc::EDQUOT => {
            Status::resource_exhausted(format!("no space left in the sandbox: {path}"))
        }
        libc::EFBIG => Status::resource_exhausted(format!("{path} would be too large")),
        libc::EMFILE | libc::ENFILE | libc::ENOMEM => Status::resource_exhausted(format!("{path}: {error}")),
        _ => Status::internal(format!("{path}: {error}")),
    }
}

/// What a path is, without following it.
pub fn info(path: &Path, metadata: &Metadata, accounts: &Accounts) -> pb::FileInfo {
    let kind = metadata.file_type();
    let (kind, symlink_target) = if kind.is_symlink() {
        // It may be gone by now; then there is no target to tell.
        let target = std::fs::read_link(path).unwrap_or_default();
        (pb::FileType::Symlink, target.to_string_lossy().into_owned())
    } else if kind.is_dir() {
        (pb::FileType::Directory, String::new())
    } else if kind.is_file() {
        (pb::FileType::File, String::new())
    } else {
        (pb::FileType::Other, String::new())
    };
    pb::FileInfo {
        path: path.to_string_lossy().into_owned(),
        size: metadata.len(),
        r#type: kind.into(),
        mode: metadata.permissions().mode() & 0o7777,
        owner: accounts.user_name(metadata.uid()),
        group: accounts.group_name(metadata.gid()),
        modified_ns: modified_ns(metadata),
        symlink_target,
    }
}

/// Looks at a path without following it.
pub fn stat(path: &Path) -> Result<pb::FileInfo, Status> {
    let metadata = path.symlink_metadata().map_err(|error| status(&error, path))?;
    Ok(info(path, &metadata, &Accounts::load()))
}

/// Makes a directory and its parents, owned by `owner` where they are new.
pub fn make_directories(path: &Path, owner: Option<&Account>) -> Result<(), Status> {
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => return Ok(()),
        Ok(_) => {
            return Err(Status::already_exists(format!("{} exists and is not a directory", path.display())));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(status(&error, path)),
    }
    if let Some(parent) = path.parent() {
        make_directories(parent, owner).map_err(|error| match error.code() {
            tonic::Code::AlreadyExists => Status::invalid_argument(error.message()),
            _ => error,
        })?;
    }
    match std::fs::create_dir(path) {
        Ok(()) => {}
        // Somebody else was faster, or a symbolic link points to nothing.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
        Err(error) => return Err(status(&error, path)),
    }
    if let Some(owner) = owner {
        std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid))
            .map_err(|error| status(&error, path))?;
    }
    Ok(())
}

//! Removing, renaming and changing files.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use nullspace_guest_proto as pb;
use tonic::Status;

use super::write::temporary_beside;
use super::{make_directories, stat, status};
use crate::account::Account;
use crate::path::refuse_reserved_links;

/// Removes a file, a link, or a directory with all that is in it.
pub fn remove(path: &Path) -> Result<(), Status> {
    if path == Path::new("/") {
        return Err(Status::invalid_argument("the root directory cannot be removed"));
    }
    // The link itself goes, not what it points to, so only its parents are followed.
    if let Some(parent) = path.parent() {
        refuse_reserved_links(parent)?;
    }
    let metadata = path.symlink_metadata().map_err(|error| status(&error, path))?;
    let removed = if metadata.is_dir() { super::remove::remove_tree(path) } else { fs::remove_file(path) };
    removed.map_err(|error| status(&error, path))
}

/// Makes a directory, with parents.
pub fn make_directory(path: &Path, owner: Option<&Account>) -> Result<(), Status> {
    refuse_reserved_links(path)?;
    make_directories(path, owner)
}

/// Renames, replacing a file that is there. Onto another file system only a file can go.
pub fn rename(old: &Path, new: &Path, owner: Option<&Account>) -> Result<pb::FileInfo, Status> {
    for path in [old, new] {
        if let Some(parent) = path.parent() {
            refuse_reserved_links(parent)?;
        }
    }
    old.symlink_metadata().map_err(|error| status(&error, old))?;
    if let Some(parent) = new.parent() {
        make_directories(parent, owner)?;
    }
    match fs::rename(old, new) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EXDEV) => move_across(old, new)?,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            return Err(Status::invalid_argument(format!(
                "{} cannot be moved into itself: {}",
                old.display(),
                new.display()
            )));
        }
        Err(error) => return Err(status(&error, new)),
    }
    stat(new)
}

/// Copies beside the target, puts the copy in place, and removes the original.
fn move_across(old: &Path, new: &Path) -> Result<(), Status> {
    let metadata = old.symlink_metadata().map_err(|error| status(&error, old))?;
    if !metadata.is_file() {
        return Err(Status::failed_precondition(format!(
            "{} is on another file system than {}; only files can be moved there",
            old.display(),
            new.display()
        )));
    }
    let (mut copy, temporary) =
        temporary_beside(new, new.symlink_metadata().is_ok(), 0o600).map_err(|error| status(&error, new))?;
    let moved = (|| -> io::Result<()> {
        io::copy(&mut File::open(old)?, &mut copy)?;
        fchown(&copy, Some(metadata.uid()), Some(metadata.gid()))?;
        copy.set_permissions(Permissions::from_mode(metadata.mode() & 0o7777))?;
        fs::rename(&temporary, new)
    })();
    if let Err(error) = moved {
        // The error above is what to tell; what stays is a hidden file.
        let _ = fs::remove_file(&temporary);
        return Err(status(&error, new));
    }
    fs::remove_file(old).map_err(|error| status(&error, old))
}

/// Sets the permission bits; links are followed.
pub fn set_permissions(path: &Path, mode: u32) -> Result<(), Status> {
    if mode > 0o7777 {
        return Err(Status::invalid_argument(format!("mode {mode:o} is larger than 7777")));
    }
    refuse_reserved_links(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(|error| status(&error, path))
}

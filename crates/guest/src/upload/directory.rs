//! Publishes what an archive holds.
//!
//! The archive is unpacked into a hidden directory that only root can enter: beside the target, or inside
//! of it if it is to be merged, so that every step that follows is a rename within one file system. A new
//! target is one rename, a replaced one an exchange of two names.

use std::fs::{DirBuilder, File, Metadata, Permissions};
use std::io::{self, Seek};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nullspace_guest::archive::{self, Fault, Rules};
use nullspace_guest_proto::UploadConflict as Conflict;
use nullspace_guest_proto::UploadFailure as Reason;

use super::publish::{Place, conflict_or};
use super::{Failure, Published, Spec, merge, staging};
use crate::console::say;
use crate::file::remove::remove_tree;
use crate::file::write::{make_hidden, make_parents};
use crate::path::{RESERVED, is_reserved};

const DIRECTORY_MODE: u32 = 0o755;

/// Unpacks the staged archive and puts the directory in place.
pub fn publish(
    spec: &Spec,
    place: &Place,
    mut content: &File,
    stop: &AtomicBool,
) -> Result<Published, Failure> {
    let target = &place.real;
    let system = |error: io::Error| Failure::system(&error, &spec.target);
    // Links in the parents are of no matter for what is made, but for what may not be.
    let real = canonical(target);
    let replaced = place.known.as_ref().filter(|_| spec.conflict == Conflict::Replace);
    if replaced.is_some() {
        refuse_to_replace(&real, &spec.target)?;
    }
    let merges = place.merges(spec);
    if !merges {
        make_parents(target, spec.owner.as_ref())?;
    }
    let within = if merges { target } else { target.parent().unwrap_or(Path::new("/")) };
    let hidden = Hidden::make(within, replaced.is_some()).map_err(system)?;
    let root = File::open(&hidden.0).map_err(system)?;

    content.rewind().map_err(system)?;
    let rules = Rules {
        owner: spec.owner_ids(),
        bytes_max: spec.content_length,
        stop,
        reserved: &|path| is_reserved(&real.join(path)),
    };
    let unpacked =
        archive::unpack(content, root.as_fd(), &rules).map_err(|failure| refused(failure, &spec.target))?;

    if merges {
        let there = File::open(target).map_err(system)?;
        merge::merge(&root, &there, &spec.target, spec.owner.is_none())?;
    } else {
        dress(&root, spec.owner_ids(), replaced).map_err(system)?;
        let flags =
            if replaced.is_some() { RenameFlags::RENAME_EXCHANGE } else { RenameFlags::RENAME_NOREPLACE };
        renameat2(AT_FDCWD, &hidden.0, AT_FDCWD, target, flags)
            .map_err(|error| conflict_or(&error.into(), &spec.target))?;
    }
    Ok(Published { bytes: unpacked.bytes, files: unpacked.files })
}

/// A directory under a hidden name. Whatever has that name when this is dropped is removed: what was made
/// in vain, what was replaced, or what a merge has left.
struct Hidden(PathBuf);

impl Hidden {
    fn make(within: &Path, replaces: bool) -> io::Result<Self> {
        let make = |path: &Path| DirBuilder::new().mode(0o700).create(path);
        Ok(Self(make_hidden(within, replaces, make)?.1))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        match remove_tree(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                say!("{} could not be removed: {error}", self.0.display());
            }
            _ => {}
        }
    }
}

/// Gives a directory the owner and the mode it is to have: those of the one it replaces, unless a user was
/// named.
fn dress(root: &File, owner: Option<(u32, u32)>, replaced: Option<&Metadata>) -> io::Result<()> {
    if let Some((uid, gid)) = owner.or(replaced.map(|there| (there.uid(), there.gid()))) {
        fchown(root, Some(uid), Some(gid))?;
    }
    let mode = replaced.map_or(DIRECTORY_MODE, |there| there.mode() & 0o7777);
    root.set_permissions(Permissions::from_mode(mode))
}

/// A directory that holds what is not its own cannot be replaced: it would be removed with it.
fn refuse_to_replace(real: &Path, shown: &Path) -> Result<(), Failure> {
    let refuse = |message: &str| Err(Failure::at(shown, Reason::TargetConflict, message));
    if Path::new(RESERVED).starts_with(real) && Path::new(RESERVED).exists() {
        return refuse(&format!("it holds {RESERVED} and cannot be replaced; merge into it"));
    }
    let mounts = std::fs::read("/proc/self/mountinfo").map_err(|error| Failure::system(&error, shown))?;
    if mount_points(&mounts).any(|point| point.starts_with(real)) {
        return refuse("something is mounted there or below, so it cannot be replaced; merge into it");
    }
    Ok(())
}

/// The fifth field of each line, in which some characters are written as three octal digits.
fn mount_points(table: &[u8]) -> impl Iterator<Item = PathBuf> {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut field = line.split(|byte| *byte == b' ').nth(4)?;
        let mut path = Vec::with_capacity(field.len());
        while let [first, rest @ ..] = field {
            field = rest;
            path.push(match (first, rest) {
                (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                    field = after;
                    (a - b'0') * 64 + (b - b'0') * 8 + (c - b'0')
                }
                (first, _) => *first,
            });
        }
        Some(PathBuf::from(std::ffi::OsString::from_vec(path)))
    })
}

/// A path without links, as far as it exists.
fn canonical(path: &Path) -> PathBuf {
    for known in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (known.canonicalize(), path.strip_prefix(known)) {
            return real.join(rest);
        }
    }
    path.into()
}

fn refused(failure: archive::Failure, target: &Path) -> Failure {
    let reason = match failure.fault {
        Fault::Path => Reason::DirectoryExtractInvalidPath,
        Fault::Link => Reason::DirectoryExtractInvalidSymlink,
        Fault::Unsupported => Reason::DirectoryExtractUnsupportedEntry,
        Fault::TooLarge => Reason::SizeLimitExceeded,
        Fault::Stopped => return staging::stopped(),
        Fault::System(error) => return Failure::system(&error, &target.join(failure.path)),
    };
    if failure.path.as_os_str().is_empty() {
        Failure::refused(reason, failure.message)
    } else {
        Failure::at(&failure.path, reason, failure.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_odd_characters() {
        let table =
            b"36 35 98:0 / / rw - ext4 /dev/root rw\n37 36 0:4 /sub /a\\040b\\134 rw - proc proc rw\n";
        let points: Vec<PathBuf> = mount_points(table).collect();
        assert_eq!(points, [PathBuf::from("/"), PathBuf::from("/a b\\")]);
    }
}

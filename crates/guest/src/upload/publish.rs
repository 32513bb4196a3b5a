//! Puts staged content in place.
//!
//! Until the last step everything is done under hidden names, which are removed if it fails; so a failure
//! leaves the target as it was, and may be repeated.

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use nullspace_guest_proto::UploadConflict as Conflict;
use nullspace_guest_proto::UploadFailure as Reason;
use nullspace_guest_proto::UploadKind as Kind;

use super::{Digest, Failure, Published, Spec, directory, staging};
use crate::file::write::{Writer, follow_links, make_hidden};
use crate::path::refuse_reserved_links;

/// What a target's path means now.
pub struct Place {
    /// Where its links lead.
    pub real: PathBuf,
    /// What is there.
    pub known: Option<Metadata>,
}

impl Place {
    /// Refuses a target at which something is in the way. May block.
    pub fn judge(spec: &Spec) -> Result<Self, Failure> {
        refuse_reserved_links(&spec.target)?;
        let (real, known) = follow_links(&spec.target)?;
        if let Some(there) = &known {
            let fits = match spec.kind {
                Kind::UploadDirectoryTar => there.is_dir(),
                _ => there.is_file(),
            };
            let conflict = |message| Err(Failure::at(&spec.target, Reason::TargetConflict, message));
            if spec.conflict == Conflict::Fail {
                return conflict("there is something there already");
            }
            if !fits && there.is_dir() {
                return conflict("a directory is in the way of the file");
            }
            if !fits {
                return conflict("what is there is not of the kind that is uploaded");
            }
        }
        Ok(Self { real, known })
    }

    /// Whether what comes is added to a directory that is there.
    pub fn merges(&self, spec: &Spec) -> bool {
        spec.kind == Kind::UploadDirectoryTar && spec.conflict == Conflict::Merge && self.known.is_some()
    }

    /// A directory that exists, on the file system where the target is or would be.
    pub fn nearest_directory(&self, spec: &Spec) -> &Path {
        if self.merges(spec) {
            return &self.real;
        }
        let above = self.real.ancestors().skip(1);
        above.into_iter().find(|path| path.is_dir()).unwrap_or(Path::new("/"))
    }
}

/// Room for the content, near the target.
pub fn stage(spec: &Spec) -> Result<File, Failure> {
    let place = Place::judge(spec)?;
    staging::reserve(place.nearest_directory(spec), spec.content_length)
}

/// Checks the content and puts it in place. `stop` ends it as long as nothing can be seen of it.
pub fn publish(
    spec: &Spec,
    content: &File,
    wanted: Option<&Digest>,
    stop: &AtomicBool,
) -> Result<Published, Failure> {
    // First, for it is quickly told.
    let place = Place::judge(spec)?;
    if let Some(wanted) = wanted {
        staging::check(content, wanted, stop)?;
    }
    match spec.kind {
        Kind::UploadDirectoryTar => directory::publish(spec, &place, content, stop),
        _ => file(spec, content),
    }
}

fn file(spec: &Spec, content: &File) -> Result<Published, Failure> {
    let writer = Writer::holding(&spec.target, spec.owner.as_ref(), |target, replaces, _| {
        let directory = target.parent().unwrap_or(Path::new("/"));
        make_hidden(directory, replaces, |path| staging::name(content, path))
    })?;
    writer.put(spec.conflict != Conflict::Fail).map_err(|error| conflict_or(&error, &spec.target))?;
    Ok(Published { bytes: spec.content_length, files: 1 })
}

/// An error of the last step.
pub fn conflict_or(error: &io::Error, target: &Path) -> Failure {
    match error.raw_os_error() {
        Some(libc::EEXIST | libc::ENOTEMPTY | libc::EISDIR | libc::ENOTDIR) => {
            Failure::at(target, Reason::TargetConflict, "something else came there in the meantime")
        }
        Some(libc::EBUSY) => {
            Failure::at(target, Reason::TargetConflict, "it is in use, and cannot be replaced as a whole")
        }
        _ => Failure::system(error, target),
    }
}

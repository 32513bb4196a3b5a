//! Writing a file: beside its target, then over it, so that a reader sees the old content or the new.
//!
//! Links are followed to what they point to. Mode and owner of a file that is replaced are kept; its
//! other names (hard links) keep the old content. A character device is written directly.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use nullspace_guest_proto as pb;
use tonic::Status;

use super::{info, make_directories, status};
use crate::account::{Account, Accounts};

const NEW_FILE_MODE: u32 = 0o644;
const LINKS: usize = 40;

/// A file being written. Dropped before it is finished, it leaves nothing.
pub struct Writer {
    /// As the caller named it.
    path: PathBuf,
    target: PathBuf,
    file: Arc<File>,
    /// Where the content is until it is finished; none when it is written directly.
    temporary: Option<PathBuf>,
    mode: u32,
    owner: Option<(u32, u32)>,
}

impl Writer {
    /// Prepares to write, making missing parents. `owner`: who owns the file, if not who does now.
    pub fn create(path: &Path, owner: Option<&Account>) -> Result<Self, Status> {
        crate::path::refuse_reserved_links(path)?;
        let target = follow_links(path)?;
        let known = match target.symlink_metadata() {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(status(&error, path)),
        };
        let wanted = owner.map(|account| (account.uid, account.gid));
        let (mode, owner_ids) = match &known {
            None => {
                if let Some(parent) = target.parent() {
                    make_directories(parent, owner).map_err(|error| match error.code() {
                        tonic::Code::AlreadyExists => Status::invalid_argument(error.message()),
                        _ => error,
                    })?;
                }
                (NEW_FILE_MODE, wanted)
            }
            Some(metadata) => {
                let kind = metadata.file_type();
                if kind.is_dir() {
                    return Err(Status::invalid_argument(format!("{} is a directory", path.display())));
                }
                if kind.is_char_device() {
                    let file = OpenOptions::new()
                        .write(true)
                        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                        .open(&target)
                        .map_err(|error| status(&error, path))?;
                    return Ok(Self {
                        path: path.into(),
                        target,
                        file: Arc::new(file),
                        temporary: None,
                        mode: 0,
                        owner: None,
                    });
                }
                if !kind.is_file() {
                    return Err(Status::invalid_argument(format!(
                        "{} is a pipe, a socket or a disk; only files can be written",
                        path.display()
                    )));
                }
                (metadata.mode() & 0o7777, wanted.or(Some((metadata.uid(), metadata.gid()))))
            }
        };
        let (file, temporary) = temporary_beside(&target).map_err(|error| match error.raw_os_error() {
            // The parent is there, so the place itself takes no files: /proc and the like.
            Some(libc::ENOENT) => Status::permission_denied(format!("{} cannot be written", path.display())),
            _ => status(&error, path),
        })?;
        Ok(Self {
            path: path.into(),
            target,
            file: Arc::new(file),
            temporary: Some(temporary),
            mode,
            owner: owner_ids,
        })
    }

    /// A piece of work that appends `data`.
    pub fn append(&self, data: Bytes) -> impl FnOnce() -> Result<(), Status> + Send + 'static {
        let file = Arc::clone(&self.file);
        let path = self.path.clone();
        move || (&*file).write_all(&data).map_err(|error| status(&error, &path))
    }

    /// Puts the content in place.
    pub fn finish(mut self) -> Result<pb::FileInfo, Status> {
        self.publish().map_err(|error| status(&error, &self.path))?;
        let metadata = self.path.symlink_metadata().map_err(|error| status(&error, &self.path))?;
        Ok(info(&self.path, &metadata, &Accounts::load()))
    }

    fn publish(&mut self) -> io::Result<()> {
        let Some(temporary) = &self.temporary else { return Ok(()) };
        if let Some((uid, gid)) = self.owner {
            let made = self.file.metadata()?;
            if (made.uid(), made.gid()) != (uid, gid) {
                fchown(&*self.file, Some(uid), Some(gid))?;
            }
        }
        // After the owner, whose change clears some bits.
        self.file.set_permissions(Permissions::from_mode(self.mode))?;
        fs::rename(temporary, &self.target)?;
        self.temporary = None;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Nobody is left to tell; what stays is a hidden file.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// The path to which links lead from `path`; it need not exist.
fn follow_links(path: &Path) -> Result<PathBuf, Status> {
    let mut target = path.to_path_buf();
    for _ in 0..LINKS {
        match fs::read_link(&target) {
            Ok(link) => {
                let parent = target.parent().unwrap_or(Path::new("/"));
                target = parent.join(link);
            }
            Err(_) => return Ok(target),
        }
    }
    Err(Status::invalid_argument(format!("{} has too many symbolic links", path.display())))
}

/// A new file with a name of its own in the directory of `target`.
pub fn temporary_beside(target: &Path) -> io::Result<(File, PathBuf)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let directory = target.parent().unwrap_or(Path::new("/"));
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!(".nullspace-write-{number}"));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

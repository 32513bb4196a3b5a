//! Writing a file: beside its target, then over it, so that a reader sees the old content or the new.
//!
//! Links are followed to what they point to. Mode and owner of a file that is replaced are kept; its
//! other names (hard links) keep the old content. A character device is written directly. Calls that
//! look first are few: many small files are written this way.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nullspace_guest_proto as pb;
use tonic::{Code, Status};

use super::{HIDDEN, info, make_directories, status};
use crate::account::{Account, Accounts};

const NEW_FILE_MODE: u32 = 0o644;
const LINKS: usize = 40;
/// How the name of a temporary ends whose target is to be replaced.
pub const OVER: &str = "-over";

/// A file being written. Dropped before it is finished, it leaves nothing.
pub struct Writer {
    /// As the caller named it.
    path: PathBuf,
    target: PathBuf,
    file: File,
    /// Where the content is until it is finished; none when it is written directly.
    temporary: Option<PathBuf>,
    mode: u32,
    owner: Option<(u32, u32)>,
}

impl Writer {
    /// Prepares to write, making missing parents. `owner`: who owns the file, if not who does now.
    pub fn create(path: &Path, owner: Option<&Account>) -> Result<Self, Status> {
        Self::holding(path, owner, temporary_beside)
    }

    /// The same, with a temporary of the caller's making: see [`temporary_beside`].
    pub fn holding(
        path: &Path,
        owner: Option<&Account>,
        temporary_beside: impl Fn(&Path, bool, u32) -> io::Result<(File, PathBuf)>,
    ) -> Result<Self, Status> {
        crate::path::refuse_reserved_links(path)?;
        let (target, known) = follow_links(path)?;
        let wanted = owner.map(|account| (account.uid, account.gid));
        let Some(known) = known else {
            let (file, temporary) = match temporary_beside(&target, false, NEW_FILE_MODE) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    make_parents(&target, owner)?;
                    temporary_beside(&target, false, NEW_FILE_MODE)
                }
                other => other,
            }
            .map_err(|error| match error.raw_os_error() {
                // The parent is there, so the place itself takes no files: /proc and the like.
                Some(libc::ENOENT) => {
                    Status::permission_denied(format!("{} cannot be written", path.display()))
                }
                _ => status(&error, path),
            })?;
            return Ok(Self {
                path: path.into(),
                target,
                file,
                temporary: Some(temporary),
                mode: NEW_FILE_MODE,
                owner: wanted,
            });
        };
        let kind = known.file_type();
        if kind.is_dir() {
            return Err(Status::invalid_argument(format!("{} is a directory", path.display())));
        }
        if kind.is_char_device() {
            let file = OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                .open(&target)
                .map_err(|error| status(&error, path))?;
            return Ok(Self { path: path.into(), target, file, temporary: None, mode: 0, owner: None });
        }
        if !kind.is_file() {
            return Err(Status::invalid_argument(format!(
                "{} is a pipe, a socket or a disk; only files can be written",
                path.display()
            )));
        }
        let mode = known.mode() & 0o7777;
        let (file, temporary) =
            temporary_beside(&target, true, mode).map_err(|error| match error.raw_os_error() {
                Some(libc::ENOENT) => {
                    Status::permission_denied(format!("{} cannot be written", path.display()))
                }
                _ => status(&error, path),
            })?;
        let owner = wanted.or(Some((known.uid(), known.gid())));
        Ok(Self { path: path.into(), target, file, temporary: Some(temporary), mode, owner })
    }

    /// Appends `data`.
    pub fn append(&mut self, data: &[u8]) -> Result<(), Status> {
        self.write_all(data).map_err(|error| status(&error, &self.path))
    }

    /// The file that holds the content until it is put in place, and its name for errors.
    pub fn content(&self) -> io::Result<(File, PathBuf)> {
        Ok((self.file.try_clone()?, self.path.clone()))
    }

    /// Puts the content in place.
    pub fn finish(mut self, accounts: &Accounts) -> Result<pb::FileInfo, Status> {
        let metadata = self.publish(RenameFlags::empty()).map_err(|error| status(&error, &self.path))?;
        Ok(info(&self.path, &metadata, accounts))
    }

    /// The same. If it is not to go `over` what is there, EEXIST says that there is something.
    pub fn put(mut self, over: bool) -> io::Result<()> {
        let flags = if over { RenameFlags::empty() } else { RenameFlags::RENAME_NOREPLACE };
        self.publish(flags).map(drop)
    }

    /// Gives what the caller's path is now.
    fn publish(&mut self, flags: RenameFlags) -> io::Result<Metadata> {
        let Some(temporary) = &self.temporary else { return self.path.symlink_metadata() };
        let mut metadata = self.file.metadata()?;
        let given = self.owner.filter(|ids| *ids != (metadata.uid(), metadata.gid()));
        if let Some((uid, gid)) = given {
            fchown(&self.file, Some(uid), Some(gid))?;
        }
        // After the owner, whose change clears some bits.
        if given.is_some() || metadata.mode() & 0o7777 != self.mode {
            self.file.set_permissions(Permissions::from_mode(self.mode))?;
            metadata = self.file.metadata()?;
        }
        renameat2(AT_FDCWD, temporary, AT_FDCWD, &self.target, flags)?;
        self.temporary = None;
        if self.path == self.target { Ok(metadata) } else { self.path.symlink_metadata() }
    }
}

impl Write for Writer {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.file.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
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

/// Writes a file that does not exist yet, all of its content at once, straight under its name: for the time
/// of one write a reader may see it empty. Many small files cost half as much that way. Fails, leaving
/// nothing, wherever anything is not as simple as that: AlreadyExists, NotFound for a missing parent.
pub fn write_new(
    path: &Path,
    owner: Option<&Account>,
    content: &[u8],
    accounts: &Accounts,
) -> io::Result<pb::FileInfo> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(NEW_FILE_MODE).open(path)?;
    let written = file.write_all(content).and_then(|()| {
        if let Some(owner) = owner {
            fchown(&file, Some(owner.uid), Some(owner.gid))?;
        }
        let metadata = file.metadata()?;
        if metadata.mode() & 0o7777 == NEW_FILE_MODE {
            return Ok(metadata);
        }
        file.set_permissions(Permissions::from_mode(NEW_FILE_MODE))?;
        file.metadata()
    });
    match written {
        Ok(metadata) => Ok(info(path, &metadata, accounts)),
        Err(error) => {
            // The error above is what to tell.
            let _ = fs::remove_file(path);
            Err(error)
        }
    }
}

/// The path to which links lead from `path`, and what is there, if anything is.
pub fn follow_links(path: &Path) -> Result<(PathBuf, Option<Metadata>), Status> {
    let mut target = path.to_path_buf();
    for _ in 0..LINKS {
        match target.symlink_metadata() {
            Ok(metadata) if metadata.is_symlink() => {
                let link = fs::read_link(&target).map_err(|error| status(&error, path))?;
                target = target.parent().unwrap_or(Path::new("/")).join(link);
            }
            Ok(metadata) => return Ok((target, Some(metadata))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((target, None)),
            Err(error) => return Err(status(&error, path)),
        }
    }
    Err(Status::invalid_argument(format!("{} has too many symbolic links", path.display())))
}

/// Makes the directories above `target`.
pub fn make_parents(target: &Path, owner: Option<&Account>) -> Result<(), Status> {
    let parent = target.parent().unwrap_or(Path::new("/"));
    make_directories(parent, owner).map_err(|error| match error.code() {
        Code::AlreadyExists => Status::invalid_argument(error.message()),
        _ => error,
    })
}

/// A new file with a hidden name of its own in the directory of `target`. The name tells watches
/// whether it is to replace something. Whatever `mode` says, it is set-ID for nobody yet.
pub fn temporary_beside(target: &Path, replaces: bool, mode: u32) -> io::Result<(File, PathBuf)> {
    let directory = target.parent().unwrap_or(Path::new("/"));
    make_hidden(directory, replaces, |path| {
        OpenOptions::new().write(true).create_new(true).mode(mode & 0o777).open(path)
    })
}

/// Makes something under a hidden name of its own in `directory`. `make` must refuse a name that is taken.
pub fn make_hidden<T>(
    directory: &Path,
    replaces: bool,
    make: impl Fn(&Path) -> io::Result<T>,
) -> io::Result<(T, PathBuf)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let end = if replaces { OVER } else { "-new" };
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("{HIDDEN}{number}{end}"));
        match make(&path) {
            Ok(made) => return Ok((made, path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

//! Adds a tree to one that is there: directories become one, files and links take the place of others.
//!
//! Everything is looked at before anything is moved. Each move is a rename, so a file is the old one or
//! the new one; that a tree is seen half merged cannot be helped. Directories that are there keep their
//! mode and owner. Links of the tree that is there are never followed, and no other file system entered.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, renameat};
use nix::sys::stat::{FileStat, fstatat};
use nix::unistd::{Gid, Uid, fchownat};
use nullspace_guest::archive::open_below;
use nullspace_guest_proto::UploadFailure as Reason;

use super::Failure;

/// Moves what is in `staged` into `target`, which is called `shown`. `keep_owners`: a file that replaces
/// another gets its owner.
pub fn merge(staged: &File, target: &File, shown: &Path, keep_owners: bool) -> Result<(), Failure> {
    let merge = Merge { staged, target, shown, keep_owners };
    merge.walk(false)?;
    merge.walk(true)
}

struct Merge<'a> {
    staged: &'a File,
    target: &'a File,
    shown: &'a Path,
    keep_owners: bool,
}

impl Merge<'_> {
    /// Goes through the directories that both trees have.
    fn walk(&self, moves: bool) -> Result<(), Failure> {
        let mut shared = vec![PathBuf::new()];
        while let Some(path) = shared.pop() {
            let from = self.open(self.staged, &path)?;
            let to = self.open(self.target, &path)?;
            let mut names =
                self.open(self.staged, &path).and_then(|this| self.at(&path, Dir::from_fd(this)))?;
            for entry in names.iter() {
                let entry = self.at(&path, entry)?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                let here = path.join(OsStr::from_bytes(name.to_bytes()));
                let there = match fstatat(&to, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                    Ok(there) => Some(there),
                    Err(Errno::ENOENT) => None,
                    Err(error) => return self.at(&here, Err(error)),
                };
                let comes = self.at(&here, fstatat(&from, name, AtFlags::AT_SYMLINK_NOFOLLOW))?;
                match there.map(|there| (is_directory(&comes), is_directory(&there), there)) {
                    Some((true, true, _)) => shared.push(here),
                    Some((true, false, _)) => {
                        return self.conflict(&here, "what is there is no directory");
                    }
                    Some((false, true, _)) => {
                        return self.conflict(&here, "a directory is in the way");
                    }
                    _ if !moves => {}
                    there => {
                        if let Some((.., there)) = there.filter(|_| self.keep_owners) {
                            let ids = (Uid::from_raw(there.st_uid), Gid::from_raw(there.st_gid));
                            if (there.st_uid, there.st_gid) != (comes.st_uid, comes.st_gid) {
                                let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
                                self.at(&here, fchownat(&from, name, Some(ids.0), Some(ids.1), flags))?;
                            }
                        }
                        self.at(&here, renameat(&from, name, &to, name))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn open(&self, root: &File, path: &Path) -> Result<OwnedFd, Failure> {
        match open_below(root, path, OFlag::O_DIRECTORY | OFlag::O_RDONLY) {
            Err(Errno::EXDEV) => self.conflict(path, "another file system is mounted there"),
            Err(Errno::ELOOP | Errno::ENOTDIR) => self.conflict(path, "what is there is no directory"),
            opened => self.at(path, opened),
        }
    }

    fn at<T>(&self, path: &Path, result: nix::Result<T>) -> Result<T, Failure> {
        result.map_err(|error| Failure::system(&error.into(), &self.shown.join(path)))
    }

    fn conflict<T>(&self, path: &Path, message: &str) -> Result<T, Failure> {
        Err(Failure::at(&self.shown.join(path), Reason::TargetConflict, message))
    }
}

fn is_directory(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

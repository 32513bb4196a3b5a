//! Walking a tree of directories, in order.
//!
//! Entries come sorted by path, a directory before what is in it. Links are not followed. At any time
//! only the names of the directories on the way down are held, and a directory with too many names is
//! refused; a crate that walks would hold any number. The product's own tree and what waits to be put
//! in place are not there.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use tonic::Status;

use super::{is_hidden, status};

/// Names of one directory.
const ENTRIES: usize = 250_000;
/// What lies below these is the kernel's, and has no end.
const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];

/// A walk under way.
pub struct Walk {
    depth: usize,
    /// The directories on the way down.
    open: Vec<Level>,
    /// Is entered next.
    enter: Option<PathBuf>,
    enters_kernel: bool,
}

struct Level {
    path: PathBuf,
    /// What is still to come, last first.
    entries: Vec<(OsString, Option<Type>)>,
}

/// Something in a directory.
pub struct Entry {
    pub path: PathBuf,
    pub kind: Type,
}

impl Walk {
    /// Begins at a directory. `depth` 1: the children alone.
    pub fn open(path: &Path, depth: usize) -> Result<Self, Status> {
        crate::path::refuse_reserved_links(path)?;
        let entries = entries(path, OFlag::empty()).map_err(|error| match error {
            Unread::Refused(refused) => refused,
            Unread::Errno(Errno::ENOTDIR) if path.symlink_metadata().is_ok() => {
                Status::invalid_argument(format!("{} is not a directory", path.display()))
            }
            Unread::Errno(error) => status(&error.into(), path),
        })?;
        let top = Level { path: path.into(), entries };
        Ok(Self { depth, open: vec![top], enter: None, enters_kernel: true })
    }

    /// All that is below a directory, but for what is the kernel's below that.
    pub fn search(path: &Path) -> Result<Self, Status> {
        Ok(Self { enters_kernel: false, ..Self::open(path, usize::MAX)? })
    }

    /// Whether it goes no deeper than a directory with a few names.
    pub fn is_small(&self) -> bool {
        self.depth == 1 && self.open.iter().all(|level| level.entries.len() <= 256)
    }
}

impl Iterator for Walk {
    /// An error is that of one directory; the walk may go on without it.
    type Item = Result<Entry, Status>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(path) = self.enter.take() {
                match entries(&path, OFlag::O_NOFOLLOW) {
                    Ok(entries) => self.open.push(Level { path, entries }),
                    // It is gone since its own directory was read, or something else now.
                    Err(Unread::Errno(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)) => {}
                    Err(Unread::Errno(error)) => return Some(Err(status(&error.into(), &path))),
                    Err(Unread::Refused(refused)) => return Some(Err(refused)),
                }
            }
            let level = self.open.last_mut()?;
            let Some((name, kind)) = level.entries.pop() else {
                self.open.pop();
                continue;
            };
            let path = level.path.join(name);
            if crate::path::is_reserved(&path) {
                continue;
            }
            // Not every file system tells with the name.
            let Some(kind) = kind.or_else(|| look(&path)) else { continue };
            let deeper = kind == Type::Directory && self.open.len() < self.depth;
            if deeper && (self.enters_kernel || !KERNEL.iter().any(|kernel| path == Path::new(kernel))) {
                self.enter = Some(path.clone());
            }
            return Some(Ok(Entry { path, kind }));
        }
    }
}

enum Unread {
    Errno(Errno),
    Refused(Status),
}

impl From<Errno> for Unread {
    fn from(error: Errno) -> Self {
        Unread::Errno(error)
    }
}

/// The names of a directory, last first.
fn entries(path: &Path, flags: OFlag) -> Result<Vec<(OsString, Option<Type>)>, Unread> {
    let flags = flags | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let mut directory = Dir::open(path, flags, Mode::empty())?;
    let mut entries = Vec::new();
    for entry in directory.iter() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." || is_hidden(name) {
            continue;
        }
        if entries.len() == ENTRIES {
            return Err(Unread::Refused(Status::resource_exhausted(format!(
                "{} has more than {ENTRIES} entries",
                path.display()
            ))));
        }
        entries.push((name.to_os_string(), entry.file_type()));
    }
    entries.sort_unstable_by(|a, b| b.0.cmp(&a.0));
    Ok(entries)
}

/// None when nothing is there any more.
fn look(path: &Path) -> Option<Type> {
    let kind = path.symlink_metadata().ok()?.file_type();
    Some(if kind.is_dir() {
        Type::Directory
    } else if kind.is_file() {
        Type::File
    } else if kind.is_symlink() {
        Type::Symlink
    } else {
        // Which of the special ones does not matter to anybody here.
        Type::CharacterDevice
    })
}

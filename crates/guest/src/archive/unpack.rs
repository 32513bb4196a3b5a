//! Makes what an archive says, below an open directory.

use std::cell::Cell;
use std::fs::{File, Permissions};
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, UtimensatFlags, fstatat, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};
use tar::{Archive, Entry, EntryType};

use super::judge::{Way, entry_path, link_target};
use super::metered::Metered;
use super::{Failure, Fault, open_below};

/// Files, directories and links of one archive, those counted that no entry names but that others need.
pub const NODES_MAX: u64 = 1_000_000;

/// Bytes that may describe one entry.
const HEADERS_MAX: u64 = 1 << 20;
/// Links whose target must be looked for in the finished tree.
const WINDING_MAX: usize = 4096;
const PIECE: usize = 128 << 10;
/// Neither the bits that make a program run as its owner, nor its group.
const MODE_BITS: u32 = 0o1777;
const PARENT_MODE: u32 = 0o755;

/// How an archive is unpacked.
pub struct Rules<'a> {
    /// User and group of what is made; none: those of the process.
    pub owner: Option<(u32, u32)>,
    /// All files together have at most so many bytes.
    pub bytes_max: u64,
    /// Set by whoever wants no more of it.
    pub stop: &'a AtomicBool,
    /// Paths that must not be made.
    pub reserved: &'a dyn Fn(&Path) -> bool,
}

/// What was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Unpacks `archive` below `root`, which must be empty and nobody else's.
pub fn unpack(archive: impl Read, root: BorrowedFd<'_>, rules: &Rules<'_>) -> Result<Unpacked, Failure> {
    let allowed = Cell::new(HEADERS_MAX);
    let mut archive = Archive::new(Metered::new(BufReader::with_capacity(PIECE, archive), &allowed));
    let mut tree = Tree {
        root,
        rules,
        parent: None,
        winding: Vec::new(),
        nodes: 0,
        made: Unpacked::default(),
        buffer: vec![0; PIECE],
    };
    let nowhere = Path::new("");
    for entry in archive.entries().map_err(|error| Failure::reading(error, nowhere))? {
        let mut entry = entry.map_err(|error| Failure::reading(error, nowhere))?;
        allowed.set(u64::MAX);
        tree.take(&mut entry)?;
        // Whatever data it has that nobody wanted.
        tree.pass(&mut entry, None)?;
        allowed.set(HEADERS_MAX);
    }
    tree.follow_winding_links()?;
    Ok(tree.made)
}

/// A tree that grows.
struct Tree<'a> {
    root: BorrowedFd<'a>,
    rules: &'a Rules<'a>,
    /// The directory that was used last. Entries that follow each other often share it.
    parent: Option<(PathBuf, Rc<OwnedFd>)>,
    winding: Vec<PathBuf>,
    nodes: u64,
    made: Unpacked,
    buffer: Vec<u8>,
}

impl Tree<'_> {
    fn take<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), Failure> {
        let name = entry.path_bytes().into_owned();
        let kind = entry.header().entry_type();
        // Comments, and defaults that are not used here.
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        let path = entry_path(&name)?;
        if (self.rules.reserved)(&path) {
            return Err(Failure::new(Fault::Path, &path, "the path is reserved"));
        }
        check_records(entry, &path)?;
        // The oldest archives have no type for directories.
        let old_directory = kind == EntryType::Regular && name.ends_with(b"/") && entry.size() == 0;
        if path.as_os_str().is_empty() {
            return match kind {
                EntryType::Directory => Ok(()),
                _ if old_directory => Ok(()),
                _ => Err(Failure::new(Fault::Path, Path::new("."), "only a directory can be the root")),
            };
        }
        self.count(&path)?;
        match kind {
            EntryType::Directory => self.directory(&path, entry),
            _ if old_directory => self.directory(&path, entry),
            EntryType::Regular => self.file(&path, entry),
            EntryType::Symlink => self.link(&path, entry),
            EntryType::Link => Err(Failure::new(Fault::Unsupported, &path, "hard links are not supported")),
            other => {
                let what = format!("entries of type {:?} are not supported", char::from(other.as_byte()));
                Err(Failure::new(Fault::Unsupported, &path, what))
            }
        }
    }

    fn directory<R: Read>(&mut self, path: &Path, entry: &Entry<'_, R>) -> Result<(), Failure> {
        let mode = mode(entry, path)?;
        let (parent, name) = self.place(path)?;
        let made = make_directory(&parent, name, path)?;
        let directory = open_directory(&parent, name, path)?;
        if made {
            self.give(&directory, path)?;
        }
        let directory = File::from(directory);
        let set = directory.set_permissions(Permissions::from_mode(mode));
        set.map_err(|error| Failure::system(error, path))?;
        self.parent = Some((path.into(), Rc::new(directory.into())));
        Ok(())
    }

    fn file<R: Read>(&mut self, path: &Path, entry: &mut Entry<'_, R>) -> Result<(), Failure> {
        let mode = mode(entry, path)?;
        let size = entry.size();
        if self.made.bytes.saturating_add(size) > self.rules.bytes_max {
            return Err(Failure::new(
                Fault::TooLarge,
                path,
                format!("the files have more than {} bytes", self.rules.bytes_max),
            ));
        }
        let (parent, name) = self.place(path)?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let make = || openat(&parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let file = match make() {
            Err(Errno::EEXIST) => {
                self.clear(&parent, name, path)?;
                make()
            }
            made => made,
        };
        let mut file = File::from(file.map_err(|error| Failure::system(error, path))?);
        self.made.files += 1;
        self.made.bytes += size;
        self.pass(entry, Some((&mut file, size, path)))?;
        self.give(file.as_fd(), path)?;
        // After the owner, whose change clears some bits.
        let set = file.set_permissions(Permissions::from_mode(mode));
        set.map_err(|error| Failure::system(error, path))?;
        if let Some(time) = modified(entry, path)? {
            futimens(&file, &time, &time).map_err(|error| Failure::system(error, path))?;
        }
        Ok(())
    }

    fn link<R: Read>(&mut self, path: &Path, entry: &Entry<'_, R>) -> Result<(), Failure> {
        let target = entry.link_name_bytes().unwrap_or_default().into_owned();
        if link_target(path, &target)? == Way::Winding {
            if self.winding.len() >= WINDING_MAX {
                let message = format!("more than {WINDING_MAX} links go up behind a name");
                return Err(Failure::new(Fault::Link, path, message));
            }
            self.winding.push(path.into());
        }
        let (parent, name) = self.place(path)?;
        let make = || symlinkat(target.as_slice(), &parent, name);
        match make() {
            Err(Errno::EEXIST) => {
                self.clear(&parent, name, path)?;
                make()
            }
            made => made,
        }
        .map_err(|error| Failure::system(error, path))?;
        if let Some((uid, gid)) = self.rules.owner {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            fchownat(&parent, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(|error| Failure::system(error, path))?;
        }
        if let Some(time) = modified(entry, path)? {
            utimensat(&parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)
                .map_err(|error| Failure::system(error, path))?;
        }
        Ok(())
    }

    /// Reads the rest of an entry's data, and writes it to a file of so many bytes if there is one.
    fn pass<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        mut to: Option<(&mut File, u64, &Path)>,
    ) -> Result<(), Failure> {
        let path = to.as_ref().map_or(Path::new(""), |(_, _, path)| path);
        let mut passed = 0;
        loop {
            if self.rules.stop.load(Ordering::Relaxed) {
                return Err(Failure::new(Fault::Stopped, path, "stopped"));
            }
            let len = match entry.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::reading(error, path)),
            };
            passed += len as u64;
            if let Some((file, ..)) = &mut to {
                file.write_all(&self.buffer[..len]).map_err(|error| Failure::system(error, path))?;
            }
        }
        match to {
            Some((_, size, _)) if passed != size => {
                let message = format!("the archive ends after {passed} of the file's {size} bytes");
                Err(Failure::new(Fault::Unsupported, path, message))
            }
            _ => Ok(()),
        }
    }

    /// The directory in which `path` is to be made, with its parents, and the last part of `path`.
    fn place<'p>(&mut self, path: &'p Path) -> Result<(Rc<OwnedFd>, &'p Path), Failure> {
        let wanted = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().map(Path::new).unwrap_or(path);
        if let Some((known, directory)) = &self.parent
            && known == wanted
        {
            return Ok((Rc::clone(directory), name));
        }
        let directory = Rc::new(self.reach(wanted, path)?);
        self.parent = Some((wanted.into(), Rc::clone(&directory)));
        Ok((directory, name))
    }

    fn reach(&mut self, wanted: &Path, entry: &Path) -> Result<OwnedFd, Failure> {
        match open_below(self.root, wanted, directory_flags()) {
            Ok(directory) => return Ok(directory),
            Err(Errno::ENOENT) => {}
            Err(Errno::ELOOP | Errno::ENOTDIR) => return Err(no_directory(entry)),
            Err(error) => return Err(Failure::system(error, entry)),
        }
        let mut directory = open_directory(self.root, Path::new("."), entry)?;
        for part in wanted {
            let part = Path::new(part);
            let made = make_directory(&directory, part, entry)?;
            directory = open_directory(&directory, part, entry)?;
            if made {
                self.count(entry)?;
                self.give(&directory, entry)?;
            }
        }
        Ok(directory)
    }

    /// Removes what an earlier entry of the same name has made: the last one counts.
    fn clear(&mut self, parent: &OwnedFd, name: &Path, path: &Path) -> Result<(), Failure> {
        let system = |error| Failure::system(error, path);
        let there = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(system)?;
        match there.st_mode & libc::S_IFMT {
            libc::S_IFDIR => return Err(Failure::new(Fault::Path, path, "the path is a directory before")),
            libc::S_IFREG => {
                self.made.files -= 1;
                self.made.bytes -= there.st_size as u64;
            }
            _ => {}
        }
        unlinkat(parent, name, UnlinkatFlags::NoRemoveDir).map_err(system)
    }

    fn give(&self, made: impl AsFd, path: &Path) -> Result<(), Failure> {
        match self.rules.owner {
            Some((uid, gid)) => {
                fchown(made, Some(uid), Some(gid)).map_err(|error| Failure::system(error, path))
            }
            None => Ok(()),
        }
    }

    fn count(&mut self, path: &Path) -> Result<(), Failure> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            let message = format!("more than {NODES_MAX} files, directories and links");
            return Err(Failure::new(Fault::TooLarge, path, message));
        }
        Ok(())
    }

    /// A link that goes up behind a name must lead to something of the archive, and never out on the way.
    fn follow_winding_links(&self) -> Result<(), Failure> {
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV;
        for path in &self.winding {
            let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
            match openat2(self.root, path, how) {
                Ok(_) => {}
                Err(Errno::EXDEV) => {
                    return Err(Failure::new(Fault::Link, path, "the link leads out of the directory"));
                }
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG) => {
                    let message = "the link goes up behind a name and leads to nothing in the archive";
                    return Err(Failure::new(Fault::Link, path, message));
                }
                Err(error) => return Err(Failure::system(error, path)),
            }
        }
        Ok(())
    }
}

/// Refuses broken PAX records, which a reader might take for none, and those of sparse files, whose entries
/// look like ordinary files.
fn check_records<R: Read>(entry: &mut Entry<'_, R>, path: &Path) -> Result<(), Failure> {
    let records = entry.pax_extensions().map_err(|error| Failure::reading(error, path))?;
    for record in records.into_iter().flatten() {
        let record = record.map_err(|error| Failure::reading(error, path))?;
        if record.key_bytes().starts_with(b"GNU.sparse.") {
            return Err(Failure::new(Fault::Unsupported, path, "sparse files are not supported"));
        }
    }
    Ok(())
}

fn mode<R: Read>(entry: &Entry<'_, R>, path: &Path) -> Result<u32, Failure> {
    entry.header().mode().map(|mode| mode & MODE_BITS).map_err(|error| Failure::reading(error, path))
}

/// When it was last changed, unless that is the epoch, which stands for no time.
fn modified<R: Read>(entry: &Entry<'_, R>, path: &Path) -> Result<Option<TimeSpec>, Failure> {
    let seconds = entry.header().mtime().map_err(|error| Failure::reading(error, path))?;
    Ok(i64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(|seconds| TimeSpec::new(seconds, 0)))
}

fn directory_flags() -> OFlag {
    OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_RDONLY
}

fn open_directory(parent: impl AsFd, name: &Path, entry: &Path) -> Result<OwnedFd, Failure> {
    openat(parent, name, directory_flags(), Mode::empty()).map_err(|error| match error {
        Errno::ELOOP | Errno::ENOTDIR => no_directory(entry),
        error => Failure::system(error, entry),
    })
}

/// Whether it is new.
fn make_directory(parent: impl AsFd, name: &Path, entry: &Path) -> Result<bool, Failure> {
    match mkdirat(parent, name, Mode::from_bits_truncate(PARENT_MODE)) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(error) => Err(Failure::system(error, entry)),
    }
}

fn no_directory(entry: &Path) -> Failure {
    Failure::new(Fault::Path, entry, "the path leads through, or is, something that is no directory")
}

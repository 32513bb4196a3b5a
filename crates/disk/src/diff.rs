//! Which files differ between two disks: both trees are walked at once, in the order of their paths.

use std::collections::BTreeMap;

use nullspace_types::snapshot::{DiffEntry, FileDifference};

use crate::Error;
use crate::cache::Cache;
use crate::chain::Chain;
use crate::content;
use crate::ext4::{Entries, FileSystem, Inode, Kind, ROOT};

/// Not the user's: where a check of the file system puts what it finds.
const LEFT_OUT: &[u8] = b"lost+found";
/// Linux's PATH_MAX: what is deeper no program can name.
const PATH_BYTES_MAX: usize = 4096;
/// Of all paths that are answered together.
const PATHS_BYTES_MAX: usize = 64 << 20;
/// Entries of the directories on the way to where the walk is.
const ENTRIES_MAX: usize = 1 << 20;
/// Pairs of files with several names of which it is known whether they differ.
const JUDGED_MAX: usize = 1 << 16;

/// What differs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences {
    /// By the bytes of their paths.
    pub items: Vec<DiffEntry>,
    /// Whether there is more.
    pub truncated: bool,
}

/// Which files of one disk differ from those of another: by content, kind, mode, owner, a link's target or a
/// device's number. A directory differs by its own mode and owner alone. Times count for nothing.
///
/// Blocking. At most `limit` files, the first by the bytes of their paths; ends early when `cancelled` says
/// so.
///
/// # Errors
/// A file system that is broken or not known, a directory with more than a million entries, a file that
/// cannot be read, [`Error::Cancelled`].
pub fn diff(
    of: &Chain,
    against: &Chain,
    limit: usize,
    cancelled: &dyn Fn() -> bool,
) -> Result<Differences, Error> {
    let wanted: &dyn Fn() -> _ = &|| if cancelled() { Err(Error::Cancelled) } else { Ok(()) };
    let mut walk = Walk {
        of: Side::open(of)?,
        against: Side::open(against)?,
        wanted,
        limit,
        paths_bytes: 0,
        judged: Cache::new(JUDGED_MAX),
        found: Differences::default(),
        full: false,
    };
    walk.run()?;
    Ok(walk.found)
}

/// One of the two disks.
struct Side<'a> {
    files: FileSystem<'a>,
    /// Directories that were entered, one bit an inode. Each has one place in a tree; one that is found again
    /// would be walked for ever.
    entered: Vec<u64>,
}

impl<'a> Side<'a> {
    fn open(disk: &'a Chain) -> Result<Self, Error> {
        let files = FileSystem::open(disk)?;
        let entered = vec![0; files.inodes() as usize / 64 + 1];
        Ok(Self { files, entered })
    }

    fn inode(&self, number: Option<u32>) -> Result<Option<Inode>, Error> {
        number.map(|number| self.files.inode(number)).transpose()
    }

    /// Puts a directory's entries where they belong among the steps, of which there may be so many.
    fn list(
        &mut self,
        directory: Option<u32>,
        steps: &mut BTreeMap<Vec<u8>, Pair>,
        most: usize,
        wanted: &dyn Fn() -> Result<(), Error>,
        own: impl Fn(&mut Pair) -> &mut Option<u32>,
    ) -> Result<(), Error> {
        let Some(number) = directory else { return Ok(()) };
        let broken = |reason: &str| Error::file_system(format!("directory {number}: {reason}"));
        let bit = 1 << (number % 64);
        let bits = &mut self.entered[number as usize / 64];
        if *bits & bit != 0 {
            return Err(broken("it is in several places"));
        }
        *bits |= bit;
        let mut entries = Entries::new(&self.files, &self.files.inode(number)?)?;
        while let Some(entries) = entries.next_block()? {
            wanted()?;
            for (name, inode) in entries {
                if own(steps.entry(name).or_default()).replace(inode).is_some() {
                    return Err(broken("two of its entries have one name"));
                }
                if steps.len() > most {
                    return Err(broken("it has too many entries to be compared"));
                }
            }
        }
        Ok(())
    }
}

/// One name in both trees: its inodes.
#[derive(Clone, Copy, Default)]
struct Pair {
    of: Option<u32>,
    against: Option<u32>,
}

/// What is to be done in a directory yet, in order. A name that ends with a slash is a directory that is to
/// be entered: so what is in `a` comes behind `a-b`, as it does among paths.
struct Level {
    /// Of the path.
    prefix_bytes: usize,
    steps: BTreeMap<Vec<u8>, Pair>,
}

struct Walk<'a, 'w> {
    of: Side<'a>,
    against: Side<'a>,
    wanted: &'w dyn Fn() -> Result<(), Error>,
    limit: usize,
    paths_bytes: usize,
    judged: Cache<(u32, u32), bool>,
    found: Differences,
    /// One was found that is not answered: what comes after it is not looked for.
    full: bool,
}

impl Walk<'_, '_> {
    fn run(&mut self) -> Result<(), Error> {
        let root = Pair { of: Some(ROOT), against: Some(ROOT) };
        let mut levels = vec![Level { prefix_bytes: 0, steps: BTreeMap::from([(Vec::new(), root)]) }];
        let mut path = Vec::new();
        let mut held = 1;
        while let Some(level) = levels.last_mut().filter(|_| !self.full) {
            (self.wanted)()?;
            let Some((mut name, pair)) = level.steps.pop_first() else {
                levels.pop();
                continue;
            };
            held -= 1;
            path.truncate(level.prefix_bytes);
            path.extend_from_slice(&name);
            if !name.ends_with(b"/") {
                if let Some(below) = self.look(&path, pair)? {
                    name.push(b'/');
                    level.steps.insert(name, below);
                    held += 1;
                }
            } else if path.len() > PATH_BYTES_MAX {
                self.found.truncated = true;
            } else {
                let mut steps = BTreeMap::new();
                let most = ENTRIES_MAX - held;
                self.of.list(pair.of, &mut steps, most, self.wanted, |pair| &mut pair.of)?;
                self.against.list(pair.against, &mut steps, most, self.wanted, |pair| &mut pair.against)?;
                if path == b"/" {
                    steps.remove(LEFT_OUT);
                }
                held += steps.len();
                levels.push(Level { prefix_bytes: path.len(), steps });
            }
        }
        Ok(())
    }

    /// Compares what has one path, and answers what of it is to be entered.
    fn look(&mut self, path: &[u8], pair: Pair) -> Result<Option<Pair>, Error> {
        let (of, against) = (self.of.inode(pair.of)?, self.against.inode(pair.against)?);
        match (&of, &against) {
            (Some(of), Some(against)) => {
                if self.differs(of, against)? {
                    self.tell(path, FileDifference::Modified, of);
                }
            }
            (Some(of), None) => self.tell(path, FileDifference::Added, of),
            (None, Some(against)) => self.tell(path, FileDifference::Removed, against),
            (None, None) => {}
        }
        let directory = |inode: &Option<Inode>| {
            inode.as_ref().filter(|inode| inode.kind == Kind::Directory).map(|inode| inode.number)
        };
        let below = Pair { of: directory(&of), against: directory(&against) };
        Ok((below.of.is_some() || below.against.is_some()).then_some(below))
    }

    fn differs(&mut self, of: &Inode, against: &Inode) -> Result<bool, Error> {
        let same = |inode: &Inode| (inode.kind, inode.mode, inode.user, inode.group);
        if same(of) != same(against) {
            return Ok(true);
        }
        match of.kind {
            Kind::Directory | Kind::Pipe | Kind::Socket | Kind::Unknown => Ok(false),
            Kind::CharacterDevice | Kind::BlockDevice => Ok(of.device() != against.device()),
            Kind::File | Kind::Symlink if of.size != against.size => Ok(true),
            Kind::Symlink if of.short_target().is_some() || against.short_target().is_some() => {
                Ok(of.short_target() != against.short_target())
            }
            Kind::File | Kind::Symlink => {
                let compare =
                    || content::is_same((&self.of.files, of), (&self.against.files, against), self.wanted);
                let same = match of.links {
                    0 | 1 => compare()?,
                    _ => self.judged.get_or((of.number, against.number), compare)?,
                };
                Ok(!same)
            }
        }
    }

    fn tell(&mut self, path: &[u8], change: FileDifference, inode: &Inode) {
        let path = if path.is_empty() { "/".into() } else { String::from_utf8_lossy(path) };
        self.paths_bytes += path.len();
        if self.found.items.len() >= self.limit || self.paths_bytes > PATHS_BYTES_MAX {
            self.found.truncated = true;
            self.full = true;
            return;
        }
        let r#type = match inode.kind {
            Kind::File => "file",
            Kind::Directory => "dir",
            Kind::Symlink => "symlink",
            Kind::CharacterDevice | Kind::BlockDevice | Kind::Pipe | Kind::Socket | Kind::Unknown => "other",
        };
        let (path, r#type) = (path.into_owned(), r#type.to_owned());
        self.found.items.push(DiffEntry { path, change, r#type, size: inode.size });
    }
}

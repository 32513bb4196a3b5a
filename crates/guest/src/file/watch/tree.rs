//! What the kernel says of a tree of directories, as events.
//!
//! Directories that appear are watched and read by `look`, a bounded step at a time; what the kernel
//! says of them meanwhile comes after.
//!
//! The two halves of a move come one after the other but not at once, and the second not at all when
//! the target is not watched. There is no need to guess by waiting: the kernel holds the lock of the
//! old directory until it has said both, and reading a directory takes that lock. So a first half
//! whose second half is still missing after the directory was read has none.

mod look;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use nullspace_guest_proto as pb;
use pb::watch_event::Kind;
use tonic::Status;

use super::names::Names;
use crate::file::write::OVER;
use crate::file::{is_hidden, status};
use look::{Content, Look};

/// Events that are told at once.
const EVENTS: usize = 512;
/// Notifications held at once while the second half of a move is looked for; the kernel's queue holds
/// about as many.
const HELD: usize = 20_000;

/// A watched tree, directory, or file.
pub struct Tree {
    inotify: Inotify,
    /// The watched path as it was given, and the directory by which it is watched.
    root: PathBuf,
    directory: PathBuf,
    /// For a file, which is watched by its directory: its name there.
    file: Option<OsString>,
    recursive: bool,
    names: Names,
    /// Read from the kernel and not told yet.
    held: VecDeque<InotifyEvent>,
    /// How many have been read in all.
    read: u64,
    /// Second halves among the held: whether what arrives there is shown.
    arrivals: HashMap<u32, bool>,
    /// First halves whose second half is held.
    departures: HashMap<u32, Departure>,
    /// No notification of this directory up to this one has a second half that is not held.
    settled: Option<(WatchDescriptor, u64)>,
    look: Look,
    /// Told from reading directories; the kernel's word for it may come yet.
    told: HashSet<(WatchDescriptor, OsString)>,
    events: Vec<pb::WatchEvent>,
}

/// How something went that now arrives.
enum Departure {
    Shown,
    /// It was written by the agent; `over`: in place of what was there.
    Written {
        over: bool,
    },
    /// From a place that is not shown.
    Unseen,
}

/// How a step ended.
pub enum Step {
    More,
    /// The kernel has nothing more to say now.
    Empty,
    /// The path is gone, and that was told.
    Gone,
}

impl Tree {
    /// Begins to watch; directories below are watched when `is_looking` says no more. Gives the
    /// descriptor that is readable when the kernel has something, too.
    pub fn open(root: PathBuf, recursive: bool) -> Result<(Self, OwnedFd), Status> {
        crate::path::refuse_reserved_links(&root)?;
        let failed = |error: Errno| exhausted(error).unwrap_or_else(|| status(&error.into(), &root));
        let metadata = root.metadata().map_err(|error| status(&error, &root))?;
        let (directory, file) = if metadata.is_dir() {
            (root.clone(), None)
        } else if metadata.is_file() {
            let real = root.canonicalize().map_err(|error| status(&error, &root))?;
            let directory = real.parent().unwrap_or(Path::new("/")).to_path_buf();
            (directory, real.file_name().map(OsStr::to_os_string))
        } else {
            return Err(Status::invalid_argument(format!(
                "{} is a pipe, a socket or a device; only files and directories can be watched",
                root.display()
            )));
        };
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed)?;
        let readable = inotify.as_fd().try_clone_to_owned().map_err(|error| status(&error, &root))?;
        let watch = inotify.add_watch(&directory, of_interest()).map_err(failed)?;
        let recursive = recursive && file.is_none();
        let mut tree = Self {
            inotify,
            root,
            directory,
            file,
            recursive,
            names: Names::new(watch),
            held: VecDeque::new(),
            read: 0,
            arrivals: HashMap::new(),
            departures: HashMap::new(),
            settled: None,
            look: Look::default(),
            told: HashSet::new(),
            events: Vec::new(),
        };
        if recursive {
            tree.look.at(watch, Content::Old);
        }
        Ok((tree, readable))
    }

    /// The next events, and whether there are more.
    pub fn advance(&mut self) -> Result<(Vec<pb::WatchEvent>, Step), Status> {
        let step = self.step()?;
        Ok((std::mem::take(&mut self.events), step))
    }

    fn step(&mut self) -> Result<Step, Status> {
        while self.events.len() < EVENTS {
            if self.is_looking() {
                // Some directories will not be seen; whoever watches has to look.
                if self.look().is_err() {
                    self.look = Look::default();
                    self.tell_overflow();
                }
                return Ok(Step::More);
            }
            if self.held.is_empty() && !self.read()? {
                self.told = HashSet::new();
                return Ok(Step::Empty);
            }
            let Some(notification) = self.held.pop_front() else { continue };
            if self.translate(&notification) {
                self.tell(Kind::Gone, None, OsStr::new(""));
                return Ok(Step::Gone);
            }
        }
        Ok(Step::More)
    }

    /// Reads some notifications; false: there are none.
    fn read(&mut self) -> Result<bool, Status> {
        match self.inotify.read_events() {
            Ok(notifications) => {
                for notification in notifications {
                    self.read += 1;
                    if notification.mask.contains(AddWatchFlags::IN_MOVED_TO)
                        && let Some(name) = &notification.name
                    {
                        let shown = self.is_shown(notification.wd, name);
                        self.arrivals.insert(notification.cookie, shown);
                    }
                    self.held.push_back(notification);
                }
                Ok(true)
            }
            Err(Errno::EAGAIN) => Ok(false),
            Err(Errno::EINTR) => Ok(true),
            Err(error) => {
                Err(Status::internal(format!("the kernel's notifications cannot be read: {error}")))
            }
        }
    }

    /// True when the watched path is gone.
    fn translate(&mut self, notification: &InotifyEvent) -> bool {
        let InotifyEvent { wd, mask, cookie, name } = notification;
        let (wd, is) = (*wd, |flag| mask.contains(flag));
        if is(AddWatchFlags::IN_Q_OVERFLOW) {
            self.tell_overflow();
            if self.recursive {
                self.look = Look::again(self.names.root());
            }
            return self.is_gone();
        }
        if is(AddWatchFlags::IN_IGNORED) {
            self.names.remove(wd);
            return wd == self.names.root();
        }
        if is(AddWatchFlags::IN_MOVE_SELF) {
            return wd == self.names.root();
        }
        // Without a name it is about the directory itself, which its parent tells.
        let Some(name) = name else { return false };
        let arrived = is(AddWatchFlags::IN_MOVED_TO).then(|| {
            self.arrivals.remove(cookie);
            self.departures.remove(cookie)
        });
        if !self.names.knows(wd) {
            return false;
        }
        let is_directory = is(AddWatchFlags::IN_ISDIR);
        let shown = self.is_shown(wd, name);
        if is(AddWatchFlags::IN_MOVED_FROM) {
            self.depart(wd, name, *cookie, is_directory);
        } else if !shown {
            return false;
        } else if let Some(departure) = arrived {
            self.arrive(wd, name, departure, is_directory);
        } else if is(AddWatchFlags::IN_CREATE) {
            self.appear(wd, name, is_directory);
        } else if is(AddWatchFlags::IN_DELETE) {
            self.told.remove(&(wd, name.clone()));
            self.tell(Kind::Remove, Some(wd), name);
        } else if is(AddWatchFlags::IN_MODIFY) {
            self.tell(Kind::Write, Some(wd), name);
        } else if is(AddWatchFlags::IN_ATTRIB) {
            self.tell(Kind::Chmod, Some(wd), name);
        }
        let may_be_gone = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
        shown && self.file.is_some() && mask.intersects(may_be_gone) && self.is_gone()
    }

    /// The first half of a move.
    fn depart(&mut self, wd: WatchDescriptor, name: &OsStr, cookie: u32, is_directory: bool) {
        let number = self.read - self.held.len() as u64;
        let settled = self.settled.is_some_and(|(directory, up_to)| directory == wd && number <= up_to);
        if !self.arrivals.contains_key(&cookie) && !settled {
            self.settle(wd, cookie);
        }
        let arrival = self.arrivals.get(&cookie).copied();
        if !self.is_shown(wd, name) {
            if arrival.is_some() {
                let departure = if is_hidden(name) && !is_directory {
                    Departure::Written { over: name.as_bytes().ends_with(OVER.as_bytes()) }
                } else {
                    Departure::Unseen
                };
                self.departures.insert(cookie, departure);
            }
            return;
        }
        self.told.remove(&(wd, name.to_os_string()));
        if arrival == Some(true) {
            self.departures.insert(cookie, Departure::Shown);
            self.tell(Kind::Rename, Some(wd), name);
            return;
        }
        self.tell(Kind::Remove, Some(wd), name);
        if is_directory {
            let gone = self.names.take(wd, name);
            self.unwatch(gone);
        }
    }

    /// Waits until the kernel has said both halves of every move out of a directory so far, and reads
    /// on until the wanted half is there or nothing is left.
    fn settle(&mut self, wd: WatchDescriptor, cookie: u32) {
        let up_to = self.read;
        if let Some(path) = self.names.path(wd)
            && let Ok(mut entries) = fs::read_dir(self.directory.join(path))
        {
            entries.next();
        }
        while self.held.len() < HELD && !self.arrivals.contains_key(&cookie) {
            // An error comes again when there is nothing left to tell.
            if !matches!(self.read(), Ok(true)) {
                self.settled = Some((wd, up_to));
                return;
            }
        }
    }

    /// The second half of a move.
    fn arrive(&mut self, wd: WatchDescriptor, name: &OsStr, from: Option<Departure>, is_directory: bool) {
        match from {
            Some(Departure::Shown) => {
                self.tell(Kind::Rename, Some(wd), name);
                if is_directory {
                    self.watch_below(wd, name, Content::Old);
                }
            }
            Some(Departure::Written { over: true }) => self.tell(Kind::Write, Some(wd), name),
            Some(Departure::Written { over: false }) => {
                self.appear(wd, name, is_directory);
                self.tell(Kind::Write, Some(wd), name);
            }
            Some(Departure::Unseen) | None => self.appear(wd, name, is_directory),
        }
    }

    fn appear(&mut self, wd: WatchDescriptor, name: &OsStr, is_directory: bool) {
        // What was told when its directory was read is watched already.
        if self.told.remove(&(wd, name.to_os_string())) {
            return;
        }
        self.tell(Kind::Create, Some(wd), name);
        if is_directory {
            self.watch_below(wd, name, Content::New);
        }
    }

    fn is_shown(&self, wd: WatchDescriptor, name: &OsStr) -> bool {
        match &self.file {
            Some(file) => name == file,
            None if is_hidden(name) => false,
            // Only this name can lead there.
            None if name == ".nullspace" => self
                .names
                .path(wd)
                .is_none_or(|path| !crate::path::is_reserved(&self.directory.join(path).join(name))),
            None => true,
        }
    }

    /// Whether the watched path is not there any more, or not the same directory.
    fn is_gone(&self) -> bool {
        match &self.file {
            Some(name) => matches!(self.directory.join(name).symlink_metadata(),
                Err(error) if error.kind() == io::ErrorKind::NotFound),
            None => self.inotify.add_watch(&self.directory, of_interest()) != Ok(self.names.root()),
        }
    }

    fn tell_overflow(&mut self) {
        if self.events.last().is_none_or(|last| last.kind() != Kind::Overflow) {
            self.tell(Kind::Overflow, None, OsStr::new(""));
        }
    }

    /// `of`: the directory in which `name` is; none: it is about the watched path itself.
    fn tell(&mut self, kind: Kind, of: Option<WatchDescriptor>, name: &OsStr) {
        let (name, path) = match (&self.file, of) {
            (Some(_), _) => {
                let name = self.root.file_name().unwrap_or_default();
                (name.to_string_lossy().into_owned(), self.root.clone())
            }
            (None, None) => (String::new(), self.root.clone()),
            (None, Some(wd)) => {
                let Some(path) = self.names.path(wd) else { return };
                let name = path.join(name);
                (name.to_string_lossy().into_owned(), self.root.join(name))
            }
        };
        let event = pb::WatchEvent { kind: kind.into(), name, path: path.to_string_lossy().into_owned() };
        // A program that writes much in small pieces says the same over and over.
        if kind == Kind::Write && self.events.last() == Some(&event) {
            return;
        }
        self.events.push(event);
    }
}

fn of_interest() -> AddWatchFlags {
    AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR
        // Not of files that have no name any more.
        | AddWatchFlags::from_bits_retain(libc::IN_EXCL_UNLINK)
}

/// What to tell when the kernel has no room for more watches.
fn exhausted(error: Errno) -> Option<Status> {
    match error {
        Errno::ENOSPC => {
            let limit = fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").unwrap_or_default();
            Some(Status::resource_exhausted(format!(
                "there are too many directories to watch; the machine takes {} \
                 (/proc/sys/fs/inotify/max_user_watches)",
                limit.trim()
            )))
        }
        Errno::EMFILE => Some(Status::resource_exhausted(
            "there are too many watches in the machine (/proc/sys/fs/inotify/max_user_instances)",
        )),
        Errno::ENOMEM => Some(Status::resource_exhausted("the machine has no memory for more watches")),
        _ => None,
    }
}

//! Reading the directories of a watched tree.
//!
//! A directory that appears is first watched, then read, and what is in it is told as created; what the
//! kernel says of the same things until then is not told again. After notifications were lost the whole
//! tree is read once more for what is not watched yet, and told of nothing.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, ReadDir};

use nix::sys::inotify::{AddWatchFlags, WatchDescriptor};
use nullspace_guest_proto as pb;
use pb::watch_event::Kind;
use tonic::Status;

use super::{EVENTS, Tree, exhausted, of_interest};

/// Directory entries that are looked at in one step.
const ENTRIES: usize = 4096;
/// Names told of directories just read that are remembered, so that they are not told twice.
const TOLD: usize = 65_536;

/// Directories that are still to be read.
#[derive(Default)]
pub struct Look {
    open: Option<(WatchDescriptor, ReadDir, Content)>,
    waiting: VecDeque<(WatchDescriptor, Content)>,
    /// All that were seen, while the whole tree is read again.
    seen: Option<HashSet<WatchDescriptor>>,
}

/// What is known of the content of a directory.
#[derive(Clone, Copy, PartialEq)]
pub enum Content {
    /// It appeared with it.
    New,
    /// It was there before.
    Old,
}

impl Look {
    /// At the whole tree below a directory, whatever is known of it.
    pub fn again(root: WatchDescriptor) -> Self {
        let mut look = Self { seen: Some(HashSet::from([root])), ..Self::default() };
        look.at(root, Content::Old);
        look
    }

    /// At one directory more.
    pub fn at(&mut self, directory: WatchDescriptor, content: Content) {
        self.waiting.push_back((directory, content));
    }
}

impl Tree {
    /// Whether directories are still to be read.
    pub fn is_looking(&self) -> bool {
        self.look.open.is_some() || !self.look.waiting.is_empty()
    }

    /// Reads directories for a while. Errors: there can be no more watches.
    pub fn look(&mut self) -> Result<(), Status> {
        for _ in 0..ENTRIES {
            if self.events.len() >= EVENTS || !self.look_at_one()? {
                break;
            }
        }
        Ok(())
    }

    /// Watches a directory that has just come to its place.
    pub(super) fn watch_below(&mut self, parent: WatchDescriptor, name: &OsStr, content: Content) {
        if self.recursive && self.watch(parent, name, content).is_err() {
            self.tell_overflow();
        }
    }

    /// Watches a directory, or learns that it is one that was somewhere else. Errors: there can be no
    /// more watches.
    fn watch(&mut self, parent: WatchDescriptor, name: &OsStr, content: Content) -> Result<(), Status> {
        let Some(path) = self.names.path(parent) else { return Ok(()) };
        let path = self.directory.join(path).join(name);
        let wd = match self.inotify.add_watch(&path, of_interest() | AddWatchFlags::IN_DONT_FOLLOW) {
            Ok(wd) => wd,
            // It is gone again, or something else; that will be told.
            Err(error) => return exhausted(error).map_or(Ok(()), Err),
        };
        let new = self.names.place(wd, parent, name);
        // When everything is read again, what is known is entered too.
        let unseen = self.look.seen.as_mut().is_some_and(|seen| seen.insert(wd));
        if new || unseen {
            self.look.at(wd, content);
        }
        Ok(())
    }

    /// Looks at the next directory entry; false: there are none left.
    fn look_at_one(&mut self) -> Result<bool, Status> {
        let Some((wd, entries, content)) = &mut self.look.open else {
            let Some((wd, content)) = self.look.waiting.pop_front() else {
                if let Some(seen) = self.look.seen.take() {
                    let gone = self.names.keep(&seen);
                    self.unwatch(gone);
                }
                return Ok(false);
            };
            // One that is gone by now was told, or will be.
            if let Some(path) = self.names.path(wd)
                && let Ok(entries) = fs::read_dir(self.directory.join(path))
            {
                self.look.open = Some((wd, entries, content));
            }
            return Ok(true);
        };
        let (wd, content) = (*wd, *content);
        let Some(Ok(entry)) = entries.next() else {
            self.look.open = None;
            return Ok(true);
        };
        let name = entry.file_name();
        if !self.is_shown(wd, &name) {
            return Ok(true);
        }
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if content == Content::New {
            self.tell(Kind::Create, Some(wd), &name);
            if self.told.len() < TOLD {
                self.told.insert((wd, name.clone()));
            }
        }
        if is_directory {
            self.watch(wd, &name, content)?;
        }
        Ok(true)
    }

    pub(super) fn unwatch(&self, directories: Vec<WatchDescriptor>) {
        for wd in directories {
            // The kernel may have dropped it by itself.
            let _ = self.inotify.rm_watch(wd);
        }
    }
}

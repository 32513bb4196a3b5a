//! Where the watched directories are.
//!
//! The kernel speaks of a directory by a number and goes on doing so when it is moved. Here each number
//! has its parent's and a name, so that a directory moves with all that is below it by one change.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use nix::sys::inotify::WatchDescriptor;

/// More directories inside one another than any path has.
const DEPTH: usize = 4096;

/// The watched directories below a root.
pub struct Names {
    root: WatchDescriptor,
    below: HashMap<WatchDescriptor, (WatchDescriptor, OsString)>,
}

impl Names {
    /// The root alone.
    pub fn new(root: WatchDescriptor) -> Self {
        Self { root, below: HashMap::new() }
    }

    pub fn root(&self) -> WatchDescriptor {
        self.root
    }

    pub fn knows(&self, directory: WatchDescriptor) -> bool {
        directory == self.root || self.below.contains_key(&directory)
    }

    /// A directory is, or is now, in that place. True when it was not known before.
    pub fn place(&mut self, directory: WatchDescriptor, parent: WatchDescriptor, name: &OsStr) -> bool {
        directory != self.root && self.below.insert(directory, (parent, name.to_os_string())).is_none()
    }

    /// Relative to the root, which itself is the empty path; none for one that is not known.
    pub fn path(&self, directory: WatchDescriptor) -> Option<PathBuf> {
        let mut up = Vec::new();
        let mut at = directory;
        while at != self.root {
            let (parent, name) = self.below.get(&at)?;
            up.push(name);
            at = *parent;
            // While moves are still unread, what is known may be out of date and even a circle.
            if up.len() > DEPTH {
                return None;
            }
        }
        Some(up.into_iter().rev().collect())
    }

    /// The kernel will not speak of it any more.
    pub fn remove(&mut self, directory: WatchDescriptor) {
        self.below.remove(&directory);
    }

    /// Forgets what was in that place, and all below it; gives what it forgot.
    pub fn take(&mut self, parent: WatchDescriptor, name: &OsStr) -> Vec<WatchDescriptor> {
        let top = self.below.iter().find(|(_, (above, called))| *above == parent && called == name);
        let Some(top) = top.map(|(directory, _)| *directory) else { return Vec::new() };
        let mut inside = HashMap::from([(top, true)]);
        for directory in self.below.keys() {
            let (mut at, mut passed) = (*directory, Vec::new());
            let is_inside = loop {
                if let Some(known) = inside.get(&at) {
                    break *known;
                }
                match self.below.get(&at) {
                    Some((above, _)) if passed.len() <= DEPTH => {
                        passed.push(at);
                        at = *above;
                    }
                    _ => break false,
                }
            };
            inside.extend(passed.into_iter().map(|directory| (directory, is_inside)));
        }
        let gone: Vec<_> = inside.into_iter().filter_map(|(directory, is)| is.then_some(directory)).collect();
        for directory in &gone {
            self.below.remove(directory);
        }
        gone
    }

    /// Forgets all that are not among these; gives what it forgot.
    pub fn keep(&mut self, seen: &HashSet<WatchDescriptor>) -> Vec<WatchDescriptor> {
        let gone: Vec<_> = self.below.keys().filter(|directory| !seen.contains(directory)).copied().collect();
        for directory in &gone {
            self.below.remove(directory);
        }
        gone
    }
}

//! Listing a directory.
//!
//! Entries come sorted by path, a directory before what is in it. At any time only the names of the
//! directories on the way down are held, and a directory with too many names is refused.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use nullspace_guest_proto as pb;
use tonic::Status;

use super::{info, status};
use crate::account::Accounts;

/// Names of one directory.
const ENTRIES: usize = 250_000;

/// A listing under way.
pub struct Listing {
    depth: usize,
    /// The directories on the way down, each with the names that are still to come, last first.
    open: Vec<(PathBuf, Vec<OsString>)>,
    accounts: Accounts,
}

impl Listing {
    /// Begins. `depth` 1: the children alone.
    pub fn open(path: &Path, depth: u32) -> Result<Self, Status> {
        crate::path::refuse_reserved_links(path)?;
        let metadata = path.metadata().map_err(|error| status(&error, path))?;
        if !metadata.is_dir() {
            return Err(Status::invalid_argument(format!("{} is not a directory", path.display())));
        }
        let names = names(path)?;
        Ok(Self {
            depth: depth.max(1) as usize,
            open: vec![(path.into(), names)],
            accounts: Accounts::load(),
        })
    }

    /// Whether the rest may be listed on the agent's thread.
    pub fn is_small(&self) -> bool {
        self.depth == 1 && self.open.iter().all(|(_, names)| names.len() <= 256)
    }
}

impl Iterator for Listing {
    type Item = Result<pb::FileInfo, Status>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (directory, names_left) = self.open.last_mut()?;
            let Some(name) = names_left.pop() else {
                self.open.pop();
                continue;
            };
            let path = directory.join(name);
            if crate::path::is_reserved(&path) {
                continue;
            }
            // What is gone since its directory was read is not there.
            let Ok(metadata) = path.symlink_metadata() else { continue };
            let entry = info(&path, &metadata, &self.accounts);
            if metadata.is_dir() && self.open.len() < self.depth {
                match names(&path) {
                    Ok(names) => self.open.push((path, names)),
                    Err(error) if error.code() == tonic::Code::NotFound => {}
                    Err(error) => {
                        self.open.clear();
                        return Some(Err(error));
                    }
                }
            }
            return Some(Ok(entry));
        }
    }
}

/// The names of a directory, last first.
fn names(path: &Path) -> Result<Vec<OsString>, Status> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| status(&error, path))? {
        if names.len() == ENTRIES {
            return Err(Status::resource_exhausted(format!(
                "{} has more than {ENTRIES} entries",
                path.display()
            )));
        }
        names.push(entry.map_err(|error| status(&error, path))?.file_name());
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

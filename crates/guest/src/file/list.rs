//! Listing a directory.

use std::path::Path;

use nullspace_guest_proto as pb;
use tonic::Status;

use super::info;
use super::walk::Walk;
use crate::account::Accounts;

/// A listing under way, in the order of `Walk`.
pub struct Listing {
    /// None after an error.
    walk: Option<Walk>,
    accounts: Accounts,
}

impl Listing {
    /// Begins. `depth` 1: the children alone.
    pub fn open(path: &Path, depth: u32) -> Result<Self, Status> {
        let walk = Walk::open(path, depth.max(1) as usize)?;
        Ok(Self { walk: Some(walk), accounts: Accounts::load() })
    }

    /// Whether the rest may be listed on the agent's thread.
    pub fn is_small(&self) -> bool {
        self.walk.as_ref().is_some_and(Walk::is_small)
    }
}

impl Iterator for Listing {
    type Item = Result<pb::FileInfo, Status>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.walk.as_mut()?.next()? {
                Ok(entry) => {
                    // What is gone since its directory was read is not there.
                    if let Ok(metadata) = entry.path.symlink_metadata() {
                        return Some(Ok(info(&entry.path, &metadata, &self.accounts)));
                    }
                }
                Err(error) => {
                    self.walk = None;
                    return Some(Err(error));
                }
            }
        }
    }
}

//! Frozen disk layers: files in `layers/` that nobody writes to any more, and on which machines and
//! checkpoints stand together. Each is held by all who need it; when the last lets go, it is removed. Who
//! holds what is written in the records of machines and checkpoints alone, and counted anew at each start.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nullspace_types::Error;
use serde::{Deserialize, Serialize};

use crate::machine::{disk_error, remove_file};

/// A layer's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LayerId(String);

impl LayerId {
    /// A name that no other layer has.
    pub fn new() -> Self {
        Self(uuid::Uuid::now_v7().simple().to_string())
    }
}

/// The layers of a node.
pub struct Layers {
    directory: PathBuf,
    held: Mutex<HashMap<LayerId, usize>>,
}

impl Layers {
    /// The layers in a directory, held by nobody yet.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, held: Mutex::default() }
    }

    /// Where a layer is.
    pub fn path(&self, id: &LayerId) -> PathBuf {
        self.directory.join(format!("{}.qcow2", id.0))
    }

    /// Where layers are.
    pub fn paths(&self, ids: &[LayerId]) -> Vec<PathBuf> {
        ids.iter().map(|id| self.path(id)).collect()
    }

    /// Holds layers: new ones, or such as somebody holds already.
    pub fn hold(&self, ids: &[LayerId]) {
        let mut held = self.held.lock().expect("no panic under it");
        for id in ids {
            *held.entry(id.clone()).or_default() += 1;
        }
    }

    /// Lets go of layers, and removes those that nobody holds any more.
    pub async fn release(&self, ids: &[LayerId]) -> Result<(), Error> {
        for path in self.let_go(ids) {
            remove_file(&path).await.map_err(disk_error)?;
            tracing::debug!(layer = %path.display(), "a disk layer that nobody needs is removed");
        }
        Ok(())
    }

    fn let_go(&self, ids: &[LayerId]) -> Vec<PathBuf> {
        let mut held = self.held.lock().expect("no panic under it");
        let mut gone = Vec::new();
        for id in ids {
            match held.get_mut(id) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    held.remove(id);
                    gone.push(self.path(id));
                }
            }
        }
        gone
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.held.lock().expect("no panic under it").len()
    }

    /// Files that nobody holds, with the bytes that they take.
    pub fn unheld(&self) -> Result<Vec<(PathBuf, u64)>, Error> {
        let mut found = Vec::new();
        for entry in fs_err::read_dir(&self.directory).map_err(Error::internal)? {
            let path = entry.map_err(Error::internal)?.path();
            if !self.is_held(&path) {
                found.push((path.clone(), used_bytes(&path).unwrap_or(0)));
            }
        }
        Ok(found)
    }

    fn is_held(&self, path: &Path) -> bool {
        let id = path.file_stem().and_then(|stem| stem.to_str()).map(|stem| LayerId(stem.to_owned()));
        id.is_some_and(|id| self.held.lock().expect("no panic under it").contains_key(&id))
    }
}

/// Bytes that a file takes on the disk.
pub fn used_bytes(path: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs_err::metadata(path)?.blocks() * 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_layer_is_removed_when_the_last_who_held_it_lets_go() {
        let directory = tempfile::tempdir().unwrap();
        let layers = Layers::new(directory.path().to_owned());
        let (shared, single) = (LayerId::new(), LayerId::new());
        for id in [&shared, &single] {
            std::fs::write(layers.path(id), b"x").unwrap();
        }
        assert_eq!(layers.unheld().unwrap().len(), 2);
        layers.hold(&[shared.clone(), single.clone()]);
        layers.hold(std::slice::from_ref(&shared));
        assert!(layers.unheld().unwrap().is_empty());
        layers.release(&[shared.clone(), single.clone()]).await.unwrap();
        assert!(layers.path(&shared).exists() && !layers.path(&single).exists());
        layers.release(std::slice::from_ref(&shared)).await.unwrap();
        assert!(!layers.path(&shared).exists());
        assert_eq!(layers.count(), 0);
    }
}

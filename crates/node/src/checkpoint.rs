//! Checkpoints of sandboxes: what was captured of them, on the disk or, for children that are made right
//! away, in memory.
//!
//! `checkpoints/SNAPSHOT/` holds the changed memory, the devices, and a record that says what a restore
//! needs; it is made beside and published by rename, so that one whose making was interrupted does not
//! exist. Its disk is a list of [layers](crate::layer) that it holds. Owned here: the list of checkpoints
//! and their files. How one is made is in [`capture`](crate::capture).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use nullspace_node_api::{Checkpoint, CheckpointMode};
use nullspace_types::id::SnapshotId;
use nullspace_types::{Code, Error};
use nullspace_vmm::{Delta, Description};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::RwLock;

use crate::crash;
use crate::layer::{LayerId, Layers};
use crate::machine::{disk_error, read_json, remove_directory};
use crate::template::{TemplateRef, vmm_error};

/// Grows when the layout of a checkpoint changes.
pub const FORMAT: u32 = 1;

const RECORD: &str = "checkpoint.json";
const MEMORY: &str = "memory";
/// The device state's file.
pub const DEVICES: &str = "devices";
/// What the directory of one that is being made, or removed, begins with.
const MAKING: &str = "making-";
const REMOVING: &str = "removing-";

/// What is written down of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// See [`FORMAT`].
    pub format: u32,
    /// As others see it.
    pub checkpoint: Checkpoint,
    /// What captured it, and so what can restore it.
    pub monitor: Description,
    /// The template that its memory is a difference to.
    pub template: TemplateRef,
    /// The frozen layers of its disk above the template's, lowest first.
    pub layers: Vec<LayerId>,
    /// Bytes of the disk.
    pub disk_bytes: u64,
    /// The token that the agent in it takes.
    pub token: String,
    /// See [`machine::Record::authority`](crate::machine::Record::authority).
    #[serde(default)]
    pub authority: Option<String>,
    /// SHA-256 of the device state, in hexadecimal digits.
    pub devices_sha256: String,
}

/// Where the changed memory is.
enum Pages {
    Held(Arc<Delta>),
    /// On the disk; and in memory for as long as anybody restores it.
    Saved(Mutex<Weak<Delta>>),
}

/// A checkpoint that can be restored.
pub struct Captured {
    /// What is known of it.
    pub record: Record,
    directory: PathBuf,
    pages: Pages,
    /// Read by who restores it, so that its files stay until they are open.
    using: RwLock<()>,
}

/// What a restore reads.
pub struct Parts {
    /// The changed memory.
    pub delta: Arc<Delta>,
    /// The device state, open and found to be whole.
    pub devices: std::fs::File,
}

impl Captured {
    /// Its files, if they are whole.
    pub async fn open(self: &Arc<Self>) -> Result<Parts, Error> {
        let _stays = self.using.read().await;
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || Ok(Parts { delta: this.delta()?, devices: this.devices()? }))
            .await
            .map_err(Error::internal)?
    }

    fn delta(&self) -> Result<Arc<Delta>, Error> {
        let saved = match &self.pages {
            Pages::Held(delta) => return Ok(Arc::clone(delta)),
            Pages::Saved(saved) => saved,
        };
        // Held while it is read: of several who come together one reads for all.
        let mut shared = saved.lock().expect("no panic under it");
        if let Some(delta) = shared.upgrade() {
            return Ok(delta);
        }
        let memory_mb = self.record.checkpoint.shape.memory_mb;
        let delta = Arc::new(Delta::load(&self.directory.join(MEMORY), memory_mb).map_err(unreadable)?);
        *shared = Arc::downgrade(&delta);
        Ok(delta)
    }

    fn devices(&self) -> Result<std::fs::File, Error> {
        let path = self.directory.join(DEVICES);
        let bytes = fs_err::read(&path).map_err(|error| corrupted("its device state", error))?;
        if sha256(&bytes) != self.record.devices_sha256 {
            return Err(corrupted("its device state", "it is not what was written"));
        }
        Ok(fs_err::File::open(&path).map_err(Error::internal)?.into_parts().0)
    }
}

/// The SHA-256 of a small file's content, in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    crate::hex(&Sha256::digest(bytes))
}

fn corrupted(what: &str, reason: impl std::fmt::Display) -> Error {
    Error::new(Code::SnapshotCorrupted, format!("the snapshot is damaged: {what} cannot be restored"))
        .suggest("use another snapshot; this one's files have been changed or lost on the server's disk")
        .context(reason)
}

/// What a caller is told of a checkpoint's memory that cannot be read.
fn unreadable(error: nullspace_vmm::Error) -> Error {
    match error {
        nullspace_vmm::Error::Corrupted { .. } => corrupted("its memory", crate::chain(&error)),
        nullspace_vmm::Error::File { ref source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            corrupted("its memory", crate::chain(&error))
        }
        other => restore_error(other),
    }
}

/// What a caller is told when a checkpoint cannot be restored.
pub fn restore_error(error: nullspace_vmm::Error) -> Error {
    match error {
        nullspace_vmm::Error::Incompatible(difference) => Error::new(
            Code::IncompatibleSnapshot,
            format!("the snapshot cannot be restored on this server: {difference}"),
        ),
        nullspace_vmm::Error::Corrupted { .. } => corrupted("one of its files", crate::chain(&error)),
        other => vmm_error(other),
    }
}

/// The checkpoints of a node.
pub struct Checkpoints {
    directory: PathBuf,
    entries: Mutex<HashMap<SnapshotId, Arc<Captured>>>,
}

impl Checkpoints {
    /// Reads the checkpoints in a directory, has them hold their layers, and removes what is half-made or
    /// half-removed.
    pub async fn open(directory: PathBuf, layers: &Layers) -> Result<Self, Error> {
        let mut entries = HashMap::new();
        for entry in fs_err::read_dir(&directory).map_err(Error::internal)? {
            let path = entry.map_err(Error::internal)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with(MAKING) || name.starts_with(REMOVING) {
                tracing::info!(directory = %path.display(), "removing what is left of a checkpoint");
                remove_directory(&path).await.map_err(disk_error)?;
                continue;
            }
            let Ok(id) = name.parse::<SnapshotId>() else { continue };
            match read_json::<Record>(&path, RECORD) {
                Some(record) if record.format == FORMAT && record.checkpoint.id == id => {
                    layers.hold(&record.layers);
                    entries.insert(id, Arc::new(captured(record, path, None)));
                }
                // Left as it is: another version may be able to read it.
                _ => {
                    tracing::error!(checkpoint = %id, "a checkpoint's record cannot be read; it is not used")
                }
            }
        }
        Ok(Self { directory, entries: Mutex::new(entries) })
    }

    /// A directory for one that is to be made.
    pub async fn begin(&self, id: SnapshotId) -> Result<PathBuf, Error> {
        let making = self.directory.join(format!("{MAKING}{id}"));
        remove_directory(&making).await.map_err(disk_error)?;
        fs_err::tokio::create_dir(&making).await.map_err(disk_error)?;
        Ok(making)
    }

    /// Completes a checkpoint whose device state is in `making`: on the disk if it is to be kept, in memory
    /// else. The layers are held by then.
    pub async fn publish(
        &self,
        making: PathBuf,
        mut record: Record,
        delta: Delta,
        layers: &[PathBuf],
    ) -> Result<Arc<Captured>, Error> {
        let id = record.checkpoint.id;
        let captured = match record.checkpoint.mode {
            CheckpointMode::Transient => captured(record, making, Some(Arc::new(delta))),
            CheckpointMode::Keep | CheckpointMode::Hibernate => {
                let target = self.directory.join(id.to_string());
                let (from, to, layers) = (making.clone(), target.clone(), layers.to_vec());
                record = tokio::task::spawn_blocking(move || write(&from, &to, record, &delta, &layers))
                    .await
                    .map_err(Error::internal)??;
                captured(record, target, None)
            }
        };
        let captured = Arc::new(captured);
        self.entries.lock().expect("no panic under it").insert(id, Arc::clone(&captured));
        crash::step("checkpoint.published");
        Ok(captured)
    }

    /// A checkpoint.
    pub fn get(&self, id: SnapshotId) -> Option<Arc<Captured>> {
        self.entries.lock().expect("no panic under it").get(&id).cloned()
    }

    /// All of them.
    pub fn list(&self) -> Vec<Arc<Captured>> {
        self.entries.lock().expect("no panic under it").values().cloned().collect()
    }

    /// The one that a life of a machine ended in, if it did.
    pub fn hibernation_of(&self, machine: &nullspace_node_api::Machine) -> Option<SnapshotId> {
        let found = self.list().into_iter().find(|captured| {
            let checkpoint = &captured.record.checkpoint;
            checkpoint.mode == CheckpointMode::Hibernate && checkpoint.incarnation == machine.incarnation
        });
        found.map(|captured| captured.record.checkpoint.id)
    }

    /// Removes a checkpoint and lets go of its layers.
    pub async fn remove(&self, id: SnapshotId, layers: &Layers) -> Result<(), Error> {
        let Some(captured) = self.entries.lock().expect("no panic under it").remove(&id) else {
            return Ok(());
        };
        let _unused = captured.using.write().await;
        // From here on it does not exist, whatever becomes of the rest.
        let removing = self.directory.join(format!("{REMOVING}{id}"));
        match fs_err::tokio::rename(&captured.directory, &removing).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(disk_error(error)),
            _ => crash::step("checkpoint_delete.renamed"),
        }
        remove_directory(&removing).await.map_err(disk_error)?;
        crash::step("checkpoint_delete.removed");
        layers.release(&captured.record.layers).await?;
        crash::step("checkpoint_delete.layers_released");
        Ok(())
    }

    /// Directories here that are no checkpoint and that nobody is making, with the bytes that they take.
    pub fn unknown(&self, in_making: impl Fn(SnapshotId) -> bool) -> Result<Vec<(PathBuf, u64)>, Error> {
        let mut found = Vec::new();
        for entry in fs_err::read_dir(&self.directory).map_err(Error::internal)? {
            let path = entry.map_err(Error::internal)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let left = |prefix: &str| {
                let id = name.strip_prefix(prefix)?.parse::<SnapshotId>().ok()?;
                (self.get(id).is_none() && !in_making(id)).then_some(())
            };
            if left(MAKING).or_else(|| left(REMOVING)).is_some() {
                let files = fs_err::read_dir(&path).map_err(Error::internal)?.flatten();
                let bytes = files.filter_map(|file| crate::layer::used_bytes(&file.path()).ok()).sum();
                found.push((path, bytes));
            }
        }
        Ok(found)
    }
}

fn captured(record: Record, directory: PathBuf, delta: Option<Arc<Delta>>) -> Captured {
    let pages = delta.map_or_else(|| Pages::Saved(Mutex::default()), Pages::Held);
    Captured { record, directory, pages, using: RwLock::default() }
}

/// Writes what is not written yet, brings all of it to the disk, and gives it its name. Blocks.
fn write(
    making: &Path,
    target: &Path,
    mut record: Record,
    delta: &Delta,
    layers: &[PathBuf],
) -> Result<Record, Error> {
    let sync = |path: &Path| fs_err::File::open(path).and_then(|file| file.sync_all()).map_err(disk_error);
    std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            layers.iter().try_for_each(|layer| sync(layer))?;
            sync(&making.join(DEVICES))
        });
        let saved = delta.save(&making.join(MEMORY)).map_err(vmm_error);
        let others = others.join().unwrap_or_else(|_| Err(Error::internal("a thread panicked")));
        saved.and(others)
    })?;
    crash::step("checkpoint.memory_written");
    for name in [MEMORY, DEVICES] {
        record.checkpoint.size_bytes +=
            crate::layer::used_bytes(&making.join(name)).map_err(Error::internal)?;
    }
    let text = serde_json::to_vec_pretty(&record).map_err(Error::internal)?;
    let written = fs_err::File::create(making.join(RECORD)).and_then(|mut file| {
        std::io::Write::write_all(&mut file, &text)?;
        file.sync_all()
    });
    written.map_err(disk_error)?;
    sync(making)?;
    crash::step("checkpoint.record_written");
    fs_err::rename(making, target).map_err(disk_error)?;
    sync(target.parent().unwrap_or(target))?;
    Ok(record)
}

//! A restored machine that is nobody's yet: slot, directory, disk layer, monitor, guest link. What
//! fails half-way leaves nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nullspace_types::Error;
use nullspace_vmm::{Monitor, Vmm};

use crate::checkpoint::{Checkpoint, vmm_error};
use crate::guest::Guest;
use crate::machine::{self, TOP, disk_error, remove_directory};
use crate::slot::{Slot, Slots};

/// A machine that stands still after its restore, or after it has been warmed.
pub struct Assembled {
    /// What it was restored from.
    pub checkpoint: Arc<Checkpoint>,
    /// Its files.
    pub directory: PathBuf,
    /// Its place on the network.
    pub slot: Slot,
    /// Its process.
    pub monitor: Arc<dyn Monitor>,
    /// Its agent.
    pub guest: Guest,
}

/// Restores a machine into a new directory.
pub async fn assemble(
    vmm: &dyn Vmm,
    slots: &Slots,
    checkpoint: Arc<Checkpoint>,
    directory: &Path,
) -> Result<Assembled, Error> {
    let slot = slots.take().await?;
    match restore(vmm, &slot, &checkpoint, directory).await {
        Ok(monitor) => {
            let guest = Guest::new(monitor.link());
            Ok(Assembled { checkpoint, directory: directory.to_owned(), slot, monitor, guest })
        }
        Err(error) => {
            slot.release().await?;
            remove_directory(directory).await.map_err(disk_error)?;
            Err(error)
        }
    }
}

async fn restore(
    vmm: &dyn Vmm,
    slot: &Slot,
    checkpoint: &Checkpoint,
    directory: &Path,
) -> Result<Arc<dyn Monitor>, Error> {
    // What is left of an earlier try is in nobody's way.
    remove_directory(directory).await.map_err(disk_error)?;
    let top = directory.join(TOP);
    let (empty, made, copy) = (checkpoint.empty_layer(), directory.to_owned(), top.clone());
    tokio::task::spawn_blocking(move || {
        use std::os::unix::fs::PermissionsExt;
        fs_err::create_dir(&made)?;
        fs_err::copy(empty, &copy)?;
        fs_err::set_permissions(&copy, std::fs::Permissions::from_mode(0o600))
    })
    .await
    .map_err(Error::internal)?
    .map_err(disk_error)?;
    let devices = checkpoint.devices().map_err(Error::internal)?;
    let placement = slot.placement(directory)?;
    let monitor = vmm
        .restore(&checkpoint.hardware(top), placement, &checkpoint.memory, None, devices)
        .await
        .map_err(vmm_error)?;
    match machine::note_process(directory, monitor.handle()).await {
        Ok(()) => Ok(monitor),
        Err(error) => {
            monitor.end().await.map_err(vmm_error)?;
            Err(error)
        }
    }
}

impl Assembled {
    /// Ends the machine and frees all it held. Every part is tried, whatever becomes of the others.
    pub async fn remove(self) -> Result<(), Error> {
        remove_parts(self.monitor.as_ref(), self.slot, &self.directory).await
    }
}

/// Ends a monitor and frees its slot and its files.
pub async fn remove_parts(monitor: &dyn Monitor, slot: Slot, directory: &Path) -> Result<(), Error> {
    let ended = monitor.end().await.map_err(vmm_error);
    let released = slot.release().await;
    let removed = remove_directory(directory).await.map_err(disk_error);
    ended.and(released).and(removed)
}

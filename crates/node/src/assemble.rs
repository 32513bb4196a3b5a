//! From a template or a checkpoint to a machine that stands still: a slot, a directory, an empty layer, a
//! restored monitor. Whatever fails half-way leaves nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nullspace_net::Enforced;
use nullspace_types::Error;
use nullspace_vmm::{Monitor, Vmm};

use crate::checkpoint::{Captured, Parts, restore_error};
use crate::crash;
use crate::guest::Guest;
use crate::layer::{LayerId, Layers};
use crate::machine::{self, TOP, disk_error, remove_directory};
use crate::slot::{Slot, Slots};
use crate::template::{Template, vmm_error};

/// What a machine is restored from.
#[derive(Clone)]
pub struct Source {
    /// The template whose memory lies below.
    pub template: Arc<Template>,
    /// What a sandbox has changed since then.
    pub captured: Option<Arc<Captured>>,
}

impl Source {
    /// The token that its agent takes until it is adopted.
    pub fn token(&self) -> &str {
        self.captured.as_ref().map_or(&self.template.record.token, |captured| &captured.record.token)
    }

    /// Bytes of its disk.
    pub fn disk_bytes(&self) -> u64 {
        self.captured
            .as_ref()
            .map_or_else(|| self.template.disk_bytes(), |captured| captured.record.disk_bytes)
    }

    /// The frozen layers of its disk above the template's, lowest first.
    pub fn layers(&self) -> &[LayerId] {
        self.captured.as_ref().map_or(&[], |captured| &captured.record.layers)
    }
}

/// A machine that stands still after its restore, or after it has been warmed.
pub struct Assembled {
    /// What it was restored from. It holds the layers of that.
    pub source: Source,
    /// Its files.
    pub directory: PathBuf,
    /// Its place on the network.
    pub slot: Slot,
    /// Its process.
    pub monitor: Arc<dyn Monitor>,
    /// Its agent.
    pub guest: Guest,
}

/// Restores a machine into a new directory, with a policy in force for what it may reach if one is given.
pub async fn assemble(
    vmm: &dyn Vmm,
    slots: &Slots,
    layers: &Layers,
    source: Source,
    directory: &Path,
    egress: Option<Arc<Enforced>>,
) -> Result<Assembled, Error> {
    // Held by the checkpoint as long as that is there; from here on by the machine too.
    layers.hold(source.layers());
    let restored = async {
        let slot = slots.take().await?;
        let policy = async {
            match egress {
                Some(enforced) => slot.set_egress(enforced).await,
                None => Ok(()),
            }
        };
        // Neither waits for the other, but each for the other's end: what one made must not be left behind.
        let (ruled, restored) = tokio::join!(policy, restore(vmm, &slot, layers, &source, directory));
        let restored = match (ruled, restored) {
            (Err(error), Ok(monitor)) => {
                monitor.end().await.map_err(vmm_error)?;
                Err(error)
            }
            (_, restored) => restored,
        };
        match restored {
            Ok(monitor) => Ok((slot, monitor)),
            Err(error) => {
                slot.release().await?;
                remove_directory(directory).await.map_err(disk_error)?;
                Err(error)
            }
        }
    };
    match restored.await {
        Ok((slot, monitor)) => {
            let guest = Guest::new(monitor.link());
            Ok(Assembled { source, directory: directory.to_owned(), slot, monitor, guest })
        }
        Err(error) => {
            layers.release(source.layers()).await?;
            Err(error)
        }
    }
}

async fn restore(
    vmm: &dyn Vmm,
    slot: &Slot,
    layers: &Layers,
    source: &Source,
    directory: &Path,
) -> Result<Arc<dyn Monitor>, Error> {
    let template = &source.template;
    let parts = match &source.captured {
        Some(captured) => {
            vmm.description().accept(&captured.record.monitor).map_err(restore_error)?;
            Some(captured.open().await?)
        }
        None => None,
    };
    // What is left of an earlier try is in nobody's way.
    remove_directory(directory).await.map_err(disk_error)?;
    let top = directory.join(TOP);
    let same_size = source.disk_bytes() == template.disk_bytes();
    let (empty, made, copy) = (template.empty_layer(), directory.to_owned(), top.clone());
    tokio::task::spawn_blocking(move || {
        fs_err::create_dir(&made)?;
        if same_size { copy_empty(&empty, &copy) } else { Ok(()) }
    })
    .await
    .map_err(Error::internal)?
    .map_err(disk_error)?;
    if !same_size {
        vmm.make_layer(&top, source.disk_bytes()).await.map_err(vmm_error)?;
    }
    crash::step("restore.begun");
    let placement = slot.placement(directory)?;
    let mut hardware = template.hardware(top);
    hardware.layers.extend(layers.paths(source.layers()));
    let (delta, devices) = match parts {
        Some(Parts { delta, devices }) => (Some(delta), devices),
        None => (None, template.devices().map_err(Error::internal)?),
    };
    let monitor =
        vmm.restore(&hardware, placement, &template.memory, delta, devices).await.map_err(restore_error)?;
    crash::step("restore.restored");
    match machine::note_process(directory, monitor.handle()).await {
        Ok(()) => Ok(monitor),
        Err(error) => {
            monitor.end().await.map_err(vmm_error)?;
            Err(error)
        }
    }
}

/// Begins a machine's own layer.
pub fn copy_empty(empty: &Path, copy: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs_err::copy(empty, copy)?;
    fs_err::set_permissions(copy, std::fs::Permissions::from_mode(0o600))
}

impl Assembled {
    /// Ends the machine and frees all it held. Every part is tried, whatever becomes of the others.
    pub async fn remove(self, layers: &Layers) -> Result<(), Error> {
        let ended = end_process(self.monitor.as_ref(), self.slot).await;
        let removed = remove_files(&self.directory).await;
        ended.and(removed).and(layers.release(self.source.layers()).await)
    }
}

/// Ends a monitor and frees its slot.
pub async fn end_process(monitor: &dyn Monitor, slot: Slot) -> Result<(), Error> {
    let ended = monitor.end().await.map_err(vmm_error);
    crash::step("destroy.monitor_ended");
    ended.and(slot.release().await)
}

/// Removes a machine's files.
pub async fn remove_files(directory: &Path) -> Result<(), Error> {
    remove_directory(directory).await.map_err(disk_error)?;
    crash::step("destroy.directory_removed");
    Ok(())
}

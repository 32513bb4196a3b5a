//! After a start: machines that still run are found again, half-made ones are removed with all they
//! held, and so is what belongs to nobody any more.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nullspace_types::Error;
use nullspace_vmm::Vmm;

use crate::checkpoint::Checkpoints;
use crate::egress::Egress;
use crate::machine::{self, Directories, Record, remove_directory};
use crate::slot::Slot;
use crate::template::vmm_error;

/// A machine that was written down, and whose process still runs as far as can be seen.
pub struct Survivor {
    /// Its record.
    pub record: Record,
    /// Its directory.
    pub directory: PathBuf,
}

/// Reads what the last server left, and ends and removes what was never finished, and what is hibernated.
pub async fn survivors(
    directories: &Directories,
    checkpoints: &Checkpoints,
    vmm: &dyn Vmm,
) -> Result<Vec<Survivor>, Error> {
    let mut found = Vec::new();
    for directory in subdirectories(&directories.machines)? {
        match machine::read(&directory) {
            // It stands still at the instant of its checkpoint: two machines must not go on from there.
            Some(record) if checkpoints.hibernation_of(&record.machine).is_some() => {
                remove(vmm, Some(record.handle), &directory).await?;
            }
            Some(record) if alive(&record) => found.push(Survivor { record, directory }),
            record => remove(vmm, record.map(|record| record.handle), &directory).await?,
        }
    }
    for directory in subdirectories(&directories.spares)? {
        remove(vmm, None, &directory).await?;
    }
    let keep: Vec<String> =
        found.iter().map(|survivor| survivor.record.handle.control_group.clone()).collect();
    vmm.sweep(&keep).await.map_err(vmm_error)?;
    Ok(found)
}

fn alive(record: &Record) -> bool {
    record.handle.pid == 0
        || nullspace_jail::Process::find_again(record.handle.pid, record.handle.start_time).is_ok()
}

/// Ends what a directory's process is, as far as it was noted, and removes the directory.
pub async fn remove(
    vmm: &dyn Vmm,
    handle: Option<nullspace_vmm::Handle>,
    directory: &Path,
) -> Result<(), Error> {
    tracing::info!(directory = %directory.display(), "removing what is left of a machine");
    if let Some(handle) = handle.or_else(|| machine::noted_process(directory)) {
        vmm.remove(&handle).await.map_err(vmm_error)?;
    }
    remove_directory(directory).await.map_err(Error::internal)
}

fn subdirectories(of: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs_err::read_dir(of).map_err(Error::internal)?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(Error::internal)).collect()
}

/// Takes survivors up again; one that cannot be is removed.
pub async fn take_up(
    node: &Arc<crate::Node>,
    survivors: Vec<Survivor>,
    mut slots: HashMap<u32, Slot>,
) -> Result<(), Error> {
    for Survivor { record, directory } in survivors {
        let Some(slot) = slots.remove(&record.slot) else {
            tracing::warn!(sandbox = %record.spec.sandbox_id, "the machine's network is gone; it is removed");
            remove(node.vmm.as_ref(), Some(record.handle), &directory).await?;
            continue;
        };
        match node.vmm.reattach(&record.handle, slot.link()).await {
            Ok(monitor) => {
                // A machine that stood still when the last server ended (a full disk) goes on.
                if let Err(error) = monitor.resume().await {
                    tracing::warn!(sandbox = %record.spec.sandbox_id, %error, "the machine does not go on");
                }
                let room = node.capacity.hold(record.spec.shape);
                let guest = crate::guest::Guest::new(monitor.link());
                let sandbox = record.spec.sandbox_id;
                tracing::info!(%sandbox, "found running");
                node.layers.hold(&record.layers);
                let freezing = record.freezing.clone();
                let egress = Egress::written(&directory, &record)?;
                crate::egress::own(node, &slot, sandbox);
                // Without the secrets, which control has: requests that need them are refused until it has
                // told them. A slot whose policy cannot be put in force stays closed.
                if let Err(error) = slot.set_egress(egress.enforced()).await {
                    tracing::error!(%sandbox, %error, context = error.context, "the machine reaches nothing");
                }
                let parts = crate::running::Parts { monitor, slot, directory, egress, room };
                let running = node.insert(record, guest, parts);
                crate::stall::end_any(node, &running);
                if let Err(error) = crate::capture::complete(node, &running, freezing).await {
                    tracing::error!(%sandbox, %error, context = error.context, "it is not known what the machine's disk is made of; it runs on, but is not captured any more");
                    running.disk.lock().await.closed = true;
                }
            }
            Err(error) => {
                tracing::warn!(sandbox = %record.spec.sandbox_id, %error, "the machine cannot be taken up; it is removed");
                remove(node.vmm.as_ref(), Some(record.handle), &directory).await?;
                slot.release().await?;
            }
        }
    }
    Ok(())
}

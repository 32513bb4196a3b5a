//! Which files differ between two disks of this node, read from their layers in this process: neither is
//! woken, neither is mounted.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nullspace_disk::Chain;
use nullspace_node_api::{DiskDiff, DiskOf};
use nullspace_types::id::{SandboxId, SnapshotId};
use nullspace_types::{Code, Error};

use crate::layer::LayerId;
use crate::template::{Template, TemplateRef};
use crate::{Node, capture};

/// A disk that stays as it is while it is read.
struct Held {
    base: PathBuf,
    layers: Vec<PathBuf>,
    held: Vec<LayerId>,
}

/// Compares two disks.
pub async fn diff(node: &Arc<Node>, of: DiskOf, against: DiskOf, limit: u32) -> Result<DiskDiff, Error> {
    let of = hold(node, of).await?;
    let outcome = match hold(node, against).await {
        Ok(against) => {
            let outcome = compare(&of, &against, limit).await;
            node.layers.release(&against.held).await?;
            outcome
        }
        Err(error) => Err(error),
    };
    node.layers.release(&of.held).await?;
    outcome
}

async fn hold(node: &Arc<Node>, which: DiskOf) -> Result<Held, Error> {
    let (template, held) = match which {
        DiskOf::Machine(id) => of_machine(node, id).await?,
        DiskOf::Checkpoint(id) => of_checkpoint(node, id)?,
    };
    let found: Result<Arc<Template>, Error> = node.templates.find(&template).await;
    match found {
        Ok(template) => {
            let mut layers = vec![template.disk()];
            layers.extend(node.layers.paths(&held));
            Ok(Held { base: template.base().to_owned(), layers, held })
        }
        Err(error) => {
            node.layers.release(&held).await?;
            Err(error)
        }
    }
}

/// What a machine has written by now becomes a layer of its own.
async fn of_machine(node: &Arc<Node>, id: SandboxId) -> Result<(TemplateRef, Vec<LayerId>), Error> {
    let running = node.running(id)?;
    let mut disk = running.disk.lock().await;
    capture::freeze_disk(node, &running, &mut disk).await?;
    let layers = disk.layers.clone();
    node.layers.hold(&layers);
    drop(disk);
    capture::merge_later(node, &running);
    Ok((running.record.template.clone(), layers))
}

fn of_checkpoint(node: &Node, id: SnapshotId) -> Result<(TemplateRef, Vec<LayerId>), Error> {
    let captured = node.checkpoints.get(id);
    let captured = captured
        .ok_or_else(|| Error::new(Code::SnapshotNotFound, format!("snapshot {id} does not exist")))?;
    node.layers.hold(&captured.record.layers);
    Ok((captured.record.template.clone(), captured.record.layers.clone()))
}

/// Ends the comparison when nobody waits for it any more.
struct Waited(Arc<AtomicBool>);

impl Drop for Waited {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn compare(of: &Held, against: &Held, limit: u32) -> Result<DiskDiff, Error> {
    let open = |held: &Held| (held.base.clone(), held.layers.clone());
    let (of, against) = (open(of), open(against));
    let over = Arc::new(AtomicBool::new(false));
    let _waited = Waited(Arc::clone(&over));
    let differences = tokio::task::spawn_blocking(move || {
        let of = Chain::open(&of.0, &of.1)?;
        let against = Chain::open(&against.0, &against.1)?;
        nullspace_disk::diff(&of, &against, limit as usize, &|| over.load(Ordering::Relaxed))
    })
    .await
    .map_err(Error::internal)?;
    let differences = differences.map_err(|error| {
        // What is on the disk is the guest's doing.
        Error::new(Code::FileError, format!("the sandboxes' disks cannot be compared: {error}"))
            .context(crate::chain(&error))
    })?;
    Ok(DiskDiff { items: differences.items, truncated: differences.truncated })
}

//! Capturing a running machine: memory, devices and disk at one instant. Fork, snapshot and hibernation are
//! this, and differ in what becomes of the checkpoint and of the machine.
//!
//! All that can be done before or after is not done while the machine stands still: the next disk layer is
//! opened, the present one is brought to the disk, and room for the changed memory is made while it runs;
//! memory is written to the disk after it runs again. One capture of a machine at a time: whoever holds
//! [`Running::disk`] may change its disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use jiff::Timestamp;
use nullspace_guest_proto as proto;
use nullspace_node_api::{Checkpoint, CheckpointMode};
use nullspace_types::Error;
use nullspace_types::id::{SandboxId, SnapshotId};
use nullspace_vmm::{Buffer, Delta, Layer};

use crate::Node;
use crate::checkpoint::{self, Captured, DEVICES, Record};
use crate::crash;
use crate::guest::answered;
use crate::layer::{LayerId, used_bytes};
use crate::machine::{self, Freezing, disk_error};
use crate::running::{Disk, Running};
use crate::stall::Stall;
use crate::template::vmm_error;

/// Frozen layers that a machine may stand on before they are merged.
const LAYERS: usize = 8;
/// How many it may stand on at most: one that is captured again and again, quicker than its layers are
/// merged, has to wait for that.
const LAYERS_MAX: usize = 32;

/// How long it may take to be seen that a monitor is gone, whose dialogue broke off.
const LAST_BREATH: Duration = Duration::from_millis(100);

/// What a capture takes besides the disk.
struct Memory {
    devices: PathBuf,
    buffer: Buffer,
}

/// What came of it.
struct Still {
    at: Timestamp,
    layer: LayerId,
    delta: Option<Delta>,
    /// Of a machine that shall not go on.
    stall: Option<Stall>,
}

/// Captures a machine into a new checkpoint.
pub async fn capture(
    node: Arc<Node>,
    running: Arc<Running>,
    id: SnapshotId,
    mode: CheckpointMode,
) -> Result<Arc<Captured>, Error> {
    let _turn = node.captures.acquire().await.map_err(Error::internal)?;
    if running.disk.lock().await.layers.len() >= LAYERS_MAX {
        merge(&node, &running).await?;
    }
    let mut disk = running.disk.lock().await;
    disk.check()?;
    node.capacity.check_disk()?;
    let making = node.checkpoints.begin(id).await?;
    let captured = into(&node, &running, &mut disk, id, mode, &making).await;
    match &captured {
        Ok(_) if mode == CheckpointMode::Hibernate => {
            // Nobody may freeze it again: its top belongs to a machine that is no more.
            disk.closed = true;
            drop(disk);
            if let Err(error) = running.end().await {
                tracing::error!(%error, context = error.context, "a hibernated machine could not be removed whole");
            }
            crash::step("hibernate.ended");
        }
        Ok(_) => {
            drop(disk);
            merge_later(&node, &running);
        }
        Err(error) => {
            machine::remove_directory(&making).await.map_err(disk_error)?;
            // What a monitor says that dies in the middle of this is nobody's business.
            if tokio::time::timeout(LAST_BREATH, running.monitor.ended()).await.is_ok() {
                return Err(Running::lost().context(error.context.as_deref().unwrap_or(&error.message)));
            }
        }
    }
    captured
}

/// Brings what the guest has in memory of its files to its disk.
async fn flush(running: &Running) {
    let flushed = async {
        let mut client = running.client()?;
        answered(client.sync(proto::SyncRequest {})).await.map_err(|status| Error::internal(status.message()))
    };
    if let Err(error) = flushed.await {
        tracing::warn!(sandbox = %running.record.spec.sandbox_id, %error, context = error.context, "the guest did not flush its files before its capture");
    }
}

async fn into(
    node: &Node,
    running: &Running,
    disk: &mut Disk,
    id: SnapshotId,
    mode: CheckpointMode,
    making: &Path,
) -> Result<Arc<Captured>, Error> {
    let spec = &running.record.spec;
    let devices = making.join(DEVICES);
    let flushed = async {
        if mode != CheckpointMode::Transient {
            // What the guest has written reaches its disk, which can then be read without it. Its memory has
            // all of that too: a guest that does not do it loses nothing.
            flush(running).await;
        }
    };
    let (buffer, ()) = tokio::join!(running.monitor.make_buffer(spec.shape.memory_mb), flushed);
    let buffer = buffer.map_err(vmm_error)?;
    let go_on = mode != CheckpointMode::Hibernate;
    let mut still =
        freeze(node, running, disk, Some(Memory { devices: devices.clone(), buffer }), go_on).await?;
    let stall = still.stall.take();
    let published = async {
        let delta = still.delta.ok_or_else(|| Error::internal("the memory was not captured"))?;
        let bytes = fs_err::tokio::read(&devices).await.map_err(disk_error)?;
        let layer = node.layers.path(&still.layer);
        let captured = Checkpoint {
            id,
            sandbox_id: spec.sandbox_id,
            incarnation: spec.incarnation,
            shape: spec.shape,
            disk_mb: running.record.machine.disk_mb,
            size_bytes: used_bytes(&layer).map_err(disk_error)?,
            created_at: still.at,
            mode,
        };
        let record = Record {
            format: checkpoint::FORMAT,
            checkpoint: captured,
            monitor: node.vmm.description().clone(),
            template: running.record.template.clone(),
            layers: disk.layers.clone(),
            disk_bytes: u64::from(running.record.machine.disk_mb) << 20,
            token: running.record.token.clone(),
            authority: running.egress().authority_pem(),
            devices_sha256: checkpoint::sha256(&bytes),
        };
        node.layers.hold(&disk.layers);
        let published = node
            .checkpoints
            .publish(making.to_owned(), record, delta, &node.layers.paths(&disk.layers))
            .await;
        if published.is_err() {
            node.layers.release(&disk.layers).await?;
        }
        published
    }
    .await;
    if published.is_err() && !go_on {
        go_on_after_all(node, running, stall).await?;
    }
    published
}

/// Lets a machine run that stands still, for want of what it was to end for.
async fn go_on_after_all(node: &Node, running: &Running, stall: Option<Stall>) -> Result<(), Error> {
    let resumed = running.monitor.resume().await.map_err(vmm_error);
    if let Some(stall) = stall {
        stall.end(node, running);
    }
    resumed
}

/// Freezes the top of a machine's disk under a new one, so that what was written by now can be read beside
/// the machine that goes on.
pub async fn freeze_disk(node: &Node, running: &Running, disk: &mut Disk) -> Result<(), Error> {
    disk.check()?;
    node.capacity.check_disk()?;
    flush(running).await;
    freeze(node, running, disk, None, true).await.map(drop)
}

/// Has a machine stand still for as long as it takes to freeze its disk, and to take its memory and
/// devices, for which its programs stand still before. If this fails it goes on as before.
async fn freeze(
    node: &Node,
    running: &Running,
    disk: &mut Disk,
    memory: Option<Memory>,
    go_on: bool,
) -> Result<Still, Error> {
    let directory = running.directory();
    let (layer, old) = (LayerId::new(), disk.top_path(directory));
    let next = disk.next_top();
    let next_path = directory.join(&next);
    let freezing = Freezing { layer: layer.clone(), top: next.clone() };
    running.write_down(disk, Some(freezing)).await?;
    crash::step("capture.begun");
    let added = add_layer(node, running, &next_path, &old).await;
    let mut stall = None;
    let outcome = match added {
        Ok(added) => {
            crash::step("capture.layer_added");
            stall = match &memory {
                Some(_) => Some(Stall::begin(running).await),
                None => Some(Stall::none()),
            };
            crash::step("capture.stalled");
            let outcome = stand_still(node, running, memory, added, go_on).await;
            if (go_on || outcome.is_err())
                && let Some(stall) = stall.take()
            {
                stall.end(node, running);
            }
            outcome
        }
        Err(error) => Err(error),
    };
    let (at, delta) = match outcome {
        Ok(still) => still,
        Err(error) => {
            if let Err(error) = machine::remove_file(&next_path).await {
                tracing::warn!(%error, "a disk layer that is not used stays until its machine ends");
            }
            running.write_down(disk, None).await?;
            return Err(error);
        }
    };
    node.layers.hold(std::slice::from_ref(&layer));
    let named = name_layer(&old, &node.layers.path(&layer)).await;
    crash::step("capture.layer_named");
    disk.layers.push(layer.clone());
    disk.top = next;
    if let Err(error) = named {
        // The layer is where nobody looks for it: this machine runs on, but is not captured again.
        disk.closed = true;
        if !go_on {
            go_on_after_all(node, running, stall).await?;
        }
        return Err(error);
    }
    // If this cannot be written now, the record says what was being done, which leads to the same.
    if let Err(error) = running.write_down(disk, None).await {
        tracing::warn!(sandbox = %running.record.spec.sandbox_id, %error, context = error.context, "a machine's new disk layer could not be written down yet");
    }
    crash::step("capture.recorded");
    Ok(Still { at, layer, delta, stall })
}

/// Opens the next layer in the running machine, and brings the present one to the disk.
async fn add_layer(node: &Node, running: &Running, next: &Path, old: &Path) -> Result<Layer, Error> {
    let template = node.templates.find(&running.record.template).await?;
    let (empty, copy, old) = (template.empty_layer(), next.to_owned(), old.to_owned());
    tokio::task::spawn_blocking(move || {
        crate::assemble::copy_empty(&empty, &copy)?;
        fs_err::File::open(&old)?.sync_data()
    })
    .await
    .map_err(Error::internal)?
    .map_err(disk_error)?;
    running.monitor.add_layer(next).await.map_err(vmm_error)
}

/// The pause. Afterwards the machine runs, unless it shall not go on and all went well.
async fn stand_still(
    node: &Node,
    running: &Running,
    memory: Option<Memory>,
    layer: Layer,
    go_on: bool,
) -> Result<(Timestamp, Option<Delta>), Error> {
    let monitor = &running.monitor;
    let begun = Instant::now();
    let mut layer = Some(layer);
    let outcome = async {
        monitor.pause().await.map_err(vmm_error)?;
        let at = Timestamp::now();
        crash::step("capture.paused");
        let delta = match memory {
            Some(Memory { devices, buffer }) => {
                let file = fs_err::File::options().write(true).create_new(true).open(&devices);
                let file = file.map_err(disk_error)?.into_parts().0;
                monitor.save_devices(file).await.map_err(vmm_error)?;
                crash::step("capture.devices_saved");
                let delta = monitor.changed_memory(buffer).await.map_err(vmm_error)?;
                crash::step("capture.memory_copied");
                Some(delta)
            }
            None => None,
        };
        let layer = layer.take().ok_or_else(|| Error::internal("a layer is frozen twice"))?;
        monitor.freeze_disk(layer).await.map_err(vmm_error)?;
        crash::step("capture.frozen");
        Ok((at, delta))
    }
    .await;
    if let Some(layer) = layer
        && let Err(error) = monitor.drop_layer(layer).await
    {
        tracing::warn!(%error, "a disk layer that is not used may stay open");
    }
    if go_on || outcome.is_err() {
        let resumed = monitor.resume().await.map_err(vmm_error);
        node.paused(begun.elapsed());
        if outcome.is_ok() {
            resumed?;
        }
        crash::step("capture.resumed");
    }
    outcome
}

/// Gives a frozen top its name among the layers; from here on it is nobody's to write.
async fn name_layer(from: &Path, to: &Path) -> Result<(), Error> {
    let (from, to) = (from.to_owned(), to.to_owned());
    tokio::task::spawn_blocking(move || {
        use std::os::unix::fs::PermissionsExt;
        nix::unistd::chown(&from, Some(0.into()), Some(0.into()))?;
        fs_err::set_permissions(&from, std::fs::Permissions::from_mode(0o444))?;
        fs_err::rename(&from, &to)
    })
    .await
    .map_err(Error::internal)?
    .map_err(disk_error)
}

/// After a crash: how far a change of the disk came is what the monitor says.
pub async fn complete(node: &Node, running: &Running, freezing: Option<Freezing>) -> Result<(), Error> {
    let mut disk = running.disk.lock().await;
    let directory = running.directory();
    // The template's own layer and the top are there besides.
    let own = running.monitor.disk_layers().await.map_err(vmm_error)?.saturating_sub(2);
    let before = disk.layers.clone();
    // Only many are merged, and then all of them: that many are never missing for another reason.
    let merged = before.len() > LAYERS && own < before.len();
    if merged {
        disk.layers.clear();
    }
    let frozen = own > disk.layers.len();
    match freezing {
        Some(Freezing { layer, top }) if frozen => {
            let old = disk.top_path(directory);
            node.layers.hold(std::slice::from_ref(&layer));
            if old.exists() {
                name_layer(&old, &node.layers.path(&layer)).await?;
            }
            disk.layers.push(layer);
            disk.top = top;
        }
        Some(Freezing { top, .. }) if top != disk.top => {
            machine::remove_file(&directory.join(&top)).await.map_err(disk_error)?;
        }
        Some(_) | None => {}
    }
    running.write_down(&disk, None).await?;
    if merged {
        node.layers.release(&before).await?;
    }
    Ok(())
}

/// Merges the layers that a machine stands on into its top if they are many, behind everybody's back.
pub fn merge_later(node: &Arc<Node>, running: &Arc<Running>) {
    let (node, running) = (Arc::clone(node), Arc::clone(running));
    node.tasks.clone().spawn(async move {
        let sandbox = running.record.spec.sandbox_id;
        tokio::select! {
            merged = merge(&node, &running) => if let Err(error) = merged {
                tracing::warn!(%sandbox, %error, context = error.context, "a machine's disk layers could not be merged; it is tried again after its next capture");
            },
            () = node.stopping.cancelled() => {}
            () = running.gone() => {}
        }
    });
}

async fn merge(node: &Node, running: &Running) -> Result<(), Error> {
    let before = running.disk.lock().await.layers.clone();
    if before.len() <= LAYERS || running.merging.swap(true, std::sync::atomic::Ordering::AcqRel) {
        return Ok(());
    }
    let begun = Instant::now();
    // The disk is not held meanwhile: a capture does not wait for this, but ends it.
    let merged = running.monitor.merge_layers(1).await;
    running.merging.store(false, std::sync::atomic::Ordering::Release);
    match merged {
        // A capture went first; after it this is tried again.
        Err(nullspace_vmm::Error::Refused { reason, .. }) => {
            tracing::debug!(sandbox = %running.record.spec.sandbox_id, reason, "layers are not merged now");
            return Ok(());
        }
        merged => merged.map_err(vmm_error)?,
    }
    let mut disk = running.disk.lock().await;
    disk.check()?;
    if !disk.layers.starts_with(&before) {
        return Err(Error::internal("the layers changed while they were merged"));
    }
    disk.layers.drain(..before.len());
    running.write_down(&disk, None).await?;
    node.layers.release(&before).await?;
    tracing::info!(sandbox = %running.record.spec.sandbox_id, layers = before.len(), elapsed = ?begun.elapsed(), "disk layers merged");
    Ok(())
}

/// A capture that is under way.
pub type Capturing = Shared<BoxFuture<'static, Result<Arc<Captured>, Error>>>;

impl Node {
    /// Captures a machine, or joins its capture, or finds it captured.
    pub async fn checkpoint(
        self: &Arc<Self>,
        of: SandboxId,
        id: SnapshotId,
        mode: CheckpointMode,
    ) -> Result<Checkpoint, Error> {
        if let Some(found) = self.checkpoints.get(id) {
            let checkpoint = found.record.checkpoint.clone();
            // The last try came that far, and no farther.
            if mode == CheckpointMode::Hibernate
                && let Ok(running) = self.running(of)
                && running.record.machine.incarnation == checkpoint.incarnation
            {
                running.end().await?;
            }
            return Ok(checkpoint);
        }
        let running = self.running(of)?;
        let capturing = {
            let mut all = self.capturing.lock().expect("no panic under it");
            match all.get(&id) {
                Some(capturing) => capturing.clone(),
                None => {
                    let this = Arc::clone(self);
                    // A task of its own: a caller who goes away leaves nothing half-made.
                    let task = self.tasks.spawn(async move {
                        let captured = capture(Arc::clone(&this), running, id, mode).await;
                        this.capturing.lock().expect("no panic under it").remove(&id);
                        captured
                    });
                    let new: Capturing = async move { task.await.map_err(Error::internal)? }.boxed().shared();
                    all.insert(id, new.clone());
                    new
                }
            }
        };
        Ok(capturing.await?.record.checkpoint.clone())
    }

    /// Whether a checkpoint is being made.
    pub fn is_capturing(&self, id: SnapshotId) -> bool {
        self.capturing.lock().expect("no panic under it").contains_key(&id)
    }

    /// Notes how long a machine stood still for a capture.
    fn paused(&self, pause: Duration) {
        metrics::histogram!("nullspace_checkpoint_pause_seconds").record(pause.as_secs_f64());
        tracing::debug!(?pause, "a machine stood still");
    }
}

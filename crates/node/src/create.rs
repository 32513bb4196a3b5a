//! Making a machine: room, a checkpoint, a restored machine (spare if there is one), and adoption.

use std::sync::Arc;

use jiff::Timestamp;
use nullspace_guest_proto as proto;
use nullspace_node_api::{Machine, MachineSpec};
use nullspace_types::{Code, Error};
use tokio_util::sync::CancellationToken;

use crate::assemble::{Assembled, assemble};
use crate::capacity::Room;
use crate::checkpoint::vmm_error;
use crate::host_key::HostKey;
use crate::machine::{self, Record, disk_error};
use crate::running::{Parts, Running, drive};
use crate::spare::Busy;
use crate::{Node, guest};

/// The one template of this node so far.
pub const TEMPLATE: &str = "base";

/// Makes a machine whole, or leaves nothing of it.
pub async fn create(
    node: Arc<Node>,
    spec: MachineSpec,
    cancel: CancellationToken,
) -> Result<Arc<Running>, Error> {
    if spec.template != TEMPLATE {
        return Err(Error::new(
            Code::TemplateNotFound,
            format!("template {:?} does not exist", spec.template),
        ));
    }
    let _busy = Busy::begin(Arc::clone(&node));
    let room = room(&node, &spec).await?;
    let checkpoint = node.checkpoints.get(spec.shape).await?;
    let turn = node.turns.acquire().await.map_err(Error::internal)?;
    let directory = node.directories.machines.join(spec.sandbox_id.to_string());
    let mut assembled = match node.spares.take(spec.shape) {
        Some(spare) => spare,
        None => assemble(node.vmm.as_ref(), &node.slots, checkpoint, &directory).await?,
    };
    let monitor = Arc::clone(&assembled.monitor);
    let adopted = tokio::select! {
        adopted = adopt(&spec, &directory, &mut assembled) => adopted,
        () = cancel.cancelled() => Err(Error::sandbox_not_found(spec.sandbox_id)),
        () = monitor.ended() => Err(Error::internal("the machine ended while it was being made")),
    };
    drop(turn);
    match adopted {
        Ok(record) => Ok(finish(node, record, assembled, room)),
        Err(error) => {
            assembled.remove().await?;
            Err(error)
        }
    }
}

/// Room for one more; spares make way for it.
async fn room(node: &Node, spec: &MachineSpec) -> Result<Room, Error> {
    match node.capacity.take(spec.shape) {
        Err(error) if error.code == Code::CapacityExceeded && node.spares.any() => {
            node.spares.drain().await?;
            node.capacity.take(spec.shape)
        }
        taken => taken,
    }
}

/// Gives the machine its identity and writes it down.
async fn adopt(
    spec: &MachineSpec,
    directory: &std::path::Path,
    assembled: &mut Assembled,
) -> Result<Record, Error> {
    if assembled.directory != directory {
        fs_err::tokio::rename(&assembled.directory, directory).await.map_err(disk_error)?;
        assembled.directory = directory.to_owned();
    }
    if !spec.internet_access {
        assembled.slot.cut_off().await?;
    }
    let template_bytes = assembled.checkpoint.disk_bytes();
    let disk_bytes = (u64::from(spec.disk_mb.unwrap_or(0)) << 20).max(template_bytes);
    if disk_bytes > template_bytes {
        assembled.monitor.resize_disk(disk_bytes).await.map_err(vmm_error)?;
    }
    assembled.monitor.resume().await.map_err(vmm_error)?;
    let token = crate::random_hex(32);
    let hostname = hostname(spec);
    let host_key = HostKey::generate(&hostname)?;
    let request = proto::AdoptRequest {
        sandbox_id: spec.sandbox_id.to_string(),
        token: token.clone(),
        hostname,
        unix_time_ns: u64::try_from(Timestamp::now().as_nanosecond()).map_err(Error::internal)?,
        entropy: crate::random_bytes(64).into(),
        machine_id: crate::random_hex(16),
        boot_id: uuid::Uuid::new_v4().to_string(),
        envs: spec.envs.clone().into_iter().collect(),
        cwd: spec.cwd.clone().unwrap_or_default(),
        disk_bytes,
        ssh_host_key: host_key.private,
        ssh_host_key_public: host_key.public,
    };
    let mut client = assembled.guest.with_token(&assembled.checkpoint.record.token)?;
    guest::adopt(&mut client, request).await?;
    let mut handle = assembled.monitor.handle().clone();
    handle.directory = directory.to_owned();
    let record = Record {
        pid: handle.pid,
        spec: spec.clone(),
        machine: Machine {
            sandbox_id: spec.sandbox_id,
            incarnation: spec.incarnation,
            generation: 1,
            disk_mb: u32::try_from(disk_bytes >> 20).map_err(Error::internal)?,
            started_at: Timestamp::now(),
        },
        handle,
        slot: assembled.slot.index(),
        token,
        checkpoint: assembled.checkpoint.key.clone(),
    };
    machine::write(directory, &record).await?;
    Ok(record)
}

/// A host name that tells people which sandbox they are in: the end of its ID, which is random.
fn hostname(spec: &MachineSpec) -> String {
    let id = spec.sandbox_id.to_string();
    format!("sandbox-{}", &id[id.len() - 12..])
}

fn finish(node: Arc<Node>, record: Record, assembled: Assembled, room: Room) -> Arc<Running> {
    let Assembled { directory, slot, monitor, guest, .. } = assembled;
    drive(node, record, guest, Parts { monitor, slot, directory, room })
}

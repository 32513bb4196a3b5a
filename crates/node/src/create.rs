//! Making a machine: room, what it begins from, a restored machine (spare if there is one), and adoption.

use std::sync::Arc;

use futures::FutureExt;
use jiff::Timestamp;
use nullspace_guest_proto as proto;
use nullspace_net::Enforced;
use nullspace_node_api::{Machine, MachineSpec, Origin};
use nullspace_types::network::EgressPolicy;
use nullspace_types::{Code, Error};
use tokio_util::sync::CancellationToken;

use crate::assemble::{Assembled, Source, assemble};
use crate::capacity::Room;
use crate::egress::Egress;
use crate::host_key::HostKey;
use crate::machine::{self, Record, disk_error};
use crate::running::{Parts, Running, drive};
use crate::spare::Busy;
use crate::template::vmm_error;
use crate::{Node, capture, crash, guest};

/// The one template of this node so far.
pub const TEMPLATE: &str = "base";

/// Makes a machine whole, or leaves nothing of it.
pub async fn create(
    node: Arc<Node>,
    spec: MachineSpec,
    cancel: CancellationToken,
) -> Result<Arc<Running>, Error> {
    let _busy = Busy::begin(Arc::clone(&node));
    let room = room(&node, &spec).await?;
    let source = source(&node, &spec).await?;
    let turn = node.turns.acquire().await.map_err(Error::internal)?;
    let directory = node.directories.machines.join(spec.sandbox_id.to_string());
    let inherited = source.captured.as_ref().and_then(|captured| captured.record.authority.as_deref());
    let egress = Egress::new(spec.egress.clone(), inherited)?;
    // Slots are made with the policy that most machines have.
    let rules = (egress.policy != EgressPolicy::default()).then(|| egress.enforced());
    let spare = if source.captured.is_none() { node.spares.take(spec.shape) } else { None };
    let (mut assembled, rules) = match spare {
        Some(spare) => (spare, rules),
        None => {
            let (vmm, slots) = (node.vmm.as_ref(), &node.slots);
            (assemble(vmm, slots, &node.layers, source, &directory, rules).await?, None)
        }
    };
    crate::egress::own(&node, &assembled.slot, spec.sandbox_id);
    let monitor = Arc::clone(&assembled.monitor);
    let adopted = tokio::select! {
        adopted = adopt(&spec, &directory, &mut assembled, &egress, rules) => adopted,
        () = cancel.cancelled() => Err(Error::sandbox_not_found(spec.sandbox_id)),
        () = monitor.ended() => Err(Error::internal("the machine ended while it was being made")),
    };
    drop(turn);
    match adopted {
        Ok(record) => {
            crash::step("restore.recorded");
            Ok(finish(node, record, assembled, egress, room))
        }
        Err(error) => {
            crate::egress::disown(&node, &assembled.slot).await;
            assembled.remove(&node.layers).await?;
            Err(error)
        }
    }
}

/// What the machine begins from.
async fn source(node: &Node, spec: &MachineSpec) -> Result<Source, Error> {
    let id = match spec.origin {
        Origin::Template if spec.template != TEMPLATE => {
            let message = format!("template {:?} does not exist", spec.template);
            return Err(Error::new(Code::TemplateNotFound, message));
        }
        Origin::Template => {
            return Ok(Source { template: node.templates.get(spec.shape).await?, captured: None });
        }
        Origin::Checkpoint(id) => id,
    };
    let captured = node
        .checkpoints
        .get(id)
        .ok_or_else(|| Error::new(Code::SnapshotNotFound, format!("snapshot {id} does not exist")))?;
    let shape = captured.record.checkpoint.shape;
    if shape != spec.shape {
        let message = format!(
            "the snapshot cannot be restored: its machine had {} processors and {} MiB of memory, not {} and {}",
            shape.vcpus, shape.memory_mb, spec.shape.vcpus, spec.shape.memory_mb
        );
        return Err(Error::new(Code::IncompatibleSnapshot, message));
    }
    let template = node.templates.find(&captured.record.template).await?;
    Ok(Source { template, captured: Some(captured) })
}

/// Room for one more; spares make way for it.
async fn room(node: &Node, spec: &MachineSpec) -> Result<Room, Error> {
    match node.capacity.take(spec.shape) {
        Err(error) if error.code == Code::CapacityExceeded && node.spares.count() > 0 => {
            node.spares.drain(&node.layers).await?;
            node.capacity.take(spec.shape)
        }
        taken => taken,
    }
}

/// Gives the machine its identity, puts `rules` in force that are not yet, and writes it down.
///
/// A spare is ready at once, and a policy is not: it stands closed until its own holds, while the rest of
/// this is done.
async fn adopt(
    spec: &MachineSpec,
    directory: &std::path::Path,
    assembled: &mut Assembled,
    egress: &Egress,
    rules: Option<Arc<Enforced>>,
) -> Result<Record, Error> {
    let slot = assembled.slot.clone();
    let ruled = match rules {
        Some(rules) => {
            slot.close()?;
            slot.set_egress(rules).left_future()
        }
        None => std::future::ready(Ok(())).right_future(),
    };
    let (record, ()) = tokio::try_join!(become_own(spec, directory, assembled, egress), ruled)?;
    machine::write(directory, &record).await?;
    Ok(record)
}

async fn become_own(
    spec: &MachineSpec,
    directory: &std::path::Path,
    assembled: &mut Assembled,
    egress: &Egress,
) -> Result<Record, Error> {
    // A spare has been asked something before.
    let spare = assembled.directory != directory;
    if spare {
        fs_err::tokio::rename(&assembled.directory, directory).await.map_err(disk_error)?;
        assembled.directory = directory.to_owned();
    }
    let source = assembled.source.clone();
    let disk_bytes = (u64::from(spec.disk_mb.unwrap_or(0)) << 20).max(source.disk_bytes());
    if disk_bytes > source.disk_bytes() {
        assembled.monitor.resize_disk(disk_bytes).await.map_err(vmm_error)?;
    }
    assembled.monitor.resume().await.map_err(vmm_error)?;
    crash::step("restore.running");
    // The sandbox that goes on keeps its names and keys; what a guest has of them is what it was given.
    let resumed = source
        .captured
        .as_ref()
        .is_some_and(|captured| captured.record.checkpoint.sandbox_id == spec.sandbox_id);
    let token = crate::random_hex(32);
    let hostname = hostname(spec);
    let host_key = HostKey::generate(&hostname)?;
    let mut client = assembled.guest.with_token(source.token())?;
    if !spare {
        // A guest that has just been restored is slow to take its first call, by as much as its clock would
        // be late.
        guest::greet(&mut client).await?;
    }
    let request = proto::AdoptRequest {
        resumed,
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
        authority_pem: egress.trusted(),
    };
    for hook in guest::adopt(&mut client, request).await? {
        if hook.exit_code != 0 {
            tracing::warn!(sandbox = %spec.sandbox_id, hook = hook.name, exit_code = hook.exit_code, output = hook.output, "a hook after a restore failed");
        }
    }
    crash::step("restore.adopted");
    let mut handle = assembled.monitor.handle().clone();
    handle.directory = directory.to_owned();
    Ok(Record {
        pid: handle.pid,
        spec: without_secrets(spec),
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
        template: source.template.reference(),
        layers: source.layers().to_vec(),
        top: machine::TOP.into(),
        authority: egress.authority_pem(),
        freezing: None,
    })
}

/// What is held of a machine's spec: its secrets are what is in force, and go when that changes.
fn without_secrets(spec: &MachineSpec) -> MachineSpec {
    let mut spec = spec.clone();
    spec.egress.injections.iter_mut().for_each(|injection| injection.value = None);
    spec
}

/// A host name that tells people which sandbox they are in: the end of its ID, which is random.
fn hostname(spec: &MachineSpec) -> String {
    let id = spec.sandbox_id.to_string();
    format!("sandbox-{}", &id[id.len() - 12..])
}

fn finish(node: Arc<Node>, record: Record, assembled: Assembled, egress: Egress, room: Room) -> Arc<Running> {
    let Assembled { directory, slot, monitor, guest, .. } = assembled;
    let parts = Parts { monitor, slot, directory, egress, room };
    let running = drive(Arc::clone(&node), record, guest, parts);
    capture::merge_later(&node, &running);
    running
}

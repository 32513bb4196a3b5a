//! The long calls that a driver makes to the node: for a machine, for its capture, and for the end of both.
//! Each is a task that the driver owns, and each leaves nothing behind when it fails.

use std::sync::Arc;
use std::time::Duration;

use nullspace_domain::lifecycle::Checkpoints;
use nullspace_node_api::{Checkpoint, CheckpointMode, Machine, MachineSpec, Node};
use nullspace_types::id::{SandboxId, SnapshotId};
use nullspace_types::{Code, Error, Result};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::network::policy;
use crate::record::Record;
use crate::shared::Shared;

/// How long a create may go on after the node has said that nothing of its machine is left.
const CANCEL_GRACE: Duration = Duration::from_secs(10);
/// How long a capture may go on after its sandbox was destroyed.
const CAPTURE_GRACE: Duration = Duration::from_secs(60);
/// How long one call for a machine's end may take before it is made again.
const DESTROY_LIMIT: Duration = Duration::from_secs(60);
/// Between two such calls: from the first to the second of these, doubling.
const DESTROY_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// Makes the machine that a sandbox shall have, with what it may reach as of now.
pub(crate) async fn make(shared: Arc<Shared>, record: Record, cancel: CancellationToken) -> Result<Machine> {
    let (tenant, desired) = (record.row.tenant_id, &record.row.desired);
    let egress = policy(&shared, tenant, desired.internet_access, &desired.network).await?;
    let limit = Duration::from_secs(u64::from(shared.limits.create_secs_max));
    make_machine(shared.node.clone(), record.machine_spec(egress), limit, cancel).await
}

/// Asks the node for a machine until `limit`, or until `cancel`. When this fails, nothing of the machine
/// is left.
async fn make_machine(
    node: Arc<dyn Node>,
    spec: MachineSpec,
    limit: Duration,
    cancel: CancellationToken,
) -> Result<Machine> {
    let id = spec.sandbox_id;
    let maker = node.clone();
    // A task, because the call must not be dropped half-way when its time is over: first the node ends
    // what it is making, then the call ends by itself.
    let mut call = AbortOnDropHandle::new(tokio::spawn(async move { maker.machine_create(spec).await }));
    let why = tokio::select! {
        made = &mut call => return made.unwrap_or_else(|panic| Err(Error::internal(panic))),
        () = cancel.cancelled() => {
            Error::new(Code::SandboxNotFound, format!("sandbox {id} was destroyed while its machine was being made"))
        }
        () = sleep(limit) => {
            let message = format!("the sandbox's machine was not made within {} seconds", limit.as_secs());
            Error::new(Code::Unavailable, message).suggest("try again; if it happens again, look at the server's log")
        }
    };
    end_machine(&*node, id).await;
    if timeout(CANCEL_GRACE, &mut call).await.is_err() {
        tracing::warn!(sandbox = %id, "the node still makes a machine that it has said to be gone; giving up on it");
    }
    drop(call);
    // What the call made between the two is ended here.
    end_machine(&*node, id).await;
    Err(why)
}

/// Tells the node to end a machine, until it has.
pub(crate) async fn end_machine(node: &dyn Node, id: SandboxId) {
    let mut pause = DESTROY_PAUSES.0;
    loop {
        match timeout(DESTROY_LIMIT, node.machine_destroy(id)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) if error.code == Code::SandboxNotFound => return,
            Ok(Err(error)) => {
                tracing::warn!(sandbox = %id, %error, context = error.context, "the machine could not be ended; trying again");
            }
            Err(_) => tracing::warn!(sandbox = %id, "the machine takes long to end; asking again"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(DESTROY_PAUSES.1);
    }
}

/// Asks the node to hibernate a machine. It is not interrupted; after `cancel` it is not waited for much
/// longer.
pub(crate) async fn capture(
    node: Arc<dyn Node>,
    id: SandboxId,
    snapshot: SnapshotId,
    cancel: CancellationToken,
) -> Result<Checkpoint> {
    let mut call = AbortOnDropHandle::new(tokio::spawn(async move {
        node.checkpoint_create(id, snapshot, CheckpointMode::Hibernate).await
    }));
    let ended = tokio::select! {
        captured = &mut call => Ok(captured),
        () = cancel.cancelled() => timeout(CAPTURE_GRACE, &mut call).await,
    };
    match ended {
        Ok(captured) => captured.unwrap_or_else(|panic| Err(Error::internal(panic))),
        Err(_) => {
            tracing::warn!(sandbox = %id, %snapshot, "the node still captures a machine that is to be destroyed; giving up on it");
            Err(Error::new(Code::Unavailable, format!("sandbox {id} was not captured in time")))
        }
    }
}

/// Tells the node to remove a checkpoint, until it has.
pub(crate) async fn delete_checkpoint(node: &dyn Node, snapshot: SnapshotId) {
    let mut pause = DESTROY_PAUSES.0;
    loop {
        match timeout(DESTROY_LIMIT, node.checkpoint_delete(snapshot)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                tracing::warn!(%snapshot, %error, context = error.context, "a checkpoint could not be removed; trying again");
            }
            Err(_) => tracing::warn!(%snapshot, "a checkpoint takes long to be removed; asking again"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(DESTROY_PAUSES.1);
    }
}

/// Ends a machine, then removes the checkpoints of its sandbox.
pub(crate) async fn end(node: Arc<dyn Node>, id: SandboxId, checkpoints: Checkpoints) {
    end_machine(&*node, id).await;
    for snapshot in checkpoints.into_iter().flatten() {
        delete_checkpoint(&*node, snapshot).await;
    }
}

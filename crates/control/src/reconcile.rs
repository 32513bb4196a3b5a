//! Repair. At the start of a server what the store says and what the node has may differ by whatever was
//! under way when the last one ended; after that, differences come as reports.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nullspace_domain::lifecycle::{Birth, State};
use nullspace_node_api::{Checkpoint, Machine, Report};
use nullspace_store::sandbox::{DesiredState, ObservedState, SandboxRow};
use nullspace_store::snapshot::{SnapshotKind, SnapshotRow};
use nullspace_types::id::{SandboxId, SnapshotId};
use nullspace_types::{Code, Error, Result};
use tokio::sync::{mpsc, oneshot};

use crate::driver::{Begin, Driver};
use crate::making::end_machine;
use crate::network;
use crate::record::Record;
use crate::registry::Message;
use crate::shared::Shared;
use crate::snapshot::{abandon, make_ready};

/// Rows read at once.
const BATCH: u32 = 500;
/// How long idempotency keys are kept: twice what the contract asks for.
const KEY_LIFETIME: Duration = Duration::from_secs(48 * 60 * 60);
/// Between two sweeps of old keys.
const KEY_SWEEP: Duration = Duration::from_secs(60 * 60);

/// Starts a driver for every sandbox that is not gone, each with the machine that the node has for it; ends
/// the machines and removes the checkpoints that belong to none. The drivers do the repairs.
pub(crate) async fn at_start(shared: &Arc<Shared>) -> Result<()> {
    // What the node has is read before anything begins that adds to it.
    let machines = shared.node.machine_list().await?;
    let checkpoints = shared.node.checkpoint_list().await?;
    let rows = unfinished(shared).await?;
    let snapshots = snapshots(shared).await?;
    let known: HashSet<SnapshotId> = snapshots.iter().map(|row| row.snapshot.id).collect();
    let kept: HashMap<SandboxId, SnapshotId> = snapshots
        .iter()
        .filter(|row| row.snapshot.kind == SnapshotKind::Hibernation)
        .map(|row| (row.snapshot.sandbox_id, row.snapshot.id))
        .collect();
    let forks = interrupted(&rows, &known);

    let mut machines: HashMap<SandboxId, Machine> =
        machines.into_iter().map(|machine| (machine.sandbox_id, machine)).collect();
    let (sandboxes, now) = (rows.len(), shared.clock.now());
    let mut awaited = HashSet::new();
    for row in rows {
        let id = row.id;
        let first = forks.get(&litter(&row)).copied();
        let birth = first.map_or(Birth::Create, |first| Birth::Fork { first: first == id });
        let record = Record::from_row(row, birth, kept.get(&id).copied(), now);
        if let State::Hibernating { snapshot, .. } = record.state {
            awaited.insert(snapshot);
        }
        let half_done = first.is_some() && !matches!(record.state, State::Creating { .. });
        Driver::start(shared, record, Begin::Restart(machines.remove(&id).map(Box::new)));
        if half_done {
            destroy(shared, id);
        }
    }
    let strays = machines.len();
    for id in machines.into_keys() {
        tracing::warn!(sandbox = %id, "ending a machine that belongs to no sandbox");
        end(shared, id);
    }
    for checkpoint in &checkpoints {
        if !known.contains(&checkpoint.id) && !awaited.contains(&checkpoint.id) {
            tracing::warn!(snapshot = %checkpoint.id, "removing a checkpoint that nobody knows");
            shared.drop_checkpoint(checkpoint.id);
        }
    }
    repair_snapshots(shared, snapshots, checkpoints).await;
    if sandboxes + strays > 0 {
        tracing::info!(sandboxes, strays, "took over what the last server left");
    }
    Ok(())
}

async fn unfinished(shared: &Shared) -> Result<Vec<SandboxRow>> {
    let (mut rows, mut after) = (Vec::new(), None);
    loop {
        let batch = shared.store.sandbox_unfinished(after, BATCH).await.map_err(Error::from)?;
        let Some(last) = batch.last() else { return Ok(rows) };
        after = Some(last.id);
        rows.extend(batch);
    }
}

async fn snapshots(shared: &Shared) -> Result<Vec<SnapshotRow>> {
    let (mut rows, mut after) = (Vec::new(), None);
    loop {
        let batch = shared.store.snapshot_all(after, BATCH).await.map_err(Error::from)?;
        let Some(last) = batch.last() else { return Ok(rows) };
        after = Some(last.snapshot.id);
        rows.extend(batch);
    }
}

/// What the children of one fork have in common.
fn litter(row: &SandboxRow) -> (Option<SnapshotId>, Timestamp) {
    (row.desired.origin_id, row.created_at)
}

/// The forks that were under way: those of which a child does not run yet, each with the first of these.
/// A sandbox that begins from a snapshot is no child of a fork.
fn interrupted(
    rows: &[SandboxRow],
    known: &HashSet<SnapshotId>,
) -> HashMap<(Option<SnapshotId>, Timestamp), SandboxId> {
    let mut forks = HashMap::new();
    for row in rows {
        let forked = row.desired.origin_id.is_some_and(|origin| !known.contains(&origin));
        let creating =
            row.desired.state == DesiredState::Running && row.observed.state == ObservedState::None;
        if forked && creating {
            forks.entry(litter(row)).or_insert(row.id);
        }
    }
    forks
}

/// Destroys a child that came to run before its fork was interrupted: it is all children or none.
fn destroy(shared: &Arc<Shared>, id: SandboxId) {
    let Some(entry) = shared.registry.get(id) else { return };
    shared.tasks.spawn(async move {
        let (decided, _) = oneshot::channel();
        // A driver that has ended has nothing to destroy.
        let _ = entry.mailbox.send(Message::Destroy { decided }).await;
    });
}

/// Whether the sandbox of a snapshot is being destroyed.
fn ending(shared: &Shared, row: &SnapshotRow) -> bool {
    let entry = shared.registry.get(row.snapshot.sandbox_id);
    entry.is_none_or(|entry| entry.view.borrow().record.row.desired.state == DesiredState::Destroyed)
}

/// Brings the rows of snapshots in step with the files that the node has. What cannot be written now is
/// left to the next start.
async fn repair_snapshots(shared: &Shared, rows: Vec<SnapshotRow>, checkpoints: Vec<Checkpoint>) {
    let there: HashMap<SnapshotId, Checkpoint> =
        checkpoints.into_iter().map(|checkpoint| (checkpoint.id, checkpoint)).collect();
    for row in rows {
        let id = row.snapshot.id;
        let written = match (there.get(&id), row.ready) {
            (Some(_), true) => Ok(()),
            (Some(checkpoint), false) => make_ready(shared, &row.snapshot, checkpoint).await.map(drop),
            (None, false) => {
                let message = "the server stopped while the snapshot was being taken";
                abandon(shared, &row.snapshot, &Error::new(Code::Unavailable, message)).await
            }
            // Its files go first, and then, with the sandbox, its row.
            (None, true) if row.snapshot.kind == SnapshotKind::Hibernation && ending(shared, &row) => Ok(()),
            (None, true) => {
                tracing::error!(snapshot = %id, sandbox = %row.snapshot.sandbox_id, "the files of a snapshot are missing");
                Ok(())
            }
        };
        if let Err(error) = written {
            tracing::warn!(snapshot = %id, %error, context = error.context, "a snapshot could not be repaired");
        }
    }
}

/// Ends a machine in a task of its own, which ends with the server.
fn end(shared: &Arc<Shared>, id: SandboxId) {
    let (node, stop) = (shared.node.clone(), shared.stop.clone());
    shared.tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = end_machine(&*node, id) => {}
        }
    });
}

/// Hands the node's reports to the drivers they concern, until the node or the server ends.
pub(crate) async fn reports(shared: Arc<Shared>, mut reports: mpsc::Receiver<Report>) {
    loop {
        let report = tokio::select! {
            () = shared.stop.cancelled() => return,
            report = reports.recv() => report,
        };
        match report {
            None => return,
            Some(Report::Denied(denials)) => network::denied(&shared, denials).await,
            Some(Report::MachineLost { machine, reason }) => {
                tracing::warn!(sandbox = %machine.sandbox_id, generation = machine.generation, reason, "a machine was lost");
                if let Some(entry) = shared.registry.get(machine.sandbox_id) {
                    // A driver that has ended has nothing to lose.
                    let _ = entry.mailbox.send(Message::Lost { machine, reason }).await;
                }
            }
        }
    }
}

/// Forgets old idempotency keys, until the server ends.
pub(crate) async fn sweep_keys(shared: Arc<Shared>) {
    loop {
        if let Ok(before) = shared.clock.now().checked_sub(KEY_LIFETIME) {
            match shared.store.idempotency_prune(before).await {
                Ok(0) => {}
                Ok(count) => tracing::debug!(count, "forgot old idempotency keys"),
                Err(error) => tracing::warn!(%error, "old idempotency keys could not be removed"),
            }
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(KEY_SWEEP) => {}
        }
    }
}

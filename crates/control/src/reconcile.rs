//! Repair. At the start of a server what the store says and what the node has may differ by whatever was
//! under way when the last one ended; after that, differences come as reports.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use nullspace_node_api::{Machine, Report};
use nullspace_types::id::SandboxId;
use nullspace_types::{Error, Result};
use tokio::sync::mpsc;

use crate::driver::{Begin, Driver};
use crate::making::end_machine;
use crate::record::Record;
use crate::registry::Message;
use crate::shared::Shared;

/// Rows read at once.
const BATCH: u32 = 500;
/// How long idempotency keys are kept: twice what the contract asks for.
const KEY_LIFETIME: Duration = Duration::from_secs(48 * 60 * 60);
/// Between two sweeps of old keys.
const KEY_SWEEP: Duration = Duration::from_secs(60 * 60);

/// Starts a driver for every sandbox that is not gone, each with the machine that the node has for it, and
/// ends the machines that belong to none. The drivers do the repairs.
pub(crate) async fn at_start(shared: &Arc<Shared>) -> Result<()> {
    let machines = shared.node.machine_list().await?;
    let mut machines: HashMap<SandboxId, Machine> =
        machines.into_iter().map(|machine| (machine.sandbox_id, machine)).collect();
    let mut after = None;
    let mut sandboxes = 0;
    loop {
        let rows = shared.store.sandbox_unfinished(after, BATCH).await.map_err(Error::from)?;
        let Some(last) = rows.last() else { break };
        after = Some(last.id);
        sandboxes += rows.len();
        for row in rows {
            let machine = machines.remove(&row.id).filter(|machine| {
                let own = machine.incarnation == row.desired.incarnation;
                if !own {
                    tracing::warn!(sandbox = %row.id, machine = %machine.incarnation, "ending a machine of another life");
                    end(shared, row.id);
                }
                own
            });
            Driver::start(shared, Record::from_row(row), Begin::Restart(machine.map(Box::new)));
        }
    }
    let strays = machines.len();
    for id in machines.into_keys() {
        tracing::warn!(sandbox = %id, "ending a machine that belongs to no sandbox");
        end(shared, id);
    }
    if sandboxes + strays > 0 {
        tracing::info!(sandboxes, strays, "took over what the last server left");
    }
    Ok(())
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

//! What every part of control works with.

use std::sync::Arc;

use nullspace_domain::Limits;
use nullspace_node_api::Node;
use nullspace_store::Store;
use nullspace_types::id::{SandboxId, SnapshotId};
use nullspace_types::snapshot::Snapshot;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::feed::Feed;
use crate::ingress::Access;
use crate::keys::RecentKeys;
use crate::making::delete_checkpoint;
use crate::preview::{Grants, LocalPorts};
use crate::registry::Registry;
use crate::underway::Underway;
use crate::webhook::Webhooks;

pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) node: Arc<dyn Node>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: Limits,
    pub(crate) access: Access,
    pub(crate) registry: Registry,
    pub(crate) grants: Grants,
    pub(crate) ports: LocalPorts,
    /// The keys of creates.
    pub(crate) keys: RecentKeys<SandboxId>,
    /// The keys of snapshots, and with each its making.
    pub(crate) snapshots: RecentKeys<Underway<Snapshot>>,
    /// The keys of forks, and with each its making.
    pub(crate) forks: RecentKeys<Underway<Vec<SandboxId>>>,
    /// Changes with every write of events: who follows the log is woken by it.
    pub(crate) written: watch::Sender<u64>,
    pub(crate) feed: Feed,
    pub(crate) webhooks: Webhooks,
    /// Turns of the calls to the node that monitors make.
    pub(crate) samples: Semaphore,
    /// Every task of control; it is closed when the server stops.
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

impl Shared {
    /// Wakes whoever follows the log of events.
    pub(crate) fn events_written(&self) {
        self.written.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Removes a checkpoint that the store does not know any more, in a task of its own that ends with the
    /// server: what is left then is removed by the next one.
    pub(crate) fn drop_checkpoint(&self, id: SnapshotId) -> JoinHandle<()> {
        let (node, stop) = (self.node.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = delete_checkpoint(&*node, id) => {}
            }
        })
    }
}

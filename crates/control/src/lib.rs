//! What each verb of the API means. [`Control`] holds the store, the node and one driver task per living
//! sandbox; `<resource>.rs` has the verbs, `driver` the life of a sandbox, `write` what it stores, `fork` the
//! making of several at once, `reconcile` the repair of what crashes leave, `feed` the log as it grows,
//! `webhook` what is sent out of it. The gateway and the SSH relay ask it through the traits of `edge-api`.
//!
//! Who owns what: a sandbox's driver owns its record and all writes of it; the rules are in `domain`; the
//! node owns its machines. Deliberately absent: HTTP, SQL, keys and their checking (whoever calls says for
//! which tenant), and how machines are made.

mod access;
pub mod clock;
mod driver;
mod event;
mod feed;
mod file;
mod fork;
mod ingress;
mod keys;
mod life;
mod log;
mod making;
mod metrics;
mod monitor;
mod network;
mod preview;
mod process;
mod reconcile;
mod record;
mod registry;
mod sandbox;
mod shared;
mod snapshot;
mod ssh;
mod template;
mod terminal;
mod tree;
mod underway;
mod upload;
mod vault;
mod webhook;
mod write;

use std::sync::Arc;

use nullspace_domain::{Limits, WebhookConfig};
use nullspace_node_api::{Node, Report};
use nullspace_store::Store;
use nullspace_types::{Error, Result};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use clock::{Clock, SystemClock};
pub use file::FileGrant;
pub use ingress::{Access, Doors, KeyCheck, PreviewAddresses};
pub use process::{Execution, Logs};

use feed::Feed;
use shared::Shared;
use webhook::Webhooks;

/// The control plane. Clones are the same one.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

impl Control {
    /// Takes over what stands in the store and what runs on the node, and begins to work. From here on all
    /// writes of sandboxes are this one's.
    pub async fn start(
        store: Arc<dyn Store>,
        node: Arc<dyn Node>,
        reports: mpsc::Receiver<Report>,
        clock: Arc<dyn Clock>,
        limits: Limits,
        webhooks: WebhookConfig,
        access: Access,
    ) -> Result<Self> {
        metrics::begin();
        let head = store.event_cursor_latest().await.map_err(Error::from)?;
        let shared = Arc::new(Shared {
            store,
            node,
            clock,
            limits,
            access,
            registry: Default::default(),
            grants: Default::default(),
            ports: Default::default(),
            keys: Default::default(),
            snapshots: Default::default(),
            forks: Default::default(),
            written: Default::default(),
            feed: Feed::new(head),
            webhooks: Webhooks::new(webhooks),
            samples: Semaphore::new(monitor::SAMPLES),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        reconcile::at_start(&shared).await?;
        preview::restore(&shared).await?;
        shared.tasks.spawn(reconcile::reports(shared.clone(), reports));
        shared.tasks.spawn(reconcile::sweep_keys(shared.clone()));
        shared.tasks.spawn(preview::keep(shared.clone()));
        shared.tasks.spawn(feed::follow(shared.clone()));
        shared.tasks.spawn(webhook::fan_out(shared.clone()));
        shared.tasks.spawn(webhook::deliver(shared.clone()));
        shared.tasks.spawn(metrics::collect(shared.clone()));
        Ok(Self { shared })
    }

    /// Ok when a sandbox could be created now.
    pub async fn health(&self) -> Result<()> {
        self.shared.store.ping().await.map_err(Error::from)?;
        self.shared.node.ready().await
    }

    /// Ends every task. Machines keep running; what was under way is taken up by the next start.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

//! What every part of control works with.

use std::sync::Arc;

use nullspace_domain::Limits;
use nullspace_node_api::Node;
use nullspace_store::Store;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::keys::RecentKeys;
use crate::registry::Registry;

pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) node: Arc<dyn Node>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: Limits,
    pub(crate) registry: Registry,
    pub(crate) keys: RecentKeys,
    /// Every task of control; it is closed when the server stops.
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

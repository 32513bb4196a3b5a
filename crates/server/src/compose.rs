//! Which node a server works with.

use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use nullspace_node::LocalNode;
use nullspace_node_api::{Node, Report};
use nullspace_types::{Code, Error, Result};
use tokio::sync::mpsc;

use crate::config::{Config, image_dir};

/// What a node is started with.
pub struct NodeStart {
    /// The server's configuration.
    pub config: Config,
    /// The server's data directory.
    pub data_dir: PathBuf,
    /// Where the node's news goes.
    pub reports: mpsc::Sender<Report>,
}

/// Starts a node. Tests bring one of their own.
pub type StartNode = Box<dyn FnOnce(NodeStart) -> BoxFuture<'static, Result<Arc<dyn Node>>> + Send>;

/// The node of this host.
pub fn local_node() -> StartNode {
    Box::new(|start| {
        async move {
            let image_dir = image_dir(&start.config.image)
                .map_err(|error| Error::new(Code::Unavailable, error.to_string()))?;
            let NodeStart { config, data_dir, reports } = start;
            let node = LocalNode::start(config.node, config.network, data_dir, image_dir, reports).await?;
            Ok(Arc::new(node) as Arc<dyn Node>)
        }
        .boxed()
    })
}

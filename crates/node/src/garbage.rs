//! What lies on the node's disk and nobody needs: layers that no machine and no checkpoint holds, and what
//! is left of checkpoints that were being made or removed. Whoever lets go removes at once; this finds what
//! a crash or a failure in between has left.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nullspace_node_api::Garbage;
use nullspace_types::Error;

use crate::Node;
use crate::machine::{disk_error, remove_directory, remove_file};

/// Between two looks in the background.
const INTERVAL: Duration = Duration::from_secs(3600);

/// What there is; and removes it if `apply`.
pub async fn collect(node: &Node, apply: bool) -> Result<Vec<Garbage>, Error> {
    let layers = node.layers.unheld()?.into_iter().map(|(path, bytes)| {
        let reason = "no machine and no checkpoint stands on it";
        (path, bytes, "layer", reason)
    });
    let checkpoints = node.checkpoints.unknown(|id| node.is_capturing(id))?;
    let checkpoints = checkpoints.into_iter().map(|(path, bytes)| {
        let reason = "the checkpoint was never completed, or is removed already";
        (path, bytes, "checkpoint", reason)
    });
    let mut found = Vec::new();
    for (path, bytes, kind, reason) in layers.chain(checkpoints) {
        if apply {
            remove(&path).await?;
        }
        found.push(Garbage { kind: kind.into(), name: name(&path), bytes, reason: reason.into() });
    }
    Ok(found)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

async fn remove(path: &Path) -> Result<(), Error> {
    let removed = match path.is_dir() {
        true => remove_directory(path).await,
        false => remove_file(path).await,
    };
    removed.map_err(disk_error)
}

/// Looks from time to time, until the node stops.
pub async fn keep(node: Arc<Node>) {
    loop {
        tokio::select! {
            () = node.stopping.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        match collect(&node, true).await {
            Ok(found) => {
                for Garbage { kind, name, bytes, reason } in found {
                    tracing::warn!(kind, name, bytes, "removed: {reason}");
                }
            }
            Err(error) => tracing::error!(%error, context = error.context, "garbage could not be removed"),
        }
    }
}

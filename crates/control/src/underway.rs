//! Work that goes on whether or not its caller waits, and whose outcome any number of callers may wait for:
//! the making of a snapshot, a fork.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared as Heard};
use nullspace_types::id::SnapshotId;
use nullspace_types::{Error, Result};

use crate::access::{stopping, within};
use crate::shared::Shared;

/// Work under way, or done.
#[derive(Clone)]
pub(crate) struct Underway<T: Clone> {
    /// The checkpoint that it makes: no two have the same.
    pub(crate) id: SnapshotId,
    outcome: Heard<BoxFuture<'static, Result<T>>>,
}

impl<T: Clone + Send + Sync + 'static> Underway<T> {
    /// Begins the work. It ends early only with the server.
    pub(crate) fn begin(
        shared: &Arc<Shared>,
        id: SnapshotId,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Self {
        let stop = shared.stop.clone();
        let task = shared.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => Err(stopping()),
                outcome = work => outcome,
            }
        });
        let outcome = async move { task.await.unwrap_or_else(|panic| Err(Error::internal(panic))) };
        Self { id, outcome: outcome.boxed().shared() }
    }

    /// How it ended.
    pub(crate) async fn outcome(self, limit: Duration, unfinished: &str) -> Result<T> {
        within(limit, unfinished, self.outcome).await
    }
}

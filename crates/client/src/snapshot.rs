//! Snapshots and what is made of running machines: hibernate, resume, snapshot, fork, tree, diff.

use std::time::Duration;

use nullspace_types::sandbox::Sandbox;
use nullspace_types::snapshot::{
    SandboxDiff, SandboxDiffQuery, SandboxFork, SandboxForked, SandboxTree, Snapshot, SnapshotListQuery,
};
use reqwest::Method;

use crate::error::Result;
use crate::sandbox::{CREATE_TIMEOUT, path};
use crate::transport::{Call, Client, segment};

/// What writes a machine's memory to the disk, or reads two disks, takes as long as that takes.
const DISK_TIMEOUT: Duration = Duration::from_secs(300);

impl Client {
    /// Freezes a running sandbox to the disk and ends its machine; also called pausing it. One that is
    /// paused already is answered with the snapshot it resumes from.
    ///
    /// # Errors
    /// `sandbox_not_ready`, `transition_in_progress`; see [`crate::Error`].
    pub async fn sandbox_hibernate(&self, id: &str) -> Result<Snapshot> {
        self.json(Call::new(Method::POST, path(id, "/hibernate")?).at_least(DISK_TIMEOUT)).await
    }

    /// Lets a paused sandbox go on, named by its own ID or by that of its snapshot. One that runs is
    /// answered as it is.
    ///
    /// # Errors
    /// `incompatible_snapshot`, `snapshot_corrupted`, `capacity_exceeded`; see [`crate::Error`].
    pub async fn sandbox_resume(&self, id: &str) -> Result<Sandbox> {
        self.json(Call::new(Method::POST, path(id, "/resume")?).at_least(CREATE_TIMEOUT)).await
    }

    /// Makes children of a running sandbox that go on from the same instant: all that were asked for, or
    /// none. The idempotency key is as for [`Client::sandbox_create`].
    ///
    /// # Errors
    /// `capacity_exceeded`, `sandbox_not_ready`; see [`crate::Error`].
    pub async fn sandbox_fork(
        &self,
        id: &str,
        request: &SandboxFork,
        idempotency_key: Option<&str>,
    ) -> Result<SandboxForked> {
        let mut call = Call::new(Method::POST, path(id, "/fork")?).at_least(CREATE_TIMEOUT);
        if request.count.is_some() {
            call = call.body(request)?;
        }
        self.make(call, idempotency_key).await
    }

    /// All relatives of a sandbox: what it was forked from or began from, and what came of those.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn sandbox_tree(&self, id: &str) -> Result<SandboxTree> {
        self.json(Call::new(Method::GET, path(id, "/tree")?)).await
    }

    /// Which files differ between a sandbox and a relative of it. Wakes neither.
    ///
    /// # Errors
    /// `invalid_request` when the two are no relatives; see [`crate::Error`].
    pub async fn sandbox_diff(&self, id: &str, query: &SandboxDiffQuery) -> Result<SandboxDiff> {
        self.json(Call::new(Method::GET, path(id, "/diff")?).query(query)?.at_least(DISK_TIMEOUT)).await
    }

    /// Takes a snapshot of a running sandbox, which goes on. The idempotency key is as for
    /// [`Client::sandbox_create`].
    ///
    /// # Errors
    /// `sandbox_not_ready`; see [`crate::Error`].
    pub async fn snapshot_create(&self, sandbox: &str, idempotency_key: Option<&str>) -> Result<Snapshot> {
        let call = Call::new(Method::POST, path(sandbox, "/snapshots")?).at_least(DISK_TIMEOUT);
        self.make(call, idempotency_key).await
    }

    /// Snapshots, newest first.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn snapshot_list(&self, query: &SnapshotListQuery) -> Result<Vec<Snapshot>> {
        self.json(Call::new(Method::GET, "/v1/snapshots".to_owned()).query(query)?).await
    }

    /// One snapshot.
    ///
    /// # Errors
    /// `snapshot_not_found`; see [`crate::Error`].
    pub async fn snapshot_get(&self, id: &str) -> Result<Snapshot> {
        self.json(Call::new(Method::GET, one(id)?)).await
    }

    /// Removes a snapshot. Sandboxes that began from it do not need it.
    ///
    /// # Errors
    /// `snapshot_not_found`; `snapshot_in_use` while a paused sandbox needs it; see [`crate::Error`].
    pub async fn snapshot_delete(&self, id: &str) -> Result<()> {
        self.empty(Call::new(Method::DELETE, one(id)?)).await
    }
}

fn one(id: &str) -> Result<String> {
    Ok(format!("/v1/snapshots/{}", segment("snapshot ID", id)?))
}

use async_trait::async_trait;
use nullspace_api::SnapshotApi;
use nullspace_types::Result;
use nullspace_types::id::{SandboxId, SnapshotId};
use nullspace_types::key::Principal;
use nullspace_types::sandbox::Sandbox;
use nullspace_types::snapshot::{
    SandboxDiff, SandboxDiffQuery, SandboxFork, SandboxForked, SandboxTree, Snapshot, SnapshotListQuery,
};

use super::App;

#[async_trait]
impl SnapshotApi for App {
    async fn sandbox_hibernate(&self, caller: Principal, id: SandboxId) -> Result<Snapshot> {
        self.control()?.sandbox_hibernate(caller.tenant_id, id).await
    }

    async fn sandbox_resume(&self, caller: Principal, id: String) -> Result<Sandbox> {
        self.control()?.sandbox_resume(caller.tenant_id, id).await
    }

    async fn snapshot_create(
        &self,
        caller: Principal,
        idempotency_key: Option<String>,
        id: SandboxId,
    ) -> Result<Snapshot> {
        self.control()?.snapshot_create(caller.tenant_id, idempotency_key, id).await
    }

    async fn sandbox_fork(
        &self,
        caller: Principal,
        idempotency_key: Option<String>,
        id: SandboxId,
        request: SandboxFork,
    ) -> Result<SandboxForked> {
        self.control()?.sandbox_fork(caller.tenant_id, idempotency_key, id, request).await
    }

    async fn sandbox_tree(&self, caller: Principal, id: SandboxId) -> Result<SandboxTree> {
        self.control()?.sandbox_tree(caller.tenant_id, id).await
    }

    async fn sandbox_diff(
        &self,
        caller: Principal,
        id: SandboxId,
        query: SandboxDiffQuery,
    ) -> Result<SandboxDiff> {
        self.control()?.sandbox_diff(caller.tenant_id, id, query).await
    }

    async fn snapshot_list(&self, caller: Principal, query: SnapshotListQuery) -> Result<Vec<Snapshot>> {
        self.control()?.snapshot_list(caller.tenant_id, query).await
    }

    async fn snapshot_get(&self, caller: Principal, id: SnapshotId) -> Result<Snapshot> {
        self.control()?.snapshot_get(caller.tenant_id, id).await
    }

    async fn snapshot_delete(&self, caller: Principal, id: SnapshotId) -> Result<()> {
        self.control()?.snapshot_delete(caller.tenant_id, id).await
    }
}

use async_trait::async_trait;
use nullspace_api::SandboxApi;
use nullspace_types::id::SandboxId;
use nullspace_types::key::Principal;
use nullspace_types::sandbox::{
    Sandbox, SandboxCreate, SandboxDestroyed, SandboxGetQuery, SandboxList, SandboxListQuery, SandboxMetrics,
    SandboxTimeout, SandboxTimeoutSet,
};
use nullspace_types::{Code, Error, Result};
use serde_json::Value;

use super::App;

#[async_trait]
impl SandboxApi for App {
    async fn sandbox_create(
        &self,
        caller: Principal,
        idempotency_key: Option<String>,
        request: SandboxCreate,
    ) -> Result<Sandbox> {
        // Clients repeat a create on this code and not on `unavailable`: one whose server was killed and
        // started again gets its sandbox.
        let control = self.control().map_err(|error| Error { code: Code::TransitionInProgress, ..error })?;
        control.sandbox_create(caller.tenant_id, idempotency_key, request).await
    }

    async fn sandbox_list(
        &self,
        caller: Principal,
        query: SandboxListQuery,
        any_query: bool,
    ) -> Result<SandboxList> {
        self.control()?.sandbox_list(caller.tenant_id, query, any_query).await
    }

    async fn sandbox_get(&self, caller: Principal, id: SandboxId, query: SandboxGetQuery) -> Result<Value> {
        self.control()?.sandbox_get(caller.tenant_id, id, &query)
    }

    async fn sandbox_destroy(&self, caller: Principal, id: SandboxId) -> Result<SandboxDestroyed> {
        self.control()?.sandbox_destroy(caller.tenant_id, id).await
    }

    async fn sandbox_timeout_set(
        &self,
        caller: Principal,
        id: SandboxId,
        request: SandboxTimeoutSet,
    ) -> Result<SandboxTimeout> {
        self.control()?.sandbox_timeout_set(caller.tenant_id, id, request).await
    }

    async fn sandbox_metrics(&self, caller: Principal, id: SandboxId) -> Result<Vec<SandboxMetrics>> {
        self.control()?.sandbox_metrics(caller.tenant_id, id).await
    }
}

use async_trait::async_trait;
use nullspace_api::NetworkApi;
use nullspace_types::Result;
use nullspace_types::id::SandboxId;
use nullspace_types::key::Principal;
use nullspace_types::network::{DenialPage, DenialQuery, SandboxNetwork};
use nullspace_types::vault::{StoredSecret, StoredSecretCreate, StoredSecretList};
use serde_json::{Map, Value};

use super::App;

#[async_trait]
impl NetworkApi for App {
    async fn network_get(&self, caller: Principal, id: SandboxId) -> Result<SandboxNetwork> {
        self.control()?.network_get(caller, id).await
    }

    async fn network_update(
        &self,
        caller: Principal,
        id: SandboxId,
        change: Map<String, Value>,
    ) -> Result<SandboxNetwork> {
        self.control()?.network_update(caller, id, change).await
    }

    async fn network_denied(
        &self,
        caller: Principal,
        id: SandboxId,
        query: DenialQuery,
    ) -> Result<DenialPage> {
        self.control()?.network_denied(caller, id, query).await
    }

    async fn secret_create(&self, caller: Principal, request: StoredSecretCreate) -> Result<StoredSecret> {
        self.control()?.secret_create(caller, request).await
    }

    async fn secret_list(&self, caller: Principal) -> Result<StoredSecretList> {
        self.control()?.secret_list(caller).await
    }

    async fn secret_delete(&self, caller: Principal, name: String) -> Result<()> {
        self.control()?.secret_delete(caller, name).await
    }
}

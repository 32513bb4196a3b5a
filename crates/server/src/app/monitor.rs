use async_trait::async_trait;
use nullspace_api::MonitorApi;
use nullspace_api::monitor::MonitorStream;
use nullspace_types::Result;
use nullspace_types::key::Principal;
use nullspace_types::monitor::MonitorSpec;

use super::App;

#[async_trait]
impl MonitorApi for App {
    async fn monitor(&self, caller: Principal, spec: MonitorSpec) -> Result<MonitorStream> {
        self.control()?.monitor(caller.tenant_id, spec).await
    }

    async fn metrics(&self) -> Result<String> {
        self.control()?.metrics().await
    }
}

use async_trait::async_trait;
use nullspace_api::HealthApi;
use nullspace_types::Result;

use super::App;

#[async_trait]
impl HealthApi for App {
    async fn health(&self) -> Result<()> {
        self.control()?.health().await
    }
}

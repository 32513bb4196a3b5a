use async_trait::async_trait;
use nullspace_api::TemplateApi;
use nullspace_types::Result;
use nullspace_types::key::Principal;
use nullspace_types::template::Template;

use super::App;

#[async_trait]
impl TemplateApi for App {
    async fn template_list(&self, _caller: Principal) -> Result<Vec<Template>> {
        self.control()?.template_list().await
    }
}

use async_trait::async_trait;
use nullspace_api::Authenticate;
use nullspace_types::Result;
use nullspace_types::key::Principal;

use super::App;

#[async_trait]
impl Authenticate for App {
    async fn authenticate(&self, authorization: Option<&str>) -> Result<Principal> {
        self.0.authenticator.authenticate(authorization).await
    }
}

use async_trait::async_trait;
use http::Method;
use nullspace_api::Authenticate;
use nullspace_auth::grant::Direction;
use nullspace_types::Result;
use nullspace_types::key::Principal;

use super::App;

#[async_trait]
impl Authenticate for App {
    async fn authenticate(&self, authorization: Option<&str>) -> Result<Principal> {
        self.0.authenticator.authenticate(authorization).await
    }

    async fn authenticate_grant(&self, method: &Method, sandbox_id: &str, query: &str) -> Result<Principal> {
        let direction = match *method {
            Method::GET | Method::HEAD => Direction::Download,
            _ => Direction::Upload,
        };
        self.0.authenticator.authenticate_grant(sandbox_id, direction, query).await
    }
}

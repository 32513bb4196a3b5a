//! Templates.

use nullspace_types::template::Template;
use reqwest::Method;

use crate::error::Result;
use crate::transport::{Call, Client};

impl Client {
    /// Everything that `template` in a create may name.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn template_list(&self) -> Result<Vec<Template>> {
        self.json(Call::new(Method::GET, "/v1/templates".to_owned())).await
    }
}

//! Whether a server is there and able to work.

use reqwest::Method;

use crate::error::Result;
use crate::transport::{Call, Client};

impl Client {
    /// `GET /healthz`: succeeds only when a sandbox could be created. Needs no key.
    ///
    /// # Errors
    /// What the server says is missing, or that it cannot be reached.
    pub async fn health(&self) -> Result<()> {
        self.empty(Call::new(Method::GET, "/healthz".to_owned()).without_key()).await
    }
}

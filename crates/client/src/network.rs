//! What a sandbox may reach, and what it was denied.

use nullspace_types::network::{DenialPage, DenialQuery, SandboxNetwork};
use reqwest::Method;
use serde_json::{Map, Value};

use crate::error::Result;
use crate::sandbox::path;
use crate::transport::{Call, Client};

impl Client {
    /// The settings of a sandbox.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn network_get(&self, sandbox: &str) -> Result<SandboxNetwork> {
        self.json(Call::new(Method::GET, path(sandbox, "/network")?)).await
    }

    /// Changes what the request names; in force when this answers. Null puts a setting's default back.
    ///
    /// # Errors
    /// `invalid_request`, `secret_not_found`; see [`crate::Error`].
    pub async fn network_update(&self, sandbox: &str, change: &Map<String, Value>) -> Result<SandboxNetwork> {
        self.json(Call::new(Method::PATCH, path(sandbox, "/network")?).body(change)?).await
    }

    /// A page of what a sandbox was denied, the latest first.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn network_denied(&self, sandbox: &str, query: &DenialQuery) -> Result<DenialPage> {
        self.json(Call::new(Method::GET, path(sandbox, "/network/denied")?).query(query)?).await
    }
}

//! Access to a sandbox by SSH.

use nullspace_types::ssh::{SshAccess, SshAccessRequest};
use reqwest::Method;

use crate::error::Result;
use crate::sandbox::path;
use crate::transport::{Call, Client};

impl Client {
    /// Certifies a public key for a sandbox, for a while.
    ///
    /// # Errors
    /// `unavailable` where SSH is off; see [`crate::Error`].
    pub async fn ssh_access(&self, sandbox: &str, request: &SshAccessRequest) -> Result<SshAccess> {
        self.json(Call::new(Method::POST, path(sandbox, "/ssh-access")?).body(request)?).await
    }
}

//! Secrets of the server's own, such as what it signs URLs with. Unlike those of callers they must be read
//! back, so they stand here in the clear.

use async_trait::async_trait;

use crate::Result;

/// Secrets by their name. They belong to no tenant.
#[async_trait]
pub trait SecretStore: Send + Sync {
    /// The secret of this name; if there is none, `candidate` becomes it. Any number of callers at once get
    /// the same.
    async fn secret_ensure(&self, name: &str, candidate: &[u8; 32]) -> Result<[u8; 32]>;
}

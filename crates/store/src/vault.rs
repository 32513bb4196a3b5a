//! Stored secrets, sealed: what is in here is worth nothing without a key that is elsewhere.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::id::TenantId;
use nullspace_types::vault::StoredSecret;

use crate::Result;

/// Stored secrets of tenants.
#[async_trait]
pub trait VaultStore: Send + Sync {
    /// Writes a secret. [`Error::Conflict`](crate::Error::Conflict) if there is one with this name;
    /// [`Error::Invalid`](crate::Error::Invalid) if the tenant has 1,000 already.
    async fn vault_insert(
        &self,
        tenant: TenantId,
        name: &str,
        sealed: &[u8],
        at: Timestamp,
    ) -> Result<StoredSecret>;

    /// A tenant's secrets, by name.
    async fn vault_list(&self, tenant: TenantId) -> Result<Vec<StoredSecret>>;

    /// The sealed values of those of the names that exist.
    async fn vault_get(&self, tenant: TenantId, names: &[String]) -> Result<Vec<(String, Vec<u8>)>>;

    /// Removes a secret.
    async fn vault_delete(&self, tenant: TenantId, name: &str) -> Result<()>;
}

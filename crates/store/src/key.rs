//! Tenants and API keys. Of a secret only its digest is ever here.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::id::{KeyId, TenantId};
use nullspace_types::key::Key;

use crate::Result;

/// Whoever owns resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRow {
    /// Its ID.
    pub id: TenantId,
    /// Its name, one of a kind.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A key to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    /// Its ID.
    pub id: KeyId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// What the operator calls it.
    pub label: String,
    /// The first characters of the secret, for recognising it.
    pub hint: String,
    /// SHA-256 of the secret.
    pub secret_hash: [u8; 32],
    /// When it was made.
    pub created_at: Timestamp,
}

/// A key as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    /// What may be shown of it.
    pub key: Key,
    /// SHA-256 of the secret.
    pub secret_hash: [u8; 32],
}

/// Tenants and their keys. These calls are the operator's and the authenticator's: they span tenants.
#[async_trait]
pub trait KeyStore: Send + Sync {
    /// The tenant of this name, made now if there is none. Any number of callers at once get the same.
    async fn tenant_ensure(&self, name: &str, now: Timestamp) -> Result<TenantRow>;

    /// The tenant of this name.
    async fn tenant_find(&self, name: &str) -> Result<Option<TenantRow>>;

    /// Stores a key. [`Error::Conflict`](crate::Error::Conflict) if its ID or digest is there already.
    async fn key_insert(&self, key: &NewKey) -> Result<Key>;

    /// The key with this digest, revoked or not.
    async fn key_find(&self, secret_hash: &[u8; 32]) -> Result<Option<KeyRow>>;

    /// The key with this ID, revoked or not.
    async fn key_get(&self, id: KeyId) -> Result<Option<Key>>;

    /// Every key, revoked ones too, oldest first; of one tenant if given.
    async fn key_list(&self, tenant: Option<TenantId>) -> Result<Vec<Key>>;

    /// Revokes a key. Again is no error and changes nothing. [`Error::NotFound`](crate::Error::NotFound)
    /// if there is no such key.
    async fn key_revoke(&self, id: KeyId, now: Timestamp) -> Result<Key>;
}

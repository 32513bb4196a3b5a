//! API keys and the tenants they belong to.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{KeyId, TenantId};

/// An API key as it is listed: never its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The key's name for the operator.
    pub id: KeyId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// The tenant's name.
    pub tenant: String,
    /// What the operator called it.
    pub label: String,
    /// The first characters of the secret, for recognising it.
    pub hint: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// Who is asking: what a good API key proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Principal {
    /// On whose behalf.
    pub tenant_id: TenantId,
    /// With which key.
    pub key_id: KeyId,
}

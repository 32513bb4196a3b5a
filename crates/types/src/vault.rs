//! Stored secrets: named values that are written, used by the server, and never read back.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A stored secret, without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StoredSecret {
    /// Its name, unique for its owner.
    pub name: String,
    /// When it was stored.
    pub created_at: Timestamp,
}

/// A secret to store.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct StoredSecretCreate {
    /// 1 to 64 of `a-z`, `A-Z`, `0-9`, `_`, `-` and `.`.
    pub name: Option<String>,
    /// 1 to 4,096 bytes of printable ASCII.
    pub value: Option<String>,
}

/// All stored secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StoredSecretList {
    /// By name.
    pub items: Vec<StoredSecret>,
}

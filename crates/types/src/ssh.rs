//! Access to a sandbox by SSH: a certificate that is good for a while and for one sandbox.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{KeyId, SandboxId, SshAccessId, TenantId};

/// The user of a certificate whose request names none.
pub const USER_DEFAULT: &str = "root";

/// A key to certify.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct SshAccessRequest {
    /// The public key, one line in OpenSSH's format.
    pub public_key: Option<String>,
    /// Minutes that the certificate is good for, 1 to 60; 10 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_minutes: Option<i64>,
    /// The same in seconds, 1 to 3600; not together with the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<i64>,
    /// Whom to log in as; `root` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// How to log in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SshAccess {
    /// The relay's host.
    pub host: String,
    /// The relay's port.
    pub port: u16,
    /// Whom to log in as: the certificate's principal.
    pub user: String,
    /// `sshacc_` and 32 hexadecimal digits; the certificate's key ID begins with it.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub access_id: SshAccessId,
    /// The certificate, one line in OpenSSH's format.
    pub certificate: String,
    /// When the certificate ends.
    pub expires_at: Timestamp,
    /// A command that logs in, for a key in the usual place.
    pub command: String,
    /// The relay's host key, one line in OpenSSH's format.
    pub host_key: String,
    /// The authority that signed the certificate, one line in OpenSSH's format.
    pub host_ca: String,
    /// The same as `host_key`.
    pub relay_host_key: String,
    /// The same as `host_ca`.
    pub relay_host_ca: String,
}

/// What a certificate of ours says in its key ID, `sshacc_…:sb_…:ten_…:key_…`: written by whoever signs it, read by
/// the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SshKeyId {
    /// Which certificate.
    pub access_id: SshAccessId,
    /// For which sandbox.
    pub sandbox_id: SandboxId,
    /// On whose behalf.
    pub tenant_id: TenantId,
    /// The API key that asked for it.
    pub key_id: KeyId,
}

impl fmt::Display for SshKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { access_id, sandbox_id, tenant_id, key_id } = self;
        write!(f, "{access_id}:{sandbox_id}:{tenant_id}:{key_id}")
    }
}

/// A text that is no such key ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this key ID is not one of this server's")]
pub struct NoKeyId;

impl FromStr for SshKeyId {
    type Err = NoKeyId;

    fn from_str(text: &str) -> Result<Self, NoKeyId> {
        let parts: Vec<&str> = text.split(':').collect();
        let [access, sandbox, tenant, key] = parts[..] else { return Err(NoKeyId) };
        Ok(Self {
            access_id: access.parse().map_err(|_| NoKeyId)?,
            sandbox_id: sandbox.parse().map_err(|_| NoKeyId)?,
            tenant_id: tenant.parse().map_err(|_| NoKeyId)?,
            key_id: key.parse().map_err(|_| NoKeyId)?,
        })
    }
}

//! Access to a sandbox by SSH: a certificate that is good for a while and for one sandbox.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::SshAccessId;

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

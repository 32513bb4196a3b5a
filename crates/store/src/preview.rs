//! Preview grants, and the addresses on this host that stand for ports of sandboxes.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::id::{KeyId, PreviewGrantId, SandboxId, TenantId};
use nullspace_types::preview::{AuthMode, TokenKind};

use crate::Result;

/// A grant to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewGrant {
    /// Its ID.
    pub id: PreviewGrantId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// The key that asked for it.
    pub key_id: KeyId,
    /// For which sandbox.
    pub sandbox_id: SandboxId,
    /// For which of its ports.
    pub port: u16,
    /// How it is proved.
    pub auth_mode: AuthMode,
    /// What its tokens are good for; at least one.
    pub token_kinds: Vec<TokenKind>,
    /// When it was made.
    pub issued_at: Timestamp,
    /// When its time is over.
    pub expires_at: Timestamp,
}

/// What became of a grant's use, to be added to what is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GrantUse {
    /// Requests.
    pub http_requests: u64,
    /// WebSockets.
    pub websockets: u64,
    /// Bytes towards the sandbox.
    pub bytes_in: u64,
    /// Bytes from the sandbox.
    pub bytes_out: u64,
    /// When it was first used in this span; keeps an earlier one that is stored.
    pub first_used_at: Option<Timestamp>,
    /// When it was last used.
    pub last_used_at: Option<Timestamp>,
    /// The last refusal or failure, and when that was.
    pub last_error: Option<(String, Timestamp)>,
}

/// A grant as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantRow {
    /// As it was made.
    pub grant: NewGrant,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// When its sandbox ended.
    pub disabled_at: Option<Timestamp>,
    /// How it was used.
    pub used: GrantUse,
    /// When any of this last changed.
    pub updated_at: Timestamp,
}

/// An address on this host that stands for a port of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalPort {
    /// The port on this host.
    pub local: u16,
    /// For which sandbox.
    pub sandbox_id: SandboxId,
    /// For which of its ports.
    pub port: u16,
}

/// Grants and local ports.
#[async_trait]
pub trait PreviewStore: Send + Sync {
    /// Writes a grant. Of one sandbox the newest 1,000 are kept: what is beyond and no longer active goes;
    /// if all are active, this is [`Error::Invalid`](crate::Error::Invalid). A sandbox that is wanted no more, or
    /// is another tenant's, is not found.
    async fn grant_insert(&self, grant: &NewGrant) -> Result<GrantRow>;

    /// A grant, whosesoever it is: for whoever holds a token of it.
    async fn grant_find(&self, id: PreviewGrantId) -> Result<Option<GrantRow>>;

    /// The grants of a tenant's sandbox, newest first; of one port, if it is named.
    async fn grant_list(
        &self,
        tenant: TenantId,
        sandbox: SandboxId,
        port: Option<u16>,
    ) -> Result<Vec<GrantRow>>;

    /// Revokes a grant of a tenant's sandbox. One that is revoked already stays as it is.
    async fn grant_revoke(
        &self,
        tenant: TenantId,
        sandbox: SandboxId,
        id: PreviewGrantId,
        at: Timestamp,
    ) -> Result<GrantRow>;

    /// Ends all grants of a sandbox that is gone.
    async fn grants_disable(&self, sandbox: SandboxId, at: Timestamp) -> Result<()>;

    /// Adds what grants were used, in one transaction. Those that are gone are left out.
    async fn grants_used(&self, used: &[(PreviewGrantId, GrantUse)], at: Timestamp) -> Result<()>;

    /// Gives a port of a sandbox an address: the one that it has, or `candidate`.
    /// [`Error::Conflict`](crate::Error::Conflict) if the candidate is another's by now. A sandbox that is wanted
    /// no more is not found.
    async fn local_port_assign(&self, candidate: LocalPort) -> Result<LocalPort>;

    /// Every address that is given.
    async fn local_port_list(&self) -> Result<Vec<LocalPort>>;

    /// Takes an address back that cannot be listened on.
    async fn local_port_release(&self, local: u16) -> Result<()>;

    /// Takes all addresses of a sandbox back, and answers them.
    async fn local_ports_release(&self, sandbox: SandboxId) -> Result<Vec<LocalPort>>;
}

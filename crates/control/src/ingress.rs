//! How sandboxes are reached from outside: what control is told of it when it starts. It makes tokens, seals
//! secrets and certifies keys with what is here; listening, and the protocols, are others' work.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use async_trait::async_trait;
use nullspace_auth::{EdgeTokens, SshAuthority, Vault};
use nullspace_store::preview::LocalPort;
use nullspace_types::Result;
use nullspace_types::key::Principal;

/// What control needs for it.
pub struct Access {
    /// Makes and proves preview tokens, labels and traffic tokens.
    pub tokens: EdgeTokens,
    /// Seals stored secrets.
    pub vault: Vault,
    /// Certifies keys for SSH.
    pub ssh: SshAuthority,
    /// Says whether the key that something was asked for with is still good.
    pub authenticator: Arc<dyn KeyCheck>,
    /// Where ports are reached.
    pub previews: PreviewAddresses,
    /// Host and port where SSH is served, if it is.
    pub relay: Option<(String, u16)>,
    /// Opens the local addresses; unused with a domain.
    pub doors: Arc<dyn Doors>,
}

/// Where ports of sandboxes are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PreviewAddresses {
    /// At `{port}-{label}.{domain}`.
    Domain {
        /// The domain.
        domain: String,
        /// Whether URLs are those of TLS.
        tls: bool,
        /// The port in URLs; left out where it is the scheme's own.
        port: u16,
    },
    /// Each at a port of this host.
    Local {
        /// The address that is listened on.
        bind: IpAddr,
        /// The ports that may be given.
        ports: RangeInclusive<u16>,
    },
}

/// Listens on local addresses.
#[async_trait]
pub trait Doors: Send + Sync {
    /// Begins to listen. Again for the same target changes nothing.
    async fn open(&self, port: LocalPort) -> std::io::Result<()>;

    /// Ends that, and cuts what is open.
    async fn close(&self, local: u16);
}

/// Knows keys.
#[async_trait]
pub trait KeyCheck: Send + Sync {
    /// Ok unless the principal's key is revoked or gone.
    async fn still_good(&self, principal: Principal) -> Result<()>;
}

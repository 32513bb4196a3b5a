//! Looks into the connections that a sandbox makes: which name they really use, whether they may pass by it,
//! and what is added to them on the way.
//!
//! A connection comes in as the kernel redirected it, with the address that it was for. Its first bytes say
//! which name it uses: the server name of a TLS hello, or the host of an HTTP request. The rules are
//! `nullspace_domain::network`'s; what the node's DNS gave, and the way out, are the caller's ([`Outside`]).
//! Where a header is to be added, TLS is ended here with a certificate of the sandbox's own [`Authority`],
//! and begun anew towards the host, whose certificate must be good for its name.
//!
//! What each request or hello shows is judged, not only the first: a second request of a connection, or a second
//! hello that a server asks for, must show the same name. Of HTTP/2 without TLS no name is read; where names
//! matter it does not pass.
//!
//! Deliberately absent: namespaces, listening, the firewall, DNS.

mod authority;
mod first;
pub mod hello;
mod inject;
mod inspector;
mod relay;
pub mod request;
mod splice;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use async_trait::async_trait;
use nullspace_types::network::{DeniedTarget, EgressPolicy};
use rustls::RootCertStore;
use tokio::net::TcpStream;

pub use authority::{Authority, Error};
pub use first::Unreadable;
pub use inspector::Inspector;

/// What all sandboxes of a node have in common.
#[derive(Clone)]
pub struct Settings {
    /// Who is believed when a host proves its name.
    pub roots: Arc<RootCertStore>,
}

/// What is enforced for one sandbox.
#[derive(Clone, Default)]
pub struct Enforced {
    /// The rules.
    pub policy: EgressPolicy,
    /// Who signs where TLS is ended; without it nothing is added to any connection, and hosts that something
    /// should be added for are not reached.
    pub authority: Option<Arc<Authority>>,
}

/// The network as this room sees it.
#[async_trait]
pub trait Outside: Send + Sync + 'static {
    /// Connects to an address, from inside the slot: what the firewall denies is denied here too.
    async fn connect(&self, to: SocketAddrV4) -> std::io::Result<TcpStream>;

    /// Whether the node's DNS gives this address for a name, in lower case: it gave it to this sandbox, or gives
    /// it now.
    async fn gives(&self, name: &str, address: Ipv4Addr) -> bool;

    /// Whether the node's DNS gave this address to this sandbox for any name.
    fn knows(&self, address: Ipv4Addr) -> bool;

    /// Notes that something was denied.
    fn denied(&self, target: DeniedTarget);
}

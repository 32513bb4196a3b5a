//! The answer point for DNS in each slot: sockets at the gateway's address inside the namespace,
//! served by this process, relaying to the host's resolvers.
//!
//! The forwarder understands no more of DNS than it must to be safe: which answer belongs to which
//! query ([`message`]). It caches nothing and answers nobody but the slot's machine, so it amplifies
//! nothing towards others. It is bounded: so many queries at a time for each slot, each with a
//! deadline; what goes beyond is told SERVFAIL at once.

mod forwarder;
mod message;
mod relay;
pub mod resolv_conf;

pub use relay::ask;

pub(crate) use forwarder::{Forwarder, Sockets};
pub(crate) use resolv_conf::Resolvers;

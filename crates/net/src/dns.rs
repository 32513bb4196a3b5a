//! The answer point for DNS in each slot: sockets at the gateway's address inside the namespace,
//! served by this process, relaying to the host's resolvers.
//!
//! It understands no more of DNS than it must: which answer belongs to which query ([`message`]),
//! which name is asked for, whether the slot's policy lets it ([`service`]), and which addresses were
//! given for it ([`records`], [`given`]): a connection that shows a name is held against that. It keeps
//! no answer to give it again and answers nobody but the slot's machine, so it amplifies nothing towards
//! others. It is bounded: so many queries of each slot at a time and in a second, each with a deadline;
//! what goes beyond is told SERVFAIL at once.

mod budget;
mod forwarder;
mod given;
mod lookup;
mod message;
mod records;
mod relay;
pub mod resolv_conf;
mod service;

pub use relay::ask;

pub(crate) use forwarder::{Forwarder, Sockets};
pub(crate) use lookup::Lookups;
pub(crate) use resolv_conf::Resolvers;
pub(crate) use service::NameService;

//! What one machine needs on the network, made ahead of time: a *slot*.
//!
//! A slot is a network namespace with a persistent name, a tap for the machine, a veth pair to the
//! host, the firewall inside, a DNS forwarder at the gateway's address, and a place where connections
//! are looked into that the firewall cannot judge. A machine's policy is enforced here, outside of it
//! ([`Slot::set_egress`]), and what it is denied is told ([`SlotPool::denials`]). The addresses inside are
//! the same in every slot, so a restored machine never needs to be renumbered. [`SlotPool`] makes
//! slots ahead, gives them out, and finds them again after a restart of the server.
//!
//! Who owns what: the kernel owns the slots (they outlive this process on purpose), claim files own
//! the host-wide index of each, [`SlotPool`] owns the count and the unused ones, whoever took a
//! [`Slot`] owns that one until [`Slot::release`].
//!
//! Deliberately absent: machines, monitors and users (the caller's), ingress (a machine is only ever
//! reached by sockets made inside its namespace, [`Slot::connect`]), and IPv6 (off in every slot).

mod claim;
mod config;
mod denials;
mod dns;
mod error;
mod firewall;
mod forwarding;
mod host;
mod inspection;
mod make;
mod namespace;
mod nflog;
mod pool;
mod probe;
mod slot;
mod tap;
mod tool;
mod way;

pub use config::{Config, LinkConfig, MacAddress, Range};
pub use dns::{ask, resolv_conf};
pub use error::{Error, Result};
pub use forwarding::{ForeignDrop, foreign_drops};
pub use nullspace_egress::{Authority, Enforced};
pub use pool::{PoolStatus, SlotPool};
pub use probe::try_host;
pub use slot::{Slot, Traffic};

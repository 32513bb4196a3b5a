//! The gateway: how people, programs and proxies reach the ports of sandboxes.
//!
//! It listens on one address for all preview hosts where there is a domain, and on one local address for
//! each port where there is none; it reads what a request shows, has it judged
//! ([`Edge::admit`](nullspace_edge_api::Edge::admit)), and forwards it both ways as it comes. Deliberately
//! absent: which sandboxes there are, what a token is worth, how machines are reached: all of that is behind
//! [`Edge`](nullspace_edge_api::Edge).

mod acme;
mod body;
mod config;
mod connection;
mod exchange;
mod forward;
mod gateway;
mod head;
mod judge;
mod pool;
mod refusal;
mod tls;
mod tunnel;
mod wire;

pub use config::{AcmeConfig, Config};
pub use gateway::Gateway;

//! The protocol between the node and the agent inside a machine: `proto/guest.proto`, and the Rust
//! code that `make generate` writes from it into `generated.rs`.
//!
//! This crate holds no logic beyond constants both sides must agree on, and never opens a socket.

#[allow(missing_docs, clippy::all, reason = "generated")]
#[rustfmt::skip]
mod generated;
pub use generated::*;

/// The generation of the protocol that this build speaks.
pub const GENERATION: u32 = 1;

/// The address of every guest on its own link.
pub const GUEST_ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 200, 0, 2);

/// The node's address on that link: the guest's gateway and name server.
pub const GATEWAY_ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 200, 0, 1);

/// Bits of the link's network prefix.
pub const LINK_PREFIX: u8 = 30;

/// The guest's hardware address. The same in every machine: each has a link of its own.
pub const GUEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];

/// The hardware address of the node's end of every link, so that a guest restored elsewhere still
/// knows its neighbour.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];

/// The TCP port on which the agent serves.
pub const AGENT_PORT: u16 = 7000;

/// The TCP port of its lane for bulk data.
pub const BULK_PORT: u16 = 7001;

/// Bytes of a ticket.
pub const TICKET_BYTES: usize = 32;

/// Content from this many bytes on goes over the bulk lane.
pub const BULK_FROM_BYTES: u64 = 1 << 20;

/// Bulk connections of one machine at once.
pub const BULK_LANES: usize = 64;

/// The kernel parameter that carries the checkpoint's token into the boot: `nullspace.token=…`.
pub const TOKEN_PARAMETER: &str = "nullspace.token";

/// The largest message that either side takes, in bytes.
pub const MESSAGE_LIMIT: usize = 4 << 20;

/// File and output data is cut into chunks of this many bytes.
pub const CHUNK_BYTES: usize = 64 << 10;

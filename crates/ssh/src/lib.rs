//! The SSH relay: people and their tools reach sandboxes with the client that they have.
//!
//! It ends the SSH connection, learns the sandbox from the certificate alone, and turns each channel into
//! calls to the machine ([`Machines`](nullspace_edge_api::Machines)): shells and commands with or without a
//! terminal, file transfer, port forwarding both ways. Deliberately absent: passwords, other keys, agent and
//! X11 forwarding; what a sandbox is; and the signing of certificates.
//!
//! `russh` speaks the protocol. Its handler runs in the connection's one loop, so nothing there waits for a
//! machine, but for the port of a remote forwarding, which its answer must name: each channel is a task of its
//! own, with what the client sent it in an inlet (`inlet`) and what it sends under the client's window.

mod certificate;
mod config;
mod connection;
mod forward;
mod inlet;
mod outlet;
mod peers;
mod relay;
mod session;
mod wire;

pub use config::{Config, Keys, LISTEN};
pub use relay::serve;

//! The public API against fake machines: real HTTP, the real server, the real store, in milliseconds. The
//! machines are those of [`fake_node`], which can hang, fail, lie and lose them on demand.

pub mod access;
pub mod fake_node;
pub mod full_store;
pub mod harness;
pub mod socket;

pub use access::access;
pub use fake_node::{FakeHost, Point};
pub use full_store::FullStore;
pub use harness::{Answer, Harness};
pub use socket::Socket;

//! What the gateway and the SSH relay ask of control: who may come in, and the way to what is inside. Types
//! and two traits; no behaviour.

pub mod preview;
pub mod ssh;

pub use nullspace_node_api::{Duplex, Incoming, Listening, PipedProcess, Stream};
pub use preview::{Admission, Admitted, Credentials, Destination, Edge, Refusal, Traffic};
pub use ssh::{Claims, Machines, Program, Terminal};

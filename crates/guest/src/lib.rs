//! The parts of the agent that take apart what somebody else has written: an archive of unknown origin, and
//! the requests of an SFTP client, with the accounts whose names it is shown. They are a library, beside the
//! program that the agent is, so that they can be driven with arbitrary bytes (`fuzz/`).
//!
//! Deliberately absent: everything else of the agent.

pub mod account;
pub mod archive;
pub mod sftp;

//! The part of the agent that takes an archive of unknown origin apart. It is a library, beside the
//! program that the agent is, so that it can be driven with arbitrary bytes (`fuzz/`).
//!
//! Deliberately absent: everything else of the agent.

pub mod archive;

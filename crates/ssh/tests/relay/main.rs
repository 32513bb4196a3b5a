//! The relay from outside: real clients, and machines whose programs are processes of this host.

#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

mod attacks;
mod clients;
mod forwarding;
mod machines;
mod sessions;
mod world;

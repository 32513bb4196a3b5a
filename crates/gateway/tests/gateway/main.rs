//! The gateway from outside: real sockets on both sides, and an edge that decides by a few rules.

#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

mod access;
mod acme;
mod attacks;
mod http1;
mod http2;
mod raw;
mod websocket;
mod world;

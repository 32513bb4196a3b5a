//! The journeys, bad input and faults, over HTTP.

mod bad_input;
mod coverage;
mod crash;
mod destroy;
mod fork;
mod full_disk;
mod hibernate;
mod idempotency;
mod journey;
mod key;
mod lifecycle;
mod list;
mod lost;
mod many;
mod mixed;
mod monitor;
mod operator;
mod server;
mod signed_url;
mod snapshot;
mod socket;
mod tenant;
mod timeout;
mod upload;
mod webhook;

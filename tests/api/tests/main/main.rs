//! The journeys, bad input and faults, over HTTP.

mod bad_input;
mod coverage;
mod crash;
mod destroy;
mod full_disk;
mod idempotency;
mod journey;
mod key;
mod list;
mod lost;
mod server;
mod signed_url;
mod socket;
mod tenant;
mod timeout;
mod upload;

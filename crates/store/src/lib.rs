//! What must outlive the process: tenants and API keys, what was asked for and seen of every sandbox,
//! snapshots, idempotency keys, the log of lifecycle events, webhooks, what sandboxes were denied, grants and
//! addresses of previews, stored secrets as they are sealed, and the secrets that the server signs with. One
//! set of traits, two engines behind them (SQLite for one host, PostgreSQL for many), one contract suite that
//! both must pass.
//!
//! Who owns what: of a [`sandbox::SandboxRow`], control writes [`sandbox::Desired`]; what a node reported
//! goes into [`sandbox::Observed`], by compare-and-set on incarnation and generation; what is shown is
//! computed elsewhere and never stored. Every write is one whole transaction that holds its events too,
//! so that a crash at any moment leaves either all of it or nothing.
//!
//! Every query on behalf of a user carries the tenant; the few that span tenants say so.
//!
//! Deliberately absent: rules (`domain` has them), retries of the caller's intent, any caller's secret in the
//! clear, and any SQL outside of this crate.

mod canonical;
pub mod denial;
pub mod error;
pub mod event;
pub mod idempotency;
pub mod key;
mod postgres;
pub mod preview;
pub mod sandbox;
pub mod secret;
pub mod snapshot;
mod sqlite;
pub mod vault;
pub mod webhook;

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;

pub use denial::DenialStore;
pub use error::{Error, Result};
pub use event::EventStore;
pub use idempotency::IdempotencyStore;
pub use key::KeyStore;
pub use preview::PreviewStore;
pub use sandbox::SandboxStore;
pub use secret::SecretStore;
pub use snapshot::SnapshotStore;
pub use vault::VaultStore;
pub use webhook::WebhookStore;

/// The whole store, as one handle: `Arc<dyn Store>`.
#[async_trait]
pub trait Store:
    KeyStore
    + SandboxStore
    + SnapshotStore
    + EventStore
    + WebhookStore
    + IdempotencyStore
    + SecretStore
    + PreviewStore
    + VaultStore
    + DenialStore
    + Send
    + Sync
    + 'static
{
    /// Ok when the database answers.
    async fn ping(&self) -> Result<()>;

    /// Ends every connection after the work at hand. Later calls answer [`Error::Unavailable`].
    async fn close(&self);
}

/// The time, in the resolution in which the store keeps it: microseconds. A value from here comes back
/// from the store unchanged.
pub fn now() -> Timestamp {
    event::truncated(Timestamp::now())
}

/// Opens the database that a URL names, and brings it to this version's schema: `sqlite://PATH` or
/// `postgres://…`. Several processes may open the same one at once.
pub async fn open(url: &str) -> Result<Arc<dyn Store>> {
    if let Some(path) = url.strip_prefix("sqlite://") {
        Ok(Arc::new(sqlite::Engine::open(path.as_ref()).await?))
    } else if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        Ok(Arc::new(postgres::Engine::open(url).await?))
    } else {
        // The URL itself may hold a password.
        Err(Error::invalid("the store's URL must begin with sqlite:// or postgres://"))
    }
}

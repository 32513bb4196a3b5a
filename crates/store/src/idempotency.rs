//! Idempotency keys: one key of a tenant makes at most one thing, across crashes and callers at once. Rows
//! are written and freed within the operations of [`SandboxStore`](crate::SandboxStore) and
//! [`SnapshotStore`](crate::SnapshotStore); here they age.

use async_trait::async_trait;
use jiff::Timestamp;

use crate::Result;

/// What a caller sent to make a repeated request safe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// Of which operation: keys of different operations do not meet.
    pub operation: &'static str,
    /// The caller's key.
    pub key: String,
    /// Digest of the request: the same key with another request is refused.
    pub request_hash: [u8; 32],
}

/// Looking after the keys.
#[async_trait]
pub trait IdempotencyStore: Send + Sync {
    /// Forgets the keys made before a time (at least 24 hours ago, by the contract of the API). Answers
    /// how many.
    async fn idempotency_prune(&self, before: Timestamp) -> Result<u64>;
}

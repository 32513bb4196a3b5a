//! The log of lifecycle events, and the outbox: rows are written only inside the transaction of the change
//! that they tell of, and everything that follows changes reads them by cursor.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::event::{EventStatus, LifecycleEvent, Operation};
use nullspace_types::id::{EventId, SandboxId, SnapshotId, TenantId};

use serde_json::{Map, Value};

use crate::Result;
use crate::canonical::pair_digest;

/// A place in the log. Reading on from a cursor misses nothing: an event becomes visible only after every
/// event with a smaller cursor is visible or will never be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventCursor(pub i64);

impl EventCursor {
    /// Before the first event.
    pub const START: Self = Self(0);
}

/// An event as it stands in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRow {
    /// Where.
    pub cursor: EventCursor,
    /// Whose.
    pub tenant_id: TenantId,
    /// What.
    pub event: LifecycleEvent,
}

/// In which order a page of events comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EventOrder {
    /// Oldest first.
    Ascending,
    /// Newest first.
    #[default]
    Descending,
}

/// Which events to list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EventFilter {
    /// Only those in which this sandbox has any part: its own, or come from it, or come to it.
    pub sandbox_id: Option<SandboxId>,
    /// Only those about this snapshot.
    pub snapshot_id: Option<SnapshotId>,
    /// Only those that came from this sandbox.
    pub source_sandbox_id: Option<SandboxId>,
    /// Only those of which this sandbox came.
    pub target_sandbox_id: Option<SandboxId>,
    /// Only those whose metadata has all of these pairs.
    pub metadata: Map<String, Value>,
    /// Only those behind this place.
    pub after: Option<EventCursor>,
    /// Only those up to this place.
    pub up_to: Option<EventCursor>,
    /// Only of this operation.
    pub operation: Option<Operation>,
    /// Only of this status.
    pub status: Option<EventStatus>,
    /// Only those at or after.
    pub from: Option<Timestamp>,
    /// Only those before.
    pub until: Option<Timestamp>,
    /// In which order.
    pub order: EventOrder,
    /// How many to pass over.
    pub offset: u32,
    /// At most this many.
    pub limit: u32,
}

impl EventFilter {
    /// Whether an event passes, wherever it stands in the log.
    pub fn matches(&self, event: &LifecycleEvent) -> bool {
        fn is<T: PartialEq>(wanted: Option<T>, found: Option<T>) -> bool {
            wanted.is_none() || wanted == found
        }
        let parts = [event.sandbox_id, event.source_sandbox_id, event.target_sandbox_id];
        (self.sandbox_id.is_none() || parts.contains(&self.sandbox_id))
            && is(self.snapshot_id, event.snapshot_id)
            && is(self.source_sandbox_id, event.source_sandbox_id)
            && is(self.target_sandbox_id, event.target_sandbox_id)
            && is(self.operation, Some(event.operation))
            && is(self.status, Some(event.status))
            && self.from.is_none_or(|from| event.occurred_at >= truncated(from))
            && self.until.is_none_or(|until| event.occurred_at < truncated(until))
            && self.metadata.iter().all(|(name, wanted)| {
                let found = event.metadata.get(name);
                found.is_some_and(|found| pair_digest(name, found) == pair_digest(name, wanted))
            })
    }
}

/// Reading the log. Writing happens within the operations of the other traits.
#[async_trait]
pub trait EventStore: Send + Sync {
    /// The events behind a cursor, of every tenant, oldest first, at most `limit`.
    async fn events_after(&self, cursor: EventCursor, limit: u32) -> Result<Vec<EventRow>>;

    /// The tenant's events that pass the filter.
    async fn event_list(&self, tenant: TenantId, filter: &EventFilter) -> Result<Vec<EventRow>>;

    /// Where an event of the tenant stands.
    async fn event_cursor(&self, tenant: TenantId, id: EventId) -> Result<Option<EventCursor>>;

    /// Where the log ends now.
    async fn event_cursor_latest(&self) -> Result<EventCursor>;
}

/// What is left of a time after it was stored.
pub(crate) fn truncated(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond())
        .expect("a time stays in range when it loses its nanoseconds")
}

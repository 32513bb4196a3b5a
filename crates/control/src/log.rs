//! The events that control writes: what all of them have in common.

use jiff::Timestamp;
use nullspace_types::event::{ActorKind, Audience, EventStatus, LifecycleEvent, Operation};
use nullspace_types::id::EventId;

/// A new event that says nothing yet but what happened.
pub(crate) fn event_now(
    now: Timestamp,
    operation: Operation,
    status: EventStatus,
    actor_kind: ActorKind,
) -> LifecycleEvent {
    LifecycleEvent {
        id: EventId::new(),
        occurred_at: now,
        audience: Audience::Customer,
        operation,
        status,
        actor_kind,
        sandbox_id: None,
        snapshot_id: None,
        source_sandbox_id: None,
        target_sandbox_id: None,
        user_id: None,
        reason: None,
        error_code: None,
        error_message: None,
        metadata: serde_json::Map::new(),
    }
}

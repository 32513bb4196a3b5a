//! Lifecycle events: one row per change, written in the transaction that makes the change.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::{EventId, SandboxId, SnapshotId};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// Every word, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word as it stands on the wire and in the store.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text { $($text => Ok(Self::$variant),)* _ => Err(format!("unknown word {text:?}")) }
            }
        }
    };
}

words!(
    /// What was done.
    Operation {
        /// A sandbox was made.
        Create = "create",
        /// A sandbox was destroyed.
        Destroy = "destroy",
        /// Its window was set anew.
        TimeoutUpdated = "timeout_updated",
        /// Its time was over.
        TimeoutExpired = "timeout_expired",
        /// It was hibernated.
        Hibernate = "hibernate",
        /// A snapshot was taken.
        SnapshotCreated = "snapshot_created",
        /// It was resumed.
        ResumeFromSnapshot = "resume_from_snapshot",
        /// A child was forked.
        Fork = "fork",
        /// The server found the machine in another state than recorded, and recorded that.
        Reconcile = "reconcile",
    }
);
words!(
    /// How far it came.
    EventStatus {
        /// It was asked for.
        Requested = "requested",
        /// It was done.
        Succeeded = "succeeded",
        /// It could not be done.
        Failed = "failed",
    }
);
words!(
    /// Whom it was done by.
    ActorKind {
        /// Whoever held the key.
        User = "user",
        /// The server, on a timer.
        System = "system",
        /// The server, repairing.
        Reconcile = "reconcile",
    }
);

words!(
    /// Whom it is told.
    Audience {
        /// Whoever the sandbox belongs to.
        Customer = "customer",
        /// The operator alone. No event is so far.
        Internal = "internal",
    }
);

/// A lifecycle event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LifecycleEvent {
    /// `evt_` and 32 hexadecimal digits.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub id: EventId,
    /// When.
    pub occurred_at: Timestamp,
    /// Whom it is told.
    #[serde(default = "customer")]
    pub audience: Audience,
    /// What.
    pub operation: Operation,
    /// How far.
    pub status: EventStatus,
    /// By whom.
    pub actor_kind: ActorKind,
    /// Of which sandbox.
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub sandbox_id: Option<SandboxId>,
    /// About which snapshot.
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    #[serde(default)]
    pub snapshot_id: Option<SnapshotId>,
    /// The sandbox that something came from: a fork's parent, a resumed sandbox as it was.
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    #[serde(default)]
    pub source_sandbox_id: Option<SandboxId>,
    /// The sandbox that came of it.
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    #[serde(default)]
    pub target_sandbox_id: Option<SandboxId>,
    /// Always null: keys belong to tenants, not to people.
    #[serde(default)]
    pub user_id: Option<String>,
    /// Why: `api`, `manual`, `timeout`, …
    pub reason: Option<String>,
    /// The code, if it failed.
    pub error_code: Option<String>,
    /// The message, if it failed.
    pub error_message: Option<String>,
    /// More, by operation.
    #[cfg_attr(feature = "schema", schema(value_type = Object))]
    pub metadata: Map<String, Value>,
}

fn customer() -> Audience {
    Audience::Customer
}

/// Which events to list. Texts here, so that a bad value is answered with the bounds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "schema", into_params(parameter_in = Query))]
#[serde(default)]
pub struct LifecycleEventQuery {
    /// How many to pass over, 0 to 1000000; 0 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<String>,
    /// At most this many, 1 to 500; 50 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// `asc` or `desc`, by the log's order; `desc` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
    /// Only of this operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Only of this status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Only those at or after this time (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Only those before this time (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// `customer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// Only those in which this sandbox has any part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// Only those about this snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// Only those that came from this sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_sandbox_id: Option<String>,
    /// Only those of which this sandbox came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_sandbox_id: Option<String>,
}

/// A page of events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LifecycleEventPage {
    /// The events, in the order that was asked for.
    pub events: Vec<LifecycleEvent>,
    /// How many were passed over.
    pub offset: u32,
    /// How many there could be.
    pub limit: u32,
    /// Whether there are more.
    pub has_more: bool,
}

/// What a subscriber of the lifecycle sockets wants to hear.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LifecycleSubscription {
    /// Only events in which this sandbox has any part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// Only events about this snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// Only of this operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Only of this status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// `customer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// Only what happens from now on; false when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_only: Option<bool>,
    /// Begin behind this event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_event_id: Option<String>,
    /// At most this many events of the past, the newest ones; 100 when absent. Behind `after_event_id` all
    /// are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_limit: Option<i64>,
    /// Only events whose metadata has all of these pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

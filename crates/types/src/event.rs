//! Lifecycle events: one row per change, written in the transaction that makes the change.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::{EventId, SandboxId};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
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

/// A lifecycle event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LifecycleEvent {
    /// `evt_` and 32 hexadecimal digits.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub id: EventId,
    /// When.
    pub occurred_at: Timestamp,
    /// What.
    pub operation: Operation,
    /// How far.
    pub status: EventStatus,
    /// By whom.
    pub actor_kind: ActorKind,
    /// Of which sandbox.
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub sandbox_id: Option<SandboxId>,
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

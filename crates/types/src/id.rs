//! The registry of IDs: every kind has a type and a printed prefix, and parsing refuses the wrong
//! kind. The part behind the prefix is a UUIDv7 in 32 hexadecimal digits: IDs sort by creation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// A text that is no ID of the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind} ID (expected {prefix}… with 32 hexadecimal digits)")]
pub struct ParseIdError {
    kind: &'static str,
    prefix: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// What every printed ID of this kind begins with.
            pub const PREFIX: &'static str = $prefix;

            /// A new ID, larger than all made before it on this host.
            #[allow(clippy::new_without_default, reason = "two calls never give the same value")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0.simple())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let error = ParseIdError { kind: $kind, prefix: $prefix };
                let digits = text.strip_prefix($prefix).ok_or_else(|| error.clone())?;
                // Uuid::parse_str also takes other spellings; one ID has one spelling.
                if digits.len() != 32 || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                    return Err(error);
                }
                Uuid::parse_str(digits).map(Self).map_err(|_| error)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// A sandbox.
    SandboxId, "sandbox", "sb_"
);
id!(
    /// A snapshot: a checkpoint that a user can name.
    SnapshotId, "snapshot", "snap_"
);
id!(
    /// One life of a sandbox's machine on a node. A sandbox whose machine is made anew has a new one.
    IncarnationId, "incarnation", "inc_"
);
id!(
    /// Whoever owns resources; API keys belong to a tenant.
    TenantId, "tenant", "ten_"
);
id!(
    /// An API key (its name, not its secret).
    KeyId, "API key", "key_"
);
id!(
    /// A lifecycle event.
    EventId, "event", "evt_"
);
id!(
    /// An endpoint that lifecycle events are sent to.
    WebhookId, "webhook", "wh_"
);
id!(
    /// One event on its way to one webhook.
    DeliveryId, "delivery", "whd_"
);
id!(
    /// One attempt at a delivery.
    AttemptId, "attempt", "wha_"
);
id!(
    /// A terminal session in a sandbox.
    SessionId, "terminal session", "ses_"
);
id!(
    /// A resumable upload.
    UploadId, "upload", "up_"
);
id!(
    /// What makes the tokens of a preview URL good.
    PreviewGrantId, "preview grant", "pvg_"
);
id!(
    /// A certificate for access by SSH.
    SshAccessId, "SSH access", "sshacc_"
);
id!(
    /// One request to the API, for finding it again in the logs.
    RequestId, "request", "req_"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_printed_and_read_back() {
        let id = SandboxId::new();
        assert_eq!(id.to_string().parse::<SandboxId>(), Ok(id));
    }

    #[test]
    fn the_wrong_kind_and_other_spellings_are_refused() {
        let id = SandboxId::new().to_string();
        assert!(id.parse::<SnapshotId>().is_err());
        assert!(id.to_uppercase().parse::<SandboxId>().is_err());
        for text in ["", "sb_", "sb_12", "sb_0192f0c4-5b7a-7000-8000-000000000000", "sb_../../etc"] {
            assert!(text.parse::<SandboxId>().is_err(), "{text}");
        }
    }

    #[test]
    fn later_ids_sort_later() {
        let (first, second) = (EventId::new(), EventId::new());
        assert!(first < second && first.to_string() < second.to_string());
    }
}

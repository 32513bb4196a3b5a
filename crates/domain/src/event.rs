//! Which lifecycle events to list or to follow: the texts of a query or a subscription become a spec, or a
//! refusal that names the parameter and its bounds.

use std::str::FromStr;

use jiff::Timestamp;
use nullspace_types::event::{Audience, EventStatus, LifecycleEventQuery, LifecycleSubscription, Operation};
use nullspace_types::id::{EventId, ParseIdError, SandboxId, SnapshotId};
use nullspace_types::{Error, Result};
use serde_json::{Map, Value};

/// Largest page.
pub const PAGE_MAX: u32 = 500;
/// The page of a query that names no limit.
pub const PAGE_DEFAULT: u32 = 50;
/// Most entries that a page passes over.
pub const OFFSET_MAX: u32 = 1_000_000;
/// Most events of the past that a subscription begins with.
pub const REPLAY_MAX: u32 = 1000;
/// The events of the past that a subscription begins with if it names no number.
pub const REPLAY_DEFAULT: u32 = 100;

/// What the events have in common.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EventSelection {
    /// In which this sandbox has any part.
    pub sandbox_id: Option<SandboxId>,
    /// About this snapshot.
    pub snapshot_id: Option<SnapshotId>,
    /// That came from this sandbox.
    pub source_sandbox_id: Option<SandboxId>,
    /// Of which this sandbox came.
    pub target_sandbox_id: Option<SandboxId>,
    /// Of this operation.
    pub operation: Option<Operation>,
    /// Of this status.
    pub status: Option<EventStatus>,
    /// Whose metadata has all of these pairs.
    pub metadata: Map<String, Value>,
}

/// A valid query.
#[derive(Debug, Clone, PartialEq)]
pub struct EventListSpec {
    /// Which.
    pub selection: EventSelection,
    /// Only those at or after.
    pub from: Option<Timestamp>,
    /// Only those before.
    pub until: Option<Timestamp>,
    /// Oldest first.
    pub ascending: bool,
    /// Which part of them.
    pub page: Page,
}

/// Which part of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// How many to pass over.
    pub offset: u32,
    /// At most this many.
    pub limit: u32,
}

/// Where a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Behind this event.
    After(EventId),
    /// With so many of the newest; with 0, at what happens from now on.
    Newest(u32),
}

/// A valid subscription.
#[derive(Debug, Clone, PartialEq)]
pub struct SubscriptionSpec {
    /// Which.
    pub selection: EventSelection,
    /// From where on.
    pub begin: Begin,
}

fn id<T: FromStr<Err = ParseIdError>>(field: &str, text: Option<&str>) -> Result<Option<T>> {
    text.map(|text| text.parse().map_err(|error| Error::invalid(format!("{field}: {error}, got {text:?}"))))
        .transpose()
}

/// One of a few words.
pub(crate) fn word<T: Copy>(
    field: &str,
    text: &str,
    known: &[T],
    as_str: fn(T) -> &'static str,
) -> Result<T> {
    known.iter().copied().find(|word| as_str(*word) == text).ok_or_else(|| {
        let known: Vec<_> = known.iter().copied().map(as_str).collect();
        Error::invalid(format!("{field} must be one of {}; got {text:?}", known.join(", ")))
    })
}

fn time(field: &str, text: Option<&str>) -> Result<Option<Timestamp>> {
    text.map(|text| {
        text.parse().map_err(|_| {
            Error::invalid(format!("{field} must be a time such as 2026-01-02T03:04:05Z, got {text:?}"))
        })
    })
    .transpose()
}

/// Events of the other audience are the operator's.
fn audience(text: Option<&str>) -> Result<()> {
    match text {
        Some(text) if text != Audience::Customer.as_str() => {
            Err(Error::invalid(format!("audience must be {}, got {text:?}", Audience::Customer.as_str())))
        }
        Some(_) | None => Ok(()),
    }
}

/// Judges which part of a list is asked for.
pub fn page(offset: Option<&str>, limit: Option<&str>) -> Result<Page> {
    page_up_to(PAGE_MAX, offset, limit)
}

/// The same for a list whose pages have another bound.
pub(crate) fn page_up_to(high: u32, offset: Option<&str>, limit: Option<&str>) -> Result<Page> {
    let number =
        |field: &str, text: Option<&str>, low: u32, high: u32, default: u32| match text {
            None => Ok(default),
            Some(text) => text.parse().ok().filter(|number| (low..=high).contains(number)).ok_or_else(|| {
                Error::invalid(format!("{field} must be between {low} and {high}, got {text:?}"))
            }),
        };
    Ok(Page {
        offset: number("offset", offset, 0, OFFSET_MAX, 0)?,
        limit: number("limit", limit, 1, high, PAGE_DEFAULT)?,
    })
}

fn operation(text: Option<&str>) -> Result<Option<Operation>> {
    text.map(|text| word("operation", text, Operation::ALL, Operation::as_str)).transpose()
}

fn status(text: Option<&str>) -> Result<Option<EventStatus>> {
    text.map(|text| word("status", text, EventStatus::ALL, EventStatus::as_str)).transpose()
}

/// Judges a query.
pub fn validate_list(query: &LifecycleEventQuery) -> Result<EventListSpec> {
    audience(query.audience.as_deref())?;
    let ascending = match query.order.as_deref() {
        None | Some("desc") => false,
        Some("asc") => true,
        Some(text) => return Err(Error::invalid(format!("order must be one of asc, desc; got {text:?}"))),
    };
    let selection = EventSelection {
        sandbox_id: id("sandbox_id", query.sandbox_id.as_deref())?,
        snapshot_id: id("snapshot_id", query.snapshot_id.as_deref())?,
        source_sandbox_id: id("source_sandbox_id", query.source_sandbox_id.as_deref())?,
        target_sandbox_id: id("target_sandbox_id", query.target_sandbox_id.as_deref())?,
        operation: operation(query.operation.as_deref())?,
        status: status(query.status.as_deref())?,
        metadata: Map::new(),
    };
    Ok(EventListSpec {
        selection,
        from: time("from", query.from.as_deref())?,
        until: time("to", query.to.as_deref())?,
        ascending,
        page: page(query.offset.as_deref(), query.limit.as_deref())?,
    })
}

/// Judges a subscription.
pub fn validate_subscription(subscription: &LifecycleSubscription) -> Result<SubscriptionSpec> {
    audience(subscription.audience.as_deref())?;
    let newest = match subscription.replay_limit {
        None => REPLAY_DEFAULT,
        Some(asked) => u32::try_from(asked).ok().filter(|newest| *newest <= REPLAY_MAX).ok_or_else(|| {
            Error::invalid(format!("replay_limit must be between 0 and {REPLAY_MAX}, got {asked}"))
        })?,
    };
    let selection = EventSelection {
        sandbox_id: id("sandbox_id", subscription.sandbox_id.as_deref())?,
        snapshot_id: id("snapshot_id", subscription.snapshot_id.as_deref())?,
        operation: operation(subscription.operation.as_deref())?,
        status: status(subscription.status.as_deref())?,
        metadata: subscription.metadata.clone().unwrap_or_default(),
        ..EventSelection::default()
    };
    let begin = match id("after_event_id", subscription.after_event_id.as_deref())? {
        Some(event) => Begin::After(event),
        None if subscription.live_only == Some(true) => Begin::Newest(0),
        None => Begin::Newest(newest),
    };
    Ok(SubscriptionSpec { selection, begin })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(pairs: &[(&str, &str)]) -> Result<EventListSpec> {
        let object: Map<String, Value> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))).collect();
        validate_list(&serde_json::from_value(object.into()).unwrap())
    }

    fn subscription(json: Value) -> Result<SubscriptionSpec> {
        validate_subscription(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn every_parameter_out_of_its_rules_is_named_with_its_bounds() {
        for (name, value, says) in [
            ("limit", "0", "limit must be between 1 and 500, got \"0\""),
            ("limit", "501", "limit must be between 1 and 500"),
            ("offset", "-1", "offset must be between 0 and 1000000"),
            ("offset", "1000001", "offset must be between 0 and 1000000"),
            ("order", "up", "order must be one of asc, desc"),
            ("operation", "explode", "operation must be one of create, destroy"),
            ("status", "maybe", "status must be one of requested, succeeded, failed"),
            ("audience", "internal", "audience must be customer"),
            ("from", "yesterday", "from must be a time"),
            ("to", "1", "to must be a time"),
            ("sandbox_id", "nonsense", "sandbox_id: not a valid sandbox ID"),
            ("snapshot_id", "", "snapshot_id: not a valid snapshot ID"),
            ("source_sandbox_id", "snap_1", "source_sandbox_id: "),
            ("target_sandbox_id", "x", "target_sandbox_id: "),
        ] {
            let error = query(&[(name, value)]).unwrap_err();
            assert!(error.message.contains(says), "{name}={value}: {error}");
        }
        for (json, says) in [
            (serde_json::json!({"replay_limit": -1}), "replay_limit must be between 0 and 1000, got -1"),
            (serde_json::json!({"replay_limit": 1001, "live_only": true}), "replay_limit"),
            (serde_json::json!({"after_event_id": "evt_1"}), "after_event_id: not a valid event ID"),
            (serde_json::json!({"audience": "internal"}), "audience must be customer"),
        ] {
            let error = subscription(json.clone()).unwrap_err();
            assert!(error.message.contains(says), "{json}: {error}");
        }
    }

    #[test]
    fn what_is_absent_has_its_default() {
        let spec = query(&[]).unwrap();
        assert!(!spec.ascending && spec.page == Page { offset: 0, limit: 50 });
        assert_eq!(spec.selection, EventSelection::default());
        let begin = |json| subscription(json).unwrap().begin;
        let id = EventId::new();
        assert_eq!(begin(serde_json::json!({})), Begin::Newest(100));
        assert_eq!(begin(serde_json::json!({"live_only": true, "replay_limit": 7})), Begin::Newest(0));
        assert_eq!(begin(serde_json::json!({"live_only": true, "after_event_id": id})), Begin::After(id));
    }
}

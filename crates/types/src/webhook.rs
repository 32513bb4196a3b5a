//! Webhooks: endpoints that lifecycle events are sent to, and what became of each.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::{EventStatus, LifecycleEvent, Operation};
use crate::id::{AttemptId, DeliveryId, EventId, WebhookId};

/// A webhook. Its secret is never shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Webhook {
    /// `wh_` and 32 hexadecimal digits.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub id: WebhookId,
    /// Where events are sent.
    pub url: String,
    /// Which operations are sent.
    pub operations: Vec<Operation>,
    /// Whether anything is sent.
    pub enabled: bool,
    /// Always true.
    pub has_signing_secret: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// When something was last sent to it.
    pub last_delivery_at: Option<Timestamp>,
    /// What became of that.
    pub last_delivery_status: Option<DeliveryStatus>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
}

/// A webhook to make.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct WebhookCreate {
    /// `https://…` or `http://…`; not into private networks unless the operator allows it.
    pub url: Option<String>,
    /// At least one operation.
    pub operations: Option<Vec<String>>,
    /// 16 to 256 printable ASCII characters that deliveries are signed with.
    pub signing_secret: Option<String>,
    /// Whether anything is sent; true when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// What shall be other about a webhook. What is absent stays.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct WebhookUpdate {
    /// See [`WebhookCreate`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// See [`WebhookCreate`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operations: Option<Vec<String>>,
    /// See [`WebhookCreate`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signing_secret: Option<String>,
    /// See [`WebhookCreate`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

// A log must not learn the secret.
impl fmt::Debug for WebhookCreate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, operations, signing_secret: _, enabled } = self;
        let mut text = f.debug_struct("WebhookCreate");
        text.field("url", url).field("operations", operations).field("enabled", enabled);
        text.finish_non_exhaustive()
    }
}

impl fmt::Debug for WebhookUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, operations, signing_secret: _, enabled } = self;
        let mut text = f.debug_struct("WebhookUpdate");
        text.field("url", url).field("operations", operations).field("enabled", enabled);
        text.finish_non_exhaustive()
    }
}

/// How far a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DeliveryStatus {
    /// It waits for its next attempt.
    Queued,
    /// An attempt is being made.
    InProgress,
    /// The endpoint took it.
    Succeeded,
    /// It was given up; it can be delivered again by hand.
    DeadLetter,
}

impl DeliveryStatus {
    /// Every status.
    pub const ALL: [Self; 4] = [Self::Queued, Self::InProgress, Self::Succeeded, Self::DeadLetter];

    /// The word as it stands on the wire and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Succeeded => "succeeded",
            Self::DeadLetter => "dead_letter",
        }
    }
}

/// One event on its way to one webhook.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct WebhookDelivery {
    /// `whd_` and 32 hexadecimal digits.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub id: DeliveryId,
    /// To which webhook.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub webhook_id: WebhookId,
    /// Which event.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub event_id: EventId,
    /// The event's.
    pub operation: Operation,
    /// The event's.
    pub status: EventStatus,
    /// How far it is.
    pub delivery_status: DeliveryStatus,
    /// Attempts made so far.
    pub attempt_count: u32,
    /// When the event was put on its way.
    pub created_at: Timestamp,
    /// When it is tried next.
    pub next_attempt_at: Option<Timestamp>,
    /// When it was last tried.
    pub last_attempt_at: Option<Timestamp>,
    /// What the endpoint last answered.
    pub last_response_status: Option<u16>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
}

/// One attempt at a delivery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct WebhookAttempt {
    /// `wha_` and 32 hexadecimal digits.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub id: AttemptId,
    /// Of which delivery.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub delivery_id: DeliveryId,
    /// 1 for the first.
    pub attempt_number: u32,
    /// When it began.
    pub attempted_at: Timestamp,
    /// How long it took.
    pub duration_ms: u64,
    /// What the endpoint answered, if it did.
    pub response_status: Option<u16>,
    /// Why it failed, for programs: `timeout`, `connection`, `address_refused`, `redirect`, `status`.
    pub error_code: Option<String>,
    /// Why it failed, for people.
    pub error_message: Option<String>,
}

/// A delivery with its event and every attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct WebhookDeliveryDetail {
    /// The delivery.
    pub delivery: WebhookDelivery,
    /// What is delivered.
    pub event: LifecycleEvent,
    /// The attempts, oldest first.
    pub attempts: Vec<WebhookAttempt>,
}

/// Which deliveries to list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "schema", into_params(parameter_in = Query))]
#[serde(default)]
pub struct WebhookDeliveryQuery {
    /// How many to pass over; 0 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<String>,
    /// At most this many, 1 to 500; 50 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
}

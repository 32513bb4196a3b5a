//! Webhooks, and what is on its way to them. Deliveries are made out of the log of events by cursor, each
//! in the transaction that moves the cursor on, so that no event is missed and none is sent twice because
//! of a crash between the two.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::event::Operation;
use nullspace_types::id::{DeliveryId, TenantId, WebhookId};
use nullspace_types::webhook::{Webhook, WebhookAttempt, WebhookDelivery, WebhookDeliveryDetail};

use crate::Result;
use crate::event::EventRow;

/// A webhook to write.
#[derive(Clone, PartialEq)]
pub struct NewWebhook {
    /// Its ID.
    pub id: WebhookId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// Where events are sent.
    pub url: String,
    /// Which operations.
    pub operations: Vec<Operation>,
    /// What deliveries are signed with.
    pub signing_secret: String,
    /// Whether anything is sent.
    pub enabled: bool,
    /// When it was made. Events from before are not sent.
    pub created_at: Timestamp,
}

/// What shall be other. What is absent stays.
#[derive(Clone, Default, PartialEq)]
pub struct WebhookChange {
    /// Where events are sent.
    pub url: Option<String>,
    /// Which operations.
    pub operations: Option<Vec<Operation>>,
    /// What deliveries are signed with.
    pub signing_secret: Option<String>,
    /// Whether anything is sent.
    pub enabled: Option<bool>,
}

/// A delivery whose time has come, with all that an attempt needs.
#[derive(Clone, PartialEq)]
pub struct DueDelivery {
    /// The delivery.
    pub delivery: WebhookDelivery,
    /// The event that it is about, and whose it is.
    pub event: EventRow,
    /// Where to.
    pub url: String,
    /// What to sign it with.
    pub signing_secret: String,
}

/// Webhooks and deliveries.
#[async_trait]
pub trait WebhookStore: Send + Sync {
    /// Writes a webhook. It hears of events written after it.
    async fn webhook_insert(&self, webhook: &NewWebhook) -> Result<Webhook>;

    /// The tenant's webhooks, oldest first.
    async fn webhook_list(&self, tenant: TenantId) -> Result<Vec<Webhook>>;

    /// A webhook of the tenant.
    async fn webhook_get(&self, tenant: TenantId, id: WebhookId) -> Result<Webhook>;

    /// Changes a webhook of the tenant.
    async fn webhook_update(
        &self,
        tenant: TenantId,
        id: WebhookId,
        change: &WebhookChange,
        at: Timestamp,
    ) -> Result<Webhook>;

    /// Removes a webhook of the tenant with its deliveries.
    async fn webhook_delete(&self, tenant: TenantId, id: WebhookId) -> Result<()>;

    /// Makes deliveries of the events behind the fan-out's cursor, at most `events` of them, for every
    /// enabled webhook that wants them, and moves the cursor on, in one transaction. Answers how many events
    /// were looked at and how many deliveries were made. Of one webhook at most 100000 deliveries wait:
    /// the oldest beyond are given up.
    async fn webhook_fan_out(&self, events: u32, at: Timestamp) -> Result<(u32, u32)>;

    /// Deliveries that are to be attempted now: of each webhook and sandbox only the oldest that is neither
    /// succeeded nor given up, if its time has come and its webhook is enabled. Oldest first, but one of each
    /// webhook before the second of any, so that one that hangs keeps no other waiting.
    ///
    /// They are in progress from then on. What is in progress already is among them too, because its attempt
    /// may have ended with the process that made it: the caller knows which of them it is working on.
    async fn webhook_due(&self, now: Timestamp, limit: u32) -> Result<Vec<DueDelivery>>;

    /// When the next delivery is due, if one waits that is not in progress and whose webhook is enabled.
    async fn webhook_next_due(&self) -> Result<Option<Timestamp>>;

    /// Writes an attempt and what it makes of its delivery (queued with the time of the next, succeeded or
    /// dead), and of what the webhook shows; then it is the turn of the sandbox's next delivery.
    /// [`Error::NotFound`](crate::Error::NotFound) if the webhook was deleted. Of one delivery the newest 100
    /// attempts are kept, of one webhook the newest 1000 deliveries that are over.
    async fn webhook_attempted(&self, delivery: &WebhookDelivery, attempt: &WebhookAttempt) -> Result<()>;

    /// Puts a delivery that is over on its way again: queued, due at once, counted from new. One that is not
    /// over stays as it is. Answers it.
    async fn webhook_redeliver(
        &self,
        tenant: TenantId,
        webhook: WebhookId,
        delivery: DeliveryId,
        at: Timestamp,
    ) -> Result<WebhookDelivery>;

    /// A webhook's deliveries, newest first.
    async fn webhook_deliveries(
        &self,
        tenant: TenantId,
        webhook: WebhookId,
        offset: u32,
        limit: u32,
    ) -> Result<Vec<WebhookDelivery>>;

    /// One delivery of a webhook, with its event and attempts.
    async fn webhook_delivery(
        &self,
        tenant: TenantId,
        webhook: WebhookId,
        delivery: DeliveryId,
    ) -> Result<WebhookDeliveryDetail>;
}

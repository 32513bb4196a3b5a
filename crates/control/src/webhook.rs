//! What can be asked about webhooks and their deliveries. `webhook/deliver` makes deliveries out of the log
//! and attempts them, `webhook/post` is one attempt over HTTP.
//!
//! A secret is written and used for signing; nothing here shows or logs one.

mod deliver;
mod post;

use nullspace_domain::WebhookConfig;
use nullspace_domain::event::page;
use nullspace_domain::webhook::{WEBHOOKS_MAX, validate_create, validate_update};
use nullspace_store::webhook::{NewWebhook, WebhookChange};
use nullspace_types::id::{DeliveryId, TenantId, WebhookId};
use nullspace_types::webhook::{
    Webhook, WebhookCreate, WebhookDelivery, WebhookDeliveryDetail, WebhookDeliveryQuery, WebhookUpdate,
};
use nullspace_types::{Code, Error, Result};
use tokio::sync::{Mutex, Notify};

use crate::Control;

pub(crate) use deliver::{deliver, fan_out};

/// What the parts of this have in common.
pub(crate) struct Webhooks {
    pub(crate) config: WebhookConfig,
    /// Held while one is made, so that two at once do not both find room for the last.
    making: Mutex<()>,
    /// Told when there may be deliveries to attempt.
    due: Notify,
}

impl Webhooks {
    pub(crate) fn new(config: WebhookConfig) -> Self {
        Self { config, making: Mutex::new(()), due: Notify::new() }
    }
}

fn missing<T>(answer: nullspace_store::Result<T>, code: Code, what: impl std::fmt::Display) -> Result<T> {
    answer.map_err(|error| match error {
        nullspace_store::Error::NotFound(_) => Error::new(code, format!("{what} does not exist")),
        error => error.into(),
    })
}

/// A missing webhook by its own code.
fn found<T>(id: WebhookId, answer: nullspace_store::Result<T>) -> Result<T> {
    missing(answer, Code::WebhookNotFound, format_args!("webhook {id}"))
}

impl Control {
    /// Makes a webhook. Events from before are not sent.
    pub async fn webhook_create(&self, tenant_id: TenantId, request: WebhookCreate) -> Result<Webhook> {
        let (store, webhooks) = (&self.shared.store, &self.shared.webhooks);
        let spec = validate_create(request, webhooks.config.allow_private)?;
        let _turn = webhooks.making.lock().await;
        if store.webhook_list(tenant_id).await?.len() >= WEBHOOKS_MAX {
            return Err(Error::new(
                Code::QuotaExceeded,
                format!("there are {WEBHOOKS_MAX} webhooks already, and no more are allowed"),
            )
            .suggest("delete one, or let one hear of more operations"));
        }
        let webhook = NewWebhook {
            id: WebhookId::new(),
            tenant_id,
            url: spec.url,
            operations: spec.operations,
            signing_secret: spec.signing_secret,
            enabled: spec.enabled,
            created_at: self.shared.clock.now(),
        };
        Ok(store.webhook_insert(&webhook).await?)
    }

    /// All webhooks, oldest first.
    pub async fn webhook_list(&self, tenant_id: TenantId) -> Result<Vec<Webhook>> {
        Ok(self.shared.store.webhook_list(tenant_id).await?)
    }

    /// One webhook.
    pub async fn webhook_get(&self, tenant_id: TenantId, id: WebhookId) -> Result<Webhook> {
        found(id, self.shared.store.webhook_get(tenant_id, id).await)
    }

    /// Changes what the request names. Deliveries that wait are sent by the new settings.
    pub async fn webhook_update(
        &self,
        tenant_id: TenantId,
        id: WebhookId,
        request: WebhookUpdate,
    ) -> Result<Webhook> {
        let (store, webhooks) = (&self.shared.store, &self.shared.webhooks);
        let spec = validate_update(request, webhooks.config.allow_private)?;
        let change = WebhookChange {
            url: spec.url,
            operations: spec.operations,
            signing_secret: spec.signing_secret,
            enabled: spec.enabled,
        };
        let updated = store.webhook_update(tenant_id, id, &change, self.shared.clock.now()).await;
        let updated = found(id, updated)?;
        webhooks.due.notify_one();
        Ok(updated)
    }

    /// Removes a webhook and its deliveries.
    pub async fn webhook_delete(&self, tenant_id: TenantId, id: WebhookId) -> Result<()> {
        found(id, self.shared.store.webhook_delete(tenant_id, id).await)
    }

    /// Deliveries of a webhook, newest first.
    pub async fn webhook_deliveries(
        &self,
        tenant_id: TenantId,
        id: WebhookId,
        query: WebhookDeliveryQuery,
    ) -> Result<Vec<WebhookDelivery>> {
        let page = page(query.offset.as_deref(), query.limit.as_deref())?;
        let store = &self.shared.store;
        found(id, store.webhook_deliveries(tenant_id, id, page.offset, page.limit).await)
    }

    /// One delivery, with its event and attempts.
    pub async fn webhook_delivery(
        &self,
        tenant_id: TenantId,
        id: WebhookId,
        delivery: DeliveryId,
    ) -> Result<WebhookDeliveryDetail> {
        self.webhook_get(tenant_id, id).await?;
        let detail = self.shared.store.webhook_delivery(tenant_id, id, delivery).await;
        missing(detail, Code::DeliveryNotFound, format_args!("delivery {delivery} of webhook {id}"))
    }

    /// Puts a delivery that is over on its way again: another day of attempts begins.
    pub async fn webhook_redeliver(
        &self,
        tenant_id: TenantId,
        id: WebhookId,
        delivery: DeliveryId,
    ) -> Result<WebhookDelivery> {
        self.webhook_get(tenant_id, id).await?;
        let (store, now) = (&self.shared.store, self.shared.clock.now());
        let again = store.webhook_redeliver(tenant_id, id, delivery, now).await;
        let again =
            missing(again, Code::DeliveryNotFound, format_args!("delivery {delivery} of webhook {id}"))?;
        self.shared.webhooks.due.notify_one();
        Ok(again)
    }
}

//! Webhooks themselves, and the trait as a whole.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::id::{DeliveryId, TenantId, WebhookId};
use nullspace_types::webhook::{
    DeliveryStatus, Webhook, WebhookAttempt, WebhookDelivery, WebhookDeliveryDetail,
};
use sqlx::Row as _;

use super::{
    Engine, Row, exact, json, lock_events, lock_webhooks, parsed, retried, time, time_option, to_json,
};
use crate::webhook::{DueDelivery, NewWebhook, WebhookChange, WebhookStore};
use crate::{Error, Result};

macro_rules! columns {
    () => {
        "id, url, operations, enabled, created_at, updated_at, last_delivery_at, last_delivery_status, last_error"
    };
}

pub(super) fn delivery_status(text: &str) -> Result<DeliveryStatus> {
    DeliveryStatus::ALL
        .into_iter()
        .find(|status| status.as_str() == text)
        .ok_or_else(|| Error::corrupt(format!("unknown status of a delivery {text:?}")))
}

fn webhook(row: &Row) -> Result<Webhook> {
    let status: Option<String> = row.try_get("last_delivery_status")?;
    Ok(Webhook {
        id: parsed(row, "id")?,
        url: row.try_get("url")?,
        operations: json(row, "operations")?,
        enabled: row.try_get("enabled")?,
        has_signing_secret: true,
        created_at: time(row, "created_at")?,
        updated_at: time(row, "updated_at")?,
        last_delivery_at: time_option(row, "last_delivery_at")?,
        last_delivery_status: status.as_deref().map(delivery_status).transpose()?,
        last_error: row.try_get("last_error")?,
    })
}

impl Engine {
    async fn webhook_insert_once(&self, new: &NewWebhook) -> Result<Webhook> {
        let mut transaction = self.begin().await?;
        lock_webhooks(&mut transaction).await?;
        // Whoever writes an event now comes behind.
        lock_events(&mut transaction).await?;
        let row = sqlx::query(concat!(
            "INSERT INTO webhooks (id, tenant_id, url, operations, signing_secret, enabled, created_at, ",
            "updated_at, after_seq) VALUES ($1, $2, $3, $4, $5, $6, $7, $7, ",
            "(SELECT coalesce(max(seq), 0) FROM events)) RETURNING ",
            columns!()
        ))
        .bind(new.id.to_string())
        .bind(new.tenant_id.to_string())
        .bind(exact(&new.url, "url")?)
        .bind(to_json(&new.operations)?)
        .bind(exact(&new.signing_secret, "signing_secret")?)
        .bind(new.enabled)
        .bind(new.created_at.as_microsecond())
        .fetch_one(&mut *transaction)
        .await?;
        transaction.commit().await?;
        webhook(&row)
    }

    async fn webhook_update_once(
        &self,
        tenant: TenantId,
        id: WebhookId,
        change: &WebhookChange,
        at: Timestamp,
    ) -> Result<Webhook> {
        let mut transaction = self.begin().await?;
        lock_webhooks(&mut transaction).await?;
        let row = sqlx::query(concat!(
            "UPDATE webhooks SET url = coalesce($3, url), operations = coalesce($4, operations), ",
            "signing_secret = coalesce($5, signing_secret), enabled = coalesce($6, enabled), updated_at = $7 ",
            "WHERE id = $1 AND tenant_id = $2 RETURNING ",
            columns!()
        ))
        .bind(id.to_string())
        .bind(tenant.to_string())
        .bind(change.url.as_deref().map(|url| exact(url, "url")).transpose()?)
        .bind(change.operations.as_ref().map(to_json).transpose()?)
        .bind(change.signing_secret.as_deref().map(|secret| exact(secret, "signing_secret")).transpose()?)
        .bind(change.enabled)
        .bind(at.as_microsecond())
        .fetch_optional(&mut *transaction)
        .await?;
        transaction.commit().await?;
        webhook(&row.ok_or(Error::NotFound("webhook"))?)
    }

    async fn webhook_delete_once(&self, tenant: TenantId, id: WebhookId) -> Result<()> {
        let mut transaction = self.begin().await?;
        lock_webhooks(&mut transaction).await?;
        let deleted = sqlx::query("DELETE FROM webhooks WHERE id = $1 AND tenant_id = $2")
            .bind(id.to_string())
            .bind(tenant.to_string())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        if deleted.rows_affected() == 0 { Err(Error::NotFound("webhook")) } else { Ok(()) }
    }
}

#[async_trait]
impl WebhookStore for Engine {
    async fn webhook_insert(&self, new: &NewWebhook) -> Result<Webhook> {
        retried!(self.webhook_insert_once(new))
    }

    async fn webhook_list(&self, tenant: TenantId) -> Result<Vec<Webhook>> {
        let rows =
            sqlx::query(concat!("SELECT ", columns!(), " FROM webhooks WHERE tenant_id = $1 ORDER BY id"))
                .bind(tenant.to_string())
                .fetch_all(self.reader())
                .await?;
        rows.iter().map(webhook).collect()
    }

    async fn webhook_get(&self, tenant: TenantId, id: WebhookId) -> Result<Webhook> {
        let row =
            sqlx::query(concat!("SELECT ", columns!(), " FROM webhooks WHERE id = $1 AND tenant_id = $2"))
                .bind(id.to_string())
                .bind(tenant.to_string())
                .fetch_optional(self.reader())
                .await?;
        webhook(&row.ok_or(Error::NotFound("webhook"))?)
    }

    async fn webhook_update(
        &self,
        tenant: TenantId,
        id: WebhookId,
        change: &WebhookChange,
        at: Timestamp,
    ) -> Result<Webhook> {
        retried!(self.webhook_update_once(tenant, id, change, at))
    }

    async fn webhook_delete(&self, tenant: TenantId, id: WebhookId) -> Result<()> {
        retried!(self.webhook_delete_once(tenant, id))
    }

    async fn webhook_fan_out(&self, events: u32, at: Timestamp) -> Result<(u32, u32)> {
        retried!(self.fan_out_once(events, at))
    }

    async fn webhook_due(&self, now: Timestamp, limit: u32) -> Result<Vec<DueDelivery>> {
        retried!(self.due_once(now, limit))
    }

    async fn webhook_next_due(&self) -> Result<Option<Timestamp>> {
        self.next_due().await
    }

    async fn webhook_attempted(&self, delivery: &WebhookDelivery, attempt: &WebhookAttempt) -> Result<()> {
        retried!(self.attempted_once(delivery, attempt))
    }

    async fn webhook_redeliver(
        &self,
        tenant: TenantId,
        webhook: WebhookId,
        delivery: DeliveryId,
        at: Timestamp,
    ) -> Result<WebhookDelivery> {
        retried!(self.redeliver_once(tenant, webhook, delivery, at))
    }

    async fn webhook_deliveries(
        &self,
        tenant: TenantId,
        webhook: WebhookId,
        offset: u32,
        limit: u32,
    ) -> Result<Vec<WebhookDelivery>> {
        self.webhook_get(tenant, webhook).await?;
        self.deliveries(webhook, offset, limit).await
    }

    async fn webhook_delivery(
        &self,
        tenant: TenantId,
        webhook: WebhookId,
        delivery: DeliveryId,
    ) -> Result<WebhookDeliveryDetail> {
        self.webhook_get(tenant, webhook).await?;
        self.delivery_detail(webhook, delivery).await
    }
}

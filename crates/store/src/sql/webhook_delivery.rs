//! Deliveries on their way. Of those of one webhook and sandbox that are not over, the oldest has the turn:
//! it alone has a time of its next attempt. So what is due is found without looking at what waits.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use nullspace_types::id::{DeliveryId, TenantId, WebhookId};
use nullspace_types::webhook::{DeliveryStatus, WebhookAttempt, WebhookDelivery, WebhookDeliveryDetail};
use sqlx::{QueryBuilder, Row as _};

use super::webhook::delivery_status;
use super::webhook_fan_out::{pass_turn, prune};
use super::{
    Db, Engine, Row, Transaction, event, exact, from_micros, lock_webhooks, number, number_option, parsed,
    prose, signed, time, time_option,
};
use crate::event::EventRow;
use crate::webhook::DueDelivery;
use crate::{Error, Result};

/// Attempts that are kept of one delivery. Only one that is redelivered over and over has more.
const ATTEMPTS: i64 = 100;
/// Deliveries that are handed out at once, whatever is asked for: they are parameters of one statement.
const DUE: u32 = 1000;

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT d.id, d.webhook_id, d.seq, d.event_id, d.sandbox_id, d.operation, d.status, ",
            "d.delivery_status, d.attempt_count, d.created_at, d.next_attempt_at, d.last_attempt_at, ",
            "d.last_response_status, d.last_error ",
            $rest
        )
    };
}

fn delivery(row: &Row) -> Result<WebhookDelivery> {
    Ok(WebhookDelivery {
        id: parsed(row, "id")?,
        webhook_id: parsed(row, "webhook_id")?,
        event_id: parsed(row, "event_id")?,
        operation: parsed(row, "operation")?,
        status: parsed(row, "status")?,
        delivery_status: delivery_status(row.try_get("delivery_status")?)?,
        attempt_count: number(row, "attempt_count")?,
        created_at: time(row, "created_at")?,
        next_attempt_at: time_option(row, "next_attempt_at")?,
        last_attempt_at: time_option(row, "last_attempt_at")?,
        last_response_status: number_option(row, "last_response_status")?,
        last_error: row.try_get("last_error")?,
    })
}

fn attempt(row: &Row) -> Result<WebhookAttempt> {
    Ok(WebhookAttempt {
        id: parsed(row, "id")?,
        delivery_id: parsed(row, "delivery_id")?,
        attempt_number: number(row, "attempt_number")?,
        attempted_at: time(row, "attempted_at")?,
        duration_ms: number(row, "duration_ms")?,
        response_status: number_option(row, "response_status")?,
        error_code: row.try_get("error_code")?,
        error_message: row.try_get("error_message")?,
    })
}

async fn find(
    transaction: &mut Transaction,
    webhook: WebhookId,
    id: DeliveryId,
) -> Result<(WebhookDelivery, i64)> {
    let row = sqlx::query(select!("FROM webhook_deliveries d WHERE d.id = $1 AND d.webhook_id = $2"))
        .bind(id.to_string())
        .bind(webhook.to_string())
        .fetch_optional(&mut **transaction)
        .await?
        .ok_or(Error::NotFound("delivery"))?;
    Ok((delivery(&row)?, row.try_get("seq")?))
}

impl Engine {
    pub(super) async fn due_once(&self, now: Timestamp, limit: u32) -> Result<Vec<DueDelivery>> {
        let mut transaction = self.begin().await?;
        lock_webhooks(&mut transaction).await?;
        // Materialized: SQLite would otherwise go through all that waits, to be spared the sorting.
        let rows = sqlx::query(concat!(
            "WITH due AS MATERIALIZED (SELECT d.*, w.url, w.signing_secret FROM webhook_deliveries d ",
            "JOIN webhooks w ON w.id = d.webhook_id WHERE d.next_attempt_at <= $1 AND w.enabled) ",
            select!(
                ", d.url, d.signing_secret FROM (SELECT due.*, \
                 row_number() OVER (PARTITION BY webhook_id ORDER BY seq) AS place FROM due) AS d \
                 ORDER BY d.place, d.seq LIMIT $2"
            )
        ))
        .bind(now.as_microsecond())
        .bind(i64::from(limit.min(DUE)))
        .fetch_all(&mut *transaction)
        .await?;
        if rows.is_empty() {
            transaction.rollback().await?;
            return Ok(vec![]);
        }
        let places: HashSet<i64> = rows.iter().map(|row| number(row, "seq")).collect::<Result<_>>()?;
        let places: Vec<i64> = places.into_iter().collect();
        let events: HashMap<i64, EventRow> =
            event::at(&mut transaction, &places).await?.into_iter().map(|row| (row.cursor.0, row)).collect();
        let (mut due, mut queued) = (vec![], vec![]);
        for row in &rows {
            let mut delivery = delivery(row)?;
            if delivery.delivery_status == DeliveryStatus::Queued {
                delivery.delivery_status = DeliveryStatus::InProgress;
                queued.push(delivery.id);
            }
            let seq: i64 = number(row, "seq")?;
            due.push(DueDelivery {
                delivery,
                event: events.get(&seq).cloned().ok_or_else(|| {
                    Error::corrupt(format!("a delivery of event {seq}, which is not there"))
                })?,
                url: row.try_get("url")?,
                signing_secret: row.try_get("signing_secret")?,
            });
        }
        if queued.is_empty() {
            transaction.rollback().await?;
            return Ok(due);
        }
        let mut query = QueryBuilder::<Db>::new(
            "UPDATE webhook_deliveries SET delivery_status = 'in_progress' WHERE id IN (",
        );
        let mut list = query.separated(", ");
        for id in queued {
            list.push_bind(id.to_string());
        }
        query.push(")");
        query.build().execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(due)
    }

    pub(super) async fn next_due(&self) -> Result<Option<Timestamp>> {
        let next: Option<i64> = sqlx::query_scalar(
            "SELECT d.next_attempt_at FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook_id \
             WHERE d.next_attempt_at IS NOT NULL AND d.delivery_status = 'queued' AND w.enabled \
             ORDER BY d.next_attempt_at LIMIT 1",
        )
        .fetch_optional(self.reader())
        .await?;
        next.map(from_micros).transpose()
    }

    pub(super) async fn attempted_once(
        &self,
        delivery: &WebhookDelivery,
        attempt: &WebhookAttempt,
    ) -> Result<()> {
        let (next, over) = match (delivery.delivery_status, delivery.next_attempt_at) {
            (DeliveryStatus::Queued, Some(next)) => (next, false),
            (DeliveryStatus::Succeeded | DeliveryStatus::DeadLetter, _) => (attempt.attempted_at, true),
            (DeliveryStatus::Queued, None) | (DeliveryStatus::InProgress, _) => {
                return Err(Error::invalid("what was attempted is over, or queued with a time"));
            }
        };
        let (id, webhook) = (delivery.id.to_string(), delivery.webhook_id.to_string());
        let mut transaction = self.begin().await?;
        lock_webhooks(&mut transaction).await?;
        // Who has the turn, and when, is settled afterwards.
        let sandbox: String = sqlx::query_scalar(
            "UPDATE webhook_deliveries SET delivery_status = $3, attempt_count = $4, last_attempt_at = $5, \
             last_response_status = $6, last_error = $7, next_attempt_at = NULL \
             WHERE id = $1 AND webhook_id = $2 RETURNING sandbox_id",
        )
        .bind(&id)
        .bind(&webhook)
        .bind(delivery.delivery_status.as_str())
        .bind(i64::from(delivery.attempt_count))
        .bind(delivery.last_attempt_at.map(Timestamp::as_microsecond))
        .bind(delivery.last_response_status.map(i64::from))
        .bind(delivery.last_error.as_deref().map(prose))
        .fetch_optional(&mut *transaction)
        .await?
        .ok_or(Error::NotFound("delivery"))?;
        insert(&mut transaction, &id, attempt).await?;
        sqlx::query(
            "UPDATE webhooks SET last_delivery_at = $2, last_delivery_status = $3, last_error = $4 WHERE id = $1",
        )
        .bind(&webhook)
        .bind(attempt.attempted_at.as_microsecond())
        .bind(delivery.delivery_status.as_str())
        .bind(delivery.last_error.as_deref().map(prose))
        .execute(&mut *transaction)
        .await?;
        pass_turn(&mut transaction, &webhook, &sandbox, next).await?;
        if over {
            prune(&mut transaction, &webhook).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    pub(super) async fn redeliver_once(
        &self,
        tenant: TenantId,
        webhook: WebhookId,
        id: DeliveryId,
        at: Timestamp,
    ) -> Result<WebhookDelivery> {
        let mut transaction = self.begin().await?;
        lock_webhooks(&mut transaction).await?;
        let owned = sqlx::query("SELECT 1 FROM webhooks WHERE id = $1 AND tenant_id = $2")
            .bind(webhook.to_string())
            .bind(tenant.to_string())
            .fetch_optional(&mut *transaction)
            .await?;
        if owned.is_none() {
            return Err(Error::NotFound("webhook"));
        }
        let sandbox: Option<String> = sqlx::query_scalar(
            "UPDATE webhook_deliveries SET delivery_status = 'queued', attempt_count = 0, created_at = $3 \
             WHERE id = $1 AND webhook_id = $2 AND delivery_status IN ('succeeded', 'dead_letter') \
             RETURNING sandbox_id",
        )
        .bind(id.to_string())
        .bind(webhook.to_string())
        .bind(at.as_microsecond())
        .fetch_optional(&mut *transaction)
        .await?;
        if let Some(sandbox) = sandbox {
            pass_turn(&mut transaction, &webhook.to_string(), &sandbox, at).await?;
        }
        let (delivery, _) = find(&mut transaction, webhook, id).await?;
        transaction.commit().await?;
        Ok(delivery)
    }

    pub(super) async fn deliveries(
        &self,
        webhook: WebhookId,
        offset: u32,
        limit: u32,
    ) -> Result<Vec<WebhookDelivery>> {
        let rows = sqlx::query(select!(
            "FROM webhook_deliveries d WHERE d.webhook_id = $1 ORDER BY d.seq DESC LIMIT $2 OFFSET $3"
        ))
        .bind(webhook.to_string())
        .bind(i64::from(limit))
        .bind(i64::from(offset))
        .fetch_all(self.reader())
        .await?;
        rows.iter().map(delivery).collect()
    }

    pub(super) async fn delivery_detail(
        &self,
        webhook: WebhookId,
        id: DeliveryId,
    ) -> Result<WebhookDeliveryDetail> {
        let mut transaction = self.reader().begin().await?;
        let (delivery, seq) = find(&mut transaction, webhook, id).await?;
        let event = event::at(&mut transaction, &[seq]).await?.pop();
        let event =
            event.ok_or_else(|| Error::corrupt(format!("a delivery of event {seq}, which is not there")))?;
        let attempts = sqlx::query(
            "SELECT id, delivery_id, attempt_number, attempted_at, duration_ms, response_status, error_code, \
             error_message FROM webhook_attempts WHERE delivery_id = $1 ORDER BY id",
        )
        .bind(id.to_string())
        .fetch_all(&mut *transaction)
        .await?;
        transaction.rollback().await?;
        let attempts = attempts.iter().map(attempt).collect::<Result<_>>()?;
        Ok(WebhookDeliveryDetail { delivery, event: event.event, attempts })
    }
}

/// Writes an attempt, and forgets the oldest beyond what is kept.
async fn insert(transaction: &mut Transaction, delivery: &str, attempt: &WebhookAttempt) -> Result<()> {
    sqlx::query(
        "INSERT INTO webhook_attempts (id, delivery_id, attempt_number, attempted_at, duration_ms, \
         response_status, error_code, error_message) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(attempt.id.to_string())
    .bind(delivery)
    .bind(i64::from(attempt.attempt_number))
    .bind(attempt.attempted_at.as_microsecond())
    .bind(signed(attempt.duration_ms, "duration_ms")?)
    .bind(attempt.response_status.map(i64::from))
    .bind(attempt.error_code.as_deref().map(|code| exact(code, "error_code")).transpose()?)
    .bind(attempt.error_message.as_deref().map(prose))
    .execute(&mut **transaction)
    .await?;
    sqlx::query(
        "DELETE FROM webhook_attempts WHERE delivery_id = $1 AND id <= (SELECT a.id FROM webhook_attempts a \
         WHERE a.delivery_id = $1 ORDER BY a.id DESC LIMIT 1 OFFSET $2)",
    )
    .bind(delivery)
    .bind(ATTEMPTS)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

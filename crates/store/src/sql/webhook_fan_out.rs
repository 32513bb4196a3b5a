//! Making deliveries out of the log, and keeping what waits and what is over bounded.

use std::collections::HashSet;

use jiff::Timestamp;
use nullspace_types::event::Operation;
use nullspace_types::id::{DeliveryId, TenantId, WebhookId};
use sqlx::QueryBuilder;

use super::{Db, Engine, Transaction, json, lock_webhooks, number, parsed};
use crate::Result;
use crate::event::{EventCursor, EventRow};

/// Events per transaction, whatever is asked for: their sandboxes are parameters of one statement.
const EVENTS: u32 = 1000;
/// Deliveries per statement.
const DELIVERIES: usize = 500;
/// Deliveries of one webhook that wait, at most.
const WAITING: i64 = 100_000;
/// Deliveries of one webhook that are over and kept.
const KEPT: i64 = 1000;

/// A webhook as the fan-out sees it.
struct Listener {
    id: WebhookId,
    tenant: TenantId,
    operations: Vec<Operation>,
    after: EventCursor,
}

impl Listener {
    fn wants(&self, row: &EventRow) -> bool {
        row.tenant_id == self.tenant
            && row.cursor > self.after
            && self.operations.contains(&row.event.operation)
    }
}

/// What a delivery waits behind others of; empty where the event has no sandbox.
fn sandbox_of(row: &EventRow) -> String {
    row.event.sandbox_id.map(|id| id.to_string()).unwrap_or_default()
}

async fn listeners(transaction: &mut Transaction, events: &[EventRow]) -> Result<Vec<Listener>> {
    let tenants: HashSet<TenantId> = events.iter().map(|row| row.tenant_id).collect();
    let mut query = QueryBuilder::<Db>::new(
        "SELECT id, tenant_id, operations, after_seq FROM webhooks WHERE enabled AND tenant_id IN (",
    );
    let mut list = query.separated(", ");
    for tenant in tenants {
        list.push_bind(tenant.to_string());
    }
    query.push(") ORDER BY id");
    let rows = query.build().fetch_all(&mut **transaction).await?;
    rows.iter()
        .map(|row| {
            Ok(Listener {
                id: parsed(row, "id")?,
                tenant: parsed(row, "tenant_id")?,
                operations: json(row, "operations")?,
                after: EventCursor(number(row, "after_seq")?),
            })
        })
        .collect()
}

/// Of which of these events' sandboxes the webhook has a delivery whose turn it is.
async fn busy(
    transaction: &mut Transaction,
    webhook: WebhookId,
    events: &[&EventRow],
) -> Result<HashSet<String>> {
    let mut query = QueryBuilder::<Db>::new("SELECT sandbox_id FROM webhook_deliveries WHERE webhook_id = ");
    query.push_bind(webhook.to_string()).push(" AND next_attempt_at IS NOT NULL AND sandbox_id IN (");
    let mut list = query.separated(", ");
    for row in events {
        list.push_bind(sandbox_of(row));
    }
    query.push(")");
    Ok(query.build_query_scalar().fetch_all(&mut **transaction).await?.into_iter().collect())
}

/// Writes the deliveries of these events to one webhook. The first of each sandbox has its turn at once.
async fn deliver(
    transaction: &mut Transaction,
    webhook: WebhookId,
    events: &[&EventRow],
    at: Timestamp,
) -> Result<()> {
    let mut busy = busy(transaction, webhook, events).await?;
    for events in events.chunks(DELIVERIES) {
        let mut query = QueryBuilder::<Db>::new(
            "INSERT INTO webhook_deliveries (id, webhook_id, seq, event_id, sandbox_id, operation, status, \
             delivery_status, attempt_count, created_at, next_attempt_at) ",
        );
        query.push_values(events, |mut tuple, row| {
            let sandbox = sandbox_of(row);
            let turn = busy.insert(sandbox.clone());
            tuple
                .push_bind(DeliveryId::new().to_string())
                .push_bind(webhook.to_string())
                .push_bind(row.cursor.0)
                .push_bind(row.event.id.to_string())
                .push_bind(sandbox)
                .push_bind(row.event.operation.as_str())
                .push_bind(row.event.status.as_str())
                .push("'queued'")
                .push("0")
                .push_bind(at.as_microsecond())
                .push_bind(turn.then(|| at.as_microsecond()));
        });
        query.build().execute(&mut **transaction).await?;
    }
    Ok(())
}

/// Gives the sandbox's turn to the oldest delivery that is not over, at `at` if it did not have it.
pub(super) async fn pass_turn(
    transaction: &mut Transaction,
    webhook: &str,
    sandbox: &str,
    at: Timestamp,
) -> Result<()> {
    // First away from any other: the schema lets only one have it.
    sqlx::query(
        "UPDATE webhook_deliveries SET next_attempt_at = NULL WHERE webhook_id = $1 AND sandbox_id = $2 \
         AND next_attempt_at IS NOT NULL AND seq > (SELECT min(d.seq) FROM webhook_deliveries d \
         WHERE d.webhook_id = $1 AND d.sandbox_id = $2 AND d.delivery_status IN ('queued', 'in_progress'))",
    )
    .bind(webhook)
    .bind(sandbox)
    .execute(&mut **transaction)
    .await?;
    sqlx::query(
        "UPDATE webhook_deliveries SET next_attempt_at = $3 WHERE next_attempt_at IS NULL AND id = \
         (SELECT d.id FROM webhook_deliveries d WHERE d.webhook_id = $1 AND d.sandbox_id = $2 \
         AND d.delivery_status IN ('queued', 'in_progress') ORDER BY d.seq LIMIT 1)",
    )
    .bind(webhook)
    .bind(sandbox)
    .bind(at.as_microsecond())
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// Gives up what waits beyond the bound, oldest first.
async fn shed(transaction: &mut Transaction, webhook: WebhookId, at: Timestamp) -> Result<()> {
    let webhook = webhook.to_string();
    let shed: Vec<String> = sqlx::query_scalar(
        "UPDATE webhook_deliveries SET delivery_status = 'dead_letter', next_attempt_at = NULL, \
         last_error = $3 WHERE webhook_id = $1 AND delivery_status IN ('queued', 'in_progress') \
         AND seq <= (SELECT d.seq FROM webhook_deliveries d WHERE d.webhook_id = $1 \
         AND d.delivery_status IN ('queued', 'in_progress') ORDER BY d.seq DESC LIMIT 1 OFFSET $2) \
         RETURNING sandbox_id",
    )
    .bind(&webhook)
    .bind(WAITING)
    .bind(format!("given up: more than {WAITING} deliveries of this webhook were waiting"))
    .fetch_all(&mut **transaction)
    .await?;
    if !shed.is_empty() {
        tracing::warn!(%webhook, deliveries = shed.len(), "gave up deliveries: too many wait for the webhook");
        let sandboxes: HashSet<String> = shed.into_iter().collect();
        for sandbox in sandboxes {
            pass_turn(transaction, &webhook, &sandbox, at).await?;
        }
        prune(transaction, &webhook).await?;
    }
    Ok(())
}

/// Forgets the oldest of what is over, beyond what is kept.
pub(super) async fn prune(transaction: &mut Transaction, webhook: &str) -> Result<()> {
    sqlx::query(
        "DELETE FROM webhook_deliveries WHERE webhook_id = $1 \
         AND delivery_status IN ('succeeded', 'dead_letter') \
         AND seq <= (SELECT d.seq FROM webhook_deliveries d WHERE d.webhook_id = $1 \
         AND d.delivery_status IN ('succeeded', 'dead_letter') ORDER BY d.seq DESC LIMIT 1 OFFSET $2)",
    )
    .bind(webhook)
    .bind(KEPT)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

impl Engine {
    pub(super) async fn fan_out_once(&self, events: u32, at: Timestamp) -> Result<(u32, u32)> {
        let mut transaction = self.begin().await?;
        lock_webhooks(&mut transaction).await?;
        let cursor: i64 =
            sqlx::query_scalar("SELECT seq FROM webhook_cursor").fetch_one(&mut *transaction).await?;
        let events = super::event::after(&mut transaction, EventCursor(cursor), events.min(EVENTS)).await?;
        let Some(last) = events.last() else {
            transaction.rollback().await?;
            return Ok((0, 0));
        };
        let mut made = 0;
        for listener in listeners(&mut transaction, &events).await? {
            let wanted: Vec<_> = events.iter().filter(|row| listener.wants(row)).collect();
            if wanted.is_empty() {
                continue;
            }
            deliver(&mut transaction, listener.id, &wanted, at).await?;
            shed(&mut transaction, listener.id, at).await?;
            made += wanted.len();
        }
        sqlx::query("UPDATE webhook_cursor SET seq = $1")
            .bind(last.cursor.0)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Ok((count(events.len()), count(made)))
    }
}

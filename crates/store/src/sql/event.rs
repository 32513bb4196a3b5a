//! The log of events.

use async_trait::async_trait;
use nullspace_types::event::LifecycleEvent;
use nullspace_types::id::{EventId, SandboxId, TenantId};
use sqlx::{QueryBuilder, Row as _};

use super::{
    Db, Engine, Row, Transaction, json, lock_events, number, parsed, parsed_option, prose, time, to_json,
};
use crate::Result;
use crate::event::{EventCursor, EventFilter, EventOrder, EventRow, EventStore};

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT seq, id, tenant_id, sandbox_id, occurred_at, operation, status, actor_kind, reason, ",
            "error_code, error_message, metadata FROM events ",
            $rest
        )
    };
}

fn event(row: &Row) -> Result<EventRow> {
    Ok(EventRow {
        cursor: EventCursor(number(row, "seq")?),
        tenant_id: parsed(row, "tenant_id")?,
        event: LifecycleEvent {
            id: parsed(row, "id")?,
            occurred_at: time(row, "occurred_at")?,
            operation: parsed(row, "operation")?,
            status: parsed(row, "status")?,
            actor_kind: parsed(row, "actor_kind")?,
            sandbox_id: parsed_option(row, "sandbox_id")?,
            reason: row.try_get("reason")?,
            error_code: row.try_get("error_code")?,
            error_message: row.try_get("error_message")?,
            metadata: json(row, "metadata")?,
        },
    })
}

/// Writes the events of a change at the end of its transaction.
pub(super) async fn append(
    transaction: &mut Transaction,
    tenant: TenantId,
    sandbox: SandboxId,
    events: &[LifecycleEvent],
) -> Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    lock_events(transaction).await?;
    for event in events {
        sqlx::query(
            "INSERT INTO events (id, tenant_id, sandbox_id, occurred_at, operation, status, actor_kind, reason, \
             error_code, error_message, metadata) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        )
        .bind(event.id.to_string())
        .bind(tenant.to_string())
        .bind(sandbox.to_string())
        .bind(event.occurred_at.as_microsecond())
        .bind(event.operation.as_str())
        .bind(event.status.as_str())
        .bind(event.actor_kind.as_str())
        .bind(event.reason.as_deref().map(prose))
        .bind(event.error_code.as_deref().map(prose))
        .bind(event.error_message.as_deref().map(prose))
        .bind(to_json(&event.metadata)?)
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

#[async_trait]
impl EventStore for Engine {
    async fn events_after(&self, cursor: EventCursor, limit: u32) -> Result<Vec<EventRow>> {
        let rows = sqlx::query(select!("WHERE seq > $1 ORDER BY seq LIMIT $2"))
            .bind(cursor.0)
            .bind(i64::from(limit))
            .fetch_all(self.reader())
            .await?;
        rows.iter().map(event).collect()
    }

    async fn event_list(&self, tenant: TenantId, filter: &EventFilter) -> Result<Vec<EventRow>> {
        let mut query = QueryBuilder::<Db>::new(select!("WHERE tenant_id = "));
        query.push_bind(tenant.to_string());
        if let Some(id) = filter.sandbox_id {
            query.push(" AND sandbox_id = ").push_bind(id.to_string());
        }
        if let Some(operation) = filter.operation {
            query.push(" AND operation = ").push_bind(operation.as_str());
        }
        if let Some(status) = filter.status {
            query.push(" AND status = ").push_bind(status.as_str());
        }
        if let Some(from) = filter.from {
            query.push(" AND occurred_at >= ").push_bind(from.as_microsecond());
        }
        if let Some(until) = filter.until {
            query.push(" AND occurred_at < ").push_bind(until.as_microsecond());
        }
        query.push(match filter.order {
            EventOrder::Ascending => " ORDER BY seq ASC LIMIT ",
            EventOrder::Descending => " ORDER BY seq DESC LIMIT ",
        });
        query.push_bind(i64::from(filter.limit)).push(" OFFSET ").push_bind(i64::from(filter.offset));
        let rows = query.build().fetch_all(self.reader()).await?;
        rows.iter().map(event).collect()
    }

    async fn event_cursor(&self, tenant: TenantId, id: EventId) -> Result<Option<EventCursor>> {
        let seq: Option<i64> = sqlx::query_scalar("SELECT seq FROM events WHERE id = $1 AND tenant_id = $2")
            .bind(id.to_string())
            .bind(tenant.to_string())
            .fetch_optional(self.reader())
            .await?;
        Ok(seq.map(EventCursor))
    }

    async fn event_cursor_latest(&self) -> Result<EventCursor> {
        let seq: Option<i64> =
            sqlx::query_scalar("SELECT max(seq) FROM events").fetch_one(self.reader()).await?;
        Ok(seq.map_or(EventCursor::START, EventCursor))
    }
}

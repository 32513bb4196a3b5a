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

/// Events that are read at once when those that do not match can only be told apart here.
const BATCH: u32 = 500;

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT seq, id, tenant_id, occurred_at, audience, operation, status, actor_kind, sandbox_id, ",
            "snapshot_id, source_sandbox_id, target_sandbox_id, reason, error_code, error_message, metadata ",
            "FROM events ",
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
            audience: parsed(row, "audience")?,
            operation: parsed(row, "operation")?,
            status: parsed(row, "status")?,
            actor_kind: parsed(row, "actor_kind")?,
            sandbox_id: parsed_option(row, "sandbox_id")?,
            snapshot_id: parsed_option(row, "snapshot_id")?,
            source_sandbox_id: parsed_option(row, "source_sandbox_id")?,
            target_sandbox_id: parsed_option(row, "target_sandbox_id")?,
            user_id: None,
            reason: row.try_get("reason")?,
            error_code: row.try_get("error_code")?,
            error_message: row.try_get("error_message")?,
            metadata: json(row, "metadata")?,
        },
    })
}

/// Writes the events of a change at the end of its transaction. They are `sandbox`'s, or each its own where
/// there is none.
pub(super) async fn append(
    transaction: &mut Transaction,
    tenant: TenantId,
    sandbox: Option<SandboxId>,
    events: &[LifecycleEvent],
) -> Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    lock_events(transaction).await?;
    for event in events {
        sqlx::query(
            "INSERT INTO events (id, tenant_id, occurred_at, audience, operation, status, actor_kind, \
             sandbox_id, snapshot_id, source_sandbox_id, target_sandbox_id, reason, error_code, \
             error_message, metadata) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        )
        .bind(event.id.to_string())
        .bind(tenant.to_string())
        .bind(event.occurred_at.as_microsecond())
        .bind(event.audience.as_str())
        .bind(event.operation.as_str())
        .bind(event.status.as_str())
        .bind(event.actor_kind.as_str())
        .bind(sandbox.or(event.sandbox_id).map(|id| id.to_string()))
        .bind(event.snapshot_id.map(|id| id.to_string()))
        .bind(event.source_sandbox_id.map(|id| id.to_string()))
        .bind(event.target_sandbox_id.map(|id| id.to_string()))
        .bind(event.reason.as_deref().map(prose))
        .bind(event.error_code.as_deref().map(prose))
        .bind(event.error_message.as_deref().map(prose))
        .bind(to_json(&event.metadata)?)
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

/// The events behind a place, of every tenant, oldest first.
pub(super) async fn after(
    transaction: &mut Transaction,
    cursor: EventCursor,
    limit: u32,
) -> Result<Vec<EventRow>> {
    let rows = sqlx::query(select!("WHERE seq > $1 ORDER BY seq LIMIT $2"))
        .bind(cursor.0)
        .bind(i64::from(limit))
        .fetch_all(&mut **transaction)
        .await?;
    rows.iter().map(event).collect()
}

/// The events at these places of the log, oldest first.
pub(super) async fn at(transaction: &mut Transaction, places: &[i64]) -> Result<Vec<EventRow>> {
    let mut query = QueryBuilder::<Db>::new(select!("WHERE seq IN ("));
    let mut list = query.separated(", ");
    for place in places {
        list.push_bind(*place);
    }
    query.push(") ORDER BY seq");
    let rows = query.build().fetch_all(&mut **transaction).await?;
    rows.iter().map(event).collect()
}

fn push_order(query: &mut QueryBuilder<Db>, order: EventOrder) {
    query.push(match order {
        EventOrder::Ascending => " ORDER BY seq ASC LIMIT ",
        EventOrder::Descending => " ORDER BY seq DESC LIMIT ",
    });
}

/// What the filter says of an event besides its sandbox and its metadata.
fn push_conditions(query: &mut QueryBuilder<Db>, tenant: TenantId, filter: &EventFilter) {
    query.push("tenant_id = ").push_bind(tenant.to_string());
    if let Some(id) = filter.snapshot_id {
        query.push(" AND snapshot_id = ").push_bind(id.to_string());
    }
    if let Some(id) = filter.source_sandbox_id {
        query.push(" AND source_sandbox_id = ").push_bind(id.to_string());
    }
    if let Some(id) = filter.target_sandbox_id {
        query.push(" AND target_sandbox_id = ").push_bind(id.to_string());
    }
    if let Some(after) = filter.after {
        query.push(" AND seq > ").push_bind(after.0);
    }
    if let Some(up_to) = filter.up_to {
        query.push(" AND seq <= ").push_bind(up_to.0);
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
}

/// Where the first `enough` events are in which the sandbox has any part. Each part has its own index in the
/// order of the log, and the first of all are among the first of each; no index has all three.
fn push_parts(
    query: &mut QueryBuilder<Db>,
    tenant: TenantId,
    filter: &EventFilter,
    id: SandboxId,
    enough: i64,
) {
    query.push("seq IN (");
    for (index, part) in ["sandbox_id", "source_sandbox_id", "target_sandbox_id"].into_iter().enumerate() {
        query.push(if index == 0 { "" } else { " UNION " });
        query.push("SELECT seq FROM (SELECT seq FROM events WHERE ").push(part).push(" = ");
        query.push_bind(id.to_string()).push(" AND ");
        push_conditions(query, tenant, filter);
        push_order(query, filter.order);
        query.push_bind(enough).push(") AS of_").push(part);
    }
    query.push(")");
}

impl Engine {
    /// A page, whatever the metadata.
    async fn page(&self, tenant: TenantId, filter: &EventFilter) -> Result<Vec<EventRow>> {
        let mut query = QueryBuilder::<Db>::new(select!("WHERE "));
        match filter.sandbox_id {
            Some(id) => {
                let enough = i64::from(filter.offset) + i64::from(filter.limit);
                push_parts(&mut query, tenant, filter, id, enough);
            }
            None => push_conditions(&mut query, tenant, filter),
        }
        push_order(&mut query, filter.order);
        query.push_bind(i64::from(filter.limit)).push(" OFFSET ").push_bind(i64::from(filter.offset));
        let rows = query.build().fetch_all(self.reader()).await?;
        rows.iter().map(event).collect()
    }

    /// A page of those whose metadata has the pairs. What is read and does not match is a batch at most.
    async fn page_matching(&self, tenant: TenantId, filter: &EventFilter) -> Result<Vec<EventRow>> {
        let mut batch = EventFilter { offset: 0, limit: BATCH, ..filter.clone() };
        let (mut passed, mut found) = (0, vec![]);
        while found.len() < filter.limit as usize {
            let rows = self.page(tenant, &batch).await?;
            let Some(last) = rows.last() else { break };
            match filter.order {
                EventOrder::Ascending => batch.after = Some(last.cursor),
                EventOrder::Descending => batch.up_to = Some(EventCursor(last.cursor.0 - 1)),
            }
            let more = rows.len() == BATCH as usize;
            for row in rows.into_iter().filter(|row| filter.matches(&row.event)) {
                if passed < filter.offset {
                    passed += 1;
                } else if found.len() < filter.limit as usize {
                    found.push(row);
                }
            }
            if !more {
                break;
            }
        }
        Ok(found)
    }
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
        if filter.metadata.is_empty() {
            self.page(tenant, filter).await
        } else {
            self.page_matching(tenant, filter).await
        }
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

//! Changing sandboxes: one transaction per verb, each a compare-and-set on one row.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::event::LifecycleEvent;
use nullspace_types::id::{SandboxId, TenantId};
use sqlx::Row as _;

use super::sandbox_row::{columns, find, insert, sandbox};
use super::{Engine, Row, Transaction, event, exact, parsed, prose, retried, signed};
use crate::error::Contention;
use crate::idempotency::Idempotency;
use crate::sandbox::{
    Change, Destruction, Insertion, NewSandbox, Observation, ObservedState, SandboxCounts, SandboxFilter,
    SandboxRow, SandboxStore, Window,
};
use crate::{Error, Result};

/// Ends the transaction of an UPDATE … RETURNING: with its events if it met a row, or by telling a row that
/// is past that from none. `tenant` is checked where the verb is a user's.
async fn finish(
    mut transaction: Transaction,
    updated: Option<Row>,
    id: SandboxId,
    tenant: Option<TenantId>,
    events: &[LifecycleEvent],
) -> Result<Change> {
    let Some(updated) = updated else {
        let found = find(&mut transaction, id).await?;
        transaction.rollback().await?;
        return match found {
            Some(row) if tenant.is_none_or(|tenant| tenant == row.tenant_id) => Ok(Change::Stale),
            Some(_) | None => Err(Error::NotFound("sandbox")),
        };
    };
    let row = sandbox(&updated)?;
    event::append(&mut transaction, row.tenant_id, row.id, events).await?;
    transaction.commit().await?;
    Ok(Change::Applied(Box::new(row)))
}

async fn free_key(transaction: &mut Transaction, id: SandboxId) -> Result<()> {
    sqlx::query("DELETE FROM idempotency WHERE sandbox_id = $1")
        .bind(id.to_string())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// Claims the key for a new sandbox. If it is taken: what the request made, or that it was another request.
async fn claim(
    transaction: &mut Transaction,
    new: &NewSandbox,
    idempotency: &Idempotency,
) -> Result<Option<Insertion>> {
    let key = exact(&idempotency.key, "the idempotency key")?;
    // On PostgreSQL this waits for a transaction that holds the same key to end.
    let claimed = sqlx::query(
        "INSERT INTO idempotency (tenant_id, operation, key, request_hash, sandbox_id, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (tenant_id, operation, key) DO NOTHING",
    )
    .bind(new.tenant_id.to_string())
    .bind(idempotency.operation)
    .bind(key)
    .bind(&idempotency.request_hash[..])
    .bind(new.id.to_string())
    .bind(new.created_at.as_microsecond())
    .execute(&mut **transaction)
    .await?;
    if claimed.rows_affected() == 1 {
        return Ok(None);
    }
    // If it was freed in between there is nothing to answer: the whole transaction is done again.
    let undone = || Error::Unavailable(Box::new(Contention(sqlx::Error::RowNotFound)));
    let taken = sqlx::query(
        "SELECT request_hash, sandbox_id FROM idempotency WHERE tenant_id = $1 AND operation = $2 AND key = $3",
    )
    .bind(new.tenant_id.to_string())
    .bind(idempotency.operation)
    .bind(key)
    .fetch_optional(&mut **transaction)
    .await?
    .ok_or_else(undone)?;
    let request_hash: Vec<u8> = taken.try_get("request_hash")?;
    if request_hash != idempotency.request_hash {
        return Ok(Some(Insertion::KeyReused));
    }
    let existing = find(transaction, parsed(&taken, "sandbox_id")?).await?.ok_or_else(undone)?;
    Ok(Some(Insertion::Existing(Box::new(existing))))
}

impl Engine {
    async fn insert_once(
        &self,
        new: &NewSandbox,
        idempotency: Option<&Idempotency>,
        events: &[LifecycleEvent],
    ) -> Result<Insertion> {
        let mut transaction = self.begin().await?;
        if let Some(idempotency) = idempotency
            && let Some(taken) = claim(&mut transaction, new, idempotency).await?
        {
            transaction.rollback().await?;
            return Ok(taken);
        }
        let row = insert(&mut transaction, new).await?;
        event::append(&mut transaction, new.tenant_id, new.id, events).await?;
        transaction.commit().await?;
        Ok(Insertion::Inserted(Box::new(row)))
    }

    async fn observed_once(
        &self,
        id: SandboxId,
        observation: &Observation,
        timeout_at: Option<Timestamp>,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        let Observation { incarnation, observed } = observation;
        let mut transaction = self.begin().await?;
        let updated = sqlx::query(concat!(
            "UPDATE sandboxes SET observed_state = $3, observed_generation = $4, ",
            "observed_disk_mb = coalesce($5, observed_disk_mb), started_at = coalesce($6, started_at), ",
            "error_message = $7, timeout_at = coalesce($8, timeout_at) ",
            "WHERE id = $1 AND incarnation = $2 AND desired = 'running' ",
            "AND (observed_state = 'none' OR observed_generation < $4) RETURNING ",
            columns!()
        ))
        .bind(id.to_string())
        .bind(incarnation.to_string())
        .bind(observed.state.as_str())
        .bind(signed(observed.generation, "generation")?)
        .bind(observed.disk_mb.map(i64::from))
        .bind(observed.started_at.map(Timestamp::as_microsecond))
        .bind(observed.error_message.as_deref().map(prose))
        .bind(timeout_at.map(Timestamp::as_microsecond))
        .fetch_optional(&mut *transaction)
        .await?;
        finish(transaction, updated, id, None, events).await
    }

    async fn destroy_request_once(
        &self,
        id: SandboxId,
        reason: &str,
        free: bool,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        let mut transaction = self.begin().await?;
        let updated = sqlx::query(concat!(
            "UPDATE sandboxes SET desired = 'destroyed', desired_generation = desired_generation + 1, ",
            "destroy_reason = $2 WHERE id = $1 AND desired = 'running' RETURNING ",
            columns!()
        ))
        .bind(id.to_string())
        .bind(prose(reason))
        .fetch_optional(&mut *transaction)
        .await?;
        if free && updated.is_some() {
            free_key(&mut transaction, id).await?;
        }
        finish(transaction, updated, id, None, events).await
    }

    async fn destroyed_once(
        &self,
        id: SandboxId,
        destruction: &Destruction,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        let mut transaction = self.begin().await?;
        let updated = sqlx::query(concat!(
            "UPDATE sandboxes SET destroyed_at = $2, ",
            "desired_generation = desired_generation + CASE desired WHEN 'running' THEN 1 ELSE 0 END, ",
            "desired = 'destroyed', destroy_reason = coalesce(destroy_reason, $3), ",
            "error_message = coalesce(error_message, $4) ",
            "WHERE id = $1 AND destroyed_at IS NULL RETURNING ",
            columns!()
        ))
        .bind(id.to_string())
        .bind(destruction.at.as_microsecond())
        .bind(prose(&destruction.reason))
        .bind(destruction.error_message.as_deref().map(prose))
        .fetch_optional(&mut *transaction)
        .await?;
        if destruction.free_key && updated.is_some() {
            free_key(&mut transaction, id).await?;
        }
        finish(transaction, updated, id, None, events).await
    }

    async fn timeout_set_once(
        &self,
        tenant: TenantId,
        id: SandboxId,
        window: &Window,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        let mut transaction = self.begin().await?;
        let updated = sqlx::query(concat!(
            "UPDATE sandboxes SET timeout_ms = $3, timeout_action = $4, timeout_at = $5, ",
            "desired_generation = desired_generation + 1 ",
            "WHERE id = $1 AND tenant_id = $2 AND desired = 'running' AND observed_state = 'running' RETURNING ",
            columns!()
        ))
        .bind(id.to_string())
        .bind(tenant.to_string())
        .bind(signed(window.timeout_ms, "timeout_ms")?)
        .bind(window.timeout_action.as_str())
        .bind(window.timeout_at.as_microsecond())
        .fetch_optional(&mut *transaction)
        .await?;
        finish(transaction, updated, id, Some(tenant), events).await
    }
}

#[async_trait]
impl SandboxStore for Engine {
    async fn sandbox_insert(
        &self,
        new: &NewSandbox,
        idempotency: Option<&Idempotency>,
        events: &[LifecycleEvent],
    ) -> Result<Insertion> {
        retried!(self.insert_once(new, idempotency, events))
    }

    async fn sandbox_observed(
        &self,
        id: SandboxId,
        observation: &Observation,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        if observation.observed.state == ObservedState::None {
            return Err(Error::invalid("news of a machine cannot be that nothing was seen of it"));
        }
        retried!(self.observed_once(id, observation, None, events))
    }

    async fn sandbox_running(
        &self,
        id: SandboxId,
        observation: &Observation,
        timeout_at: Timestamp,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        if observation.observed.state != ObservedState::Running {
            return Err(Error::invalid("a machine that began to run must be observed as running"));
        }
        retried!(self.observed_once(id, observation, Some(timeout_at), events))
    }

    async fn sandbox_destroy_request(
        &self,
        id: SandboxId,
        reason: &str,
        free_key: bool,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        retried!(self.destroy_request_once(id, reason, free_key, events))
    }

    async fn sandbox_destroyed(
        &self,
        id: SandboxId,
        destruction: &Destruction,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        retried!(self.destroyed_once(id, destruction, events))
    }

    async fn sandbox_timeout_set(
        &self,
        tenant: TenantId,
        id: SandboxId,
        window: &Window,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        retried!(self.timeout_set_once(tenant, id, window, events))
    }

    async fn sandbox_get(&self, tenant: TenantId, id: SandboxId) -> Result<SandboxRow> {
        self.get(tenant, id).await
    }

    async fn sandbox_list(&self, tenant: TenantId, filter: &SandboxFilter) -> Result<Vec<SandboxRow>> {
        self.list(tenant, filter).await
    }

    async fn sandbox_counts(&self, tenant: TenantId) -> Result<SandboxCounts> {
        self.counts(tenant).await
    }

    async fn sandbox_expired(&self, now: Timestamp, limit: u32) -> Result<Vec<SandboxRow>> {
        self.expired(now, limit).await
    }

    async fn sandbox_next_timeout(&self) -> Result<Option<Timestamp>> {
        self.next_timeout().await
    }

    async fn sandbox_unfinished(&self, after: Option<SandboxId>, limit: u32) -> Result<Vec<SandboxRow>> {
        self.unfinished(after, limit).await
    }
}

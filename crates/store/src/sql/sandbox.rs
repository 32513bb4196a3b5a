//! Changing sandboxes: one transaction per verb, each a compare-and-set on one row.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::event::LifecycleEvent;
use nullspace_types::id::{IncarnationId, SandboxId, SnapshotId, TenantId};
use nullspace_types::network::NetworkSettings;

use super::sandbox_row::{columns, find, sandbox};
use super::{Engine, Row, Transaction, event, idempotency, prose, retried, signed, snapshot, to_json};
use crate::idempotency::Idempotency;
use crate::sandbox::{
    Change, Destruction, Insertion, Insertions, NewSandbox, Observation, ObservedState, SandboxCounts,
    SandboxFilter, SandboxRow, SandboxStore, Window,
};
use crate::snapshot::NewSnapshot;
use crate::{Error, Result};

/// Ends the transaction of an UPDATE … RETURNING: with its events if it met a row, or by telling a row that
/// is past that from none. `tenant` is checked where the verb is a user's.
pub(super) async fn finish(
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
    event::append(&mut transaction, row.tenant_id, Some(row.id), events).await?;
    transaction.commit().await?;
    Ok(Change::Applied(Box::new(row)))
}

/// Frees the keys that made a sandbox: its own, and that of the fork that it belongs to.
async fn free_keys(transaction: &mut Transaction, row: &SandboxRow) -> Result<()> {
    idempotency::free(transaction, &row.id.to_string()).await?;
    if let Some(origin) = row.desired.origin_id {
        idempotency::free(transaction, &idempotency::fork(origin)).await?;
    }
    Ok(())
}

impl Engine {
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
            "WHERE id = $1 AND incarnation = $2 AND desired <> 'destroyed' AND CASE observed_state ",
            "WHEN 'none' THEN TRUE WHEN 'paused' THEN desired = 'running' AND $9 ",
            "ELSE observed_generation < $4 END RETURNING ",
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
        .bind(observed.state == ObservedState::Running)
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
            "destroy_reason = $2 WHERE id = $1 AND desired <> 'destroyed' RETURNING ",
            columns!()
        ))
        .bind(id.to_string())
        .bind(prose(reason))
        .fetch_optional(&mut *transaction)
        .await?;
        if free && let Some(updated) = &updated {
            free_keys(&mut transaction, &sandbox(updated)?).await?;
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
            "desired_generation = desired_generation + CASE desired WHEN 'destroyed' THEN 0 ELSE 1 END, ",
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
        if let Some(updated) = &updated {
            snapshot::forget_hibernation(&mut transaction, id).await?;
            if destruction.free_key {
                free_keys(&mut transaction, &sandbox(updated)?).await?;
            }
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

    async fn network_set_once(
        &self,
        id: SandboxId,
        internet_access: bool,
        network: &NetworkSettings,
    ) -> Result<Change> {
        let mut transaction = self.begin().await?;
        let updated = sqlx::query(concat!(
            "UPDATE sandboxes SET internet_access = $2, network = $3, ",
            "desired_generation = desired_generation + 1 WHERE id = $1 AND desired <> 'destroyed' RETURNING ",
            columns!()
        ))
        .bind(id.to_string())
        .bind(internet_access)
        .bind(to_json(network)?)
        .fetch_optional(&mut *transaction)
        .await?;
        finish(transaction, updated, id, None, &[]).await
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

    async fn sandbox_insert_fork(
        &self,
        children: &[NewSandbox],
        idempotency: Option<&Idempotency>,
        events: &[LifecycleEvent],
    ) -> Result<Insertions> {
        retried!(self.insert_fork_once(children, idempotency, events))
    }

    async fn sandbox_pause_begin(
        &self,
        id: SandboxId,
        snapshot: SnapshotId,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        retried!(self.pause_begin_once(id, snapshot, events))
    }

    async fn sandbox_paused(
        &self,
        id: SandboxId,
        snapshot: &NewSnapshot,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        retried!(self.paused_once(id, snapshot, events))
    }

    async fn sandbox_pause_undo(
        &self,
        id: SandboxId,
        timeout_at: Timestamp,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        retried!(self.pause_undo_once(id, timeout_at, events))
    }

    async fn sandbox_resume_begin(
        &self,
        id: SandboxId,
        incarnation: IncarnationId,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        retried!(self.resume_begin_once(id, incarnation, events))
    }

    async fn sandbox_resume_undo(&self, id: SandboxId, events: &[LifecycleEvent]) -> Result<Change> {
        retried!(self.resume_undo_once(id, events))
    }

    async fn sandbox_descendants(
        &self,
        tenant: TenantId,
        root: SandboxId,
        limit: u32,
    ) -> Result<Vec<SandboxRow>> {
        self.descendants(tenant, root, limit).await
    }

    async fn sandbox_observed(
        &self,
        id: SandboxId,
        observation: &Observation,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        match observation.observed.state {
            ObservedState::None => {
                return Err(Error::invalid("news of a machine cannot be that nothing was seen of it"));
            }
            ObservedState::Paused => {
                return Err(Error::invalid("news of a machine cannot be that it is paused"));
            }
            ObservedState::Running | ObservedState::Lost => {}
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

    async fn sandbox_network_set(
        &self,
        id: SandboxId,
        internet_access: bool,
        network: &NetworkSettings,
    ) -> Result<Change> {
        retried!(self.network_set_once(id, internet_access, network))
    }

    async fn sandbox_get(&self, tenant: TenantId, id: SandboxId) -> Result<SandboxRow> {
        self.get(tenant, id).await
    }

    async fn sandbox_list(&self, tenant: TenantId, filter: &SandboxFilter) -> Result<Vec<SandboxRow>> {
        self.list(tenant, filter).await
    }

    async fn sandbox_counts(&self, tenant: TenantId) -> Result<SandboxCounts> {
        self.counts(Some(tenant)).await
    }

    async fn sandbox_counts_all(&self) -> Result<SandboxCounts> {
        self.counts(None).await
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

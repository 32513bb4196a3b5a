//! Snapshots.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::event::LifecycleEvent;
use nullspace_types::id::{SandboxId, SnapshotId, TenantId};
use sqlx::{QueryBuilder, Row as _};

use super::idempotency::{Claim, claim, free, freed, resource};
use super::{
    Db, Engine, Row, Transaction, event, exact, json, metadata, number, parsed, retried, signed, time,
    to_json, word,
};
use crate::canonical::pair_digest;
use crate::idempotency::Idempotency;
use crate::snapshot::{
    NewSnapshot, SnapshotFilter, SnapshotInsertion, SnapshotKind, SnapshotRemoval, SnapshotRow, SnapshotStore,
};
use crate::{Error, Result};

/// What a list holds at most.
const LIST: i64 = 10_000;

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, tenant_id, sandbox_id, incarnation, kind, ready, size_bytes, created_at, metadata, ",
            "template, vcpus, memory_mb, disk_mb, envs, cwd, internet_access, network FROM snapshots ",
            $rest
        )
    };
}

fn snapshot(row: &Row) -> Result<SnapshotRow> {
    let kinds = [SnapshotKind::Manual, SnapshotKind::Hibernation].map(|kind| (kind.as_str(), kind));
    Ok(SnapshotRow {
        snapshot: NewSnapshot {
            id: parsed(row, "id")?,
            tenant_id: parsed(row, "tenant_id")?,
            sandbox_id: parsed(row, "sandbox_id")?,
            incarnation: parsed(row, "incarnation")?,
            kind: word(row, "kind", &kinds)?,
            size_bytes: number(row, "size_bytes")?,
            metadata: json(row, "metadata")?,
            template: row.try_get("template")?,
            vcpus: number(row, "vcpus")?,
            memory_mb: number(row, "memory_mb")?,
            disk_mb: number(row, "disk_mb")?,
            envs: json(row, "envs")?,
            cwd: row.try_get("cwd")?,
            internet_access: row.try_get("internet_access")?,
            network: json(row, "network")?,
            created_at: time(row, "created_at")?,
        },
        ready: row.try_get("ready")?,
    })
}

/// Writes a new row and the pairs it is found by.
pub(super) async fn insert(transaction: &mut Transaction, new: &NewSnapshot, ready: bool) -> Result<()> {
    sqlx::query(
        "INSERT INTO snapshots (id, tenant_id, sandbox_id, incarnation, kind, ready, size_bytes, created_at, \
         metadata, template, vcpus, memory_mb, disk_mb, envs, cwd, internet_access, network) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
    )
    .bind(new.id.to_string())
    .bind(new.tenant_id.to_string())
    .bind(new.sandbox_id.to_string())
    .bind(new.incarnation.to_string())
    .bind(new.kind.as_str())
    .bind(ready)
    .bind(signed(new.size_bytes, "size_bytes")?)
    .bind(new.created_at.as_microsecond())
    .bind(to_json(&new.metadata)?)
    .bind(exact(&new.template, "template")?)
    .bind(i64::from(new.vcpus))
    .bind(i64::from(new.memory_mb))
    .bind(i64::from(new.disk_mb))
    .bind(to_json(&new.envs)?)
    .bind(new.cwd.as_deref().map(|cwd| exact(cwd, "cwd")).transpose()?)
    .bind(new.internet_access)
    .bind(to_json(&new.network)?)
    .execute(&mut **transaction)
    .await?;
    let pairs = "INSERT INTO snapshot_metadata (tenant_id, pair, snapshot_id) ";
    metadata::insert(transaction, pairs, new.tenant_id, &new.id.to_string(), &new.metadata).await
}

/// Removes the row of a sandbox's hibernation, if it has one.
pub(super) async fn forget_hibernation(transaction: &mut Transaction, sandbox: SandboxId) -> Result<()> {
    sqlx::query("DELETE FROM snapshots WHERE sandbox_id = $1 AND kind = 'hibernation'")
        .bind(sandbox.to_string())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

async fn find(transaction: &mut Transaction, id: SnapshotId) -> Result<Option<SnapshotRow>> {
    let row =
        sqlx::query(select!("WHERE id = $1")).bind(id.to_string()).fetch_optional(&mut **transaction).await?;
    row.as_ref().map(snapshot).transpose()
}

impl Engine {
    async fn snapshot_insert_once(
        &self,
        new: &NewSnapshot,
        idempotency: Option<&Idempotency>,
    ) -> Result<SnapshotInsertion> {
        if new.kind != SnapshotKind::Manual {
            return Err(Error::invalid("the snapshot of a hibernation is written when it is ready"));
        }
        let mut transaction = self.begin().await?;
        if let Some(idempotency) = idempotency {
            let id = new.id.to_string();
            match claim(&mut transaction, new.tenant_id, &id, new.created_at, idempotency).await? {
                Claim::Made => {}
                Claim::Taken(id) => {
                    let existing = find(&mut transaction, resource(&id)?).await?.ok_or_else(freed)?;
                    transaction.rollback().await?;
                    return Ok(SnapshotInsertion::Existing(Box::new(existing)));
                }
                Claim::Reused => {
                    transaction.rollback().await?;
                    return Ok(SnapshotInsertion::KeyReused);
                }
            }
        }
        insert(&mut transaction, new, false).await?;
        transaction.commit().await?;
        Ok(SnapshotInsertion::Inserted)
    }

    async fn snapshot_ready_once(
        &self,
        id: SnapshotId,
        size_bytes: u64,
        created_at: Timestamp,
        events: &[LifecycleEvent],
    ) -> Result<()> {
        let mut transaction = self.begin().await?;
        let updated = sqlx::query(
            "UPDATE snapshots SET ready = TRUE, size_bytes = $2, created_at = $3 \
             WHERE id = $1 AND NOT ready RETURNING tenant_id, sandbox_id",
        )
        .bind(id.to_string())
        .bind(signed(size_bytes, "size_bytes")?)
        .bind(created_at.as_microsecond())
        .fetch_optional(&mut *transaction)
        .await?;
        match updated {
            Some(row) => {
                let (tenant, sandbox) = (parsed(&row, "tenant_id")?, parsed(&row, "sandbox_id")?);
                event::append(&mut transaction, tenant, Some(sandbox), events).await?;
                transaction.commit().await?;
            }
            None => {
                let found = find(&mut transaction, id).await?;
                transaction.rollback().await?;
                found.ok_or(Error::NotFound("snapshot"))?;
            }
        }
        Ok(())
    }

    async fn snapshot_abandon_once(&self, id: SnapshotId, events: &[LifecycleEvent]) -> Result<()> {
        let mut transaction = self.begin().await?;
        let removed =
            sqlx::query("DELETE FROM snapshots WHERE id = $1 AND NOT ready RETURNING tenant_id, sandbox_id")
                .bind(id.to_string())
                .fetch_optional(&mut *transaction)
                .await?;
        if let Some(row) = removed {
            free(&mut transaction, &id.to_string()).await?;
            let (tenant, sandbox) = (parsed(&row, "tenant_id")?, parsed(&row, "sandbox_id")?);
            event::append(&mut transaction, tenant, Some(sandbox), events).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    async fn snapshot_remove_once(&self, tenant: TenantId, id: SnapshotId) -> Result<SnapshotRemoval> {
        let mut transaction = self.begin().await?;
        // A running sandbox is never paused on this one again: each hibernation has a snapshot of its own.
        let removed = sqlx::query(
            "DELETE FROM snapshots WHERE id = $1 AND tenant_id = $2 AND ready AND NOT EXISTS \
             (SELECT 1 FROM sandboxes b WHERE b.snapshot_id = $1 AND b.destroyed_at IS NULL \
             AND (b.desired = 'paused' OR b.observed_state = 'paused'))",
        )
        .bind(id.to_string())
        .bind(tenant.to_string())
        .execute(&mut *transaction)
        .await?;
        if removed.rows_affected() == 0 {
            let found = find(&mut transaction, id).await?;
            transaction.rollback().await?;
            return match found {
                Some(row) if row.ready && row.snapshot.tenant_id == tenant => Ok(SnapshotRemoval::InUse),
                Some(_) | None => Err(Error::NotFound("snapshot")),
            };
        }
        free(&mut transaction, &id.to_string()).await?;
        transaction.commit().await?;
        Ok(SnapshotRemoval::Removed)
    }
}

#[async_trait]
impl SnapshotStore for Engine {
    async fn snapshot_insert(
        &self,
        new: &NewSnapshot,
        idempotency: Option<&Idempotency>,
    ) -> Result<SnapshotInsertion> {
        retried!(self.snapshot_insert_once(new, idempotency))
    }

    async fn snapshot_ready(
        &self,
        id: SnapshotId,
        size_bytes: u64,
        created_at: Timestamp,
        events: &[LifecycleEvent],
    ) -> Result<()> {
        retried!(self.snapshot_ready_once(id, size_bytes, created_at, events))
    }

    async fn snapshot_abandon(&self, id: SnapshotId, events: &[LifecycleEvent]) -> Result<()> {
        retried!(self.snapshot_abandon_once(id, events))
    }

    async fn snapshot_remove(&self, tenant: TenantId, id: SnapshotId) -> Result<SnapshotRemoval> {
        retried!(self.snapshot_remove_once(tenant, id))
    }

    async fn snapshot_get(&self, tenant: TenantId, id: SnapshotId) -> Result<SnapshotRow> {
        let row = sqlx::query(select!("WHERE id = $1 AND tenant_id = $2 AND ready"))
            .bind(id.to_string())
            .bind(tenant.to_string())
            .fetch_optional(self.reader())
            .await?;
        snapshot(&row.ok_or(Error::NotFound("snapshot"))?)
    }

    async fn snapshot_list(&self, tenant: TenantId, filter: &SnapshotFilter) -> Result<Vec<SnapshotRow>> {
        let mut query = QueryBuilder::<Db>::new(select!("WHERE ready AND tenant_id = "));
        query.push_bind(tenant.to_string());
        if let Some(id) = filter.sandbox_id {
            query.push(" AND sandbox_id = ").push_bind(id.to_string());
        }
        for (name, value) in &filter.metadata {
            query
                .push(" AND id IN (SELECT snapshot_id FROM snapshot_metadata WHERE tenant_id = ")
                .push_bind(tenant.to_string())
                .push(" AND pair = ")
                .push_bind(pair_digest(name, value).to_vec())
                .push(")");
        }
        query.push(" ORDER BY id DESC LIMIT ").push_bind(LIST);
        let rows = query.build().fetch_all(self.reader()).await?;
        rows.iter().map(snapshot).collect()
    }

    async fn snapshot_all(&self, after: Option<SnapshotId>, limit: u32) -> Result<Vec<SnapshotRow>> {
        let rows = sqlx::query(select!("WHERE id > $1 ORDER BY id LIMIT $2"))
            // The empty text is smaller than every ID.
            .bind(after.map(|id| id.to_string()).unwrap_or_default())
            .bind(i64::from(limit))
            .fetch_all(self.reader())
            .await?;
        rows.iter().map(snapshot).collect()
    }

    async fn snapshot_count(&self) -> Result<u64> {
        let row = sqlx::query("SELECT count(*) AS number FROM snapshots").fetch_one(self.reader()).await?;
        number(&row, "number")
    }
}

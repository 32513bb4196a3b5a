//! Idempotency keys: claimed and freed within the transactions of what they make.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::id::{SnapshotId, TenantId};
use sqlx::Row as _;

use super::{Engine, Transaction, bytes, exact, retried};
use crate::error::Contention;
use crate::idempotency::{Idempotency, IdempotencyStore};
use crate::{Error, Result};

/// What became of a claim.
pub(super) enum Claim {
    /// The key is this resource's from now on.
    Made,
    /// The same request made this resource before.
    Taken(String),
    /// Another request has the key.
    Reused,
}

/// What the key of a fork names. A fork's checkpoint and a snapshot have IDs of one kind.
pub(super) fn fork(origin: SnapshotId) -> String {
    format!("fork/{origin}")
}

/// Claims the key for a new resource.
pub(super) async fn claim(
    transaction: &mut Transaction,
    tenant: TenantId,
    resource: &str,
    at: Timestamp,
    idempotency: &Idempotency,
) -> Result<Claim> {
    let key = exact(&idempotency.key, "the idempotency key")?;
    // On PostgreSQL this waits for a transaction that holds the same key to end.
    let claimed = sqlx::query(
        "INSERT INTO idempotency (tenant_id, operation, key, request_hash, resource, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (tenant_id, operation, key) DO NOTHING",
    )
    .bind(tenant.to_string())
    .bind(idempotency.operation)
    .bind(key)
    .bind(&idempotency.request_hash[..])
    .bind(resource)
    .bind(at.as_microsecond())
    .execute(&mut **transaction)
    .await?;
    if claimed.rows_affected() == 1 {
        return Ok(Claim::Made);
    }
    let taken = sqlx::query(
        "SELECT request_hash, resource FROM idempotency WHERE tenant_id = $1 AND operation = $2 AND key = $3",
    )
    .bind(tenant.to_string())
    .bind(idempotency.operation)
    .bind(key)
    .fetch_optional(&mut **transaction)
    .await?
    .ok_or_else(freed)?;
    if bytes(&taken, "request_hash")? == idempotency.request_hash {
        Ok(Claim::Taken(taken.try_get("resource")?))
    } else {
        Ok(Claim::Reused)
    }
}

/// The key was taken, and freed before what it made could be read: there is nothing to answer, and the whole
/// transaction is done again.
pub(super) fn freed() -> Error {
    Error::Unavailable(Box::new(Contention(sqlx::Error::RowNotFound)))
}

/// What a key names, as the ID that it is.
pub(super) fn resource<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T> {
    text.parse().map_err(|error| Error::corrupt(format!("column resource: {error}")))
}

/// Frees the keys that made a resource.
pub(super) async fn free(transaction: &mut Transaction, resource: &str) -> Result<()> {
    sqlx::query("DELETE FROM idempotency WHERE resource = $1")
        .bind(resource)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

impl Engine {
    async fn idempotency_prune_once(&self, before: Timestamp) -> Result<u64> {
        let mut transaction = self.begin().await?;
        let done = sqlx::query("DELETE FROM idempotency WHERE created_at < $1")
            .bind(before.as_microsecond())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(done.rows_affected())
    }
}

#[async_trait]
impl IdempotencyStore for Engine {
    async fn idempotency_prune(&self, before: Timestamp) -> Result<u64> {
        retried!(self.idempotency_prune_once(before))
    }
}

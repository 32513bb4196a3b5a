//! Tenants and keys.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::id::{KeyId, TenantId};
use nullspace_types::key::Key;
use sqlx::Row as _;

use super::{Engine, Row, bytes, exact, parsed, prose, retried, time, time_option};
use crate::key::{KeyRow, KeyStore, NewKey, TenantRow};
use crate::{Error, Result};

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT k.id, k.tenant_id, t.name AS tenant, k.label, k.hint, k.secret_hash, k.created_at, ",
            "k.revoked_at FROM api_keys k JOIN tenants t ON t.id = k.tenant_id ",
            $rest
        )
    };
}

fn tenant(row: &Row) -> Result<TenantRow> {
    Ok(TenantRow { id: parsed(row, "id")?, name: row.try_get("name")?, created_at: time(row, "created_at")? })
}

fn key(row: &Row) -> Result<Key> {
    Ok(Key {
        id: parsed(row, "id")?,
        tenant_id: parsed(row, "tenant_id")?,
        tenant: row.try_get("tenant")?,
        label: row.try_get("label")?,
        hint: row.try_get("hint")?,
        created_at: time(row, "created_at")?,
        revoked_at: time_option(row, "revoked_at")?,
    })
}

impl Engine {
    async fn tenant_ensure_once(&self, name: &str, now: Timestamp) -> Result<TenantRow> {
        if let Some(found) = self.tenant_find(name).await? {
            return Ok(found);
        }
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO tenants (id, name, created_at) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING",
        )
        .bind(TenantId::new().to_string())
        .bind(exact(name, "the tenant's name")?)
        .bind(now.as_microsecond())
        .execute(&mut *transaction)
        .await?;
        // Whoever came first made it.
        let row = sqlx::query("SELECT id, name, created_at FROM tenants WHERE name = $1")
            .bind(name)
            .fetch_one(&mut *transaction)
            .await?;
        transaction.commit().await?;
        tenant(&row)
    }

    async fn key_insert_once(&self, new: &NewKey) -> Result<Key> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO api_keys (id, tenant_id, label, hint, secret_hash, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(new.id.to_string())
        .bind(new.tenant_id.to_string())
        .bind(prose(&new.label))
        .bind(exact(&new.hint, "the key's hint")?)
        .bind(&new.secret_hash[..])
        .bind(new.created_at.as_microsecond())
        .execute(&mut *transaction)
        .await?;
        let row = sqlx::query(select!("WHERE k.id = $1"))
            .bind(new.id.to_string())
            .fetch_one(&mut *transaction)
            .await?;
        transaction.commit().await?;
        key(&row)
    }

    async fn key_revoke_once(&self, id: KeyId, now: Timestamp) -> Result<Key> {
        let mut transaction = self.begin().await?;
        sqlx::query("UPDATE api_keys SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL")
            .bind(id.to_string())
            .bind(now.as_microsecond())
            .execute(&mut *transaction)
            .await?;
        let row = sqlx::query(select!("WHERE k.id = $1"))
            .bind(id.to_string())
            .fetch_optional(&mut *transaction)
            .await?;
        transaction.commit().await?;
        key(&row.ok_or(Error::NotFound("API key"))?)
    }
}

#[async_trait]
impl KeyStore for Engine {
    async fn tenant_ensure(&self, name: &str, now: Timestamp) -> Result<TenantRow> {
        retried!(self.tenant_ensure_once(name, now))
    }

    async fn tenant_find(&self, name: &str) -> Result<Option<TenantRow>> {
        let row = sqlx::query("SELECT id, name, created_at FROM tenants WHERE name = $1")
            .bind(exact(name, "the tenant's name")?)
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(tenant).transpose()
    }

    async fn key_insert(&self, new: &NewKey) -> Result<Key> {
        retried!(self.key_insert_once(new))
    }

    async fn key_find(&self, secret_hash: &[u8; 32]) -> Result<Option<KeyRow>> {
        let row = sqlx::query(select!("WHERE k.secret_hash = $1"))
            .bind(&secret_hash[..])
            .fetch_optional(self.reader())
            .await?;
        row.map(|row| Ok(KeyRow { key: key(&row)?, secret_hash: bytes(&row, "secret_hash")? })).transpose()
    }

    async fn key_get(&self, id: KeyId) -> Result<Option<Key>> {
        let row = sqlx::query(select!("WHERE k.id = $1"))
            .bind(id.to_string())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(key).transpose()
    }

    async fn key_list(&self, tenant: Option<TenantId>) -> Result<Vec<Key>> {
        let rows = match tenant {
            None => sqlx::query(select!("ORDER BY k.id")).fetch_all(self.reader()).await?,
            Some(tenant) => {
                sqlx::query(select!("WHERE k.tenant_id = $1 ORDER BY k.id"))
                    .bind(tenant.to_string())
                    .fetch_all(self.reader())
                    .await?
            }
        };
        rows.iter().map(key).collect()
    }

    async fn key_revoke(&self, id: KeyId, now: Timestamp) -> Result<Key> {
        retried!(self.key_revoke_once(id, now))
    }
}

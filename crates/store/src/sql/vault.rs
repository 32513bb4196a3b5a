//! Stored secrets.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::id::TenantId;
use nullspace_types::vault::StoredSecret;
use sqlx::{QueryBuilder, Row as _};

use super::{Db, Engine, Row, exact, lock_tenant, number, retried, time};
use crate::event::truncated;
use crate::vault::VaultStore;
use crate::{Error, Result};

/// Secrets of a tenant.
const SECRETS_MAX: i64 = 1000;

fn secret(row: &Row) -> Result<StoredSecret> {
    Ok(StoredSecret { name: row.try_get("name")?, created_at: time(row, "created_at")? })
}

impl Engine {
    async fn vault_insert_once(
        &self,
        tenant: TenantId,
        name: &str,
        sealed: &[u8],
        at: Timestamp,
    ) -> Result<StoredSecret> {
        let mut transaction = self.begin().await?;
        lock_tenant(&mut transaction, tenant).await?;
        sqlx::query("INSERT INTO vault (tenant_id, name, sealed, created_at) VALUES ($1, $2, $3, $4)")
            .bind(tenant.to_string())
            .bind(exact(name, "the secret's name")?)
            .bind(sealed)
            .bind(at.as_microsecond())
            .execute(&mut *transaction)
            .await?;
        // Counted after: a name that is taken is told as that, however many there are.
        let row = sqlx::query("SELECT count(*) AS number FROM vault WHERE tenant_id = $1")
            .bind(tenant.to_string())
            .fetch_one(&mut *transaction)
            .await?;
        if number::<i64>(&row, "number")? > SECRETS_MAX {
            transaction.rollback().await?;
            return Err(Error::invalid(format!("a tenant has at most {SECRETS_MAX} secrets")));
        }
        transaction.commit().await?;
        Ok(StoredSecret { name: name.to_owned(), created_at: truncated(at) })
    }

    async fn vault_delete_once(&self, tenant: TenantId, name: &str) -> Result<()> {
        let mut transaction = self.begin().await?;
        let deleted = sqlx::query("DELETE FROM vault WHERE tenant_id = $1 AND name = $2")
            .bind(tenant.to_string())
            .bind(exact(name, "the secret's name")?)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        if deleted.rows_affected() == 0 { Err(Error::NotFound("secret")) } else { Ok(()) }
    }
}

#[async_trait]
impl VaultStore for Engine {
    async fn vault_insert(
        &self,
        tenant: TenantId,
        name: &str,
        sealed: &[u8],
        at: Timestamp,
    ) -> Result<StoredSecret> {
        retried!(self.vault_insert_once(tenant, name, sealed, at))
    }

    async fn vault_list(&self, tenant: TenantId) -> Result<Vec<StoredSecret>> {
        let rows = sqlx::query("SELECT name, created_at FROM vault WHERE tenant_id = $1 ORDER BY name")
            .bind(tenant.to_string())
            .fetch_all(self.reader())
            .await?;
        rows.iter().map(secret).collect()
    }

    async fn vault_get(&self, tenant: TenantId, names: &[String]) -> Result<Vec<(String, Vec<u8>)>> {
        if names.is_empty() {
            return Ok(vec![]);
        }
        let mut query = QueryBuilder::<Db>::new("SELECT name, sealed FROM vault WHERE tenant_id = ");
        query.push_bind(tenant.to_string()).push(" AND name IN (");
        let mut list = query.separated(", ");
        for name in names {
            list.push_bind(exact(name, "the secret's name")?.to_owned());
        }
        list.push_unseparated(") ORDER BY name");
        let rows = query.build().fetch_all(self.reader()).await?;
        rows.iter().map(|row| Ok((row.try_get("name")?, row.try_get("sealed")?))).collect()
    }

    async fn vault_delete(&self, tenant: TenantId, name: &str) -> Result<()> {
        retried!(self.vault_delete_once(tenant, name))
    }
}

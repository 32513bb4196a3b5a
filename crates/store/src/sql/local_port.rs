//! Addresses on this host that stand for ports of sandboxes.

use nullspace_types::id::SandboxId;

use super::preview::hold_wanted;
use super::{Engine, Row, Transaction, number, parsed};
use crate::preview::LocalPort;
use crate::{Error, Result};

fn local_port(row: &Row) -> Result<LocalPort> {
    Ok(LocalPort {
        local: number(row, "local")?,
        sandbox_id: parsed(row, "sandbox_id")?,
        port: number(row, "port")?,
    })
}

async fn given(transaction: &mut Transaction, sandbox: SandboxId, port: u16) -> Result<Option<LocalPort>> {
    let row =
        sqlx::query("SELECT local, sandbox_id, port FROM local_ports WHERE sandbox_id = $1 AND port = $2")
            .bind(sandbox.to_string())
            .bind(i64::from(port))
            .fetch_optional(&mut **transaction)
            .await?;
    row.as_ref().map(local_port).transpose()
}

impl Engine {
    pub(super) async fn assign_once(&self, candidate: LocalPort) -> Result<LocalPort> {
        let LocalPort { local, sandbox_id, port } = candidate;
        let mut transaction = self.begin().await?;
        // Whoever else asks for an address of this sandbox waits here.
        hold_wanted(&mut transaction, sandbox_id).await?;
        if let Some(given) = given(&mut transaction, sandbox_id, port).await? {
            transaction.rollback().await?;
            return Ok(given);
        }
        let row = sqlx::query(
            "INSERT INTO local_ports (local, sandbox_id, port) VALUES ($1, $2, $3) \
             ON CONFLICT (local) DO NOTHING RETURNING local, sandbox_id, port",
        )
        .bind(i64::from(local))
        .bind(sandbox_id.to_string())
        .bind(i64::from(port))
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(row) = row else {
            transaction.rollback().await?;
            return Err(Error::Conflict(format!("local port {local} is another's").into()));
        };
        transaction.commit().await?;
        local_port(&row)
    }

    pub(super) async fn local_ports(&self) -> Result<Vec<LocalPort>> {
        let rows = sqlx::query("SELECT local, sandbox_id, port FROM local_ports ORDER BY local")
            .fetch_all(self.reader())
            .await?;
        rows.iter().map(local_port).collect()
    }

    pub(super) async fn release_once(&self, local: u16) -> Result<()> {
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM local_ports WHERE local = $1")
            .bind(i64::from(local))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(())
    }

    pub(super) async fn release_all_once(&self, sandbox: SandboxId) -> Result<Vec<LocalPort>> {
        let mut transaction = self.begin().await?;
        let rows =
            sqlx::query("DELETE FROM local_ports WHERE sandbox_id = $1 RETURNING local, sandbox_id, port")
                .bind(sandbox.to_string())
                .fetch_all(&mut *transaction)
                .await?;
        transaction.commit().await?;
        rows.iter().map(local_port).collect()
    }
}

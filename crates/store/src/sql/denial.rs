//! What sandboxes were denied.

use std::collections::BTreeSet;

use async_trait::async_trait;
use nullspace_types::id::{SandboxId, TenantId};
use nullspace_types::network::Denial;
use sha2::{Digest as _, Sha256};

use super::{Engine, Row, Transaction, json, number, retried, signed, time, to_json};
use crate::Result;
use crate::denial::DenialStore;

/// Denials of a sandbox that are kept.
const DENIALS_MAX: i64 = 1000;

fn denial(row: &Row) -> Result<Denial> {
    Ok(Denial {
        target: json(row, "target")?,
        count: number(row, "count")?,
        first_at: time(row, "first_at")?,
        last_at: time(row, "last_at")?,
    })
}

async fn add(transaction: &mut Transaction, sandbox: SandboxId, denial: &Denial) -> Result<()> {
    let target = to_json(&denial.target)?;
    sqlx::query(
        "INSERT INTO denials (tenant_id, sandbox_id, digest, target, count, first_at, last_at) \
         SELECT tenant_id, id, $2, $3, $4, $5, $6 FROM sandboxes WHERE id = $1 \
         ON CONFLICT (sandbox_id, digest) DO UPDATE SET count = denials.count + excluded.count, \
         first_at = CASE WHEN excluded.first_at < denials.first_at THEN excluded.first_at \
         ELSE denials.first_at END, \
         last_at = CASE WHEN excluded.last_at > denials.last_at THEN excluded.last_at ELSE denials.last_at END",
    )
    .bind(sandbox.to_string())
    .bind(&Sha256::digest(&target)[..])
    .bind(target)
    .bind(signed(denial.count, "count")?)
    .bind(denial.first_at.as_microsecond())
    .bind(denial.last_at.as_microsecond())
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

impl Engine {
    async fn denials_add_once(&self, denials: &[(SandboxId, Denial)]) -> Result<()> {
        let mut transaction = self.begin().await?;
        for (sandbox, denial) in denials {
            add(&mut transaction, *sandbox, denial).await?;
        }
        let sandboxes: BTreeSet<_> = denials.iter().map(|(sandbox, _)| *sandbox).collect();
        for sandbox in sandboxes {
            sqlx::query(
                "DELETE FROM denials WHERE sandbox_id = $1 AND digest NOT IN (SELECT digest FROM denials \
                 WHERE sandbox_id = $1 ORDER BY last_at DESC, digest LIMIT $2)",
            )
            .bind(sandbox.to_string())
            .bind(DENIALS_MAX)
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}

#[async_trait]
impl DenialStore for Engine {
    async fn denials_add(&self, denials: &[(SandboxId, Denial)]) -> Result<()> {
        if denials.is_empty() {
            return Ok(());
        }
        retried!(self.denials_add_once(denials))
    }

    async fn denial_list(
        &self,
        tenant: TenantId,
        sandbox: SandboxId,
        offset: u32,
        limit: u32,
    ) -> Result<Vec<Denial>> {
        let rows = sqlx::query(
            "SELECT target, count, first_at, last_at FROM denials WHERE sandbox_id = $1 AND tenant_id = $2 \
             ORDER BY last_at DESC, digest LIMIT $3 OFFSET $4",
        )
        .bind(sandbox.to_string())
        .bind(tenant.to_string())
        .bind(i64::from(limit))
        .bind(i64::from(offset))
        .fetch_all(self.reader())
        .await?;
        rows.iter().map(denial).collect()
    }
}

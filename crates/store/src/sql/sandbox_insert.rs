//! Beginning sandboxes: one, or all children of a fork, once per idempotency key.

use nullspace_types::event::LifecycleEvent;
use nullspace_types::id::{SnapshotId, TenantId};

use super::idempotency::{Claim, claim, fork, freed, resource};
use super::sandbox_row::{columns, find, insert, sandbox};
use super::{Engine, Transaction, event};
use crate::idempotency::Idempotency;
use crate::sandbox::{Insertion, Insertions, NewSandbox, SandboxRow};
use crate::{Error, Result};

/// The children that a fork began, whatever became of them.
async fn children_of(
    transaction: &mut Transaction,
    tenant: TenantId,
    origin: SnapshotId,
) -> Result<Vec<SandboxRow>> {
    let rows = sqlx::query(concat!(
        "SELECT ",
        columns!(),
        " FROM sandboxes WHERE origin_id = $1 AND tenant_id = $2 ORDER BY id"
    ))
    .bind(origin.to_string())
    .bind(tenant.to_string())
    .fetch_all(&mut **transaction)
    .await?;
    rows.iter().map(sandbox).collect()
}

impl Engine {
    pub(super) async fn insert_once(
        &self,
        new: &NewSandbox,
        idempotency: Option<&Idempotency>,
        events: &[LifecycleEvent],
    ) -> Result<Insertion> {
        let mut transaction = self.begin().await?;
        if let Some(idempotency) = idempotency {
            let id = new.id.to_string();
            match claim(&mut transaction, new.tenant_id, &id, new.created_at, idempotency).await? {
                Claim::Made => {}
                Claim::Taken(id) => {
                    let existing = find(&mut transaction, resource(&id)?).await?.ok_or_else(freed)?;
                    transaction.rollback().await?;
                    return Ok(Insertion::Existing(Box::new(existing)));
                }
                Claim::Reused => {
                    transaction.rollback().await?;
                    return Ok(Insertion::KeyReused);
                }
            }
        }
        let row = insert(&mut transaction, new).await?;
        event::append(&mut transaction, new.tenant_id, Some(new.id), events).await?;
        transaction.commit().await?;
        Ok(Insertion::Inserted(Box::new(row)))
    }

    pub(super) async fn insert_fork_once(
        &self,
        children: &[NewSandbox],
        idempotency: Option<&Idempotency>,
        events: &[LifecycleEvent],
    ) -> Result<Insertions> {
        let Some(first) = children.first() else {
            return Err(Error::invalid("a fork has at least one child"));
        };
        let same =
            |child: &NewSandbox| (child.tenant_id, child.origin_id) == (first.tenant_id, first.origin_id);
        let Some(origin) = first.origin_id.filter(|_| children.iter().all(same)) else {
            return Err(Error::invalid("the children of a fork have one tenant and one origin"));
        };
        let mut transaction = self.begin().await?;
        if let Some(idempotency) = idempotency {
            let made = fork(origin);
            match claim(&mut transaction, first.tenant_id, &made, first.created_at, idempotency).await? {
                Claim::Made => {}
                Claim::Taken(made) => {
                    let origin = resource(made.trim_start_matches("fork/"))?;
                    let existing = children_of(&mut transaction, first.tenant_id, origin).await?;
                    transaction.rollback().await?;
                    return if existing.is_empty() {
                        Err(freed())
                    } else {
                        Ok(Insertions::Existing(existing))
                    };
                }
                Claim::Reused => {
                    transaction.rollback().await?;
                    return Ok(Insertions::KeyReused);
                }
            }
        }
        for child in children {
            insert(&mut transaction, child).await?;
        }
        event::append(&mut transaction, first.tenant_id, None, events).await?;
        transaction.commit().await?;
        Ok(Insertions::Inserted)
    }
}

//! The relatives of a sandbox, and in which files two of them differ. Nothing here wakes anything.

use std::collections::HashSet;

use nullspace_domain::lifecycle::{Rejected, State};
use nullspace_domain::snapshot::{Named, TREE_MAX, depth_first, validate_diff};
use nullspace_node_api::DiskOf;
use nullspace_store::sandbox::SandboxRow;
use nullspace_store::snapshot::SnapshotFilter;
use nullspace_types::id::{SandboxId, SnapshotId, TenantId};
use nullspace_types::snapshot::{SandboxDiff, SandboxDiffQuery, SandboxTree, SandboxTreeNode};
use nullspace_types::{Error, Result};

use crate::Control;
use crate::access::{answered, refusal};
use crate::record::status;
use crate::snapshot::found;

fn node(row: &SandboxRow, snapshots: &HashSet<SnapshotId>) -> SandboxTreeNode {
    SandboxTreeNode {
        id: row.id,
        parent_id: row.desired.parent_id,
        snapshot_id: row.desired.origin_id.filter(|origin| snapshots.contains(origin)),
        depth: 0,
        status: status(row),
        created_at: row.created_at,
    }
}

impl Control {
    /// The oldest ancestor that is known, and no further up than a tree is listed.
    async fn root(&self, tenant_id: TenantId, id: SandboxId) -> Result<SandboxId> {
        let store = &self.shared.store;
        let known = store.sandbox_get(tenant_id, id).await;
        let mut row = known.map_err(|error| match error {
            nullspace_store::Error::NotFound(_) => Error::sandbox_not_found(id),
            error => error.into(),
        })?;
        for _ in 0..TREE_MAX {
            let Some(parent) = row.desired.parent_id else { break };
            row = match store.sandbox_get(tenant_id, parent).await {
                Ok(parent) => parent,
                Err(nullspace_store::Error::NotFound(_)) => break,
                Err(error) => return Err(error.into()),
            };
        }
        Ok(row.id)
    }

    /// All relatives of a sandbox, destroyed ones too.
    pub async fn sandbox_tree(&self, tenant_id: TenantId, id: SandboxId) -> Result<SandboxTree> {
        let root_id = self.root(tenant_id, id).await?;
        let mut rows = self.shared.store.sandbox_descendants(tenant_id, root_id, TREE_MAX + 1).await?;
        let truncated = rows.len() > TREE_MAX as usize;
        rows.truncate(TREE_MAX as usize);
        // A fork's checkpoint is nobody's to name.
        let named = match rows.iter().any(|row| row.desired.origin_id.is_some()) {
            true => self.shared.store.snapshot_list(tenant_id, &SnapshotFilter::default()).await?,
            false => vec![],
        };
        let snapshots = named.into_iter().map(|row| row.snapshot.id).collect();
        let family = rows.iter().map(|row| node(row, &snapshots)).collect();
        Ok(SandboxTree { root_id, items: depth_first(root_id, family), truncated })
    }

    /// The disk of a sandbox as it is now.
    fn disk(&self, tenant_id: TenantId, id: SandboxId) -> Result<DiskOf> {
        let record = self.living(tenant_id, id)?.view.borrow().record.clone();
        match record.state {
            State::Running { .. } | State::Hibernating { .. } => Ok(DiskOf::Machine(id)),
            State::Paused { snapshot, .. } | State::Resuming { snapshot, .. } => {
                Ok(DiskOf::Checkpoint(snapshot))
            }
            State::Absent | State::Creating { .. } => Err(refusal(&record, Rejected::NotRunning)),
            State::Lost { .. } => Err(refusal(&record, Rejected::MachineLost)),
            State::Destroying { .. } | State::Destroyed => Err(Error::sandbox_not_found(id)),
        }
    }

    /// Which files differ between a sandbox and a relative, or a snapshot of one.
    pub async fn sandbox_diff(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        query: SandboxDiffQuery,
    ) -> Result<SandboxDiff> {
        let disk = self.disk(tenant_id, id)?;
        let (against, limit) = validate_diff(&query)?;
        let (relative, other) = match against {
            Named::Sandbox(other) => (other, self.disk(tenant_id, other)?),
            Named::Snapshot(snapshot) => {
                let row = found(snapshot, self.shared.store.snapshot_get(tenant_id, snapshot).await)?;
                (row.snapshot.sandbox_id, DiskOf::Checkpoint(snapshot))
            }
        };
        if relative != id && self.root(tenant_id, relative).await? != self.root(tenant_id, id).await? {
            return Err(Error::invalid(format!(
                "against must be a relative of sandbox {id}, and {relative} is none: neither came of the other, nor both of a third"
            )));
        }
        let diff = answered(id, self.shared.node.disk_diff(disk, other, limit).await)?;
        let against = match against {
            Named::Sandbox(sandbox) => sandbox.to_string(),
            Named::Snapshot(snapshot) => snapshot.to_string(),
        };
        Ok(SandboxDiff { sandbox_id: id, against, items: diff.items, truncated: diff.truncated })
    }
}

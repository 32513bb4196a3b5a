//! Hibernating and resuming sandboxes. On the way there a sandbox is wanted paused and seen running; on the
//! way back it is wanted running and seen paused. The end of its window is kept until it is paused, so that
//! what is undone never was without one.

use jiff::Timestamp;
use nullspace_types::event::LifecycleEvent;
use nullspace_types::id::{IncarnationId, SandboxId, SnapshotId};

use super::sandbox::finish;
use super::sandbox_row::columns;
use super::{Engine, snapshot};
use crate::sandbox::Change;
use crate::snapshot::{NewSnapshot, SnapshotKind};
use crate::{Error, Result};

impl Engine {
    pub(super) async fn pause_begin_once(
        &self,
        id: SandboxId,
        snapshot: SnapshotId,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        let mut transaction = self.begin().await?;
        let updated = sqlx::query(concat!(
            "UPDATE sandboxes SET desired = 'paused', desired_generation = desired_generation + 1, ",
            "snapshot_id = $2 WHERE id = $1 AND desired = 'running' AND observed_state = 'running' RETURNING ",
            columns!()
        ))
        .bind(id.to_string())
        .bind(snapshot.to_string())
        .fetch_optional(&mut *transaction)
        .await?;
        finish(transaction, updated, id, None, events).await
    }

    pub(super) async fn paused_once(
        &self,
        id: SandboxId,
        snapshot: &NewSnapshot,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        if snapshot.sandbox_id != id || snapshot.kind != SnapshotKind::Hibernation {
            return Err(Error::invalid("a sandbox is paused on a hibernation of its own"));
        }
        let mut transaction = self.begin().await?;
        // A machine that was lost after the capture is as good as one that was ended.
        let updated = sqlx::query(concat!(
            "UPDATE sandboxes SET observed_state = 'paused', timeout_at = NULL, error_message = NULL ",
            "WHERE id = $1 AND tenant_id = $2 AND snapshot_id = $3 ",
            "AND desired = 'paused' AND observed_state <> 'paused' RETURNING ",
            columns!()
        ))
        .bind(id.to_string())
        .bind(snapshot.tenant_id.to_string())
        .bind(snapshot.id.to_string())
        .fetch_optional(&mut *transaction)
        .await?;
        if updated.is_some() {
            snapshot::forget_hibernation(&mut transaction, id).await?;
            snapshot::insert(&mut transaction, snapshot, true).await?;
        }
        finish(transaction, updated, id, None, events).await
    }

    pub(super) async fn pause_undo_once(
        &self,
        id: SandboxId,
        timeout_at: Timestamp,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        let mut transaction = self.begin().await?;
        // What it was last resumed from is its hibernation before, if that was not deleted.
        let updated = sqlx::query(concat!(
            "UPDATE sandboxes SET desired = 'running', desired_generation = desired_generation + 1, ",
            "timeout_at = $2, snapshot_id = ",
            "(SELECT s.id FROM snapshots s WHERE s.sandbox_id = $1 AND s.kind = 'hibernation') ",
            "WHERE id = $1 AND desired = 'paused' AND observed_state <> 'paused' RETURNING ",
            columns!()
        ))
        .bind(id.to_string())
        .bind(timeout_at.as_microsecond())
        .fetch_optional(&mut *transaction)
        .await?;
        finish(transaction, updated, id, None, events).await
    }

    pub(super) async fn resume_begin_once(
        &self,
        id: SandboxId,
        incarnation: IncarnationId,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        let mut transaction = self.begin().await?;
        let updated = sqlx::query(concat!(
            "UPDATE sandboxes SET desired = 'running', desired_generation = desired_generation + 1, ",
            "incarnation = $2, observed_generation = 0 ",
            "WHERE id = $1 AND desired = 'paused' AND observed_state = 'paused' RETURNING ",
            columns!()
        ))
        .bind(id.to_string())
        .bind(incarnation.to_string())
        .fetch_optional(&mut *transaction)
        .await?;
        finish(transaction, updated, id, None, events).await
    }

    pub(super) async fn resume_undo_once(&self, id: SandboxId, events: &[LifecycleEvent]) -> Result<Change> {
        let mut transaction = self.begin().await?;
        let updated = sqlx::query(concat!(
            "UPDATE sandboxes SET desired = 'paused', desired_generation = desired_generation + 1 ",
            "WHERE id = $1 AND desired = 'running' AND observed_state = 'paused' RETURNING ",
            columns!()
        ))
        .bind(id.to_string())
        .fetch_optional(&mut *transaction)
        .await?;
        finish(transaction, updated, id, None, events).await
    }
}

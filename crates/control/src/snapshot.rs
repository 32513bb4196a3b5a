//! What can be done with snapshots, and with the sandboxes that pause on them. A snapshot's row is control's,
//! its files are the node's: a row is written before the capture and made ready after it, and removed before
//! the files are, so that none is listed that cannot be used.

use std::sync::Arc;
use std::time::Duration;

use nullspace_domain::lifecycle::State;
use nullspace_domain::sandbox::key_reused;
use nullspace_domain::snapshot::{Named, named, snapshot_not_found, validate_list};
use nullspace_node_api::{Checkpoint, CheckpointMode};
use nullspace_store::event::EventFilter;
use nullspace_store::idempotency::Idempotency;
use nullspace_store::snapshot::{
    NewSnapshot, SnapshotFilter, SnapshotInsertion, SnapshotKind, SnapshotRemoval,
};
use nullspace_types::event::{ActorKind, EventStatus, LifecycleEvent, Operation};
use nullspace_types::id::{SandboxId, SnapshotId, TenantId};
use nullspace_types::sandbox::Sandbox;
use nullspace_types::snapshot::{Snapshot, SnapshotListQuery};
use nullspace_types::{Code, Error, Result};
use tokio::time::{sleep, timeout};

use crate::Control;
use crate::access::{answered, ask, awake, in_progress, stopping, within};
use crate::clock::as_stored;
use crate::keys::Begun;
use crate::log::event_now;
use crate::metrics::{SNAPSHOT_CREATE, timed};
use crate::registry::Message;
use crate::sandbox::request_hash;
use crate::shared::Shared;
use crate::underway::Underway;

const UNFINISHED: &str = "the snapshot is still being worked on";
/// How long a delete waits for the files to go.
const DELETE_WAIT: Duration = Duration::from_secs(20);
/// Between two attempts to take back a snapshot that could not be captured.
const ABANDON_PAUSE: Duration = Duration::from_secs(10);

/// A snapshot as its users see it.
pub(crate) fn shown(row: NewSnapshot) -> Snapshot {
    Snapshot {
        id: row.id,
        sandbox_id: row.sandbox_id,
        size_bytes: row.size_bytes,
        created_at: row.created_at,
        metadata: row.metadata,
    }
}

/// The event of a snapshot that somebody asked for.
fn event(shared: &Shared, snapshot: &NewSnapshot, failure: Option<&Error>) -> LifecycleEvent {
    let status = match failure {
        None => EventStatus::Succeeded,
        Some(_) => EventStatus::Failed,
    };
    let mut event = event_now(shared.clock.now(), Operation::SnapshotCreated, status, ActorKind::User);
    event.sandbox_id = Some(snapshot.sandbox_id);
    event.snapshot_id = Some(snapshot.id);
    event.reason = Some("api".to_owned());
    event.error_code = failure.map(|error| error.code.to_string());
    event.error_message = failure.map(|error| error.message.clone());
    event.metadata.insert("created_via".to_owned(), "api".into());
    event
}

/// Writes that a snapshot is captured.
pub(crate) async fn make_ready(
    shared: &Shared,
    snapshot: &NewSnapshot,
    checkpoint: &Checkpoint,
) -> Result<Snapshot> {
    let (size_bytes, created_at) = (checkpoint.size_bytes, as_stored(checkpoint.created_at));
    let events = [event(shared, snapshot, None)];
    shared.store.snapshot_ready(snapshot.id, size_bytes, created_at, &events).await?;
    shared.events_written();
    Ok(shown(NewSnapshot { size_bytes, created_at, ..snapshot.clone() }))
}

/// Takes back a snapshot that could not be captured; its key may be used again.
pub(crate) async fn abandon(shared: &Shared, snapshot: &NewSnapshot, why: &Error) -> Result<()> {
    let events = [event(shared, snapshot, Some(why))];
    shared.store.snapshot_abandon(snapshot.id, &events).await?;
    shared.events_written();
    Ok(())
}

/// Takes it back in a task of its own, until that is written or the server stops; then the next one does it.
fn abandon_later(shared: &Arc<Shared>, snapshot: NewSnapshot, why: Error) {
    let own = shared.clone();
    shared.tasks.spawn(async move {
        while let Err(error) = abandon(&own, &snapshot, &why).await {
            tracing::warn!(snapshot = %snapshot.id, %error, context = error.context, "a failed snapshot could not be taken back; trying again");
            tokio::select! {
                () = own.stop.cancelled() => return,
                () = sleep(ABANDON_PAUSE) => {}
            }
        }
    });
}

async fn take(shared: Arc<Shared>, snapshot: NewSnapshot, key: Option<Idempotency>) -> Result<Snapshot> {
    match shared.store.snapshot_insert(&snapshot, key.as_ref()).await? {
        SnapshotInsertion::Inserted => {}
        SnapshotInsertion::Existing(row) if row.ready => return Ok(shown(row.snapshot)),
        SnapshotInsertion::Existing(_) => return Err(in_progress(UNFINISHED)),
        SnapshotInsertion::KeyReused => return Err(key_reused()),
    }
    let (id, sandbox) = (snapshot.id, snapshot.sandbox_id);
    let captured = shared.node.checkpoint_create(sandbox, id, CheckpointMode::Keep).await;
    let taken = match answered(sandbox, captured) {
        Ok(checkpoint) => make_ready(&shared, &snapshot, &checkpoint).await,
        Err(error) => Err(error),
    };
    if let Err(error) = &taken {
        tracing::warn!(%sandbox, snapshot = %id, %error, context = error.context, "a snapshot was not taken");
        shared.drop_checkpoint(id);
        if abandon(&shared, &snapshot, error).await.is_err() {
            abandon_later(&shared, snapshot, error.clone());
        }
    }
    taken
}

/// A missing snapshot by its own code.
pub(crate) fn found<T>(id: SnapshotId, answer: nullspace_store::Result<T>) -> Result<T> {
    answer.map_err(|error| match error {
        nullspace_store::Error::NotFound(_) => snapshot_not_found(id),
        error => error.into(),
    })
}

impl Control {
    /// How long a caller waits for a long operation, which then goes on without one.
    pub(crate) fn limit(&self) -> Duration {
        // What follows a failed making takes some time too.
        Duration::from_secs(u64::from(self.shared.limits.create_secs_max)) + Duration::from_secs(15)
    }

    /// Freezes a running sandbox to the disk and ends its machine. One that is paused already is answered
    /// with its snapshot.
    pub async fn sandbox_hibernate(&self, tenant_id: TenantId, id: SandboxId) -> Result<Snapshot> {
        let mut entry = self.living(tenant_id, id)?;
        let paused = async {
            let settled = |view: &crate::record::View| !matches!(view.record.state, State::Resuming { .. });
            entry.view.wait_for(settled).await.map_err(|_| stopping())?;
            ask(&self.shared, &entry, |done| Message::Hibernate { done }).await
        };
        let snapshot = within(self.limit(), "the sandbox is still being hibernated", paused).await?;
        match self.shared.store.snapshot_get(tenant_id, snapshot).await {
            Ok(row) => Ok(shown(row.snapshot)),
            Err(nullspace_store::Error::NotFound(_)) => {
                Err(in_progress("the sandbox is paused, but its snapshot is not written yet"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Lets a paused sandbox go on, named by its own ID or by that of the snapshot that it is paused on. One
    /// that runs is answered as it is.
    pub async fn sandbox_resume(&self, tenant_id: TenantId, id: String) -> Result<Sandbox> {
        let sandbox = match named("id", &id)? {
            Named::Sandbox(sandbox) => sandbox,
            Named::Snapshot(snapshot) => self.paused_on(tenant_id, snapshot).await?,
        };
        let entry = self.living(tenant_id, sandbox)?;
        let resumed = ask(&self.shared, &entry, |done| Message::Resume { done });
        Ok(within(self.limit(), "the sandbox is still being resumed", resumed).await?.shown())
    }

    /// The sandbox that a hibernation's snapshot is of.
    async fn paused_on(&self, tenant_id: TenantId, snapshot: SnapshotId) -> Result<SandboxId> {
        let row = match found(snapshot, self.shared.store.snapshot_get(tenant_id, snapshot).await) {
            Ok(row) => row,
            Err(error) if error.code == Code::SnapshotNotFound => {
                // It went with its sandbox, if that is gone: the log still knows whose it was.
                let filter = EventFilter { snapshot_id: Some(snapshot), limit: 1, ..EventFilter::default() };
                let events = self.shared.store.event_list(tenant_id, &filter).await?;
                if let Some(sandbox) = events.first().and_then(|row| row.event.sandbox_id) {
                    self.living(tenant_id, sandbox)?;
                }
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        match row.snapshot.kind {
            SnapshotKind::Hibernation => Ok(row.snapshot.sandbox_id),
            SnapshotKind::Manual => Err(Error::invalid(format!(
                "no sandbox is paused on snapshot {snapshot}, so none can be resumed"
            ))
            .suggest("create a sandbox from it, with snapshot_id")),
        }
    }

    /// Takes a snapshot of a running sandbox, which goes on. Once begun it goes on to its end whether or not
    /// the caller waits; a key makes at most one, and a snapshot that fails frees it.
    pub async fn snapshot_create(
        &self,
        tenant_id: TenantId,
        idempotency_key: Option<String>,
        id: SandboxId,
    ) -> Result<Snapshot> {
        let shared = &self.shared;
        let request_hash = request_hash(&id)?;
        let key = idempotency_key.map(|key| (tenant_id, key));
        if let Some(key) = &key
            && let Some(before) = shared.snapshots.find(key, request_hash)?
        {
            return before.outcome(self.limit(), UNFINISHED).await;
        }
        let record = awake(shared, tenant_id, id).await?;
        let begin = |key: Option<(TenantId, String)>| {
            let (own, snapshot_id) = (shared.clone(), SnapshotId::new());
            let snapshot = record.new_snapshot(snapshot_id, SnapshotKind::Manual, shared.clock.now());
            let work = async move {
                let idempotency = key.as_ref().map(|(_, key)| Idempotency {
                    operation: "snapshot_create",
                    key: key.clone(),
                    request_hash,
                });
                let taken = timed(SNAPSHOT_CREATE, take(own.clone(), snapshot, idempotency)).await;
                if let (Err(_), Some(key)) = (&taken, &key) {
                    own.snapshots.forget(key, |other| other.id == snapshot_id);
                }
                taken
            };
            Underway::begin(shared, snapshot_id, work)
        };
        let taken = match key {
            None => begin(None),
            Some(key) => match shared.snapshots.begin(&key, request_hash, || begin(Some(key.clone())))? {
                Begun::Now(taken) | Begun::Before(taken) => taken,
            },
        };
        taken.outcome(self.limit(), UNFINISHED).await
    }

    /// Snapshots, newest first.
    pub async fn snapshot_list(
        &self,
        tenant_id: TenantId,
        query: SnapshotListQuery,
    ) -> Result<Vec<Snapshot>> {
        let spec = validate_list(&query)?;
        let filter = SnapshotFilter { sandbox_id: spec.sandbox_id, metadata: spec.metadata };
        let rows = self.shared.store.snapshot_list(tenant_id, &filter).await?;
        Ok(rows.into_iter().map(|row| shown(row.snapshot)).collect())
    }

    /// One snapshot.
    pub async fn snapshot_get(&self, tenant_id: TenantId, id: SnapshotId) -> Result<Snapshot> {
        let row = found(id, self.shared.store.snapshot_get(tenant_id, id).await)?;
        Ok(shown(row.snapshot))
    }

    /// Removes a snapshot that no paused sandbox needs. Sandboxes that began from it do not need it.
    pub async fn snapshot_delete(&self, tenant_id: TenantId, id: SnapshotId) -> Result<()> {
        match found(id, self.shared.store.snapshot_remove(tenant_id, id).await)? {
            SnapshotRemoval::Removed => {}
            SnapshotRemoval::InUse => {
                let row = found(id, self.shared.store.snapshot_get(tenant_id, id).await)?;
                let message = format!("sandbox {} is paused on snapshot {id}", row.snapshot.sandbox_id);
                return Err(
                    Error::new(Code::SnapshotInUse, message).suggest("resume or destroy that sandbox first")
                );
            }
        }
        // It is gone for its users; its files go with it, or as soon as the node can.
        let _ = timeout(DELETE_WAIT, self.shared.drop_checkpoint(id)).await;
        Ok(())
    }
}

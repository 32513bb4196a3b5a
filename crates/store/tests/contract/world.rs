//! What a case works with: an open store, a database of its own, and rows with as little to say as
//! possible.

use std::sync::Arc;

use jiff::{Timestamp, ToSpan as _};
use nullspace_store::event::{EventCursor, EventRow};
use nullspace_store::idempotency::Idempotency;
use nullspace_store::sandbox::{
    Change, Insertion, NewSandbox, Observation, Observed, ObservedState, SandboxRow,
};
use nullspace_store::snapshot::{NewSnapshot, SnapshotKind};
use nullspace_store::{Store, now, open};
use nullspace_types::event::{ActorKind, Audience, EventStatus, LifecycleEvent, Operation};
use nullspace_types::id::{EventId, IncarnationId, SandboxId, SnapshotId, TenantId};
use nullspace_types::network::NetworkSettings;
use nullspace_types::sandbox::TimeoutAction;
use sqlx::{Connection as _, Executor as _};

pub struct World {
    pub store: Arc<dyn Store>,
    pub url: String,
}

pub fn sqlite_url(directory: &tempfile::TempDir) -> String {
    format!("sqlite://{}/store.db", directory.path().display())
}

impl World {
    pub async fn open(url: String) -> Self {
        Self { store: open(&url).await.unwrap(), url }
    }

    /// Does what no verb of the store would.
    pub async fn raw(&self, sql: &'static str) -> Result<(), nullspace_store::Error> {
        if self.url.starts_with("sqlite") {
            let mut connection = sqlx::SqliteConnection::connect(&self.url).await.unwrap();
            connection.execute(sql).await?;
            connection.close().await.unwrap();
        } else {
            let mut connection = sqlx::PgConnection::connect(&self.url).await.unwrap();
            connection.execute(sql).await?;
            connection.close().await.unwrap();
        }
        Ok(())
    }

    pub async fn tenant(&self, name: &str) -> TenantId {
        self.store.tenant_ensure(name, now()).await.unwrap().id
    }

    /// A sandbox that was asked for, without an event.
    pub async fn asked(&self, tenant: TenantId) -> SandboxRow {
        self.insert(&new(tenant), None, &[]).await
    }

    pub async fn insert(
        &self,
        new: &NewSandbox,
        idempotency: Option<&Idempotency>,
        events: &[LifecycleEvent],
    ) -> SandboxRow {
        match self.store.sandbox_insert(new, idempotency, events).await.unwrap() {
            Insertion::Inserted(row) => *row,
            other => panic!("{other:?}"),
        }
    }

    /// A sandbox whose machine runs with generation 1 until a minute from now.
    pub async fn running(&self, tenant: TenantId) -> SandboxRow {
        let row = self.asked(tenant).await;
        applied(
            self.store
                .sandbox_running(row.id, &seen(&row, ObservedState::Running, 1), in_a_minute(), &[])
                .await,
        )
    }

    /// A sandbox that is hibernated, and the snapshot of that.
    pub async fn paused(&self, tenant: TenantId) -> (SandboxRow, NewSnapshot) {
        let row = self.running(tenant).await;
        self.pause(&row).await
    }

    /// Hibernates one that runs.
    pub async fn pause(&self, row: &SandboxRow) -> (SandboxRow, NewSnapshot) {
        let snapshot = hibernation(row);
        applied(self.store.sandbox_pause_begin(row.id, snapshot.id, &[]).await);
        (applied(self.store.sandbox_paused(row.id, &snapshot, &[]).await), snapshot)
    }

    /// Lets one that is paused run again.
    pub async fn resume(&self, row: &SandboxRow) -> SandboxRow {
        let row = applied(self.store.sandbox_resume_begin(row.id, IncarnationId::new(), &[]).await);
        let running = seen(&row, ObservedState::Running, 0);
        applied(self.store.sandbox_running(row.id, &running, in_a_minute(), &[]).await)
    }

    pub async fn log(&self) -> Vec<EventRow> {
        self.store.events_after(EventCursor::START, 100_000).await.unwrap()
    }
}

pub fn in_a_minute() -> Timestamp {
    now() + 1.minute()
}

pub fn new(tenant_id: TenantId) -> NewSandbox {
    NewSandbox {
        id: SandboxId::new(),
        tenant_id,
        incarnation: IncarnationId::new(),
        template: "base".into(),
        vcpus: 1,
        memory_mb: 256,
        disk_mb: None,
        envs: [].into(),
        metadata: serde_json::Map::new(),
        cwd: None,
        internet_access: true,
        network: NetworkSettings::default(),
        timeout_ms: 60_000,
        timeout_action: TimeoutAction::Destroy,
        auto_resume: false,
        parent_id: None,
        origin_id: None,
        created_at: now(),
    }
}

pub fn snapshot_of(row: &SandboxRow) -> NewSnapshot {
    NewSnapshot {
        id: SnapshotId::new(),
        tenant_id: row.tenant_id,
        sandbox_id: row.id,
        incarnation: row.desired.incarnation,
        kind: SnapshotKind::Manual,
        size_bytes: 0,
        metadata: row.desired.metadata.clone(),
        template: row.desired.template.clone(),
        vcpus: 1,
        memory_mb: 256,
        disk_mb: 2048,
        envs: row.desired.envs.clone(),
        cwd: row.desired.cwd.clone(),
        internet_access: true,
        network: NetworkSettings::default(),
        created_at: now(),
    }
}

pub fn hibernation(row: &SandboxRow) -> NewSnapshot {
    NewSnapshot { kind: SnapshotKind::Hibernation, size_bytes: 4096, ..snapshot_of(row) }
}

pub fn seen(row: &SandboxRow, state: ObservedState, generation: u64) -> Observation {
    let running = state == ObservedState::Running;
    Observation {
        incarnation: row.desired.incarnation,
        observed: Observed {
            state,
            generation,
            disk_mb: running.then_some(2048),
            started_at: running.then(now),
            error_message: (!running).then(|| "the machine went away".into()),
        },
    }
}

pub fn event(operation: Operation, status: EventStatus) -> LifecycleEvent {
    LifecycleEvent {
        id: EventId::new(),
        occurred_at: now(),
        audience: Audience::Customer,
        operation,
        status,
        actor_kind: ActorKind::User,
        sandbox_id: None,
        snapshot_id: None,
        source_sandbox_id: None,
        target_sandbox_id: None,
        user_id: None,
        reason: Some("api".into()),
        error_code: None,
        error_message: None,
        metadata: serde_json::Map::new(),
    }
}

pub fn applied(change: nullspace_store::Result<Change>) -> SandboxRow {
    match change.unwrap() {
        Change::Applied(row) => *row,
        Change::Stale => panic!("stale"),
    }
}

pub fn object(text: &str) -> serde_json::Map<String, serde_json::Value> {
    serde_json::from_str(text).unwrap()
}

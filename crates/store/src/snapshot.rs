//! Snapshots: what is known of the checkpoints that users can name. Their files are the node's.
//!
//! A snapshot is written before it is captured, as not ready; one that never becomes ready is not listed.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::event::LifecycleEvent;
use nullspace_types::id::{IncarnationId, SandboxId, SnapshotId, TenantId};
use nullspace_types::network::NetworkSettings;
use nullspace_types::sandbox::Envs;
use serde_json::{Map, Value};

use crate::Result;
use crate::idempotency::Idempotency;

/// How a snapshot came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SnapshotKind {
    /// Somebody asked for it.
    Manual,
    /// A sandbox was hibernated. It goes with the sandbox, or with its next hibernation.
    Hibernation,
}

impl SnapshotKind {
    /// The word in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Hibernation => "hibernation",
        }
    }
}

/// A snapshot to write.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSnapshot {
    /// Its ID.
    pub id: SnapshotId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// The sandbox that is captured.
    pub sandbox_id: SandboxId,
    /// Which life of it.
    pub incarnation: IncarnationId,
    /// How it came to be.
    pub kind: SnapshotKind,
    /// Bytes on the disk; 0 until it is ready.
    pub size_bytes: u64,
    /// The sandbox's metadata.
    pub metadata: Map<String, Value>,
    /// What a sandbox that begins from it has, too: its template,
    pub template: String,
    /// processors,
    pub vcpus: u32,
    /// memory in MiB,
    pub memory_mb: u32,
    /// root disk in MiB,
    pub disk_mb: u32,
    /// environment,
    pub envs: Envs,
    /// working directory,
    pub cwd: Option<String>,
    /// and whether it reaches the internet.
    pub internet_access: bool,
    /// Its sandbox's network settings.
    pub network: NetworkSettings,
    /// When it was captured.
    pub created_at: Timestamp,
}

/// A snapshot as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotRow {
    /// What it was written with.
    pub snapshot: NewSnapshot,
    /// Whether it is captured.
    pub ready: bool,
}

/// How the insert of a snapshot went.
#[derive(Debug, Clone, PartialEq)]
pub enum SnapshotInsertion {
    /// It is there now, not ready.
    Inserted,
    /// The same request made this one before, ready or not; nothing was written.
    Existing(Box<SnapshotRow>),
    /// The idempotency key was used for another request; nothing was written.
    KeyReused,
}

/// Which snapshots to list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SnapshotFilter {
    /// Only those of this sandbox.
    pub sandbox_id: Option<SandboxId>,
    /// Only those whose metadata has all of these pairs, as for sandboxes.
    pub metadata: Map<String, Value>,
}

/// How the removal of a snapshot went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotRemoval {
    /// It is gone.
    Removed,
    /// A sandbox is paused on it, or on its way there or back.
    InUse,
}

/// Snapshots. Every write is one transaction together with its events.
#[async_trait]
pub trait SnapshotStore: Send + Sync {
    /// Begins a snapshot that somebody asked for, once per idempotency key.
    async fn snapshot_insert(
        &self,
        snapshot: &NewSnapshot,
        idempotency: Option<&Idempotency>,
    ) -> Result<SnapshotInsertion>;

    /// Marks a snapshot as captured; one that is so already stays as it is, without the events.
    /// [`Error::NotFound`](crate::Error::NotFound) if it is not there.
    async fn snapshot_ready(
        &self,
        id: SnapshotId,
        size_bytes: u64,
        created_at: Timestamp,
        events: &[LifecycleEvent],
    ) -> Result<()>;

    /// Removes a snapshot that could not be captured, and frees its idempotency key. Idempotent; one that is
    /// ready stays.
    async fn snapshot_abandon(&self, id: SnapshotId, events: &[LifecycleEvent]) -> Result<()>;

    /// Removes a ready snapshot of the tenant, and the idempotency key that made it. A foreign one is not
    /// found.
    async fn snapshot_remove(&self, tenant: TenantId, id: SnapshotId) -> Result<SnapshotRemoval>;

    /// A ready snapshot of the tenant.
    async fn snapshot_get(&self, tenant: TenantId, id: SnapshotId) -> Result<SnapshotRow>;

    /// The tenant's ready snapshots that pass the filter, newest first, at most 10000.
    async fn snapshot_list(&self, tenant: TenantId, filter: &SnapshotFilter) -> Result<Vec<SnapshotRow>>;

    /// Every snapshot of every tenant, ready or not: what a server that begins again compares with what the
    /// node has. Behind `after`, by ID.
    async fn snapshot_all(&self, after: Option<SnapshotId>, limit: u32) -> Result<Vec<SnapshotRow>>;

    /// How many there are in all.
    async fn snapshot_count(&self) -> Result<u64>;
}

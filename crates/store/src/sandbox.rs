//! Sandboxes: what was asked for, what was seen, and the transactions that change either. The three
//! states have three types and three owners: [`Desired`] is control's, [`Observed`] is the node's news, and
//! what is shown (`SandboxStatus`) is computed from both in `domain`.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::event::LifecycleEvent;
use nullspace_types::id::{IncarnationId, SandboxId, SnapshotId, TenantId};
use nullspace_types::network::NetworkSettings;
use nullspace_types::sandbox::{Envs, TimeoutAction};
use serde_json::{Map, Value};

use crate::Result;
use crate::idempotency::Idempotency;
use crate::snapshot::NewSnapshot;

/// What the user wants of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DesiredState {
    /// That it runs.
    Running,
    /// That it is hibernated.
    Paused,
    /// That it is gone. There is no way back.
    Destroyed,
}

impl DesiredState {
    /// The word in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Destroyed => "destroyed",
        }
    }
}

/// What was seen of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ObservedState {
    /// Nothing yet.
    None,
    /// It runs.
    Running,
    /// It is on the disk, and no machine is there.
    Paused,
    /// It went away by itself.
    Lost,
}

impl ObservedState {
    /// The word in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Lost => "lost",
        }
    }
}

/// What was asked for. Control alone writes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// What the user wants.
    pub state: DesiredState,
    /// Grows by one with every change of this part.
    pub generation: u64,
    /// The life that control asked a node for. News of another life changes nothing.
    pub incarnation: IncarnationId,
    /// The template's name.
    pub template: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Root disk in MiB, if one was asked for.
    pub disk_mb: Option<u32>,
    /// Environment of every process.
    pub envs: Envs,
    /// The user's own data, verbatim.
    pub metadata: Map<String, Value>,
    /// Default working directory.
    pub cwd: Option<String>,
    /// Whether it reaches the internet.
    pub internet_access: bool,
    /// Its network settings.
    pub network: NetworkSettings,
    /// The window in milliseconds.
    pub timeout_ms: u64,
    /// What happens at its end.
    pub timeout_action: TimeoutAction,
    /// Its end; none before the sandbox ran and while it is paused.
    pub timeout_at: Option<Timestamp>,
    /// Whether it wakes by itself when it is used while it is paused.
    pub auto_resume: bool,
    /// The snapshot that it is being hibernated to, is paused on, or was last resumed from.
    pub snapshot_id: Option<SnapshotId>,
    /// The sandbox that it was forked from, or whose snapshot it began from.
    pub parent_id: Option<SandboxId>,
    /// The checkpoint that it began from; all children of one fork have the same.
    pub origin_id: Option<SnapshotId>,
    /// Why it shall be gone.
    pub destroy_reason: Option<String>,
}

/// What a node reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// What was seen.
    pub state: ObservedState,
    /// The machine's generation as of then; 0 before any news.
    pub generation: u64,
    /// The root disk it has, in MiB.
    pub disk_mb: Option<u32>,
    /// When it began to run.
    pub started_at: Option<Timestamp>,
    /// What went wrong, for people.
    pub error_message: Option<String>,
}

/// A sandbox as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxRow {
    /// Its ID. IDs sort by creation.
    pub id: SandboxId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When the last of it was gone.
    pub destroyed_at: Option<Timestamp>,
    /// What was asked for.
    pub desired: Desired,
    /// What was seen.
    pub observed: Observed,
}

/// A sandbox to begin. It begins as wanted running, with nothing seen.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSandbox {
    /// Its ID.
    pub id: SandboxId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// The first life of its machine.
    pub incarnation: IncarnationId,
    /// The template's name.
    pub template: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Root disk in MiB, if one was asked for.
    pub disk_mb: Option<u32>,
    /// Environment of every process.
    pub envs: Envs,
    /// The user's own data.
    pub metadata: Map<String, Value>,
    /// Default working directory.
    pub cwd: Option<String>,
    /// Whether it reaches the internet.
    pub internet_access: bool,
    /// Its network settings.
    pub network: NetworkSettings,
    /// The window in milliseconds, counted from when it runs.
    pub timeout_ms: u64,
    /// What happens at its end.
    pub timeout_action: TimeoutAction,
    /// See [`Desired::auto_resume`].
    pub auto_resume: bool,
    /// See [`Desired::parent_id`].
    pub parent_id: Option<SandboxId>,
    /// See [`Desired::origin_id`].
    pub origin_id: Option<SnapshotId>,
    /// When it was asked for.
    pub created_at: Timestamp,
}

/// How an insert went.
#[derive(Debug, Clone, PartialEq)]
pub enum Insertion {
    /// It is there now.
    Inserted(Box<SandboxRow>),
    /// The same request made this one before, in whatever state it is now; nothing was written.
    Existing(Box<SandboxRow>),
    /// The idempotency key was used for another request; nothing was written.
    KeyReused,
}

/// How an insert of several went.
#[derive(Debug, Clone, PartialEq)]
pub enum Insertions {
    /// They are there now.
    Inserted,
    /// The same request made these before; nothing was written.
    Existing(Vec<SandboxRow>),
    /// The idempotency key was used for another request; nothing was written.
    KeyReused,
}

/// How a change of an existing row went. A row that is not there is
/// [`Error::NotFound`](crate::Error::NotFound).
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The row as it is now.
    Applied(Box<SandboxRow>),
    /// The row is past that: nothing was written, no event either.
    Stale,
}

/// News of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// Of which life.
    pub incarnation: IncarnationId,
    /// What was seen. `disk_mb` and `started_at` are kept as they were where they are `None` here.
    pub observed: Observed,
}

/// The end of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destruction {
    /// Why; an earlier reason stays.
    pub reason: String,
    /// What went wrong, if that is why; an earlier message stays.
    pub error_message: Option<String>,
    /// Frees the idempotency key that made it, so that the same request may be made again.
    pub free_key: bool,
    /// When.
    pub at: Timestamp,
}

/// A new window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its length in milliseconds.
    pub timeout_ms: u64,
    /// What happens at its end.
    pub timeout_action: TimeoutAction,
    /// Its end.
    pub timeout_at: Timestamp,
}

/// One of the states to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateFilter {
    /// What is wanted.
    pub desired: DesiredState,
    /// What was seen; anything when absent.
    pub observed: Option<ObservedState>,
}

/// Which sandboxes to list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SandboxFilter {
    /// Only those in any of these states: every state when absent, none at all when empty.
    pub states: Option<Vec<StateFilter>>,
    /// Only those of this template.
    pub template: Option<String>,
    /// Only those whose metadata has every one of these pairs, each value equal as JSON: the order of an
    /// object's members does not matter, the order of an array does, and `1` equals `1.0`.
    pub metadata: Map<String, Value>,
    /// Only those made before this one: the last ID of the page before.
    pub after: Option<SandboxId>,
    /// At most this many.
    pub limit: u32,
}

/// How many sandboxes a tenant has, history aside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SandboxCounts {
    /// Wanted, not seen yet.
    pub creating: u64,
    /// Wanted and running.
    pub running: u64,
    /// Hibernated, or on the way there or back.
    pub paused: u64,
    /// Wanted and lost.
    pub lost: u64,
    /// Not wanted any more, but not gone yet.
    pub destroying: u64,
}

/// Sandboxes. Every write is one transaction together with its events; the tenant and sandbox of an event
/// are the row's own, whatever the event says.
#[async_trait]
pub trait SandboxStore: Send + Sync {
    /// Begins a sandbox, once per idempotency key.
    async fn sandbox_insert(
        &self,
        sandbox: &NewSandbox,
        idempotency: Option<&Idempotency>,
        events: &[LifecycleEvent],
    ) -> Result<Insertion>;

    /// Begins the children of a fork, all or none, once per idempotency key. All have the same tenant and
    /// `origin_id`, by which they are found again when the key comes again. Each event names its own sandbox.
    async fn sandbox_insert_fork(
        &self,
        children: &[NewSandbox],
        idempotency: Option<&Idempotency>,
        events: &[LifecycleEvent],
    ) -> Result<Insertions>;

    /// Marks a running sandbox as being hibernated to a snapshot. Stale if it does not run or is not wanted
    /// running.
    async fn sandbox_pause_begin(
        &self,
        id: SandboxId,
        snapshot: SnapshotId,
        events: &[LifecycleEvent],
    ) -> Result<Change>;

    /// Marks it as paused, with its snapshot, and forgets the snapshot of its hibernation before, if any;
    /// its window has no end from then on. Stale if it is not being hibernated to this one.
    async fn sandbox_paused(
        &self,
        id: SandboxId,
        snapshot: &NewSnapshot,
        events: &[LifecycleEvent],
    ) -> Result<Change>;

    /// Marks a sandbox whose hibernation failed as wanted running again, with the end of its window. Stale
    /// if it is not being hibernated.
    async fn sandbox_pause_undo(
        &self,
        id: SandboxId,
        timeout_at: Timestamp,
        events: &[LifecycleEvent],
    ) -> Result<Change>;

    /// Marks a paused sandbox as wanted running, with a new life whose generation begins at 0. Its end is
    /// written by [`SandboxStore::sandbox_running`]. Stale if it is not paused.
    async fn sandbox_resume_begin(
        &self,
        id: SandboxId,
        incarnation: IncarnationId,
        events: &[LifecycleEvent],
    ) -> Result<Change>;

    /// Marks a sandbox whose resume failed as paused again. Stale if it is not being resumed.
    async fn sandbox_resume_undo(&self, id: SandboxId, events: &[LifecycleEvent]) -> Result<Change>;

    /// The tenant's sandboxes that descend from `root`, and `root` itself, gone ones too, oldest first, at
    /// most `limit`.
    async fn sandbox_descendants(
        &self,
        tenant: TenantId,
        root: SandboxId,
        limit: u32,
    ) -> Result<Vec<SandboxRow>>;

    /// How many sandboxes of every tenant are in each state.
    async fn sandbox_counts_all(&self) -> Result<SandboxCounts>;

    /// Writes what a node reported, if it is of this life, newer than what is known, and the sandbox is
    /// still wanted: once it is not, only its end is news. Of one that is paused only that it runs again is
    /// news, and only while it is being resumed.
    async fn sandbox_observed(
        &self,
        id: SandboxId,
        observation: &Observation,
        events: &[LifecycleEvent],
    ) -> Result<Change>;

    /// The same for a machine that began to run, and with it the end of its window.
    async fn sandbox_running(
        &self,
        id: SandboxId,
        observation: &Observation,
        timeout_at: Timestamp,
        events: &[LifecycleEvent],
    ) -> Result<Change>;

    /// Marks a sandbox as not wanted any more. Stale if it is already: the first reason stays.
    async fn sandbox_destroy_request(
        &self,
        id: SandboxId,
        reason: &str,
        free_key: bool,
        events: &[LifecycleEvent],
    ) -> Result<Change>;

    /// Marks the last of a sandbox as gone, whether or not its end was asked for before, and forgets the
    /// snapshot of its hibernation. Stale if it is gone already.
    async fn sandbox_destroyed(
        &self,
        id: SandboxId,
        destruction: &Destruction,
        events: &[LifecycleEvent],
    ) -> Result<Change>;

    /// Sets the window of a sandbox that runs. Stale if it does not run yet, is lost, or is not wanted any
    /// more. A foreign sandbox is not found.
    async fn sandbox_timeout_set(
        &self,
        tenant: TenantId,
        id: SandboxId,
        window: &Window,
        events: &[LifecycleEvent],
    ) -> Result<Change>;

    /// Changes what a sandbox may reach. [`Change::Stale`] if it is wanted no more.
    async fn sandbox_network_set(
        &self,
        id: SandboxId,
        internet_access: bool,
        network: &NetworkSettings,
    ) -> Result<Change>;

    /// A sandbox of the tenant. A foreign one is [`Error::NotFound`](crate::Error::NotFound) like a
    /// missing one.
    async fn sandbox_get(&self, tenant: TenantId, id: SandboxId) -> Result<SandboxRow>;

    /// The tenant's sandboxes that pass the filter, newest first.
    async fn sandbox_list(&self, tenant: TenantId, filter: &SandboxFilter) -> Result<Vec<SandboxRow>>;

    /// How many the tenant has.
    async fn sandbox_counts(&self, tenant: TenantId) -> Result<SandboxCounts>;

    /// Sandboxes of every tenant that are wanted and whose window is over, longest over first.
    async fn sandbox_expired(&self, now: Timestamp, limit: u32) -> Result<Vec<SandboxRow>>;

    /// When the next window of a wanted sandbox ends, of every tenant.
    async fn sandbox_next_timeout(&self) -> Result<Option<Timestamp>>;

    /// Sandboxes of every tenant that are not gone, oldest first, behind `after`: what a server that
    /// begins again has to look after.
    async fn sandbox_unfinished(&self, after: Option<SandboxId>, limit: u32) -> Result<Vec<SandboxRow>>;
}

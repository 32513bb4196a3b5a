//! What a driver writes of its sandbox: each change with its events, in the order in which they happened.
//! What could not be written waits, and is tried again; nothing that happened later is written before it.
//! The queue is short: a change that can be refused is refused while anything waits.

use std::collections::VecDeque;
use std::time::Duration;

use nullspace_store::sandbox::{Change as Written, Destruction, Observation, Window};
use nullspace_store::snapshot::NewSnapshot;
use nullspace_types::event::LifecycleEvent;
use nullspace_types::id::{IncarnationId, SandboxId, SnapshotId, TenantId};
use nullspace_types::network::NetworkSettings;
use nullspace_types::{Error, Result};
use tokio::time::Instant;

use crate::preview;
use crate::shared::Shared;

/// Between two attempts to write what could not be written: from the first to the second, doubling.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// A change of a sandbox's row.
#[derive(Debug)]
pub(crate) enum Change {
    Running {
        observation: Observation,
        timeout_at: jiff::Timestamp,
    },
    Lost(Observation),
    Window(Window),
    Network {
        internet_access: bool,
        network: NetworkSettings,
    },
    PauseBegun(SnapshotId),
    /// `former` is the checkpoint of the hibernation before, which nothing needs once this is written.
    Paused {
        snapshot: Box<NewSnapshot>,
        former: Option<SnapshotId>,
    },
    PauseUndone {
        timeout_at: jiff::Timestamp,
    },
    ResumeBegun(IncarnationId),
    ResumeUndone,
    DestroyRequested {
        reason: &'static str,
        free_key: bool,
    },
    /// What led into it is taken back, before it is gone.
    AccessEnded {
        at: jiff::Timestamp,
    },
    Destroyed(Destruction),
}

/// A change, and the events that tell of it.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) change: Change,
    pub(crate) events: Vec<LifecycleEvent>,
}

/// The writes of one sandbox.
pub(crate) struct Journal {
    id: SandboxId,
    tenant_id: TenantId,
    waiting: VecDeque<Write>,
    /// When to try again, and how long to wait after that.
    again: Option<(Instant, Duration)>,
}

impl Journal {
    pub(crate) fn new(id: SandboxId, tenant_id: TenantId) -> Self {
        Self { id, tenant_id, waiting: VecDeque::new(), again: None }
    }

    /// Whether everything is written.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// When to call [`Journal::flush`] next.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.again.map(|(time, _)| time)
    }

    /// Writes what cannot be refused: now, or as soon as it can be written.
    pub(crate) async fn push(&mut self, shared: &Shared, writes: Vec<Write>) {
        self.waiting.extend(writes);
        self.flush(shared).await;
    }

    /// Tries to write what waits.
    pub(crate) async fn flush(&mut self, shared: &Shared) {
        if let Err(error) = self.write_waiting(shared).await {
            let pause = self.again.map_or(PAUSES.0, |(_, pause)| (pause * 2).min(PAUSES.1));
            tracing::warn!(sandbox = %self.id, %error, context = error.context, ?pause, "a change could not be written; trying again");
            self.again = Some((Instant::now() + pause, pause));
        }
    }

    /// Writes a change now, behind what waits, or not at all.
    pub(crate) async fn write(&mut self, shared: &Shared, write: &Write) -> Result<()> {
        self.write_waiting(shared).await?;
        self.write_one(shared, write).await
    }

    async fn write_waiting(&mut self, shared: &Shared) -> Result<()> {
        while let Some(write) = self.waiting.front() {
            self.write_one(shared, write).await?;
            self.waiting.pop_front();
        }
        self.again = None;
        Ok(())
    }

    async fn write_one(&self, shared: &Shared, Write { change, events }: &Write) -> Result<()> {
        let (store, id) = (&shared.store, self.id);
        let written = match change {
            Change::Running { observation, timeout_at } => {
                store.sandbox_running(id, observation, *timeout_at, events).await
            }
            Change::Lost(observation) => store.sandbox_observed(id, observation, events).await,
            Change::Window(window) => store.sandbox_timeout_set(self.tenant_id, id, window, events).await,
            Change::Network { internet_access, network } => {
                store.sandbox_network_set(id, *internet_access, network).await
            }
            Change::PauseBegun(snapshot) => store.sandbox_pause_begin(id, *snapshot, events).await,
            Change::Paused { snapshot, .. } => store.sandbox_paused(id, snapshot, events).await,
            Change::PauseUndone { timeout_at } => store.sandbox_pause_undo(id, *timeout_at, events).await,
            Change::ResumeBegun(incarnation) => store.sandbox_resume_begin(id, *incarnation, events).await,
            Change::ResumeUndone => store.sandbox_resume_undo(id, events).await,
            Change::DestroyRequested { reason, free_key } => {
                store.sandbox_destroy_request(id, reason, *free_key, events).await
            }
            Change::AccessEnded { at } => {
                preview::release(shared, id).await?;
                return store.grants_disable(id, *at).await.map_err(Error::from);
            }
            Change::Destroyed(destruction) => store.sandbox_destroyed(id, destruction, events).await,
        };
        match written.map_err(Error::from)? {
            Written::Applied(_) => shared.events_written(),
            // Only the driver writes the row, so this is a fault of ours or an operator at the database.
            Written::Stale => {
                tracing::error!(sandbox = %id, ?change, "the stored sandbox is past this change")
            }
        }
        if let Change::Paused { former: Some(former), .. } = change {
            shared.drop_checkpoint(*former);
        }
        Ok(())
    }
}

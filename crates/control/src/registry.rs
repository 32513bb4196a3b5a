//! The living sandboxes: for each, who owns it, what it is, and where its driver takes messages. Only
//! drivers change what is seen here, right after they wrote it to the store, and control owns all writes
//! of sandboxes; so what is seen here is true, and a command costs no read of the database.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use nullspace_domain::sandbox::TimeoutSpec;
use nullspace_node_api::Machine;
use nullspace_types::id::{SandboxId, SnapshotId, TenantId};
use nullspace_types::sandbox::SandboxTimeout;
use nullspace_types::{Error, Result};
use tokio::sync::{mpsc, oneshot, watch};

use crate::record::{Record, View};

/// Messages that wait for a driver. More senders wait in line.
pub(crate) const MAILBOX: usize = 32;

/// What a driver is asked or told.
#[derive(Debug)]
pub(crate) enum Message {
    /// End the sandbox. Answered when that is decided, not when it is done.
    Destroy { decided: oneshot::Sender<Result<()>> },
    /// Set its window anew.
    SetTimeout { spec: TimeoutSpec, done: oneshot::Sender<Result<SandboxTimeout>> },
    /// Hibernate it. Answered with its snapshot once it is paused, by whomever it was asked for.
    Hibernate { done: oneshot::Sender<Result<SnapshotId>> },
    /// Let it go on. Answered once it runs.
    Resume { done: oneshot::Sender<Result<Arc<Record>>> },
    /// The node lost the machine.
    Lost { machine: Machine, reason: String },
}

/// A living sandbox, seen from outside its driver.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) tenant_id: TenantId,
    pub(crate) mailbox: mpsc::Sender<Message>,
    pub(crate) view: watch::Receiver<View>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    entries: RwLock<HashMap<SandboxId, Entry>>,
}

// A poisoned lock means that a thread panicked while it held it; no code under these locks can leave the
// map half-changed, so going on is safe.
impl Registry {
    pub(crate) fn insert(&self, id: SandboxId, entry: Entry) {
        self.entries.write().unwrap_or_else(std::sync::PoisonError::into_inner).insert(id, entry);
    }

    pub(crate) fn remove(&self, id: SandboxId) {
        self.entries.write().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&id);
    }

    pub(crate) fn get(&self, id: SandboxId) -> Option<Entry> {
        self.entries.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(&id).cloned()
    }

    /// A tenant's sandbox. A foreign one is answered like a missing one.
    pub(crate) fn of_tenant(&self, tenant_id: TenantId, id: SandboxId) -> Result<Entry> {
        self.get(id).filter(|entry| entry.tenant_id == tenant_id).ok_or_else(|| Error::sandbox_not_found(id))
    }
}

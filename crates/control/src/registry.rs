//! The living sandboxes: for each, who owns it, what it is, and where its driver takes messages. Only
//! drivers change what is seen here, right after they wrote it to the store, and control owns all writes
//! of sandboxes; so what is seen here is true, and a command costs no read of the database.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use nullspace_domain::sandbox::TimeoutSpec;
use nullspace_node_api::Machine;
use nullspace_types::id::{SandboxId, SnapshotId, TenantId};
use nullspace_types::network::SandboxNetwork;
use nullspace_types::sandbox::SandboxTimeout;
use nullspace_types::{Error, Result};
use serde_json::{Map, Value};
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
    /// Change its network settings. Answered once they are in force.
    SetNetwork { change: Map<String, Value>, done: oneshot::Sender<Result<SandboxNetwork>> },
    /// A secret that its network settings name came or went.
    RenewNetwork,
    /// The node lost the machine.
    Lost { machine: Machine, reason: String },
}

/// A living sandbox, seen from outside its driver.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) tenant_id: TenantId,
    /// What preview hosts call it.
    pub(crate) label: Arc<str>,
    pub(crate) mailbox: mpsc::Sender<Message>,
    pub(crate) view: watch::Receiver<View>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<SandboxId, Entry>,
    labels: HashMap<Arc<str>, SandboxId>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    table: RwLock<Table>,
}

// A poisoned lock means that a thread panicked while it held it; no code under these locks can leave the
// map half-changed, so going on is safe.
impl Registry {
    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, id: SandboxId, entry: Entry) {
        let mut table = self.write();
        table.labels.insert(entry.label.clone(), id);
        table.entries.insert(id, entry);
    }

    pub(crate) fn remove(&self, id: SandboxId) {
        let mut table = self.write();
        if let Some(entry) = table.entries.remove(&id) {
            table.labels.remove(&entry.label);
        }
    }

    pub(crate) fn get(&self, id: SandboxId) -> Option<Entry> {
        self.read().entries.get(&id).cloned()
    }

    /// Which sandbox preview hosts call so.
    pub(crate) fn labelled(&self, label: &str) -> Option<SandboxId> {
        self.read().labels.get(label).copied()
    }

    pub(crate) fn all_of_tenant(&self, tenant_id: TenantId) -> Vec<Entry> {
        self.read().entries.values().filter(|entry| entry.tenant_id == tenant_id).cloned().collect()
    }

    /// A tenant's sandbox. A foreign one is answered like a missing one.
    pub(crate) fn of_tenant(&self, tenant_id: TenantId, id: SandboxId) -> Result<Entry> {
        self.get(id).filter(|entry| entry.tenant_id == tenant_id).ok_or_else(|| Error::sandbox_not_found(id))
    }
}

//! A store whose disk can be full on demand: then every write of a sandbox fails, and reads go on. It
//! stands in for a file system of its own, which a test cannot have without being root.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_store::event::{EventCursor, EventFilter, EventRow};
use nullspace_store::idempotency::Idempotency;
use nullspace_store::key::{KeyRow, NewKey, TenantRow};
use nullspace_store::sandbox::{
    Change, Destruction, Insertion, NewSandbox, Observation, SandboxCounts, SandboxFilter, SandboxRow, Window,
};
use nullspace_store::{
    Error, EventStore, IdempotencyStore, KeyStore, Result, SandboxStore, SecretStore, Store,
};
use nullspace_types::event::LifecycleEvent;
use nullspace_types::id::{EventId, KeyId, SandboxId, TenantId};
use nullspace_types::key::Key;

/// A store on a disk that can be full.
pub struct FullStore {
    inner: Arc<dyn Store>,
    full: AtomicBool,
}

impl FullStore {
    /// Over a store with room.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, full: AtomicBool::new(false) }
    }

    /// Whether the disk is full from now on.
    pub fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    fn room(&self) -> Result<()> {
        match self.full.load(Ordering::SeqCst) {
            true => Err(Error::Full("no space left on device".into())),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl SandboxStore for FullStore {
    async fn sandbox_insert(
        &self,
        sandbox: &NewSandbox,
        idempotency: Option<&Idempotency>,
        events: &[LifecycleEvent],
    ) -> Result<Insertion> {
        self.room()?;
        self.inner.sandbox_insert(sandbox, idempotency, events).await
    }

    async fn sandbox_observed(
        &self,
        id: SandboxId,
        observation: &Observation,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        self.room()?;
        self.inner.sandbox_observed(id, observation, events).await
    }

    async fn sandbox_running(
        &self,
        id: SandboxId,
        observation: &Observation,
        timeout_at: Timestamp,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        self.room()?;
        self.inner.sandbox_running(id, observation, timeout_at, events).await
    }

    async fn sandbox_destroy_request(
        &self,
        id: SandboxId,
        reason: &str,
        free_key: bool,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        self.room()?;
        self.inner.sandbox_destroy_request(id, reason, free_key, events).await
    }

    async fn sandbox_destroyed(
        &self,
        id: SandboxId,
        destruction: &Destruction,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        self.room()?;
        self.inner.sandbox_destroyed(id, destruction, events).await
    }

    async fn sandbox_timeout_set(
        &self,
        tenant: TenantId,
        id: SandboxId,
        window: &Window,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        self.room()?;
        self.inner.sandbox_timeout_set(tenant, id, window, events).await
    }

    async fn sandbox_get(&self, tenant: TenantId, id: SandboxId) -> Result<SandboxRow> {
        self.inner.sandbox_get(tenant, id).await
    }

    async fn sandbox_list(&self, tenant: TenantId, filter: &SandboxFilter) -> Result<Vec<SandboxRow>> {
        self.inner.sandbox_list(tenant, filter).await
    }

    async fn sandbox_counts(&self, tenant: TenantId) -> Result<SandboxCounts> {
        self.inner.sandbox_counts(tenant).await
    }

    async fn sandbox_expired(&self, now: Timestamp, limit: u32) -> Result<Vec<SandboxRow>> {
        self.inner.sandbox_expired(now, limit).await
    }

    async fn sandbox_next_timeout(&self) -> Result<Option<Timestamp>> {
        self.inner.sandbox_next_timeout().await
    }

    async fn sandbox_unfinished(&self, after: Option<SandboxId>, limit: u32) -> Result<Vec<SandboxRow>> {
        self.inner.sandbox_unfinished(after, limit).await
    }
}

#[async_trait]
impl KeyStore for FullStore {
    async fn tenant_ensure(&self, name: &str, now: Timestamp) -> Result<TenantRow> {
        self.inner.tenant_ensure(name, now).await
    }

    async fn tenant_find(&self, name: &str) -> Result<Option<TenantRow>> {
        self.inner.tenant_find(name).await
    }

    async fn key_insert(&self, key: &NewKey) -> Result<Key> {
        self.inner.key_insert(key).await
    }

    async fn key_find(&self, secret_hash: &[u8; 32]) -> Result<Option<KeyRow>> {
        self.inner.key_find(secret_hash).await
    }

    async fn key_get(&self, id: KeyId) -> Result<Option<Key>> {
        self.inner.key_get(id).await
    }

    async fn key_list(&self, tenant: Option<TenantId>) -> Result<Vec<Key>> {
        self.inner.key_list(tenant).await
    }

    async fn key_revoke(&self, id: KeyId, now: Timestamp) -> Result<Key> {
        self.inner.key_revoke(id, now).await
    }
}

#[async_trait]
impl EventStore for FullStore {
    async fn events_after(&self, cursor: EventCursor, limit: u32) -> Result<Vec<EventRow>> {
        self.inner.events_after(cursor, limit).await
    }

    async fn event_list(&self, tenant: TenantId, filter: &EventFilter) -> Result<Vec<EventRow>> {
        self.inner.event_list(tenant, filter).await
    }

    async fn event_cursor(&self, tenant: TenantId, id: EventId) -> Result<Option<EventCursor>> {
        self.inner.event_cursor(tenant, id).await
    }

    async fn event_cursor_latest(&self) -> Result<EventCursor> {
        self.inner.event_cursor_latest().await
    }
}

#[async_trait]
impl IdempotencyStore for FullStore {
    async fn idempotency_prune(&self, before: Timestamp) -> Result<u64> {
        self.inner.idempotency_prune(before).await
    }
}

#[async_trait]
impl SecretStore for FullStore {
    async fn secret_ensure(&self, name: &str, candidate: &[u8; 32]) -> Result<[u8; 32]> {
        self.inner.secret_ensure(name, candidate).await
    }
}

#[async_trait]
impl Store for FullStore {
    async fn ping(&self) -> Result<()> {
        self.inner.ping().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

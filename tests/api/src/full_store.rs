//! A store whose disk can be full on demand: then every write of a sandbox, a snapshot, a
//! webhook, a grant or a secret fails, and reads go on. It
//! stands in for a file system of its own, which a test cannot have without being root.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_store::event::{EventCursor, EventFilter, EventRow};
use nullspace_store::idempotency::Idempotency;
use nullspace_store::key::{KeyRow, NewKey, TenantRow};
use nullspace_store::preview::{GrantRow, GrantUse, LocalPort, NewGrant};
use nullspace_store::sandbox::{
    Change, Destruction, Insertion, Insertions, NewSandbox, Observation, SandboxCounts, SandboxFilter,
    SandboxRow, Window,
};
use nullspace_store::snapshot::{
    NewSnapshot, SnapshotFilter, SnapshotInsertion, SnapshotRemoval, SnapshotRow,
};
use nullspace_store::webhook::{DueDelivery, NewWebhook, WebhookChange};
use nullspace_store::{
    DenialStore, Error, EventStore, IdempotencyStore, KeyStore, PreviewStore, Result, SandboxStore,
    SecretStore, SnapshotStore, Store, VaultStore, WebhookStore,
};
use nullspace_types::event::LifecycleEvent;
use nullspace_types::id::{
    DeliveryId, EventId, IncarnationId, KeyId, PreviewGrantId, SandboxId, SnapshotId, TenantId, WebhookId,
};
use nullspace_types::key::Key;
use nullspace_types::network::{Denial, NetworkSettings};
use nullspace_types::vault::StoredSecret;
use nullspace_types::webhook::{Webhook, WebhookAttempt, WebhookDelivery, WebhookDeliveryDetail};

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

    async fn sandbox_insert_fork(
        &self,
        children: &[NewSandbox],
        idempotency: Option<&Idempotency>,
        events: &[LifecycleEvent],
    ) -> Result<Insertions> {
        self.room()?;
        self.inner.sandbox_insert_fork(children, idempotency, events).await
    }

    async fn sandbox_pause_begin(
        &self,
        id: SandboxId,
        snapshot: SnapshotId,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        self.room()?;
        self.inner.sandbox_pause_begin(id, snapshot, events).await
    }

    async fn sandbox_paused(
        &self,
        id: SandboxId,
        snapshot: &NewSnapshot,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        self.room()?;
        self.inner.sandbox_paused(id, snapshot, events).await
    }

    async fn sandbox_pause_undo(
        &self,
        id: SandboxId,
        timeout_at: Timestamp,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        self.room()?;
        self.inner.sandbox_pause_undo(id, timeout_at, events).await
    }

    async fn sandbox_resume_begin(
        &self,
        id: SandboxId,
        incarnation: IncarnationId,
        events: &[LifecycleEvent],
    ) -> Result<Change> {
        self.room()?;
        self.inner.sandbox_resume_begin(id, incarnation, events).await
    }

    async fn sandbox_resume_undo(&self, id: SandboxId, events: &[LifecycleEvent]) -> Result<Change> {
        self.room()?;
        self.inner.sandbox_resume_undo(id, events).await
    }

    async fn sandbox_descendants(
        &self,
        tenant: TenantId,
        root: SandboxId,
        limit: u32,
    ) -> Result<Vec<SandboxRow>> {
        self.inner.sandbox_descendants(tenant, root, limit).await
    }

    async fn sandbox_network_set(
        &self,
        id: SandboxId,
        internet_access: bool,
        network: &NetworkSettings,
    ) -> Result<Change> {
        self.room()?;
        self.inner.sandbox_network_set(id, internet_access, network).await
    }

    async fn sandbox_counts_all(&self) -> Result<SandboxCounts> {
        self.inner.sandbox_counts_all().await
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
impl SnapshotStore for FullStore {
    async fn snapshot_insert(
        &self,
        snapshot: &NewSnapshot,
        idempotency: Option<&Idempotency>,
    ) -> Result<SnapshotInsertion> {
        self.room()?;
        self.inner.snapshot_insert(snapshot, idempotency).await
    }

    async fn snapshot_ready(
        &self,
        id: SnapshotId,
        size_bytes: u64,
        created_at: Timestamp,
        events: &[LifecycleEvent],
    ) -> Result<()> {
        self.room()?;
        self.inner.snapshot_ready(id, size_bytes, created_at, events).await
    }

    async fn snapshot_abandon(&self, id: SnapshotId, events: &[LifecycleEvent]) -> Result<()> {
        self.room()?;
        self.inner.snapshot_abandon(id, events).await
    }

    async fn snapshot_remove(&self, tenant: TenantId, id: SnapshotId) -> Result<SnapshotRemoval> {
        self.room()?;
        self.inner.snapshot_remove(tenant, id).await
    }

    async fn snapshot_get(&self, tenant: TenantId, id: SnapshotId) -> Result<SnapshotRow> {
        self.inner.snapshot_get(tenant, id).await
    }

    async fn snapshot_list(&self, tenant: TenantId, filter: &SnapshotFilter) -> Result<Vec<SnapshotRow>> {
        self.inner.snapshot_list(tenant, filter).await
    }

    async fn snapshot_all(&self, after: Option<SnapshotId>, limit: u32) -> Result<Vec<SnapshotRow>> {
        self.inner.snapshot_all(after, limit).await
    }

    async fn snapshot_count(&self) -> Result<u64> {
        self.inner.snapshot_count().await
    }
}

#[async_trait]
impl WebhookStore for FullStore {
    async fn webhook_insert(&self, webhook: &NewWebhook) -> Result<Webhook> {
        self.room()?;
        self.inner.webhook_insert(webhook).await
    }

    async fn webhook_list(&self, tenant: TenantId) -> Result<Vec<Webhook>> {
        self.inner.webhook_list(tenant).await
    }

    async fn webhook_get(&self, tenant: TenantId, id: WebhookId) -> Result<Webhook> {
        self.inner.webhook_get(tenant, id).await
    }

    async fn webhook_update(
        &self,
        tenant: TenantId,
        id: WebhookId,
        change: &WebhookChange,
        at: Timestamp,
    ) -> Result<Webhook> {
        self.room()?;
        self.inner.webhook_update(tenant, id, change, at).await
    }

    async fn webhook_delete(&self, tenant: TenantId, id: WebhookId) -> Result<()> {
        self.room()?;
        self.inner.webhook_delete(tenant, id).await
    }

    async fn webhook_fan_out(&self, events: u32, at: Timestamp) -> Result<(u32, u32)> {
        self.room()?;
        self.inner.webhook_fan_out(events, at).await
    }

    async fn webhook_due(&self, now: Timestamp, limit: u32) -> Result<Vec<DueDelivery>> {
        self.inner.webhook_due(now, limit).await
    }

    async fn webhook_next_due(&self) -> Result<Option<Timestamp>> {
        self.inner.webhook_next_due().await
    }

    async fn webhook_attempted(&self, delivery: &WebhookDelivery, attempt: &WebhookAttempt) -> Result<()> {
        self.room()?;
        self.inner.webhook_attempted(delivery, attempt).await
    }

    async fn webhook_redeliver(
        &self,
        tenant: TenantId,
        webhook: WebhookId,
        delivery: DeliveryId,
        at: Timestamp,
    ) -> Result<WebhookDelivery> {
        self.room()?;
        self.inner.webhook_redeliver(tenant, webhook, delivery, at).await
    }

    async fn webhook_deliveries(
        &self,
        tenant: TenantId,
        webhook: WebhookId,
        offset: u32,
        limit: u32,
    ) -> Result<Vec<WebhookDelivery>> {
        self.inner.webhook_deliveries(tenant, webhook, offset, limit).await
    }

    async fn webhook_delivery(
        &self,
        tenant: TenantId,
        webhook: WebhookId,
        delivery: DeliveryId,
    ) -> Result<WebhookDeliveryDetail> {
        self.inner.webhook_delivery(tenant, webhook, delivery).await
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
impl PreviewStore for FullStore {
    async fn grant_insert(&self, grant: &NewGrant) -> Result<GrantRow> {
        self.room()?;
        self.inner.grant_insert(grant).await
    }

    async fn grant_find(&self, id: PreviewGrantId) -> Result<Option<GrantRow>> {
        self.inner.grant_find(id).await
    }

    async fn grant_list(
        &self,
        tenant: TenantId,
        sandbox: SandboxId,
        port: Option<u16>,
    ) -> Result<Vec<GrantRow>> {
        self.inner.grant_list(tenant, sandbox, port).await
    }

    async fn grant_revoke(
        &self,
        tenant: TenantId,
        sandbox: SandboxId,
        id: PreviewGrantId,
        at: Timestamp,
    ) -> Result<GrantRow> {
        self.room()?;
        self.inner.grant_revoke(tenant, sandbox, id, at).await
    }

    async fn grants_disable(&self, sandbox: SandboxId, at: Timestamp) -> Result<()> {
        self.room()?;
        self.inner.grants_disable(sandbox, at).await
    }

    async fn grants_used(&self, used: &[(PreviewGrantId, GrantUse)], at: Timestamp) -> Result<()> {
        self.room()?;
        self.inner.grants_used(used, at).await
    }

    async fn local_port_assign(&self, candidate: LocalPort) -> Result<LocalPort> {
        self.room()?;
        self.inner.local_port_assign(candidate).await
    }

    async fn local_port_list(&self) -> Result<Vec<LocalPort>> {
        self.inner.local_port_list().await
    }

    async fn local_port_release(&self, local: u16) -> Result<()> {
        self.room()?;
        self.inner.local_port_release(local).await
    }

    async fn local_ports_release(&self, sandbox: SandboxId) -> Result<Vec<LocalPort>> {
        self.room()?;
        self.inner.local_ports_release(sandbox).await
    }
}

#[async_trait]
impl VaultStore for FullStore {
    async fn vault_insert(
        &self,
        tenant: TenantId,
        name: &str,
        sealed: &[u8],
        at: Timestamp,
    ) -> Result<StoredSecret> {
        self.room()?;
        self.inner.vault_insert(tenant, name, sealed, at).await
    }

    async fn vault_list(&self, tenant: TenantId) -> Result<Vec<StoredSecret>> {
        self.inner.vault_list(tenant).await
    }

    async fn vault_get(&self, tenant: TenantId, names: &[String]) -> Result<Vec<(String, Vec<u8>)>> {
        self.inner.vault_get(tenant, names).await
    }

    async fn vault_delete(&self, tenant: TenantId, name: &str) -> Result<()> {
        self.room()?;
        self.inner.vault_delete(tenant, name).await
    }
}

#[async_trait]
impl DenialStore for FullStore {
    async fn denials_add(&self, denials: &[(SandboxId, Denial)]) -> Result<()> {
        self.room()?;
        self.inner.denials_add(denials).await
    }

    async fn denial_list(
        &self,
        tenant: TenantId,
        sandbox: SandboxId,
        offset: u32,
        limit: u32,
    ) -> Result<Vec<Denial>> {
        self.inner.denial_list(tenant, sandbox, offset, limit).await
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

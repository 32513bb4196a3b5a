//! The same for snapshots, the log of events, webhooks and the monitor.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_api::lifecycle::LifecycleEvents;
use nullspace_api::monitor::MonitorStream;
use nullspace_api::{LifecycleApi, MonitorApi, SnapshotApi, WebhookApi};
use nullspace_types::event::*;
use nullspace_types::id::{DeliveryId, EventId, SandboxId, SnapshotId, WebhookId};
use nullspace_types::key::Principal;
use nullspace_types::monitor::{MonitorNews, MonitorSpec};
use nullspace_types::process::ProcessInfo;
use nullspace_types::sandbox::Sandbox;
use nullspace_types::snapshot::*;
use nullspace_types::webhook::*;
use nullspace_types::{Code, Error, Result};
use serde_json::{Map, Value};

use crate::fake::{Fake, sandbox};

/// Sandboxes that a monitor with an interval of a minute sees: more than one frame holds.
pub const MANY: usize = 5000;

impl Fake {
    /// The one snapshot.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            id: self.named(SnapshotId::PREFIX),
            sandbox_id: self.id,
            size_bytes: 1,
            created_at: Timestamp::UNIX_EPOCH,
            metadata: Map::new(),
        }
    }

    /// The one webhook.
    pub fn webhook(&self) -> Webhook {
        Webhook {
            id: self.named(WebhookId::PREFIX),
            url: "https://example.com/".into(),
            operations: vec![Operation::Fork],
            enabled: true,
            has_signing_secret: true,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
            last_delivery_at: None,
            last_delivery_status: None,
            last_error: None,
        }
    }

    /// The one delivery of it.
    pub fn delivery(&self) -> WebhookDelivery {
        WebhookDelivery {
            id: self.named(DeliveryId::PREFIX),
            webhook_id: self.webhook().id,
            event_id: self.named(EventId::PREFIX),
            operation: Operation::Fork,
            status: EventStatus::Succeeded,
            delivery_status: DeliveryStatus::Queued,
            attempt_count: 0,
            created_at: Timestamp::UNIX_EPOCH,
            next_attempt_at: None,
            last_attempt_at: None,
            last_response_status: None,
            last_error: None,
        }
    }

    fn event(&self, number: u64) -> LifecycleEvent {
        LifecycleEvent {
            id: EventId::new(),
            occurred_at: Timestamp::UNIX_EPOCH,
            audience: Audience::Customer,
            operation: Operation::Fork,
            status: EventStatus::Succeeded,
            actor_kind: ActorKind::User,
            sandbox_id: Some(self.id),
            snapshot_id: None,
            source_sandbox_id: None,
            target_sandbox_id: None,
            user_id: None,
            reason: None,
            error_code: None,
            error_message: None,
            metadata: Map::from_iter([("number".into(), Value::from(number))]),
        }
    }

    fn own(&self, id: SnapshotId) -> Result<()> {
        let missing = || Error::new(Code::SnapshotNotFound, format!("snapshot {id} does not exist"));
        if id == self.snapshot().id { Ok(()) } else { Err(missing()) }
    }

    fn hook(&self, id: WebhookId) -> Result<()> {
        let missing = || Error::new(Code::WebhookNotFound, format!("webhook {id} does not exist"));
        if id == self.webhook().id { Ok(()) } else { Err(missing()) }
    }
}

#[async_trait]
impl SnapshotApi for Fake {
    async fn sandbox_hibernate(&self, caller: Principal, id: SandboxId) -> Result<Snapshot> {
        self.ask(caller, Some(id), "hibernate")?;
        Ok(self.snapshot())
    }

    async fn sandbox_resume(&self, caller: Principal, id: String) -> Result<Sandbox> {
        self.ask(caller, None, ("resume", &id))?;
        match id == self.id.to_string() || id == self.snapshot().id.to_string() {
            true => Ok(sandbox(self.id)),
            false => Err(Error::sandbox_not_found(id)),
        }
    }

    async fn snapshot_create(
        &self,
        caller: Principal,
        idempotency_key: Option<String>,
        id: SandboxId,
    ) -> Result<Snapshot> {
        self.ask(caller, Some(id), ("snapshot", idempotency_key))?;
        Ok(self.snapshot())
    }

    async fn sandbox_fork(
        &self,
        caller: Principal,
        idempotency_key: Option<String>,
        id: SandboxId,
        request: SandboxFork,
    ) -> Result<SandboxForked> {
        self.ask(caller, Some(id), (idempotency_key, request.count))?;
        Ok(match request.count {
            Some(count) => SandboxForked::Many { items: (0..count).map(|_| sandbox(self.id)).collect() },
            None => SandboxForked::One(Box::new(sandbox(self.id))),
        })
    }

    async fn sandbox_tree(&self, caller: Principal, id: SandboxId) -> Result<SandboxTree> {
        self.ask(caller, Some(id), "tree")?;
        Ok(SandboxTree { root_id: id, items: Vec::new(), truncated: false })
    }

    async fn sandbox_diff(
        &self,
        caller: Principal,
        id: SandboxId,
        query: SandboxDiffQuery,
    ) -> Result<SandboxDiff> {
        self.ask(caller, Some(id), (&query.against, &query.limit))?;
        let against = query.against.unwrap_or_default();
        Ok(SandboxDiff { sandbox_id: id, against, items: Vec::new(), truncated: false })
    }

    async fn snapshot_list(&self, caller: Principal, query: SnapshotListQuery) -> Result<Vec<Snapshot>> {
        self.ask(caller, None, (query.sandbox_id, query.metadata))?;
        Ok(vec![self.snapshot()])
    }

    async fn snapshot_get(&self, caller: Principal, id: SnapshotId) -> Result<Snapshot> {
        self.ask(caller, None, "snapshot_get")?;
        self.own(id).map(|()| self.snapshot())
    }

    async fn snapshot_delete(&self, caller: Principal, id: SnapshotId) -> Result<()> {
        self.ask(caller, None, "snapshot_delete")?;
        self.own(id)?;
        Err(Error::new(Code::SnapshotInUse, "sandbox sb_ is paused on it"))
    }
}

#[async_trait]
impl LifecycleApi for Fake {
    async fn lifecycle_list(
        &self,
        caller: Principal,
        query: LifecycleEventQuery,
    ) -> Result<LifecycleEventPage> {
        self.ask(caller, None, (&query.sandbox_id, &query.snapshot_id, &query.order))?;
        if let Some(id) = query.sandbox_id.filter(|id| *id != self.id.to_string()) {
            return Err(Error::sandbox_not_found(id));
        }
        Ok(LifecycleEventPage { events: vec![self.event(0)], offset: 0, limit: 50, has_more: false })
    }

    /// Answers three events and stays open; with a limit of 0 it breaks after them, and with one of a million
    /// it has so many.
    async fn lifecycle_subscribe(
        &self,
        caller: Principal,
        subscription: LifecycleSubscription,
    ) -> Result<LifecycleEvents> {
        let LifecycleSubscription { sandbox_id, operation, replay_limit, .. } = subscription;
        self.ask(caller, None, ("subscribe", sandbox_id, operation.as_deref()))?;
        if operation.as_deref() == Some("nothing") {
            return Err(Error::invalid("operation must be one of create, fork, got nothing"));
        }
        let count = replay_limit.filter(|limit| *limit > 1000).unwrap_or(3);
        let fake = self.clone();
        let events = (0..count.unsigned_abs()).map(move |number| fake.event(number));
        Ok(self.events(events, replay_limit == Some(0)))
    }
}

#[async_trait]
impl WebhookApi for Fake {
    async fn webhook_create(&self, caller: Principal, request: WebhookCreate) -> Result<Webhook> {
        self.ask(caller, None, (&request.url, &request.operations, request.enabled))?;
        Ok(self.webhook())
    }

    async fn webhook_list(&self, caller: Principal) -> Result<Vec<Webhook>> {
        self.ask(caller, None, "webhook_list")?;
        Ok(vec![self.webhook()])
    }

    async fn webhook_get(&self, caller: Principal, id: WebhookId) -> Result<Webhook> {
        self.ask(caller, None, "webhook_get")?;
        self.hook(id).map(|()| self.webhook())
    }

    async fn webhook_update(
        &self,
        caller: Principal,
        id: WebhookId,
        request: WebhookUpdate,
    ) -> Result<Webhook> {
        self.ask(caller, None, (request.url, request.enabled))?;
        self.hook(id).map(|()| self.webhook())
    }

    async fn webhook_delete(&self, caller: Principal, id: WebhookId) -> Result<()> {
        self.ask(caller, None, "webhook_delete")?;
        self.hook(id)
    }

    async fn webhook_deliveries(
        &self,
        caller: Principal,
        id: WebhookId,
        query: WebhookDeliveryQuery,
    ) -> Result<Vec<WebhookDelivery>> {
        self.ask(caller, None, (query.offset, query.limit))?;
        self.hook(id).map(|()| vec![self.delivery()])
    }

    async fn webhook_delivery(
        &self,
        caller: Principal,
        id: WebhookId,
        _: DeliveryId,
    ) -> Result<WebhookDeliveryDetail> {
        self.ask(caller, None, "webhook_delivery")?;
        self.hook(id)?;
        Ok(WebhookDeliveryDetail { delivery: self.delivery(), event: self.event(0), attempts: Vec::new() })
    }

    async fn webhook_redeliver(
        &self,
        caller: Principal,
        id: WebhookId,
        _: DeliveryId,
    ) -> Result<WebhookDelivery> {
        self.ask(caller, None, "webhook_redeliver")?;
        self.hook(id).map(|()| self.delivery())
    }
}

#[async_trait]
impl MonitorApi for Fake {
    async fn monitor(&self, caller: Principal, spec: MonitorSpec) -> Result<MonitorStream> {
        self.ask(caller, None, (spec.interval_ms, spec.include_processes))?;
        let count = if spec.interval_ms == 60_000 { MANY } else { 1 };
        let process = |pid| ProcessInfo { pid, command: "\n".repeat(8 << 10), running: true };
        let mut news = vec![MonitorNews::Snapshot((0..count).map(|_| sandbox(self.id)).collect())];
        if spec.include_processes {
            news.push(MonitorNews::Processes(self.id, (0..1000).map(process).collect()));
        }
        news.push(MonitorNews::Update(self.id, None));
        Ok(self.events(news.into_iter(), false))
    }

    async fn metrics(&self) -> Result<String> {
        Ok("nullspace_sandboxes{status=\"running\"} 1\n".into())
    }
}

//! What can be done with sandboxes: create, list, get, destroy, set the window, read metrics. Changes go
//! to the sandbox's driver; nothing here writes to the store.

use std::time::Duration;

use nullspace_domain::lifecycle::State;
use nullspace_domain::sandbox::{validate, validate_timeout};
use nullspace_domain::sandbox_list::{self, ListSpec, PAGE_MAX};
use nullspace_domain::snapshot::validate_create;
use nullspace_store::idempotency::Idempotency;
use nullspace_store::sandbox::{DesiredState, ObservedState, SandboxFilter, SandboxRow, StateFilter};
use nullspace_types::id::{SandboxId, TenantId};
use nullspace_types::sandbox::{
    Sandbox, SandboxCreate, SandboxDestroyed, SandboxGetQuery, SandboxList, SandboxListQuery, SandboxMetrics,
    SandboxPage, SandboxStatus, SandboxTimeout, SandboxTimeoutSet,
};
use nullspace_types::{Code, Error, Result};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::Control;
use crate::access::{answered, ask, in_progress, stopping, within};
use crate::driver::{Begin, Driver};
use crate::keys::Begun;
use crate::network::new_policy;
use crate::record::{Record, Unborn, View, sandbox, status};
use crate::registry::{Entry, Message};
use crate::snapshot::found;

/// How long the repetition of a request waits for the first one's result.
const REPLAY_WAIT: Duration = Duration::from_secs(25);
/// How long a sandbox's driver may take to decide.
pub(crate) const DECISION_WAIT: Duration = Duration::from_secs(25);
pub(crate) const BUSY: &str = "the sandbox is busy with another change";
/// How long a destroy waits for its end.
const DESTROY_WAIT: Duration = Duration::from_secs(25);
/// Most sandboxes in a list without any query.
const BARE_LIST_MAX: usize = 10_000;

/// How a create ended that did not fail.
pub(crate) enum Created {
    New(Box<Sandbox>),
    /// The store knows the key from before.
    Before(SandboxId),
}

/// What tells a request with a key from others.
pub(crate) fn request_hash(request: &impl Serialize) -> Result<[u8; 32]> {
    Ok(Sha256::digest(serde_json::to_vec(request).map_err(Error::internal)?).into())
}

/// Waits for the end of a create. The create does not depend on who waits.
pub(crate) async fn created(mut seen: watch::Receiver<View>) -> Result<Created> {
    let decided = seen.wait_for(|view| {
        view.unborn.is_some() || !matches!(view.record.state, State::Absent | State::Creating { .. })
    });
    let view = decided.await.map_err(|_| stopping())?.clone();
    match view.unborn {
        None => Ok(Created::New(Box::new(view.record.shown()))),
        Some(Unborn::Failed(error)) => Err(error),
        Some(Unborn::Existing(row)) => Ok(Created::Before(row.id)),
    }
}

/// What is stored of sandboxes with a status: the other way round of what is shown.
fn states(status: SandboxStatus) -> &'static [(DesiredState, Option<ObservedState>)] {
    use DesiredState::{Destroyed, Paused, Running};
    match status {
        SandboxStatus::Creating => &[(Running, Some(ObservedState::None))],
        SandboxStatus::Running => {
            &[(Running, Some(ObservedState::Running)), (Paused, Some(ObservedState::Running))]
        }
        SandboxStatus::Paused => {
            &[(Paused, Some(ObservedState::Paused)), (Running, Some(ObservedState::Paused))]
        }
        SandboxStatus::Error => &[(Running, Some(ObservedState::Lost))],
        SandboxStatus::Destroyed => &[(Destroyed, None)],
    }
}

fn filter(spec: &ListSpec) -> SandboxFilter {
    let states = spec
        .statuses
        .iter()
        .flat_map(|status| states(*status))
        .map(|(desired, observed)| StateFilter { desired: *desired, observed: *observed });
    SandboxFilter {
        states: Some(states.collect()),
        template: spec.template.clone(),
        metadata: spec.metadata.clone(),
        after: spec.after,
        limit: spec.limit,
    }
}

fn project(rows: &[SandboxRow], spec: &ListSpec) -> Result<Vec<Value>> {
    rows.iter().map(|row| sandbox_list::project(&sandbox(row), spec.fields.as_deref())).collect()
}

impl Control {
    /// Makes a sandbox and answers it running. Once begun, a create goes on to its end whether or not the
    /// caller waits. A key makes at most one sandbox: who comes with it again gets the same, and a create
    /// that fails frees its key, so that the same request may be made again.
    pub async fn sandbox_create(
        &self,
        tenant_id: TenantId,
        idempotency_key: Option<String>,
        request: SandboxCreate,
    ) -> Result<Sandbox> {
        let shared = &self.shared;
        let request_hash = request_hash(&request)?;
        let record = self.asked_for(tenant_id, request).await?;
        let Some(key) = idempotency_key else {
            return match self.finished(Driver::start(shared, record, Begin::Create(None))).await? {
                Created::New(sandbox) => Ok(self.with_traffic_token(*sandbox)),
                Created::Before(id) => Err(Error::internal(format!("{id} was found without a key"))),
            };
        };
        let idempotency = Idempotency { operation: "sandbox_create", key: key.clone(), request_hash };
        let mut seen = None;
        let begun = shared.keys.begin(&(tenant_id, key), request_hash, || {
            let id = record.row.id;
            seen = Some(Driver::start(shared, record, Begin::Create(Some(idempotency))));
            id
        })?;
        let made = match (begun, seen) {
            (Begun::Now(_), Some(seen)) => match self.finished(seen).await? {
                Created::New(sandbox) => *sandbox,
                Created::Before(id) => self.replay(tenant_id, id).await?,
            },
            (Begun::Now(id) | Begun::Before(id), _) => self.replay(tenant_id, id).await?,
        };
        Ok(self.with_traffic_token(made))
    }

    /// A sandbox as it is told to who made it, and to nobody later.
    pub(crate) fn with_traffic_token(&self, sandbox: Sandbox) -> Sandbox {
        let token = self.shared.access.tokens.traffic_token(sandbox.id);
        Sandbox { traffic_access_token: Some(token), ..sandbox }
    }

    /// A valid request as a sandbox that is not begun yet.
    async fn asked_for(&self, tenant_id: TenantId, request: SandboxCreate) -> Result<Record> {
        let shared = &self.shared;
        if let Some(snapshot) = &request.snapshot_id {
            let spec = validate_create(snapshot, &request, &shared.limits)?;
            let snapshot = shared.store.snapshot_get(tenant_id, spec.snapshot_id).await;
            let row = found(spec.snapshot_id, snapshot)?;
            return Record::from_snapshot(row.snapshot, spec, shared.clock.now());
        }
        let spec = validate(request, &shared.limits)?;
        let template = self.template(&spec.template).await?;
        let disk_mb = template.disk_mb.max(spec.disk_mb.unwrap_or(0));
        new_policy(shared, tenant_id, spec.internet_access, &spec.network).await?;
        Ok(Record::new(tenant_id, spec, disk_mb, shared.clock.now()))
    }

    /// The end of a create that was begun just now.
    async fn finished(&self, seen: watch::Receiver<View>) -> Result<Created> {
        within(self.limit(), "the sandbox is still being worked on", created(seen)).await
    }

    /// The result of an earlier request with the same key.
    pub(crate) async fn replay(&self, tenant_id: TenantId, mut id: SandboxId) -> Result<Sandbox> {
        let unfinished = || in_progress("a request with this Idempotency-Key is still being worked on");
        while let Ok(entry) = self.shared.registry.of_tenant(tenant_id, id) {
            match timeout(REPLAY_WAIT, created(entry.view)).await.map_err(|_| unfinished())? {
                Ok(Created::New(sandbox)) => return Ok(*sandbox),
                Ok(Created::Before(other)) => id = other,
                // The server that began it ended, and its key is about to be free. Clients repeat a create on
                // this code and not on `unavailable`.
                Err(error) if error.code == Code::Unavailable => return Err(unfinished()),
                Err(error) => return Err(error),
            }
        }
        // It is not living. A key whose create failed is free by now, and the request may be made again.
        match self.shared.store.sandbox_get(tenant_id, id).await {
            Ok(row) if row.observed.started_at.is_some() => Ok(sandbox(&row)),
            Ok(_) | Err(nullspace_store::Error::NotFound(_)) => Err(unfinished()),
            Err(error) => Err(error.into()),
        }
    }

    /// Lists the tenant's sandboxes, newest first: all of them without a query, a page with one.
    pub async fn sandbox_list(
        &self,
        tenant_id: TenantId,
        query: SandboxListQuery,
        any_query: bool,
    ) -> Result<SandboxList> {
        let spec = sandbox_list::validate(&query)?;
        if !any_query {
            let rows = self.all_living(tenant_id).await?;
            return Ok(SandboxList::All(project(&rows, &spec)?));
        }
        // One more than asked for tells whether there are more.
        let filter = SandboxFilter { limit: spec.limit + 1, ..filter(&spec) };
        let mut rows = self.shared.store.sandbox_list(tenant_id, &filter).await?;
        let has_next = rows.len() > spec.limit as usize;
        rows.truncate(spec.limit as usize);
        let next_token = rows.last().filter(|_| has_next).map(|row| sandbox_list::next_token(row.id));
        Ok(SandboxList::Page(SandboxPage { items: project(&rows, &spec)?, has_next, next_token }))
    }

    /// All sandboxes of a tenant that are not destroyed, newest first.
    pub(crate) async fn all_living(&self, tenant_id: TenantId) -> Result<Vec<SandboxRow>> {
        let mut spec = sandbox_list::validate(&SandboxListQuery::default())?;
        let mut rows = Vec::new();
        while rows.len() < BARE_LIST_MAX {
            let page = self.shared.store.sandbox_list(tenant_id, &filter(&spec)).await?;
            let last = page.len() < PAGE_MAX as usize;
            spec.after = page.last().map(|row| row.id);
            rows.extend(page);
            if last {
                break;
            }
        }
        Ok(rows)
    }

    /// One sandbox, or the fields of it that the query names.
    pub fn sandbox_get(&self, tenant_id: TenantId, id: SandboxId, query: &SandboxGetQuery) -> Result<Value> {
        let fields = query.fields.as_deref().map(sandbox_list::fields).transpose()?;
        let record = self.living(tenant_id, id)?.view.borrow().record.clone();
        sandbox_list::project(&record.shown(), fields.as_deref())
    }

    /// A sandbox whose end was not asked for yet.
    pub(crate) fn living(&self, tenant_id: TenantId, id: SandboxId) -> Result<Entry> {
        let entry = self.shared.registry.of_tenant(tenant_id, id)?;
        let gone = {
            let view = entry.view.borrow();
            // One that could not be written, or turned out to exist already, was never there.
            view.unborn.is_some() || status(&view.record.row) == SandboxStatus::Destroyed
        };
        if gone { Err(Error::sandbox_not_found(id)) } else { Ok(entry) }
    }

    /// Destroys a sandbox, whatever it is doing, and answers when nothing of it is left. Who asks while
    /// another's request is under way waits for the same end.
    pub async fn sandbox_destroy(&self, tenant_id: TenantId, id: SandboxId) -> Result<SandboxDestroyed> {
        let mut entry = self.shared.registry.of_tenant(tenant_id, id)?;
        let decided = ask(&self.shared, &entry, |decided| Message::Destroy { decided });
        within(DECISION_WAIT, BUSY, decided).await?;
        let gone = entry.view.wait_for(|view| view.record.state == State::Destroyed);
        match timeout(DESTROY_WAIT, gone).await {
            Ok(Ok(_)) => Ok(SandboxDestroyed { id, status: SandboxStatus::Destroyed }),
            Ok(Err(_)) => Err(stopping()),
            Err(_) => Err(in_progress("the sandbox's machine takes long to end; the server goes on with it")),
        }
    }

    /// Sets a new window, counted from now.
    pub async fn sandbox_timeout_set(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        request: SandboxTimeoutSet,
    ) -> Result<SandboxTimeout> {
        let entry = self.living(tenant_id, id)?;
        let auto_resume = entry.view.borrow().record.row.desired.auto_resume;
        let spec = validate_timeout(request, auto_resume, &self.shared.limits)?;
        let set = ask(&self.shared, &entry, |done| Message::SetTimeout { spec, done });
        within(DECISION_WAIT, BUSY, set).await
    }

    /// What the sandbox has used lately, newest last; nothing while its machine does not run.
    pub async fn sandbox_metrics(&self, tenant_id: TenantId, id: SandboxId) -> Result<Vec<SandboxMetrics>> {
        let record = self.living(tenant_id, id)?.view.borrow().record.clone();
        match record.state {
            State::Running { .. } => answered(id, self.shared.node.machine_metrics(id).await),
            State::Absent
            | State::Creating { .. }
            | State::Hibernating { .. }
            | State::Paused { .. }
            | State::Resuming { .. }
            | State::Lost { .. } => Ok(Vec::new()),
            State::Destroying { .. } | State::Destroyed => Err(Error::sandbox_not_found(id)),
        }
    }
}

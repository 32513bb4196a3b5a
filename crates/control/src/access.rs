//! Whether something can be done with a sandbox now, and what its caller is told if not. A paused sandbox
//! that wakes by itself is woken here, once, however many callers arrive together.

use std::sync::Arc;
use std::time::Duration;

use nullspace_domain::lifecycle::{Rejected, State};
use nullspace_types::id::{SandboxId, TenantId};
use nullspace_types::{Code, Error, Result};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::record::Record;
use crate::registry::{Entry, Message};
use crate::shared::Shared;

pub(crate) fn in_progress(what: &str) -> Error {
    Error::new(Code::TransitionInProgress, what).suggest("repeat the request in a few seconds")
}

pub(crate) fn stopping() -> Error {
    Error::new(Code::Unavailable, "the server is stopping").suggest("repeat the request in a few seconds")
}

/// Waits for something until a limit. What it waits for goes on.
pub(crate) async fn within<T>(
    limit: Duration,
    unfinished: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    timeout(limit, work).await.map_err(|_| in_progress(unfinished))?
}

/// Asks a sandbox's driver, and waits for its answer.
pub(crate) async fn ask<T>(
    shared: &Shared,
    entry: &Entry,
    message: impl FnOnce(oneshot::Sender<Result<T>>) -> Message,
) -> Result<T> {
    let (sender, answer) = oneshot::channel();
    // A driver that ended meanwhile has nothing left to drive, unless the server stops.
    let ended = || match shared.stop.is_cancelled() {
        true => stopping(),
        false => Error::sandbox_not_found(entry.view.borrow().record.row.id),
    };
    entry.mailbox.send(message(sender)).await.map_err(|_| ended())?;
    answer.await.map_err(|_| ended())?
}

/// What a caller is told whose wish does not fit the state.
pub(crate) fn refusal(record: &Record, rejected: Rejected) -> Error {
    let id = record.row.id;
    match rejected {
        Rejected::Gone => Error::sandbox_not_found(id),
        Rejected::NotRunning => not_running(record),
        Rejected::MachineLost => {
            let reason = record.row.observed.error_message.as_deref().unwrap_or("its machine is gone");
            Error::new(Code::SandboxNotReady, format!("sandbox {id} is in error: {reason}"))
                .suggest("destroy it and create another one")
        }
        Rejected::Exists | Rejected::Stale => Error::internal(format!("sandbox {id}: {rejected}")),
    }
}

fn not_running(record: &Record) -> Error {
    let (doing, action) = match record.state {
        State::Hibernating { .. } => ("is being hibernated", "resume it; that waits until it is paused"),
        State::Paused { .. } => {
            ("is paused", "resume it, or create sandboxes with auto_resume: they wake when they are used")
        }
        State::Resuming { .. } => ("is being resumed", "try again when its status is running"),
        State::Absent
        | State::Creating { .. }
        | State::Running { .. }
        | State::Lost { .. }
        | State::Destroying { .. }
        | State::Destroyed => ("is still being created", "try again when its status is running"),
    };
    Error::new(Code::SandboxNotReady, format!("sandbox {} {doing}", record.row.id)).suggest(action)
}

/// A sandbox that can be used: it runs, or runs soon, or can be woken.
pub(crate) struct Usable<'a> {
    shared: &'a Shared,
    entry: Entry,
    record: Arc<Record>,
}

/// The tenant's sandbox, if it can be used. Nothing is woken yet, so that a request can be judged first.
pub(crate) fn usable(shared: &Shared, tenant_id: TenantId, id: SandboxId) -> Result<Usable<'_>> {
    let entry = shared.registry.of_tenant(tenant_id, id)?;
    let record = entry.view.borrow().record.clone();
    match record.state {
        State::Running { .. } | State::Resuming { .. } => {}
        State::Hibernating { .. } | State::Paused { .. } if record.row.desired.auto_resume => {}
        State::Absent | State::Creating { .. } | State::Hibernating { .. } | State::Paused { .. } => {
            return Err(refusal(&record, Rejected::NotRunning));
        }
        State::Lost { .. } => return Err(refusal(&record, Rejected::MachineLost)),
        State::Destroying { .. } | State::Destroyed => return Err(Error::sandbox_not_found(id)),
    }
    Ok(Usable { shared, entry, record })
}

impl Usable<'_> {
    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// The sandbox running, woken if it has to be.
    pub(crate) async fn awake(self) -> Result<Arc<Record>> {
        if let State::Running { .. } = self.record.state {
            return Ok(self.record);
        }
        let limit = Duration::from_secs(u64::from(self.shared.limits.create_secs_max));
        let woken = ask(self.shared, &self.entry, |done| Message::Resume { done });
        within(limit, "the sandbox is still being resumed", woken).await
    }
}

/// The tenant's sandbox running, woken if it has to be.
pub(crate) async fn awake(shared: &Shared, tenant_id: TenantId, id: SandboxId) -> Result<Arc<Record>> {
    usable(shared, tenant_id, id)?.awake().await
}

/// Waits until a machine that ran through the server's absence has been told what it may reach, or that was
/// tried: nobody from outside meets it before.
pub(crate) async fn taken_over(entry: &Entry) -> Result<()> {
    let mut view = entry.view.clone();
    view.wait_for(|view| view.taken_over).await.map(drop).map_err(|_| stopping())
}

/// The node's answer about a sandbox that was running when it was asked. That it does not hold the machine
/// then means that the machine is gone and the news is on its way.
pub(crate) fn answered<T>(id: SandboxId, answer: Result<T>) -> Result<T> {
    answer.map_err(|error| match error.code {
        Code::SandboxNotFound => {
            Error::new(Code::SandboxNotReady, format!("the machine of sandbox {id} is gone"))
                .suggest("look at the sandbox's status")
        }
        _ => error,
    })
}

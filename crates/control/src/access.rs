//! Whether something can be done with a sandbox now, and what its caller is told if not.

use std::sync::Arc;

use nullspace_domain::lifecycle::{Rejected, State};
use nullspace_types::id::{SandboxId, TenantId};
use nullspace_types::{Code, Error, Result};

use crate::record::Record;
use crate::shared::Shared;

fn lost(record: &Record) -> Error {
    let reason = record.row.observed.error_message.as_deref().unwrap_or("its machine is gone");
    Error::new(Code::SandboxNotReady, format!("sandbox {} is in error: {reason}", record.row.id))
        .suggest("destroy it and create another one")
}

/// What a caller is told whose wish does not fit the state.
pub(crate) fn refusal(record: &Record, rejected: Rejected) -> Error {
    let id = record.row.id;
    match rejected {
        Rejected::Gone => Error::sandbox_not_found(id),
        Rejected::NotReady => {
            Error::new(Code::SandboxNotReady, format!("sandbox {id} is still being created"))
                .suggest("try again when its status is running")
        }
        Rejected::MachineLost => lost(record),
        Rejected::Exists | Rejected::Stale => Error::internal(format!("sandbox {id}: {rejected}")),
    }
}

/// The tenant's sandbox, if its machine runs.
pub(crate) fn running(shared: &Shared, tenant_id: TenantId, id: SandboxId) -> Result<Arc<Record>> {
    let record = shared.registry.of_tenant(tenant_id, id)?.view.borrow().record.clone();
    match record.state {
        State::Running { .. } => Ok(record),
        State::Absent | State::Creating { .. } => Err(refusal(&record, Rejected::NotReady)),
        State::Lost { .. } => Err(lost(&record)),
        State::Destroying { .. } | State::Destroyed => Err(Error::sandbox_not_found(id)),
    }
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

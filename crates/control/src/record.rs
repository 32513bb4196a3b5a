//! What control knows of one sandbox: its row, and where it is in its life. A living sandbox's driver owns
//! the record and alone changes it; everybody else sees copies through a [`View`].

use std::sync::Arc;

use nullspace_domain::lifecycle::{Cause, State};
use nullspace_domain::sandbox::SandboxSpec;
use nullspace_domain::status::{Desired as Wanted, Observed as Seen, shown};
use nullspace_node_api::{MachineSpec, Shape};
use nullspace_store::sandbox::{Desired, DesiredState, NewSandbox, Observed, ObservedState, SandboxRow};
use nullspace_types::Error;
use nullspace_types::id::{IncarnationId, SandboxId, TenantId};
use nullspace_types::sandbox::{Sandbox, SandboxConfig, SandboxStatus};

/// A sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) row: SandboxRow,
    pub(crate) state: State,
}

impl Record {
    /// A sandbox that was asked for just now. `disk_mb` is what was asked for, or the template's if larger.
    pub(crate) fn new(tenant_id: TenantId, spec: SandboxSpec, disk_mb: u32, now: jiff::Timestamp) -> Self {
        let row = SandboxRow {
            id: SandboxId::new(),
            tenant_id,
            created_at: now,
            destroyed_at: None,
            desired: Desired {
                state: DesiredState::Running,
                generation: 1,
                incarnation: IncarnationId::new(),
                template: spec.template,
                vcpus: spec.vcpus,
                memory_mb: spec.memory_mb,
                disk_mb: Some(disk_mb),
                envs: spec.envs,
                metadata: spec.metadata,
                cwd: spec.cwd,
                internet_access: spec.internet_access,
                timeout_ms: spec.timeout_ms,
                timeout_action: spec.timeout_action,
                timeout_at: None,
                destroy_reason: None,
            },
            observed: Observed {
                state: ObservedState::None,
                generation: 0,
                disk_mb: None,
                started_at: None,
                error_message: None,
            },
        };
        Self { row, state: State::Absent }
    }

    /// A sandbox as it was left by whoever wrote the row.
    pub(crate) fn from_row(row: SandboxRow) -> Self {
        let incarnation = row.desired.incarnation;
        let generation = row.observed.generation;
        let state = match (row.desired.state, row.destroyed_at, row.observed.state) {
            (_, Some(_), _) => State::Destroyed,
            (DesiredState::Destroyed, None, _) => State::Destroying {
                incarnation,
                making: false,
                cause: Cause::from_stored(row.desired.destroy_reason.as_deref()),
            },
            (DesiredState::Running, None, ObservedState::None) => State::Creating { incarnation, lost: None },
            (DesiredState::Running, None, ObservedState::Running) => {
                State::Running { incarnation, generation }
            }
            (DesiredState::Running, None, ObservedState::Lost) => State::Lost { incarnation, generation },
        };
        Self { row, state }
    }

    /// What to store for a new sandbox.
    pub(crate) fn new_sandbox(&self) -> NewSandbox {
        let desired = self.row.desired.clone();
        NewSandbox {
            id: self.row.id,
            tenant_id: self.row.tenant_id,
            incarnation: desired.incarnation,
            template: desired.template,
            vcpus: desired.vcpus,
            memory_mb: desired.memory_mb,
            disk_mb: desired.disk_mb,
            envs: desired.envs,
            metadata: desired.metadata,
            cwd: desired.cwd,
            internet_access: desired.internet_access,
            timeout_ms: desired.timeout_ms,
            timeout_action: desired.timeout_action,
            created_at: self.row.created_at,
        }
    }

    /// The machine to ask the node for.
    pub(crate) fn machine_spec(&self) -> MachineSpec {
        let desired = &self.row.desired;
        MachineSpec {
            sandbox_id: self.row.id,
            incarnation: desired.incarnation,
            template: desired.template.clone(),
            shape: Shape { vcpus: desired.vcpus, memory_mb: desired.memory_mb },
            disk_mb: desired.disk_mb,
            envs: desired.envs.clone(),
            cwd: desired.cwd.clone(),
            internet_access: desired.internet_access,
        }
    }

    pub(crate) fn status(&self) -> SandboxStatus {
        status(&self.row)
    }

    pub(crate) fn shown(&self) -> Sandbox {
        sandbox(&self.row)
    }
}

/// The status that callers see of a row.
pub(crate) fn status(row: &SandboxRow) -> SandboxStatus {
    let wanted = match row.desired.state {
        DesiredState::Running => Wanted::Running,
        DesiredState::Destroyed => Wanted::Destroyed,
    };
    let seen = match (row.destroyed_at, row.observed.state) {
        (Some(_), _) => Seen::Gone,
        (None, ObservedState::None) => Seen::Creating,
        (None, ObservedState::Running) => Seen::Running,
        (None, ObservedState::Lost) => Seen::Lost,
    };
    shown(wanted, seen)
}

/// The sandbox as its users see it.
pub(crate) fn sandbox(row: &SandboxRow) -> Sandbox {
    let desired = &row.desired;
    Sandbox {
        id: row.id,
        status: status(row),
        config: SandboxConfig {
            vcpus: desired.vcpus,
            memory_mb: desired.memory_mb,
            disk_mb: row.observed.disk_mb.or(desired.disk_mb).unwrap_or(0),
        },
        template: desired.template.clone(),
        metadata: desired.metadata.clone(),
        created_at: row.created_at,
        started_at: row.observed.started_at,
        timeout_at: desired.timeout_at,
        expires_at: desired.timeout_at,
        timeout_ms: Some(desired.timeout_ms),
        timeout_action: Some(desired.timeout_action),
        cwd: desired.cwd.clone(),
        snapshot_id: None,
        error_message: row.observed.error_message.clone(),
    }
}

/// What everybody but the driver sees.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) record: Arc<Record>,
    /// Why there is no such sandbox after all.
    pub(crate) unborn: Option<Unborn>,
}

/// How a create can end without a sandbox.
#[derive(Debug, Clone)]
pub(crate) enum Unborn {
    /// It failed.
    Failed(Error),
    /// The idempotency key had made this one before.
    Existing(Box<SandboxRow>),
}

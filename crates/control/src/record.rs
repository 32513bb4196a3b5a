//! What control knows of one sandbox: its row, and where it is in its life. A living sandbox's driver owns
//! the record and alone changes it; everybody else sees copies through a [`View`].

use std::sync::Arc;

use jiff::Timestamp;
use nullspace_domain::lifecycle::{Birth, Call, Cause, PauseCause, State};
use nullspace_domain::network;
use nullspace_domain::sandbox::SandboxSpec;
use nullspace_domain::snapshot::FromSnapshotSpec;
use nullspace_domain::status::{Desired as Wanted, Observed as Seen, shown};
use nullspace_node_api::{Checkpoint, MachineSpec, Origin, Shape};
use nullspace_store::sandbox::{Desired, DesiredState, NewSandbox, Observed, ObservedState, SandboxRow};
use nullspace_store::snapshot::{NewSnapshot, SnapshotKind};
use nullspace_types::id::{IncarnationId, SandboxId, SnapshotId, TenantId};
use nullspace_types::network::EgressPolicy;
use nullspace_types::sandbox::{Sandbox, SandboxConfig, SandboxStatus, TimeoutAction};
use nullspace_types::{Error, Result};

use crate::clock::as_stored;
use crate::life::Life;

/// A sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) row: SandboxRow,
    pub(crate) state: State,
}

const UNSEEN: Observed = Observed {
    state: ObservedState::None,
    generation: 0,
    disk_mb: None,
    started_at: None,
    error_message: None,
};

impl Record {
    fn asked_for(tenant_id: TenantId, desired: Desired, now: Timestamp) -> Self {
        let row = SandboxRow {
            id: SandboxId::new(),
            tenant_id,
            created_at: now,
            destroyed_at: None,
            desired,
            observed: UNSEEN,
        };
        Self { row, state: State::Absent }
    }

    /// A sandbox that was asked for just now. `disk_mb` is what was asked for, or the template's if larger.
    pub(crate) fn new(tenant_id: TenantId, spec: SandboxSpec, disk_mb: u32, now: Timestamp) -> Self {
        let desired = Desired {
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
            network: spec.network,
            timeout_ms: spec.timeout_ms,
            timeout_action: spec.timeout_action,
            timeout_at: None,
            auto_resume: spec.auto_resume,
            snapshot_id: None,
            parent_id: None,
            origin_id: None,
            destroy_reason: None,
        };
        Self::asked_for(tenant_id, desired, now)
    }

    /// A sandbox that begins from a snapshot, asked for just now.
    pub(crate) fn from_snapshot(
        snapshot: NewSnapshot,
        spec: FromSnapshotSpec,
        now: Timestamp,
    ) -> Result<Self> {
        let (internet_access, network) =
            network::change(snapshot.internet_access, &snapshot.network, &spec.network)?;
        let desired = Desired {
            state: DesiredState::Running,
            generation: 1,
            incarnation: IncarnationId::new(),
            template: snapshot.template,
            vcpus: snapshot.vcpus,
            memory_mb: snapshot.memory_mb,
            disk_mb: Some(snapshot.disk_mb),
            envs: snapshot.envs,
            metadata: spec.metadata.unwrap_or(snapshot.metadata),
            cwd: snapshot.cwd,
            internet_access,
            network,
            timeout_ms: spec.timeout_ms,
            timeout_action: spec.timeout_action,
            timeout_at: None,
            auto_resume: spec.auto_resume,
            snapshot_id: None,
            parent_id: Some(snapshot.sandbox_id),
            origin_id: Some(snapshot.id),
            destroy_reason: None,
        };
        Ok(Self::asked_for(snapshot.tenant_id, desired, now))
    }

    /// A child of this sandbox that begins from a checkpoint of it, asked for just now.
    pub(crate) fn child(&self, checkpoint: SnapshotId, now: Timestamp) -> Self {
        let desired = Desired {
            state: DesiredState::Running,
            generation: 1,
            incarnation: IncarnationId::new(),
            disk_mb: self.row.observed.disk_mb.or(self.row.desired.disk_mb),
            timeout_at: None,
            snapshot_id: None,
            parent_id: Some(self.row.id),
            origin_id: Some(checkpoint),
            destroy_reason: None,
            ..self.row.desired.clone()
        };
        Self::asked_for(self.row.tenant_id, desired, now)
    }

    /// A sandbox as it was left by whoever wrote the row. `birth` says how one comes to be that does not run
    /// yet; `kept` is the checkpoint of its last hibernation that the store knows of.
    pub(crate) fn from_row(row: SandboxRow, birth: Birth, kept: Option<SnapshotId>, now: Timestamp) -> Self {
        let incarnation = row.desired.incarnation;
        let generation = row.observed.generation;
        let lost = State::Lost { incarnation, generation, kept };
        let state = match (row.desired.state, row.destroyed_at, row.observed.state) {
            (_, Some(_), _) => State::Destroyed,
            (DesiredState::Destroyed, None, _) => State::Destroying {
                incarnation,
                call: Call::End,
                checkpoints: [row.desired.snapshot_id, kept],
                cause: Cause::from_stored(row.desired.destroy_reason.as_deref()),
            },
            (DesiredState::Running, None, ObservedState::None) => {
                State::Creating { incarnation, lost: None, birth }
            }
            (DesiredState::Running, None, ObservedState::Running) => {
                State::Running { incarnation, generation, kept }
            }
            (DesiredState::Running, None, ObservedState::Paused) => match row.desired.snapshot_id {
                Some(snapshot) => State::Resuming { incarnation, snapshot, lost: None },
                None => lost,
            },
            (DesiredState::Paused, None, ObservedState::Paused) => match row.desired.snapshot_id {
                Some(snapshot) => State::Paused { incarnation, snapshot },
                None => lost,
            },
            (DesiredState::Paused, None, ObservedState::Running) => match row.desired.snapshot_id {
                Some(snapshot) => State::Hibernating {
                    incarnation,
                    generation,
                    lost: None,
                    snapshot,
                    kept,
                    cause: pause_cause(&row, now),
                },
                None => lost,
            },
            (DesiredState::Running | DesiredState::Paused, None, ObservedState::Lost)
            | (DesiredState::Paused, None, ObservedState::None) => lost,
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
            network: desired.network,
            timeout_ms: desired.timeout_ms,
            timeout_action: desired.timeout_action,
            auto_resume: desired.auto_resume,
            parent_id: desired.parent_id,
            origin_id: desired.origin_id,
            created_at: self.row.created_at,
        }
    }

    /// What to store for a snapshot of it as it is.
    pub(crate) fn new_snapshot(&self, id: SnapshotId, kind: SnapshotKind, now: Timestamp) -> NewSnapshot {
        let desired = self.row.desired.clone();
        NewSnapshot {
            id,
            tenant_id: self.row.tenant_id,
            sandbox_id: self.row.id,
            incarnation: desired.incarnation,
            kind,
            size_bytes: 0,
            metadata: desired.metadata,
            template: desired.template,
            vcpus: desired.vcpus,
            memory_mb: desired.memory_mb,
            disk_mb: self.row.observed.disk_mb.or(desired.disk_mb).unwrap_or(0),
            envs: desired.envs,
            cwd: desired.cwd,
            internet_access: desired.internet_access,
            network: desired.network,
            created_at: now,
        }
    }

    /// What to store once it is hibernated to this checkpoint.
    pub(crate) fn hibernation(&self, checkpoint: &Checkpoint) -> NewSnapshot {
        let created_at = as_stored(checkpoint.created_at);
        NewSnapshot {
            size_bytes: checkpoint.size_bytes,
            disk_mb: checkpoint.disk_mb,
            ..self.new_snapshot(checkpoint.id, SnapshotKind::Hibernation, created_at)
        }
    }

    /// The machine to ask the node for, with the policy that its settings come to.
    pub(crate) fn machine_spec(&self, egress: EgressPolicy) -> MachineSpec {
        let desired = &self.row.desired;
        let checkpoint = match self.state {
            State::Resuming { snapshot, .. } => Some(snapshot),
            State::Absent
            | State::Creating { .. }
            | State::Running { .. }
            | State::Hibernating { .. }
            | State::Paused { .. }
            | State::Lost { .. }
            | State::Destroying { .. }
            | State::Destroyed => desired.origin_id,
        };
        MachineSpec {
            sandbox_id: self.row.id,
            incarnation: desired.incarnation,
            template: desired.template.clone(),
            shape: Shape { vcpus: desired.vcpus, memory_mb: desired.memory_mb },
            disk_mb: desired.disk_mb,
            envs: desired.envs.clone(),
            cwd: desired.cwd.clone(),
            egress,
            origin: checkpoint.map_or(Origin::Template, Origin::Checkpoint),
        }
    }

    pub(crate) fn status(&self) -> SandboxStatus {
        status(&self.row)
    }

    pub(crate) fn shown(&self) -> Sandbox {
        sandbox(&self.row)
    }
}

/// Why a sandbox was being hibernated when the server stopped: it is not stored, but that its time was over
/// is.
fn pause_cause(row: &SandboxRow, now: Timestamp) -> PauseCause {
    let over = row.desired.timeout_at.is_some_and(|end| end <= now);
    if over && row.desired.timeout_action == TimeoutAction::Hibernate {
        PauseCause::Timeout
    } else {
        PauseCause::Manual
    }
}

/// The status that callers see of a row.
pub(crate) fn status(row: &SandboxRow) -> SandboxStatus {
    let wanted = match row.desired.state {
        DesiredState::Running => Wanted::Running,
        DesiredState::Paused => Wanted::Paused,
        DesiredState::Destroyed => Wanted::Destroyed,
    };
    let seen = match (row.destroyed_at, row.observed.state) {
        (Some(_), _) => Seen::Gone,
        (None, ObservedState::None) => Seen::Creating,
        (None, ObservedState::Running) => Seen::Running,
        (None, ObservedState::Paused) => Seen::Paused,
        (None, ObservedState::Lost) => Seen::Lost,
    };
    shown(wanted, seen)
}

/// The sandbox as its users see it.
pub(crate) fn sandbox(row: &SandboxRow) -> Sandbox {
    let desired = &row.desired;
    let status = status(row);
    Sandbox {
        id: row.id,
        status,
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
        snapshot_id: desired.snapshot_id.filter(|_| status == SandboxStatus::Paused),
        parent_id: desired.parent_id,
        auto_resume: desired.auto_resume,
        error_message: row.observed.error_message.clone(),
        traffic_access_token: None,
    }
}

/// What everybody but the driver sees.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) record: Arc<Record>,
    /// Why there is no such sandbox after all.
    pub(crate) unborn: Option<Unborn>,
    /// What ends connections into it.
    pub(crate) life: Life,
    /// False from the start of a server until the node was told again what the machine may reach.
    pub(crate) taken_over: bool,
}

/// How a create can end without a sandbox.
#[derive(Debug, Clone)]
pub(crate) enum Unborn {
    /// It failed.
    Failed(Error),
    /// The idempotency key had made this one before.
    Existing(Box<SandboxRow>),
}

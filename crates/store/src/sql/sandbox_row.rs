//! A row of the table of sandboxes, read and written.

use nullspace_types::id::SandboxId;
use nullspace_types::sandbox::TimeoutAction;
use sqlx::Row as _;

use super::{
    Row, Transaction, exact, json, metadata, number, number_option, parsed, parsed_option, signed, time,
    time_option, to_json, word,
};
use crate::Result;
use crate::event::truncated;
use crate::sandbox::{Desired, DesiredState, NewSandbox, Observed, ObservedState, SandboxRow};

macro_rules! columns {
    () => {
        "id, tenant_id, created_at, destroyed_at, desired, desired_generation, incarnation, template, vcpus, \
         memory_mb, disk_mb, envs, metadata, cwd, internet_access, network, timeout_ms, timeout_action, \
         timeout_at, auto_resume, snapshot_id, parent_id, origin_id, destroy_reason, observed_state, \
         observed_generation, observed_disk_mb, started_at, error_message"
    };
}
pub(super) use columns;

pub(super) fn desired_state(row: &Row) -> Result<DesiredState> {
    let known = [DesiredState::Running, DesiredState::Paused, DesiredState::Destroyed];
    word(row, "desired", &known.map(|state| (state.as_str(), state)))
}

pub(super) fn observed_state(row: &Row) -> Result<ObservedState> {
    let known = [ObservedState::None, ObservedState::Running, ObservedState::Paused, ObservedState::Lost];
    word(row, "observed_state", &known.map(|state| (state.as_str(), state)))
}

pub(super) fn sandbox(row: &Row) -> Result<SandboxRow> {
    let actions = [TimeoutAction::Destroy, TimeoutAction::Hibernate].map(|action| (action.as_str(), action));
    Ok(SandboxRow {
        id: parsed(row, "id")?,
        tenant_id: parsed(row, "tenant_id")?,
        created_at: time(row, "created_at")?,
        destroyed_at: time_option(row, "destroyed_at")?,
        desired: Desired {
            state: desired_state(row)?,
            generation: number(row, "desired_generation")?,
            incarnation: parsed(row, "incarnation")?,
            template: row.try_get("template")?,
            vcpus: number(row, "vcpus")?,
            memory_mb: number(row, "memory_mb")?,
            disk_mb: number_option(row, "disk_mb")?,
            envs: json(row, "envs")?,
            metadata: json(row, "metadata")?,
            cwd: row.try_get("cwd")?,
            internet_access: row.try_get("internet_access")?,
            network: json(row, "network")?,
            timeout_ms: number(row, "timeout_ms")?,
            timeout_action: word(row, "timeout_action", &actions)?,
            timeout_at: time_option(row, "timeout_at")?,
            auto_resume: row.try_get("auto_resume")?,
            snapshot_id: parsed_option(row, "snapshot_id")?,
            parent_id: parsed_option(row, "parent_id")?,
            origin_id: parsed_option(row, "origin_id")?,
            destroy_reason: row.try_get("destroy_reason")?,
        },
        observed: Observed {
            state: observed_state(row)?,
            generation: number(row, "observed_generation")?,
            disk_mb: number_option(row, "observed_disk_mb")?,
            started_at: time_option(row, "started_at")?,
            error_message: row.try_get("error_message")?,
        },
    })
}

/// Writes a new row and the pairs it is found by, and answers the row as it will be read back.
pub(super) async fn insert(transaction: &mut Transaction, new: &NewSandbox) -> Result<SandboxRow> {
    let row = SandboxRow {
        id: new.id,
        tenant_id: new.tenant_id,
        created_at: truncated(new.created_at),
        destroyed_at: None,
        desired: Desired {
            state: DesiredState::Running,
            generation: 1,
            incarnation: new.incarnation,
            template: new.template.clone(),
            vcpus: new.vcpus,
            memory_mb: new.memory_mb,
            disk_mb: new.disk_mb,
            envs: new.envs.clone(),
            metadata: new.metadata.clone(),
            cwd: new.cwd.clone(),
            internet_access: new.internet_access,
            network: new.network.clone(),
            timeout_ms: new.timeout_ms,
            timeout_action: new.timeout_action,
            timeout_at: None,
            auto_resume: new.auto_resume,
            snapshot_id: None,
            parent_id: new.parent_id,
            origin_id: new.origin_id,
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
    sqlx::query(
        "INSERT INTO sandboxes (id, tenant_id, created_at, desired, desired_generation, incarnation, template, \
         vcpus, memory_mb, disk_mb, envs, metadata, cwd, internet_access, network, timeout_ms, \
         timeout_action, auto_resume, parent_id, origin_id, observed_state, observed_generation) \
         VALUES ($1, $2, $3, 'running', 1, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, \
         'none', 0)",
    )
    .bind(new.id.to_string())
    .bind(new.tenant_id.to_string())
    .bind(new.created_at.as_microsecond())
    .bind(new.incarnation.to_string())
    .bind(exact(&new.template, "template")?)
    .bind(i64::from(new.vcpus))
    .bind(i64::from(new.memory_mb))
    .bind(new.disk_mb.map(i64::from))
    .bind(to_json(&new.envs)?)
    .bind(to_json(&new.metadata)?)
    .bind(new.cwd.as_deref().map(|cwd| exact(cwd, "cwd")).transpose()?)
    .bind(new.internet_access)
    .bind(to_json(&new.network)?)
    .bind(signed(new.timeout_ms, "timeout_ms")?)
    .bind(new.timeout_action.as_str())
    .bind(new.auto_resume)
    .bind(new.parent_id.map(|id| id.to_string()))
    .bind(new.origin_id.map(|id| id.to_string()))
    .execute(&mut **transaction)
    .await?;

    let pairs = "INSERT INTO sandbox_metadata (tenant_id, pair, sandbox_id) ";
    metadata::insert(transaction, pairs, new.tenant_id, &new.id.to_string(), &new.metadata).await?;
    Ok(row)
}

/// The row with this ID, of whichever tenant.
pub(super) async fn find(transaction: &mut Transaction, id: SandboxId) -> Result<Option<SandboxRow>> {
    let row = sqlx::query(concat!("SELECT ", columns!(), " FROM sandboxes WHERE id = $1"))
        .bind(id.to_string())
        .fetch_optional(&mut **transaction)
        .await?;
    row.as_ref().map(sandbox).transpose()
}

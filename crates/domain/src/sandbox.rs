//! What a request for a sandbox may say. [`validate`] turns it into a [`SandboxSpec`] in which every
//! default is filled in and every value is within its bounds, or says which is not and what the bounds are.

use std::fmt::Display;

use nullspace_types::network::NetworkSettings;
use nullspace_types::sandbox::{Envs, OnTimeout, SandboxCreate, SandboxTimeoutSet, TimeoutAction};
use nullspace_types::{Code, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::limits::{Limits, MEMORY_MB_DEFAULT, TEMPLATE_DEFAULT, VCPUS_DEFAULT};
use crate::{envs, network, path};

/// Metadata keys that only the server writes: clients read attachments from them.
pub const METADATA_KEYS_RESERVED: [&str; 2] = ["volume_attachments", "shared_volume_mount"];
/// Longest name of a template.
pub const TEMPLATE_BYTES_MAX: usize = 128;

/// A valid request for a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Template to start from.
    pub template: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// At least this much root disk, in MiB; the template's size when absent.
    pub disk_mb: Option<u32>,
    /// Lifetime in milliseconds, counted from when it runs.
    pub timeout_ms: u64,
    /// What happens at the end of it.
    pub timeout_action: TimeoutAction,
    /// Whether it wakes by itself when it is used while it is paused.
    pub auto_resume: bool,
    /// Environment of every process.
    pub envs: Envs,
    /// The user's own data.
    pub metadata: Map<String, Value>,
    /// Default working directory, absolute and normalised.
    pub cwd: Option<String>,
    /// Whether it reaches the internet.
    pub internet_access: bool,
    /// Its network settings. Whether the secrets that they name exist is not judged here.
    pub network: NetworkSettings,
}

/// A value between two bounds, or a refusal that names the field, the bounds and the value.
fn within<N: Copy + Into<i64> + Display>(field: &str, value: i64, low: N, high: N) -> Result<i64> {
    if (low.into()..=high.into()).contains(&value) {
        return Ok(value);
    }
    Err(Error::invalid(format!("{field} must be between {low} and {high}, got {value}")))
}

fn size(field: &str, value: i64, low: u32, high: u32) -> Result<u32> {
    let value = within(field, value, low, high)?;
    u32::try_from(value).map_err(Error::internal)
}

fn window(value: i64, limits: &Limits) -> Result<u64> {
    let high = i64::try_from(limits.timeout_ms_max).unwrap_or(i64::MAX);
    let value = within("timeout_ms", value, 1, high)?;
    u64::try_from(value).map_err(Error::internal)
}

pub(crate) fn window_or_default(value: Option<i64>, limits: &Limits) -> Result<u64> {
    match value {
        Some(value) => window(value, limits),
        None => Ok(limits.timeout_ms_default.min(limits.timeout_ms_max)),
    }
}

/// Refuses what the contract has and this server does not, before anything else is judged: to correct
/// a value in a request that cannot be served would be lost effort.
pub(crate) fn refuse_missing_features(request: &SandboxCreate) -> Result<()> {
    let missing = [
        (request.volumes.as_ref().is_some_and(|volumes| !volumes.is_empty()), "mounting volumes (volumes)"),
        (request.desktop.is_some(), "a desktop (desktop)"),
        (request.warm_pool.is_some(), "taking from a warm pool (warm_pool)"),
    ];
    match missing.into_iter().find(|(asked, _)| *asked) {
        Some((_, feature)) => Err(Error::not_implemented(feature)),
        None => Ok(()),
    }
}

/// What happens at the end of the window, and whether the sandbox wakes by itself.
pub(crate) fn timeout(request: &SandboxCreate) -> Result<(TimeoutAction, bool)> {
    let from_policy = request.lifecycle.map(|policy| match policy.on_timeout {
        OnTimeout::Destroy => TimeoutAction::Destroy,
        OnTimeout::Pause => TimeoutAction::Hibernate,
    });
    let action = match (request.timeout_action, from_policy) {
        (Some(action), Some(policy)) if action != policy => {
            return Err(Error::invalid(format!(
                "timeout_action is {:?} but lifecycle.on_timeout says otherwise; send one of them",
                action.as_str()
            )));
        }
        (Some(action), _) | (None, Some(action)) => action,
        (None, None) => TimeoutAction::Destroy,
    };
    let auto_resume = request.auto_resume.unwrap_or(false);
    if auto_resume && action != TimeoutAction::Hibernate {
        return Err(Error::invalid("auto_resume needs timeout_action \"hibernate\""));
    }
    Ok((action, auto_resume))
}

fn template(name: Option<&str>) -> Result<String> {
    let name = name.unwrap_or(TEMPLATE_DEFAULT);
    if name.is_empty() || name.len() > TEMPLATE_BYTES_MAX {
        return Err(Error::invalid(format!(
            "template must be 1 to {TEMPLATE_BYTES_MAX} bytes long, got {}",
            name.len()
        )));
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte)) {
        return Err(Error::invalid(format!(
            "template must consist of letters, digits and any of . _ - / : @, got {name:?}"
        )));
    }
    Ok(name.to_owned())
}

pub(crate) fn metadata(given: Map<String, Value>, limits: &Limits) -> Result<Map<String, Value>> {
    if let Some(key) = METADATA_KEYS_RESERVED.iter().find(|key| given.contains_key(**key)) {
        return Err(Error::invalid(format!("metadata: the key {key:?} is written by the server alone")));
    }
    let bytes = serde_json::to_vec(&given).map_err(Error::internal)?.len();
    if bytes > limits.metadata_bytes_max as usize {
        return Err(Error::invalid(format!(
            "metadata must be at most {} bytes as JSON, got {bytes}",
            limits.metadata_bytes_max
        )));
    }
    Ok(given)
}

/// Judges a request for a sandbox from a template.
pub fn validate(request: SandboxCreate, limits: &Limits) -> Result<SandboxSpec> {
    refuse_missing_features(&request)?;
    let (timeout_action, auto_resume) = timeout(&request)?;
    let vcpus = size("vcpus", request.vcpus.unwrap_or(i64::from(VCPUS_DEFAULT)), 1, limits.vcpus_max)?;
    let memory_default = i64::from(MEMORY_MB_DEFAULT.max(limits.memory_mb_min));
    let memory_mb = size(
        "memory_mb",
        request.memory_mb.unwrap_or(memory_default),
        limits.memory_mb_min,
        limits.memory_mb_max,
    )?;
    let disk_mb = request
        .disk_mb
        .map(|disk_mb| size("disk_mb", disk_mb, limits.disk_mb_min, limits.disk_mb_max))
        .transpose()?;
    let timeout_ms = window_or_default(request.timeout_ms, limits)?;
    let envs = request.envs.unwrap_or_default();
    envs::check("envs", &envs, limits.envs_bytes_max)?;
    Ok(SandboxSpec {
        template: template(request.template.as_deref())?,
        vcpus,
        memory_mb,
        disk_mb,
        timeout_ms,
        timeout_action,
        auto_resume,
        envs,
        metadata: metadata(request.metadata.unwrap_or_default(), limits)?,
        cwd: request.cwd.map(|cwd| path::working_directory("cwd", &cwd)).transpose()?,
        internet_access: request.internet_access.unwrap_or(true),
        network: network::settings(request.network.as_ref())?,
    })
}

/// A valid new window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeoutSpec {
    /// Milliseconds from now.
    pub timeout_ms: u64,
    /// What happens then; as before when absent.
    pub timeout_action: Option<TimeoutAction>,
}

/// Judges a new window for a sandbox that wakes by itself, or does not.
pub fn validate_timeout(
    request: SandboxTimeoutSet,
    auto_resume: bool,
    limits: &Limits,
) -> Result<TimeoutSpec> {
    if auto_resume && request.timeout_action == Some(TimeoutAction::Destroy) {
        return Err(Error::invalid(
            "timeout_action cannot be \"destroy\": the sandbox was created with auto_resume, which needs \
             \"hibernate\"",
        ));
    }
    Ok(TimeoutSpec {
        timeout_ms: window(request.timeout_ms, limits)?,
        timeout_action: request.timeout_action,
    })
}

/// The answer when a key comes again with another request.
pub fn key_reused() -> Error {
    Error::new(Code::Conflict, "this Idempotency-Key was used before with another request")
        .suggest("use a new key for a new request, or repeat the same body")
}

#[cfg(test)]
#[path = "sandbox_tests.rs"]
mod tests;

//! The sandbox as its users see it, and what they ask of it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::{SandboxId, SnapshotId};

/// Environment variables by name.
pub type Envs = BTreeMap<String, String>;

/// What a sandbox is doing, as shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum SandboxStatus {
    /// Its machine is being made.
    Creating,
    /// Its machine runs.
    Running,
    /// It is hibernated.
    Paused,
    /// It is gone for good.
    Destroyed,
    /// Its machine was lost.
    Error,
}

impl SandboxStatus {
    /// Every status.
    pub const ALL: [Self; 5] = [Self::Creating, Self::Running, Self::Paused, Self::Destroyed, Self::Error];

    /// The status as it stands on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Destroyed => "destroyed",
            Self::Error => "error",
        }
    }
}

/// What happens when a sandbox's time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum TimeoutAction {
    /// The sandbox is destroyed.
    Destroy,
    /// The sandbox is hibernated.
    Hibernate,
}

impl TimeoutAction {
    /// The action as it stands on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Destroy => "destroy",
            Self::Hibernate => "hibernate",
        }
    }
}

/// The size of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SandboxConfig {
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Root disk in MiB.
    pub disk_mb: u32,
}

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Sandbox {
    /// `sb_` and 32 hexadecimal digits.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub id: SandboxId,
    /// What it is doing.
    pub status: SandboxStatus,
    /// Its size.
    pub config: SandboxConfig,
    /// The template it was made from.
    pub template: String,
    /// The user's own data, stored verbatim.
    #[cfg_attr(feature = "schema", schema(value_type = Object))]
    pub metadata: Map<String, Value>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When its machine began to run.
    pub started_at: Option<Timestamp>,
    /// When its time is over.
    pub timeout_at: Option<Timestamp>,
    /// The same as `timeout_at`.
    pub expires_at: Option<Timestamp>,
    /// The window in force, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// What happens then.
    pub timeout_action: Option<TimeoutAction>,
    /// The default working directory of its processes.
    pub cwd: Option<String>,
    /// The snapshot that a paused sandbox resumes from.
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub snapshot_id: Option<SnapshotId>,
    /// The sandbox that it was forked from, or whose snapshot it began from.
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub parent_id: Option<SandboxId>,
    /// Whether it wakes by itself when it is used while it is paused.
    #[serde(default)]
    pub auto_resume: bool,
    /// Why it is in `error`, for people.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error_message: Option<String>,
    /// What lets requests reach its ports where `allow_public_traffic` is false. Told by create alone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub traffic_access_token: Option<String>,
}

/// The fields that `fields=` may name.
pub const SANDBOX_FIELDS: &[&str] = &[
    "id",
    "status",
    "config",
    "template",
    "metadata",
    "started_at",
    "timeout_ms",
    "timeout_at",
    "expires_at",
    "timeout_action",
    "created_at",
    "cwd",
    "snapshot_id",
    "traffic_access_token",
];

/// A request for a new sandbox. Numbers are taken wide here so that a value out of bounds is
/// answered with the bounds, not with a parser's words.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct SandboxCreate {
    /// Template to start from; `base` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Virtual processors; 1 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<i64>,
    /// Memory in MiB; 256 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<i64>,
    /// At least this much root disk, in MiB; the template's size when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<i64>,
    /// Lifetime in milliseconds, counted from when it runs; 300000 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<i64>,
    /// What happens at the end of it; `destroy` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_action: Option<TimeoutAction>,
    /// The other spelling of `timeout_action`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<LifecyclePolicy>,
    /// Environment of every process of the sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<BTreeMap<String, String>>))]
    pub envs: Option<Envs>,
    /// The user's own data.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<Object>))]
    pub metadata: Option<Map<String, Value>>,
    /// Default working directory, absolute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// False cuts the sandbox off from every network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internet_access: Option<bool>,
    /// Wake a paused sandbox when it is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_resume: Option<bool>,
    /// Network settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<Object>))]
    pub network: Option<Map<String, Value>>,
    /// Desktop settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<Object>))]
    pub desktop: Option<Value>,
    /// Volumes to mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<Vec<Object>>))]
    pub volumes: Option<Vec<Value>>,
    /// Warm pool to take it from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<Object>))]
    pub warm_pool: Option<Value>,
    /// Snapshot to start from, instead of a template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
}

/// What happens to a sandbox over its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LifecyclePolicy {
    /// At the end of its time.
    pub on_timeout: OnTimeout,
}

/// What happens at the end of a sandbox's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    /// The sandbox is destroyed.
    Destroy,
    /// The sandbox is hibernated.
    Pause,
}

/// Which sandboxes to list, and how much of each.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "schema", into_params(parameter_in = Query))]
#[serde(default)]
pub struct SandboxListQuery {
    /// Statuses, separated by commas. Destroyed sandboxes are listed only when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Only those of this template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// A JSON object: only those whose metadata has all of its pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
    /// At most this many, 1 to 100; 100 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// Where the last page ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_token: Option<String>,
    /// Fields, separated by commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fields: Option<String>,
}

/// Which fields of one sandbox to answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "schema", into_params(parameter_in = Query))]
#[serde(default)]
pub struct SandboxGetQuery {
    /// Fields, separated by commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fields: Option<String>,
}

/// A page of sandboxes; with `fields`, of the named fields only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SandboxPage {
    /// The sandboxes, newest first.
    #[cfg_attr(feature = "schema", schema(value_type = Vec<Sandbox>))]
    pub items: Vec<Value>,
    /// Whether there are more.
    pub has_next: bool,
    /// What to give as `next_token` for the next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_token: Option<String>,
}

/// A bare array without any query, a page with one: what the public client expects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum SandboxList {
    /// Everything, newest first.
    All(Vec<Value>),
    /// One page.
    Page(SandboxPage),
}

/// A new window for a sandbox, counted from now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SandboxTimeoutSet {
    /// Milliseconds from now.
    pub timeout_ms: i64,
    /// What happens then; as before when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_action: Option<TimeoutAction>,
}

/// The window now in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SandboxTimeout {
    /// Milliseconds in all.
    pub timeout_ms: u64,
    /// What happens then.
    pub timeout_action: TimeoutAction,
    /// When.
    pub timeout_at: Timestamp,
    /// Milliseconds left.
    pub remaining_ms: u64,
}

/// What a destroy answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SandboxDestroyed {
    /// The sandbox.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub id: SandboxId,
    /// Always `destroyed`.
    pub status: SandboxStatus,
}

/// One sample of what a sandbox uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SandboxMetrics {
    /// When it was taken.
    pub timestamp: Timestamp,
    /// Percent of all its processors.
    pub cpu_percent: f64,
    /// Virtual processors.
    pub cpu_count: u32,
    /// Bytes of memory in use inside.
    pub mem_used_bytes: u64,
    /// Bytes of memory inside.
    pub mem_total_bytes: u64,
    /// Bytes of the root file system in use.
    pub disk_used_bytes: u64,
    /// Bytes of the root file system.
    pub disk_total_bytes: u64,
    /// Bytes received from the network.
    pub network_rx_bytes: Option<u64>,
    /// Bytes sent to the network.
    pub network_tx_bytes: Option<u64>,
}

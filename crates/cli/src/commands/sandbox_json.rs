//! What commands print of a sandbox as JSON: all of it, or the fields that were asked for.

use jiff::Timestamp;
use nullspace_types::id::{SandboxId, SnapshotId};
use nullspace_types::sandbox::{Sandbox, SandboxStatus, TimeoutAction};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// A sandbox as the command line prints it: the fields of the contract, in its order, and where there is
/// something to say more.
#[derive(Serialize)]
pub(super) struct SandboxJson<'a> {
    id: String,
    status: SandboxStatus,
    template: &'a str,
    config: ConfigJson,
    metadata: &'a Map<String, Value>,
    started_at: Option<Timestamp>,
    created_at: Timestamp,
    timeout_ms: Option<u64>,
    timeout_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    timeout_action: Option<TimeoutAction>,
    snapshot_id: Option<SnapshotId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    volumes: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<SandboxId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auto_resume: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traffic_access_token: Option<&'a str>,
}

#[derive(Serialize)]
struct ConfigJson {
    vcpus: u32,
    memory_mb: u32,
}

impl<'a> SandboxJson<'a> {
    pub(super) fn new(sandbox: &'a Sandbox) -> Self {
        let config = ConfigJson { vcpus: sandbox.config.vcpus, memory_mb: sandbox.config.memory_mb };
        let volumes = sandbox.metadata.get("volume_attachments");
        Self {
            id: sandbox.id.to_string(),
            status: sandbox.status,
            template: &sandbox.template,
            config,
            metadata: &sandbox.metadata,
            started_at: sandbox.started_at,
            created_at: sandbox.created_at,
            timeout_ms: sandbox.timeout_ms,
            timeout_at: sandbox.timeout_at,
            expires_at: sandbox.expires_at,
            timeout_action: sandbox.timeout_action,
            snapshot_id: sandbox.snapshot_id,
            cwd: sandbox.cwd.as_deref(),
            volumes: volumes.filter(|volumes| volumes.as_array().is_some_and(|all| !all.is_empty())),
            parent_id: sandbox.parent_id,
            auto_resume: Some(true).filter(|_| sandbox.auto_resume),
            error_message: sandbox.error_message.as_deref(),
            traffic_access_token: sandbox.traffic_access_token.as_deref(),
        }
    }
}

/// The fields that were asked for, in the order in which they were.
pub(super) struct Chosen<'a> {
    pub(super) value: &'a Value,
    pub(super) fields: &'a [String],
}

impl Chosen<'_> {
    pub(super) fn texts(&self) -> Vec<String> {
        let text = |field: &String| match self.value.get(field) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        self.fields.iter().map(text).collect()
    }
}

impl Serialize for Chosen<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let present = self.fields.iter().filter_map(|field| Some((field, self.value.get(field)?)));
        let mut map = serializer.serialize_map(None)?;
        for (field, value) in present {
            map.serialize_entry(field, value)?;
        }
        map.end()
    }
}

//! What requests about snapshots and forks may say, and how the tree of relatives is laid out.

use std::collections::HashMap;

use nullspace_types::id::{SandboxId, SnapshotId};
use nullspace_types::sandbox::{SandboxCreate, TimeoutAction};
use nullspace_types::snapshot::{SandboxDiffQuery, SandboxFork, SandboxTreeNode, SnapshotListQuery};
use nullspace_types::{Code, Error, Result};
use serde_json::{Map, Value};

use crate::limits::Limits;
use crate::network;
use crate::sandbox::{metadata, refuse_missing_features, timeout, window_or_default};

/// Most children of one fork.
pub const FORK_COUNT_MAX: u32 = 64;
/// Most sandboxes that a tree lists.
pub const TREE_MAX: u32 = 10_000;
/// Most files that a diff lists.
pub const DIFF_LIMIT_MAX: u32 = 100_000;
/// The files that a diff lists if its caller names no limit.
pub const DIFF_LIMIT_DEFAULT: u32 = 10_000;

/// A snapshot that does not exist, or is not the caller's: the two look alike.
pub fn snapshot_not_found(id: SnapshotId) -> Error {
    Error::new(Code::SnapshotNotFound, format!("snapshot {id} does not exist"))
}

/// A valid request for a sandbox from a snapshot. Whatever is not here, the sandbox has from the snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct FromSnapshotSpec {
    /// Which.
    pub snapshot_id: SnapshotId,
    /// Lifetime in milliseconds, counted from when it runs.
    pub timeout_ms: u64,
    /// What happens at the end of it.
    pub timeout_action: TimeoutAction,
    /// Whether it wakes by itself.
    pub auto_resume: bool,
    /// The user's own data; the snapshot's when absent.
    pub metadata: Option<Map<String, Value>>,
    /// What it changes of the snapshot's network settings.
    pub network: Map<String, Value>,
}

/// Judges a request for a sandbox from a snapshot. The snapshot decides its size, template and environment:
/// a request that names them too is refused, not silently answered with something else.
pub fn validate_create(snapshot: &str, request: &SandboxCreate, limits: &Limits) -> Result<FromSnapshotSpec> {
    refuse_missing_features(request)?;
    let snapshot_id = snapshot_id("snapshot_id", snapshot)?;
    let fixed = [
        ("template", request.template.is_some()),
        ("vcpus", request.vcpus.is_some()),
        ("memory_mb", request.memory_mb.is_some()),
        ("disk_mb", request.disk_mb.is_some()),
        ("envs", request.envs.is_some()),
        ("cwd", request.cwd.is_some()),
        ("internet_access", request.internet_access == Some(false)),
    ];
    if let Some((field, _)) = fixed.into_iter().find(|(_, given)| *given) {
        return Err(Error::invalid(format!(
            "{field} cannot be given together with snapshot_id: the sandbox has it from the snapshot"
        )));
    }
    let (timeout_action, auto_resume) = timeout(request)?;
    Ok(FromSnapshotSpec {
        snapshot_id,
        timeout_ms: window_or_default(request.timeout_ms, limits)?,
        timeout_action,
        auto_resume,
        metadata: request.metadata.clone().map(|given| metadata(given, limits)).transpose()?,
        network: network::from_snapshot(request.network.as_ref())?,
    })
}

/// Reads a snapshot's ID; the refusal names the field.
pub fn snapshot_id(field: &str, text: &str) -> Result<SnapshotId> {
    text.parse().map_err(|error| Error::invalid(format!("{field}: {error}, got {text:?}")))
}

/// How many children a fork shall have; none is said by a request for the one child that is answered bare.
pub fn fork_count(request: &SandboxFork) -> Result<Option<u32>> {
    let Some(count) = request.count else { return Ok(None) };
    match u32::try_from(count) {
        Ok(valid @ 1..=FORK_COUNT_MAX) => Ok(Some(valid)),
        Ok(_) | Err(_) => {
            Err(Error::invalid(format!("count must be between 1 and {FORK_COUNT_MAX}, got {count}")))
        }
    }
}

/// Which snapshots to list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SnapshotListSpec {
    /// Only those of this sandbox.
    pub sandbox_id: Option<SandboxId>,
    /// Only those whose metadata has all of these pairs.
    pub metadata: Map<String, Value>,
}

/// Judges a query.
pub fn validate_list(query: &SnapshotListQuery) -> Result<SnapshotListSpec> {
    let sandbox_id = query.sandbox_id.as_deref().map(|text| {
        text.parse().map_err(|error| Error::invalid(format!("sandbox_id: {error}, got {text:?}")))
    });
    let metadata = query.metadata.as_deref().map(|text| {
        serde_json::from_str(text)
            .map_err(|error| Error::invalid(format!("metadata must be a JSON object: {error}")))
    });
    Ok(SnapshotListSpec {
        sandbox_id: sandbox_id.transpose()?,
        metadata: metadata.transpose()?.unwrap_or_default(),
    })
}

/// A sandbox, or a snapshot, that a caller named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// A sandbox.
    Sandbox(SandboxId),
    /// A snapshot.
    Snapshot(SnapshotId),
}

/// Reads the ID of either; the refusal names the field.
pub fn named(field: &str, text: &str) -> Result<Named> {
    if let Ok(id) = text.parse() {
        return Ok(Named::Sandbox(id));
    }
    let refused = || {
        Error::invalid(format!(
            "{field} must be the ID of a sandbox ({}…) or of a snapshot ({}…), got {text:?}",
            SandboxId::PREFIX,
            SnapshotId::PREFIX
        ))
    };
    text.parse().map(Named::Snapshot).map_err(|_| refused())
}

/// What to compare a sandbox with, and how many files to list.
pub fn validate_diff(query: &SandboxDiffQuery) -> Result<(Named, u32)> {
    let Some(against) = query.against.as_deref() else {
        return Err(Error::invalid("against is missing: it names the sandbox or snapshot to compare with"));
    };
    let against = named("against", against)?;
    let limit = match query.limit.as_deref() {
        None => DIFF_LIMIT_DEFAULT,
        Some(text) => {
            text.parse::<u32>().ok().filter(|limit| (1..=DIFF_LIMIT_MAX).contains(limit)).ok_or_else(
                || Error::invalid(format!("limit must be between 1 and {DIFF_LIMIT_MAX}, got {text:?}")),
            )?
        }
    };
    Ok((against, limit))
}

/// Lays a family out depth first from its root, children in the order in which they come, and sets each
/// depth. Who does not descend from the root is left out.
pub fn depth_first(root: SandboxId, family: Vec<SandboxTreeNode>) -> Vec<SandboxTreeNode> {
    let mut children: HashMap<SandboxId, Vec<SandboxTreeNode>> = HashMap::new();
    let mut stack = Vec::new();
    let mut items = Vec::with_capacity(family.len());
    for node in family {
        match node.parent_id {
            _ if node.id == root => stack.push((node, 0)),
            Some(parent) => children.entry(parent).or_default().push(node),
            None => {}
        }
    }
    while let Some((node, depth)) = stack.pop() {
        let below = children.remove(&node.id).unwrap_or_default();
        stack.extend(below.into_iter().rev().map(|child| (child, depth + 1)));
        items.push(SandboxTreeNode { depth, ..node });
    }
    items
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;

//! Snapshots: checkpoints of sandboxes that users name, and the requests that make them or begin from them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::{SandboxId, SnapshotId};
use crate::sandbox::{Sandbox, SandboxStatus};

/// A snapshot. The public client knows exactly these fields and refuses any other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Snapshot {
    /// `snap_` and 32 hexadecimal digits.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub id: SnapshotId,
    /// The sandbox it was taken of.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub sandbox_id: SandboxId,
    /// Bytes on the disk that are its own: changed memory, devices, and the disk layer that it froze.
    pub size_bytes: u64,
    /// When it was taken.
    pub created_at: Timestamp,
    /// The sandbox's metadata at that time.
    #[cfg_attr(feature = "schema", schema(value_type = Object))]
    pub metadata: Map<String, Value>,
}

/// Which snapshots to list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "schema", into_params(parameter_in = Query))]
#[serde(default)]
pub struct SnapshotListQuery {
    /// Only those of this sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// A JSON object: only those whose metadata has all of its pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
}

/// How many children a fork makes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct SandboxFork {
    /// 1 to 64 children of the same instant, answered as a list. One child, answered bare, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<i64>,
}

/// The children of a fork: one bare where no count was asked for, else a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum SandboxForked {
    /// As many as were asked for, in the order of their IDs.
    Many {
        /// The children.
        items: Vec<Sandbox>,
    },
    /// The one child.
    One(Box<Sandbox>),
}

/// A sandbox in the tree of its relatives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SandboxTreeNode {
    /// Which.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub id: SandboxId,
    /// The sandbox it was forked from, or whose snapshot it began from.
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub parent_id: Option<SandboxId>,
    /// The snapshot it began from, if it was one that a user named.
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub snapshot_id: Option<SnapshotId>,
    /// Steps below the root.
    pub depth: u32,
    /// What it is doing now; destroyed ones stay in the tree.
    pub status: SandboxStatus,
    /// When it was asked for.
    pub created_at: Timestamp,
}

/// All relatives of a sandbox. Flat, so that a chain of any length can be read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SandboxTree {
    /// The oldest ancestor.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub root_id: SandboxId,
    /// Depth first from the root, children in the order they were made.
    pub items: Vec<SandboxTreeNode>,
    /// Whether there are more than are listed (10000).
    pub truncated: bool,
}

/// What to compare a sandbox's files with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "schema", into_params(parameter_in = Query))]
#[serde(default)]
pub struct SandboxDiffQuery {
    /// The other sandbox, or a snapshot: a relative of this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    /// At most this many files, 1 to 100000; 10000 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
}

/// How a file differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum FileDifference {
    /// The sandbox has it, the other does not.
    Added,
    /// The other has it, the sandbox does not.
    Removed,
    /// Both have it, with another content, kind, owner or mode.
    Modified,
}

/// A file that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DiffEntry {
    /// Absolute. What is not UTF-8 in it is replaced.
    pub path: String,
    /// How it differs.
    pub change: FileDifference,
    /// `file`, `dir`, `symlink` or `other`: of the sandbox's, or of the other's if that alone has it.
    pub r#type: String,
    /// Bytes of the sandbox's file, or of the other's if that alone has it.
    pub size: u64,
}

/// Which files differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SandboxDiff {
    /// The sandbox.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub sandbox_id: SandboxId,
    /// The other sandbox, or the snapshot.
    pub against: String,
    /// What differs, by path.
    pub items: Vec<DiffEntry>,
    /// Whether there is more than is listed.
    pub truncated: bool,
}

//! Files inside a sandbox.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum FileType {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe.
    Other,
}

/// A file or directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileInfo {
    /// The last part of the path.
    pub name: String,
    /// The absolute path.
    pub path: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Bytes.
    pub size: u64,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: FileType,
    /// Permission bits in octal, such as `0640`.
    pub mode: String,
    /// The same as `mode`.
    pub permissions: String,
    /// Owning user.
    pub owner: String,
    /// Owning group.
    pub group: String,
    /// When its content last changed.
    pub modified_time: Timestamp,
    /// Where a symbolic link points.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub symlink_target: Option<String>,
}

/// A path, for info, exists, remove and mkdir.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FilePath {
    /// Absolute, or relative to the sandbox's working directory, or to the user's home.
    pub path: String,
    /// The user on whose behalf.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// How file content stands in JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum FileEncoding {
    /// As text; bytes that are not UTF-8 are replaced by U+FFFD when read.
    #[default]
    Utf8,
    /// As standard base64.
    Base64,
}

/// A file to read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileRead {
    /// Absolute, or relative as in `FilePath`.
    pub path: String,
    /// `utf8` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<FileEncoding>,
    /// The user on whose behalf.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// The content of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileContent {
    /// The content.
    pub content: String,
    /// How it stands here.
    pub encoding: FileEncoding,
    /// Bytes of the file.
    pub size: u64,
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileWrite {
    /// Absolute, or relative as in `FilePath`. Missing directories above it are made.
    pub path: String,
    /// The whole content.
    pub content: String,
    /// `utf8` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<FileEncoding>,
    /// The user who shall own it; when absent an existing owner is kept, and a new file is root's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// A file to move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileRename {
    /// What it is called now.
    pub old_path: String,
    /// What it shall be called.
    pub new_path: String,
    /// The user on whose behalf.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// New permission bits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FilePermissions {
    /// Absolute, or relative as in `FilePath`.
    pub path: String,
    /// Octal, such as `644` or `0755`.
    pub permissions: String,
    /// The user on whose behalf.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Whether a path exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileExists {
    /// True if there is anything at the path, a dangling link included.
    pub exists: bool,
}

/// Which directory to list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "schema", into_params(parameter_in = Query))]
#[serde(default)]
pub struct FileListQuery {
    /// Absolute, or relative as in `FilePath`; `/` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// How many levels; 1, the direct children, when absent or 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<String>,
    /// The user on whose behalf.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Which file to read or write raw.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "schema", into_params(parameter_in = Query))]
#[serde(default)]
pub struct FileRawQuery {
    /// Absolute, or relative as in `FilePath`.
    #[cfg_attr(feature = "schema", param(required = true))]
    pub path: String,
    /// The user on whose behalf.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

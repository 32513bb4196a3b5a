//! Files inside a sandbox.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::socket::FileEventKind;

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

/// What to look for in files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileFind {
    /// A directory, searched with all that is in it, or one file.
    pub path: String,
    /// A regular expression; one that is none is looked for literally.
    pub pattern: String,
    /// The user on whose behalf.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Most matches to answer; 10,000 when absent, which is also the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// A line that matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileMatch {
    /// The file's absolute path.
    pub file: String,
    /// The line's number, from 1.
    pub line: u64,
    /// The line without its end; at most 4,096 bytes of it.
    pub content: String,
}

/// Which names to look for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileSearch {
    /// A directory, searched with all that is in it.
    pub path: String,
    /// A glob that the last part of a path must match, such as `*.py`.
    pub pattern: String,
    /// The user on whose behalf.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Most paths to answer; 100,000 when absent, which is also the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// A text to replace in files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileReplace {
    /// The files; each as in `FilePath`.
    pub files: Vec<String>,
    /// The text, taken literally.
    pub pattern: String,
    /// What shall stand in its place.
    pub replacement: String,
    /// The user on whose behalf; who owns the files does not change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Count only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,
}

/// What a replacement did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileReplaced {
    /// How many times the text was replaced, in all files together.
    pub replacements: u64,
    /// Files that have changed.
    pub files_modified: u64,
    /// Files that do not have the text.
    pub files_skipped: u64,
    /// Files that are not text.
    pub binary_files_skipped: u64,
}

/// The first part of a batch write: which file is in which part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileBatch {
    /// One for each part that follows, in the order of the parts.
    pub files: Vec<FileBatchEntry>,
    /// The user who shall own the files, as in `FileWrite`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// A file of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileBatchEntry {
    /// Where it shall be.
    pub path: String,
    /// The name of the part that holds its content.
    pub field: String,
}

/// What came of each file of a batch, in the order of the request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileBatchResults {
    /// One for each file.
    pub results: Vec<FileBatchResult>,
}

/// What came of one file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum FileBatchResult {
    /// It is written.
    Success {
        /// As the request has it.
        path: String,
        /// The file.
        info: FileInfo,
    },
    /// It is not; the others are not affected.
    Error {
        /// As the request has it.
        path: String,
        /// Why, for people.
        error: String,
    },
}

/// A URL to sign.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileSign {
    /// Absolute, or relative as in `FilePath`.
    pub path: String,
    /// The user on whose behalf the URL will work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Seconds until it works no more: 900 when absent, 86,400 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_secs: Option<u64>,
}

/// A URL that works without a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileDownloadUrl {
    /// `GET` it.
    pub url: String,
}

/// A URL that works without a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileUploadUrl {
    /// `PUT` the bytes to it, or `POST` a form with the field `file`.
    pub url: String,
    /// The part of the URL that authorises.
    pub token: String,
}

/// Which part of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FileRange {
    /// All of it.
    #[default]
    Whole,
    /// From an offset on, to the end or so many bytes.
    From {
        /// Where it begins.
        offset: u64,
        /// At most so many bytes.
        length: Option<u64>,
    },
    /// The last so many bytes.
    Last(u64),
}

/// A piece of a batch write: for each file its `Start`, then its `Data`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchPart {
    /// A file begins.
    Start {
        /// Where it shall be.
        path: String,
    },
    /// More of its content.
    Data(Bytes),
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found<T> {
    /// In order of the paths.
    pub items: Vec<T>,
    /// Whether there was more than the limit.
    pub limited: bool,
}

/// A change that a watch saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// What happened.
    pub event: FileEventKind,
    /// Relative to the watched path.
    pub name: String,
    /// Absolute.
    pub path: String,
}

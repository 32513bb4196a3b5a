//! Resumable uploads into a sandbox.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::{RequestId, UploadId};

/// What is uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum UploadKind {
    /// One file.
    File,
    /// A directory, as a tar archive.
    DirectoryTar,
}

/// What the client reads from; the server only gives it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum UploadSource {
    /// A file that can be read again.
    RestartableFile,
    /// A stream that was kept in a file.
    SpooledStream,
    /// A directory that was packed.
    DirectoryArchive,
}

/// What happens if there is something at the target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum UploadConflict {
    /// A file is overwritten; a directory gets the entries added, those of the same name overwritten.
    #[default]
    Merge,
    /// It is replaced as a whole.
    Replace,
    /// The upload fails with `target_conflict`.
    Error,
}

/// How a directory is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum UploadArchive {
    /// As an uncompressed tar archive, ustar or PAX.
    Tar,
}

/// How content is checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum UploadChecksum {
    /// SHA-256.
    #[default]
    Sha256,
}

/// How far an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum UploadStatus {
    /// Nothing has come yet.
    Created,
    /// Some parts are there.
    Uploading,
    /// All parts are there.
    Staged,
    /// It is being put in place.
    Completing,
    /// It is in place.
    Completed,
    /// Its owner gave it up.
    Aborted,
    /// Its time is over.
    Expired,
    /// It could not be put in place.
    Failed,
}

/// An upload to begin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct UploadCreate {
    /// What it is.
    pub kind: UploadKind,
    /// What the client reads from.
    pub source_kind: UploadSource,
    /// Where it shall be: absolute, or relative as in `FilePath`.
    pub target_path: String,
    /// Bytes, of the archive for a directory.
    pub content_length: u64,
    /// `merge` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<UploadConflict>,
    /// `tar`, for directories alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_format: Option<UploadArchive>,
    /// `sha256` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum_algorithm: Option<UploadChecksum>,
    /// Of the whole content, 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole_checksum_sha256: Option<String>,
    /// Taken and not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<Object>))]
    pub metadata: Option<Map<String, Value>>,
    /// The user who shall own what is made, as in `FileWrite`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// The bounds an upload is under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct UploadLimits {
    /// Bytes of one upload.
    pub max_upload_bytes: u64,
    /// Bytes of one part.
    pub max_part_bytes: u64,
    /// Parts at once.
    pub max_concurrency: u32,
    /// Bytes of all unfinished uploads of the sandbox.
    pub sandbox_staging_quota_bytes: u64,
}

/// An upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct UploadSession {
    /// Its ID.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub upload_id: UploadId,
    /// What it is.
    pub kind: UploadKind,
    /// What the client reads from.
    pub source_kind: UploadSource,
    /// Where it will be, absolute.
    pub target_path: String,
    /// Who will own it.
    pub user: Option<String>,
    /// Bytes.
    pub content_length: u64,
    /// Bytes of the parts that are there.
    pub accepted_bytes: u64,
    /// Bytes that are kept free for it.
    pub reserved_staging_bytes: u64,
    /// Bytes of every part but the last.
    pub part_size: u64,
    /// How many parts.
    pub part_count: u32,
    /// Parts at once.
    pub max_concurrency: u32,
    /// The lowest part that is missing.
    pub next_part: Option<u32>,
    /// How far it is.
    pub status: UploadStatus,
    /// What happens if there is something at the target.
    pub conflict: UploadConflict,
    /// How a directory is packed.
    pub archive_format: Option<UploadArchive>,
    /// How content is checked.
    pub checksum_algorithm: UploadChecksum,
    /// Of the whole content, 64 hexadecimal digits.
    pub whole_checksum_sha256: Option<String>,
    /// The bounds it is under.
    pub limits: UploadLimits,
    /// When it began.
    pub created_at: Timestamp,
    /// When a part last came, or its status changed.
    pub updated_at: Timestamp,
    /// When it will be dropped.
    pub expires_at: Timestamp,
}

/// The answer to a create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct UploadCreated {
    /// The upload.
    pub session: UploadSession,
}

/// A wish to put an upload in place. All of it may be absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct UploadComplete {
    /// Of the whole content, 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole_checksum_sha256: Option<String>,
}

/// An upload that is in place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct UploadCompleted {
    /// The upload.
    pub session: UploadSession,
    /// Bytes of the files.
    pub published_bytes: u64,
    /// How many files.
    pub published_file_count: u64,
}

/// Why an upload was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum UploadReason {
    /// The sandbox's disk or its quota has no room for it.
    InsufficientStagingSpace,
    /// It is larger than uploads may be.
    SizeLimitExceeded,
    /// A part's checksum is not that of its content.
    InvalidPartChecksum,
    /// There is no part of that number.
    PartOutOfRange,
    /// A part is longer or shorter than it must be.
    PartSizeMismatch,
    /// The whole checksum is not that of the content.
    WholeChecksumMismatch,
    /// Its time is over.
    UploadExpired,
    /// It was given up.
    UploadAborted,
    /// It is in place already.
    UploadAlreadyCompleted,
    /// There is something at the target.
    TargetConflict,
    /// The archive has a path that is absolute or leads out of the directory.
    DirectoryExtractInvalidPath,
    /// The archive has a symbolic link that leads out of the directory.
    DirectoryExtractInvalidSymlink,
    /// The archive has an entry that is no file, directory or symbolic link.
    DirectoryExtractUnsupportedEntry,
    /// Some parts have not come.
    MissingParts,
}

/// Why an upload was refused, for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct UploadFailure {
    /// Why.
    pub reason: UploadReason,
    /// The same for people.
    pub message: String,
    /// Whether the same request may succeed later without any change.
    pub retryable: bool,
    /// Which upload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub upload_id: Option<UploadId>,
    /// Which request; the API fills it in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub request_id: Option<RequestId>,
    /// Which path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Which part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_number: Option<u32>,
}

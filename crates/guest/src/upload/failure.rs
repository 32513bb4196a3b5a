//! Why a call about an upload was refused or went wrong, and how that is told.

use std::io;
use std::path::Path;

use nullspace_guest_proto as pb;
use pb::UploadFailure as Reason;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Status};

use crate::file;

/// Metadata of a refused call: why, one of the names of the wire.
const REASON: &str = "nullspace-upload-reason";
/// Metadata of a refused call: which path is meant, percent-encoded.
const PATH: &str = "nullspace-upload-path";
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'%');
/// Characters of a path that are told. Headers have a limit.
const PATH_CHARACTERS: usize = 512;

/// A call that was not done.
#[derive(Debug, Clone)]
pub enum Failure {
    /// For one of the reasons that the protocol names.
    Refused(Refusal),
    /// For another.
    Other(Status),
}

/// See [`Failure::Refused`].
#[derive(Debug, Clone)]
pub struct Refusal {
    reason: Reason,
    message: String,
    path: Option<String>,
}

impl Failure {
    /// A refusal that concerns no path.
    pub fn refused(reason: Reason, message: impl Into<String>) -> Self {
        Self::Refused(Refusal { reason, message: message.into(), path: None })
    }

    /// A refusal because of what is, or should be, at `path`; the message is to be read behind it.
    pub fn at(path: &Path, reason: Reason, message: impl AsRef<str>) -> Self {
        let path: String = path.to_string_lossy().chars().take(PATH_CHARACTERS).collect();
        let message = format!("{path}: {}", message.as_ref());
        Self::Refused(Refusal { reason, message, path: Some(path) })
    }

    /// An error that the kernel gave for `path`.
    pub fn system(error: &io::Error, path: &Path) -> Self {
        file::status(error, path).into()
    }

    /// Whether the content is at fault, so that no other try can be better.
    pub fn is_final(&self) -> bool {
        let Self::Refused(refusal) = self else { return false };
        matches!(
            refusal.reason,
            Reason::WholeChecksumMismatch
                | Reason::SizeLimitExceeded
                | Reason::DirectoryExtractInvalidPath
                | Reason::DirectoryExtractInvalidSymlink
                | Reason::DirectoryExtractUnsupportedEntry
        )
    }
}

impl From<Status> for Failure {
    /// No room is a reason of the protocol, wherever it was met.
    fn from(status: Status) -> Self {
        match status.code() {
            Code::ResourceExhausted => Self::refused(Reason::InsufficientStagingSpace, status.message()),
            _ => Self::Other(status),
        }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let refusal = match failure {
            Failure::Refused(refusal) => refusal,
            Failure::Other(status) => return status,
        };
        let code = match refusal.reason {
            Reason::InsufficientStagingSpace => Code::ResourceExhausted,
            Reason::SizeLimitExceeded
            | Reason::InvalidPartChecksum
            | Reason::PartOutOfRange
            | Reason::PartSizeMismatch => Code::InvalidArgument,
            _ => Code::FailedPrecondition,
        };
        let mut status = Self::new(code, refusal.message);
        status.metadata_mut().insert(REASON, MetadataValue::from_static(wire_name(refusal.reason)));
        let path = refusal.path.map(|path| utf8_percent_encode(&path, ENCODED).to_string());
        // What is left is printable ASCII, which a header takes.
        if let Some(path) = path.and_then(|path| path.parse::<MetadataValue<Ascii>>().ok()) {
            status.metadata_mut().insert(PATH, path);
        }
        status
    }
}

fn wire_name(reason: Reason) -> &'static str {
    match reason {
        Reason::Unspecified => "unspecified",
        Reason::InsufficientStagingSpace => "insufficient_staging_space",
        Reason::SizeLimitExceeded => "size_limit_exceeded",
        Reason::InvalidPartChecksum => "invalid_part_checksum",
        Reason::PartOutOfRange => "part_out_of_range",
        Reason::PartSizeMismatch => "part_size_mismatch",
        Reason::WholeChecksumMismatch => "whole_checksum_mismatch",
        Reason::UploadExpiredAlready => "upload_expired",
        Reason::UploadAbortedAlready => "upload_aborted",
        Reason::UploadCompletedAlready => "upload_already_completed",
        Reason::TargetConflict => "target_conflict",
        Reason::DirectoryExtractInvalidPath => "directory_extract_invalid_path",
        Reason::DirectoryExtractInvalidSymlink => "directory_extract_invalid_symlink",
        Reason::DirectoryExtractUnsupportedEntry => "directory_extract_unsupported_entry",
        Reason::MissingParts => "missing_parts",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_its_reason_and_any_path_in_the_metadata() {
        let path = Path::new("a b/ü%\n");
        let status = Status::from(Failure::at(path, Reason::TargetConflict, "exists"));
        assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "a b/ü%\n: exists"));
        let told = |key| status.metadata().get(key).unwrap().to_str().unwrap();
        assert_eq!((told(REASON), told(PATH)), ("target_conflict", "a%20b/%C3%BC%25%0A"));
    }

    #[test]
    fn a_full_disk_has_a_reason_and_other_errors_have_none() {
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        let status = Status::from(Failure::system(&full, Path::new("/x")));
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.metadata().get(REASON).unwrap(), "insufficient_staging_space");
        let denied = io::Error::from_raw_os_error(libc::EACCES);
        let status = Status::from(Failure::system(&denied, Path::new("/x")));
        assert_eq!((status.code(), status.metadata().get(REASON)), (Code::PermissionDenied, None));
    }
}

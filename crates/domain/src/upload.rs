//! What an upload may be.

use nullspace_types::upload::{
    UploadArchive, UploadConflict, UploadCreate, UploadFailure, UploadKind, UploadReason, UploadSource,
};
use nullspace_types::{Error, Result};

use crate::limits::Limits;
use crate::{file, process};

/// A valid upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadRequest {
    /// What it is.
    pub kind: UploadKind,
    /// What the client reads from.
    pub source_kind: UploadSource,
    /// How a directory is packed.
    pub archive_format: Option<UploadArchive>,
    /// Where it shall be, as it came.
    pub target_path: String,
    /// Who shall own it.
    pub user: Option<String>,
    /// Bytes.
    pub content_length: u64,
    /// What happens if there is something at the target.
    pub conflict: UploadConflict,
    /// SHA-256 of the whole.
    pub whole_sha256: Option<[u8; 32]>,
}

/// Judges a SHA-256 in hexadecimal digits, of either case.
pub fn sha256(field: &str, text: &str) -> Result<[u8; 32]> {
    let refused =
        || Error::invalid(format!("{field} must be 64 hexadecimal digits, got {} bytes", text.len()));
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(refused());
    }
    let mut digest = [0; 32];
    for (byte, digits) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| refused())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| refused())?;
    }
    Ok(digest)
}

/// The same SHA-256 as the wire has it.
pub fn sha256_text(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Judges an upload. `cwd` is the sandbox's own directory, from which the target may be relative.
pub fn validate(request: UploadCreate, cwd: Option<&str>, limits: &Limits) -> Result<UploadRequest> {
    let user = process::user(request.user)?;
    file::validate_path("target_path", &request.target_path, cwd, user.as_deref())?;
    let directory = request.kind == UploadKind::DirectoryTar;
    if directory != (request.source_kind == UploadSource::DirectoryArchive) {
        return Err(Error::invalid(
            "source_kind must be directory_archive if kind is directory_tar, and only then",
        ));
    }
    if directory != request.archive_format.is_some() {
        return Err(Error::invalid(
            "archive_format must be tar if kind is directory_tar, and null otherwise",
        ));
    }
    if request.content_length > limits.upload_bytes_max {
        return Err(too_large(request.content_length, limits.upload_bytes_max));
    }
    Ok(UploadRequest {
        kind: request.kind,
        source_kind: request.source_kind,
        archive_format: request.archive_format,
        target_path: request.target_path,
        user,
        content_length: request.content_length,
        conflict: request.conflict.unwrap_or_default(),
        whole_sha256: request
            .whole_checksum_sha256
            .map(|text| sha256("whole_checksum_sha256", &text))
            .transpose()?,
    })
}

fn too_large(given: u64, most: u64) -> Error {
    Error::upload(UploadFailure {
        reason: UploadReason::SizeLimitExceeded,
        message: format!("content_length must be at most {most}, got {given}"),
        retryable: false,
        upload_id: None,
        request_id: None,
        path: None,
        part_number: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nullspace_types::Code;
    use proptest::prelude::*;

    fn file() -> UploadCreate {
        UploadCreate {
            kind: UploadKind::File,
            source_kind: UploadSource::RestartableFile,
            target_path: "/tmp/a".into(),
            content_length: 5,
            conflict: None,
            archive_format: None,
            checksum_algorithm: None,
            whole_checksum_sha256: None,
            metadata: None,
            user: None,
        }
    }

    #[test]
    fn an_upload_out_of_the_rules_is_refused_with_the_rule() {
        let limits = Limits::default();
        assert_eq!(validate(file(), None, &limits).unwrap().conflict, UploadConflict::Merge);
        let directory = UploadCreate {
            kind: UploadKind::DirectoryTar,
            source_kind: UploadSource::DirectoryArchive,
            archive_format: Some(UploadArchive::Tar),
            ..file()
        };
        assert!(validate(directory.clone(), None, &limits).is_ok());
        for (request, says) in [
            (UploadCreate { target_path: String::new(), ..file() }, "target_path must not be empty"),
            (
                UploadCreate { target_path: "/workspace/.nullspace/x".into(), ..file() },
                "target_path must not lie",
            ),
            (UploadCreate { source_kind: UploadSource::DirectoryArchive, ..file() }, "source_kind must be"),
            (UploadCreate { archive_format: Some(UploadArchive::Tar), ..file() }, "archive_format must be"),
            (UploadCreate { archive_format: None, ..directory }, "archive_format must be"),
            (UploadCreate { whole_checksum_sha256: Some("ab".into()), ..file() }, "64 hexadecimal digits"),
            (UploadCreate { user: Some("a:b".into()), ..file() }, "user must be"),
        ] {
            let error = validate(request, None, &limits).unwrap_err();
            assert!(error.message.contains(says) && error.code == Code::InvalidRequest, "{error}");
        }
        let large = UploadCreate { content_length: limits.upload_bytes_max + 1, ..file() };
        let error = validate(large, None, &limits).unwrap_err();
        assert_eq!(error.upload.unwrap().reason, UploadReason::SizeLimitExceeded);
    }

    proptest! {
        #[test]
        fn a_checksum_is_read_back_as_it_was_written(digest: [u8; 32]) {
            let text = sha256_text(&digest);
            prop_assert_eq!(sha256("x", &text), Ok(digest));
            prop_assert_eq!(sha256("x", &text.to_uppercase()), Ok(digest));
        }

        #[test]
        fn any_other_text_is_no_checksum(text in "\\PC{0,70}") {
            let good = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            prop_assert_eq!(sha256("x", &text).is_ok(), good);
        }
    }
}

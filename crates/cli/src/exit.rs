//! What a script sees: the one table from error codes to exit statuses.

use nullspace_types::upload::UploadReason;

/// The command was interrupted: 128 and the number of SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;
/// Whoever read our output went away: 128 and the number of SIGPIPE, as for other programs.
pub(crate) const BROKEN_PIPE: u8 = 141;
/// Anything that the table has no line for.
pub(crate) const GENERIC: u8 = 1;
/// The command line itself is wrong.
pub(crate) const USAGE: u8 = 2;

/// How a line of the table names codes.
enum Codes {
    Are(&'static [&'static str]),
    EndWith(&'static str),
    BeginWith(&'static [&'static str]),
    Contain(&'static [&'static str]),
}

/// The first line that names a code decides.
const TABLE: &[(Codes, u8)] = &[
    (Codes::Are(&["invalid_request", "invalid_fields", "invalid_response"]), USAGE),
    (Codes::Are(&["not_found"]), 3),
    (Codes::EndWith("_not_found"), 3),
    (Codes::Are(&["unauthorized", "unauthenticated", "missing_api_key"]), 4),
    (Codes::BeginWith(&["edge_token_", "preview_grant_", "preview_proxy_token_"]), 4),
    (Codes::Are(&["permission_denied", "forbidden", "volume_read_only"]), 5),
    (Codes::EndWith("_permission_denied"), 5),
    (Codes::Are(&["capacity_exceeded", "volume_limit_exceeded", "file_upload_limit_exceeded"]), 6),
    (Codes::Contain(&["quota", "rate_limit"]), 6),
    (
        Codes::Are(&[
            "conflict",
            "sandbox_not_ready",
            "snapshot_in_use",
            "rebuild_required",
            "incompatible_snapshot",
            "volume_busy",
        ]),
        7,
    ),
    (Codes::EndWith("_conflict"), 7),
    (Codes::Are(&["timeout", "exec_timeout", "exec_failed"]), 8),
];

/// The exit status for an error code.
pub(crate) fn status(code: &str) -> u8 {
    let names = |codes: &Codes| match codes {
        Codes::Are(all) => all.contains(&code),
        Codes::EndWith(end) => code.ends_with(end),
        Codes::BeginWith(starts) => starts.iter().any(|start| code.starts_with(start)),
        Codes::Contain(parts) => parts.iter().any(|part| code.contains(part)),
    };
    TABLE.iter().find(|(codes, _)| names(codes)).map_or(GENERIC, |(_, status)| *status)
}

/// The exit status for an upload that was refused: one code stands for all reasons.
pub(crate) fn upload_status(reason: UploadReason) -> u8 {
    match reason {
        UploadReason::InsufficientStagingSpace | UploadReason::SizeLimitExceeded => {
            status("file_upload_limit_exceeded")
        }
        UploadReason::TargetConflict => status("upload_conflict"),
        UploadReason::InvalidPartChecksum
        | UploadReason::PartOutOfRange
        | UploadReason::PartSizeMismatch
        | UploadReason::WholeChecksumMismatch
        | UploadReason::UploadExpired
        | UploadReason::UploadAborted
        | UploadReason::UploadAlreadyCompleted
        | UploadReason::DirectoryExtractInvalidPath
        | UploadReason::DirectoryExtractInvalidSymlink
        | UploadReason::DirectoryExtractUnsupportedEntry
        | UploadReason::MissingParts => GENERIC,
    }
}

/// A signal ended the program.
pub(crate) fn signalled(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(GENERIC)
}

/// A wait that the caller bounded is over, as of `timeout` of the GNU tools.
pub(crate) const TIMED_OUT: u8 = 124;

/// The exit status of a command in a sandbox as one of ours: a status has eight bits.
pub(crate) fn remote(exit_code: i32) -> u8 {
    u8::try_from(exit_code).unwrap_or(GENERIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_that_of_the_wire_contract() {
        let contract: &[(u8, &[&str])] = &[
            (1, &["unknown", "transport_error", "not_implemented", "build_error", "internal_error"]),
            (2, &["invalid_request", "invalid_fields", "invalid_response"]),
            (3, &["not_found", "sandbox_not_found", "template_not_found", "template_resource_not_found"]),
            (4, &["unauthorized", "unauthenticated", "missing_api_key", "edge_token_expired"]),
            (4, &["preview_grant_revoked", "preview_proxy_token_scope_mismatch"]),
            (5, &["permission_denied", "forbidden", "files_permission_denied", "volume_read_only"]),
            (6, &["rate_limit_exceeded", "quota_exceeded", "capacity_exceeded", "volume_quota_exceeded"]),
            (6, &["volume_limit_exceeded", "file_upload_limit_exceeded", "tenant_rate_limit"]),
            (7, &["conflict", "transition_conflict", "sandbox_not_ready", "snapshot_in_use"]),
            (7, &["rebuild_required", "incompatible_snapshot", "volume_busy", "upload_conflict"]),
            (8, &["timeout", "exec_timeout", "exec_failed"]),
        ];
        for (expected, codes) in contract {
            for code in *codes {
                assert_eq!(status(code), *expected, "{code}");
            }
        }
    }

    #[test]
    fn every_code_of_the_server_has_the_status_it_is_meant_to_have() {
        let generic: Vec<_> = nullspace_types::Code::ALL
            .iter()
            .map(|code| code.as_str())
            .filter(|code| status(code) == GENERIC)
            .collect();
        assert_eq!(
            generic,
            [
                "file_error",
                "file_upload_error",
                "range_not_satisfiable",
                "preview_sandbox_disabled",
                "preview_service_not_ready",
                "unsupported_preview_port",
                "edge_runtime_host_unreachable",
                "sandbox_paused_auto_resume_disabled",
                "method_not_allowed",
                "payload_too_large",
                "transition_in_progress",
                "snapshot_corrupted",
                "not_implemented",
                "unavailable",
                "internal_error"
            ]
        );
    }

    #[test]
    fn a_remote_status_that_is_none_of_ours_is_a_failure() {
        assert_eq!([remote(0), remote(7), remote(137), remote(-1), remote(256)], [0, 7, 137, 1, 1]);
    }
}

//! The OpenAPI document: made from the routes alone, over an implementation that cannot exist.

use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{OpenApi, SecurityRequirement};
use utoipa::{IntoResponses, OpenApi as _};

use crate::error::ErrorBody;

mod undefined;
mod undefined_access;

use undefined::Undefined;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Nullspace",
        description = "Virtual machines that agents create, run code in, and destroy. \
            Every answer has the header `x-request-id`. Unknown fields are ignored, and null is absent."
    ),
    tags(
        (name = "sandbox", description = "Virtual machines"),
        (name = "snapshot", description = "Keeping them, copying them, and what differs between copies"),
        (name = "process", description = "Commands and processes in them"),
        (name = "terminal", description = "Terminal sessions in them"),
        (name = "file", description = "Files in them"),
        (name = "upload", description = "Resumable uploads into them"),
        (name = "preview", description = "Their ports, as others reach them, and access by SSH"),
        (name = "network", description = "What they may reach, and who may reach them"),
        (name = "secret", description = "Values that are added to what they send, and that they never hold"),
        (name = "lifecycle", description = "The log of what became of them"),
        (name = "webhook", description = "Endpoints that the log is sent to"),
        (name = "monitor", description = "What the server does"),
        (name = "socket", description = "Following commands, terminals, files, the log and all sandboxes as \
            it happens"),
        (name = "template", description = "What they are made from"),
        (name = "health", description = "The server itself"),
    )
)]
struct Document;

/// The whole document.
pub(crate) fn document() -> OpenApi {
    let (_, paths) = crate::documented::<Undefined>().split_for_parts();
    let mut document = Document::openapi();
    document.merge(paths);
    let key = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("An API key")).build();
    document.components.get_or_insert_default().add_security_scheme("api_key", SecurityScheme::Http(key));
    document.security = Some(vec![SecurityRequirement::new("api_key", [] as [&str; 0])]);
    document
}

/// What any request with a key can come to.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) enum Refused {
    /// The key is missing, malformed, unknown or revoked: `unauthorized`.
    #[response(status = 401)]
    Key(ErrorBody),
    /// Too many requests, `rate_limit_exceeded`, or the tenant's limit, `quota_exceeded`.
    #[response(status = 429)]
    TooMany(ErrorBody),
    /// A fault of the server's own: `internal_error`.
    #[response(status = 500)]
    Fault(ErrorBody),
    /// The server starts, stops or repairs itself, `unavailable`, or has no room for another machine,
    /// `capacity_exceeded`.
    #[response(status = 503)]
    Unavailable(ErrorBody),
}

/// A field, a parameter or the whole is wrong, and the message says which and how: `invalid_request`,
/// `invalid_fields`; or the sandbox's file system refused it: `file_error`.
#[derive(IntoResponses)]
#[response(status = 400)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct Malformed(ErrorBody);

/// The body is too large: `payload_too_large`.
#[derive(IntoResponses)]
#[response(status = 413)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct TooLarge(ErrorBody);

/// No such sandbox, process or file, or not the caller's: `sandbox_not_found` and the like.
#[derive(IntoResponses)]
#[response(status = 404)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct Missing(ErrorBody);

/// Not in this state: `sandbox_not_ready`, `transition_in_progress`; or an idempotency key was used for
/// something else: `conflict`.
#[derive(IntoResponses)]
#[response(status = 409)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct Conflict(ErrorBody);

/// Not now, or not from this: as for any sandbox; or the snapshot is needed, `snapshot_in_use`, does not fit
/// this host, `incompatible_snapshot`, or is damaged, `snapshot_corrupted`.
#[derive(IntoResponses)]
#[response(status = 409)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct NotPossible(ErrorBody);

/// No such snapshot, or not the caller's: `snapshot_not_found`.
#[derive(IntoResponses)]
#[response(status = 404)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct NoSnapshot(ErrorBody);

/// No such webhook, or not the caller's, `webhook_not_found`; or no such delivery of it,
/// `delivery_not_found`.
#[derive(IntoResponses)]
#[response(status = 404)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct NoWebhook(ErrorBody);

/// No such sandbox, or not the caller's, `sandbox_not_found`; or no such grant of it,
/// `preview_grant_not_found`.
#[derive(IntoResponses)]
#[response(status = 404)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct NoGrant(ErrorBody);

/// No such secret, or not the caller's: `secret_not_found`.
#[derive(IntoResponses)]
#[response(status = 404)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct NoSecret(ErrorBody);

/// The range is outside of the file: `range_not_satisfiable`.
#[derive(IntoResponses)]
#[response(status = 416)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct OutOfRange(ErrorBody);

/// The upload's time is over: `file_upload_error`.
#[derive(IntoResponses)]
#[response(status = 410)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct UploadGone(ErrorBody);

/// No such template, or no such snapshot of the caller's: `template_not_found`, `snapshot_not_found`.
#[derive(IntoResponses)]
#[response(status = 404)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct NoTemplate(ErrorBody);

/// This server does not have the feature: `not_implemented`.
#[derive(IntoResponses)]
#[response(status = 501)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct NotBuilt(ErrorBody);

/// What commands can come to.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) enum NotRun {
    /// The command could not be run: `exec_failed`.
    #[response(status = 502)]
    Failed(ErrorBody),
    /// The command ran out of its time and was killed: `exec_timeout`.
    #[response(status = 504)]
    Timeout(ErrorBody),
}

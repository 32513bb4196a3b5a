//! The one place where a border error becomes an HTTP answer.
//!
//! A handler's error travels to the outermost layer as it is, in the answer's extensions; there it is
//! written out, with the request's ID, and counted and logged once.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use nullspace_types::id::RequestId;
use nullspace_types::upload::{UploadFailure, UploadReason};
use nullspace_types::{Code, Error};
use serde::Serialize;

/// What a handler returns if it cannot do what it was asked.
#[derive(Debug, Clone)]
pub(crate) struct Failure(pub Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = status_of(&self.0).into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Every error that the API answers has this form.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// For people.
    error: String,
    /// For programs; each has a page in the documentation.
    #[schema(examples("sandbox_not_found"))]
    code: &'static str,
    /// The request's ID, as in the header `x-request-id`: what the server's log knows it by.
    #[schema(value_type = String)]
    request_id: RequestId,
    /// Whether the same request may succeed later without any change.
    retryable: bool,
    /// What to do next, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    suggested_action: Option<String>,
    /// With `file_upload_error` alone: why the upload was refused, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    error_detail: Option<UploadFailure>,
    /// On `/healthz` alone: `unavailable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    /// On `/healthz` alone: the same as `error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Marks the answer of `/healthz`, which has two words more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HealthAnswer;

/// The HTTP status of each code.
pub fn status(code: Code) -> StatusCode {
    match code {
        Code::InvalidRequest
        | Code::InvalidFields
        | Code::FileError
        | Code::FileUploadError
        | Code::UnsupportedPreviewPort => StatusCode::BAD_REQUEST,
        Code::Unauthorized
        | Code::EdgeTokenInvalid
        | Code::EdgeTokenExpired
        | Code::EdgeTokenMissing
        | Code::EdgeTokenScopeMismatch
        | Code::PreviewProxyTokenScopeMismatch
        | Code::PreviewGrantInvalid
        | Code::PreviewGrantRevoked
        | Code::PreviewProxyTokenMissing
        | Code::PreviewProxyTokenInvalid
        | Code::PreviewProxyTokenExpired => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied | Code::PreviewSandboxDisabled | Code::PreviewGrantDisabled => {
            StatusCode::FORBIDDEN
        }
        Code::NotFound
        | Code::SandboxNotFound
        | Code::SnapshotNotFound
        | Code::WebhookNotFound
        | Code::DeliveryNotFound
        | Code::TemplateNotFound
        | Code::ProcessNotFound
        | Code::FileNotFound
        | Code::TerminalNotFound
        | Code::UploadNotFound
        | Code::PreviewGrantNotFound
        | Code::SecretNotFound => StatusCode::NOT_FOUND,
        Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Code::Conflict
        | Code::SandboxNotReady
        | Code::TransitionInProgress
        | Code::SnapshotInUse
        | Code::IncompatibleSnapshot
        | Code::SnapshotCorrupted => StatusCode::CONFLICT,
        Code::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::RangeNotSatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
        Code::QuotaExceeded | Code::RateLimitExceeded => StatusCode::TOO_MANY_REQUESTS,
        Code::InternalError => StatusCode::INTERNAL_SERVER_ERROR,
        Code::NotImplemented => StatusCode::NOT_IMPLEMENTED,
        Code::ExecFailed | Code::PreviewServiceNotReady => StatusCode::BAD_GATEWAY,
        Code::CapacityExceeded | Code::Unavailable | Code::SandboxPausedAutoResumeDisabled => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Code::ExecTimeout | Code::EdgeRuntimeHostUnreachable => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// The status of an error: that of its code, but for uploads, where the reason has one of its own.
fn status_of(error: &Error) -> StatusCode {
    match error.upload.as_ref().map(|failure| failure.reason) {
        Some(UploadReason::UploadExpired) => StatusCode::GONE,
        Some(UploadReason::TargetConflict) => StatusCode::CONFLICT,
        _ => status(error.code),
    }
}

/// Seconds after which asking again makes sense, for the codes where that is known.
fn retry_after(code: Code) -> Option<HeaderValue> {
    match code {
        Code::RateLimitExceeded | Code::TransitionInProgress => Some(HeaderValue::from_static("1")),
        Code::CapacityExceeded | Code::Unavailable => Some(HeaderValue::from_static("5")),
        _ => None,
    }
}

/// Writes out the error that an answer carries, if it carries one, and logs it.
pub(crate) fn write(response: Response, id: RequestId) -> Response {
    let (mut parts, body) = response.into_parts();
    let Some(Failure(error)) = parts.extensions.remove::<Failure>() else {
        return Response::from_parts(parts, body);
    };
    record(&error);
    let health = parts.extensions.remove::<HealthAnswer>().is_some();
    let (retryable, status) = (error.retryable(), status_of(&error));
    let answer = ErrorBody {
        code: error.code.as_str(),
        request_id: id,
        retryable,
        suggested_action: error.suggested_action,
        error_detail: error.upload.map(|failure| UploadFailure { request_id: Some(id), ..*failure }),
        status: health.then_some("unavailable"),
        reason: health.then(|| error.message.clone()),
        error: error.message,
    };
    let text = serde_json::to_vec(&answer).expect("strings and a truth value are always JSON");
    // A body that was meant for a success is not sent, nor what described it.
    parts.headers.remove(http::header::CONTENT_LENGTH);
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if error.code == Code::Unauthorized {
        parts.headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(seconds) = retry_after(error.code) {
        parts.headers.insert(RETRY_AFTER, seconds);
    }
    parts.status = status;
    Response::from_parts(parts, Body::from(text))
}

/// Counts and logs an error that somebody is told of. Only a fault of ours is an error in the log;
/// everything else is an ordinary answer. Runs in the request's span, which names the request.
pub(crate) fn record(error: &Error) {
    metrics::counter!("nullspace_api_errors_total", "code" => error.code.as_str()).increment(1);
    let context = error.context.as_deref();
    match error.code {
        Code::InternalError => tracing::error!(code = %error.code, error = %error, context, "failed"),
        _ if context.is_some() => tracing::info!(code = %error.code, error = %error, context, "refused"),
        _ => tracing::debug!(code = %error.code, error = %error, "refused"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_an_error_status_and_retry_after_stands_only_on_what_can_be_retried() {
        for &code in Code::ALL {
            assert!(status(code).as_u16() >= 400, "{code}");
            if retry_after(code).is_some() {
                assert!(Error::new(code, "").retryable(), "{code}");
            }
        }
    }

    #[test]
    fn every_code_has_a_page_and_every_page_a_code() {
        let pages = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors");
        let mut found: Vec<String> = std::fs::read_dir(&pages)
            .expect("docs/errors")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .filter(|name| name != "README.md")
            .collect();
        found.sort();
        let mut wanted: Vec<String> = Code::ALL.iter().map(|code| format!("{code}.md")).collect();
        wanted.sort();
        assert_eq!(found, wanted, "docs/errors and the codes are not in step");
        let list = std::fs::read_to_string(pages.join("README.md")).expect("README.md");
        for &code in Code::ALL {
            let text = std::fs::read_to_string(pages.join(format!("{code}.md"))).expect("a page");
            assert!(text.starts_with(&format!("# `{code}`\n")), "{code}.md does not begin with its code");
            let row = format!("| [`{code}`]({code}.md) | {} | ", status(code).as_u16());
            assert!(list.contains(&row), "README.md does not list {code} with its status");
            let said = format!("HTTP {}", status(code).as_u16());
            assert!(text.contains(&said), "{code}.md does not say {said}");
        }
    }
}

//! What a request is answered that does not pass: JSON for programs, in the form that the API has, and a page
//! for people. Both say the same.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use nullspace_edge_api::Refusal;
use nullspace_types::id::RequestId;
use nullspace_types::{Code, Error};
use serde::Serialize;

use crate::body::AnswerBody;

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a str,
    code: &'static str,
    request_id: RequestId,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    suggested_action: Option<&'a str>,
}

/// The HTTP status of what the gateway refuses. Others than those named are faults behind it.
fn status(code: Code) -> StatusCode {
    match code {
        Code::InvalidRequest | Code::UnsupportedPreviewPort => StatusCode::BAD_REQUEST,
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
        Code::PermissionDenied | Code::PreviewGrantDisabled | Code::PreviewSandboxDisabled => {
            StatusCode::FORBIDDEN
        }
        Code::NotFound | Code::SandboxNotFound => StatusCode::NOT_FOUND,
        Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Code::RateLimitExceeded => StatusCode::TOO_MANY_REQUESTS,
        Code::PreviewServiceNotReady => StatusCode::BAD_GATEWAY,
        Code::EdgeRuntimeHostUnreachable => StatusCode::GATEWAY_TIMEOUT,
        // A sandbox that cannot be woken now, for whatever reason.
        Code::SandboxPausedAutoResumeDisabled
        | Code::CapacityExceeded
        | Code::Unavailable
        | Code::SandboxNotReady
        | Code::TransitionInProgress
        | Code::IncompatibleSnapshot
        | Code::SnapshotCorrupted => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// What to do about it, where the error itself does not say.
fn suggestion(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::EdgeTokenMissing => "use a preview URL, or send the sandbox's traffic token",
        Code::EdgeTokenInvalid | Code::EdgeTokenExpired | Code::PreviewGrantInvalid => {
            "ask whoever shared this address for a new preview URL"
        }
        Code::PreviewGrantRevoked | Code::PreviewGrantDisabled => {
            "ask whoever shared this address for another one"
        }
        Code::PreviewProxyTokenMissing | Code::PreviewProxyTokenInvalid | Code::PreviewProxyTokenExpired => {
            "the proxy must send a valid token in x-nullspace-preview-proxy-token"
        }
        Code::PreviewSandboxDisabled => "check the address; the sandbox may have ended",
        Code::PreviewServiceNotReady => {
            "start the service in the sandbox so that it listens on 0.0.0.0, then try again"
        }
        Code::EdgeRuntimeHostUnreachable => "try again in a moment",
        Code::SandboxPausedAutoResumeDisabled => "resume the sandbox",
        _ => return None,
    })
}

/// Whether a person is to read it.
pub(crate) fn for_people(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).iter().any(|value| value.to_str().is_ok_and(|value| value.contains("text/html")))
}

/// The answer.
pub(crate) fn answer(refusal: &Refusal, people: bool) -> Response<AnswerBody> {
    let Refusal { error, retry_after } = refusal;
    let (id, status) = (RequestId::new(), status(error.code));
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::error!(code = %error.code, %error, context = error.context, request = %id, "failed");
    } else {
        tracing::debug!(code = %error.code, %error, context = error.context, request = %id, "refused");
    }
    let (kind, text) = if people {
        ("text/html; charset=utf-8", page(error, status, id))
    } else {
        ("application/json", json(error, id))
    };
    let mut answer = Response::new(AnswerBody::Own(Full::new(Bytes::from(text))));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert("x-request-id", HeaderValue::from_str(&id.to_string()).expect("an ID is plain text"));
    if people {
        let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
        headers.insert(CONTENT_SECURITY_POLICY, policy);
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    }
    // Those that are answered 503 always say when.
    let default = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(Duration::from_secs(5));
    if let Some(after) = retry_after.or(default) {
        headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
    }
    answer
}

fn json(error: &Error, id: RequestId) -> String {
    let body = ErrorBody {
        error: &error.message,
        code: error.code.as_str(),
        request_id: id,
        retryable: error.retryable(),
        suggested_action: error.suggested_action.as_deref().or_else(|| suggestion(error.code)),
    };
    serde_json::to_string(&body).expect("strings and a truth value are always JSON")
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:34em;margin:15vh auto;padding:0 1.5em;\
color:#222;background:#fff}h1{font-size:1.4em}small{color:#666}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}small{color:#999}}";

fn page(error: &Error, status: StatusCode, id: RequestId) -> String {
    let title = match error.code {
        Code::PreviewServiceNotReady => "Nothing answers here yet",
        Code::PreviewSandboxDisabled => "There is no such sandbox",
        Code::SandboxPausedAutoResumeDisabled => "The sandbox is paused",
        _ => match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "You cannot open this preview",
            StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED => "The request is not valid",
            StatusCode::SERVICE_UNAVAILABLE => "The sandbox cannot be used just now",
            StatusCode::GATEWAY_TIMEOUT => "The sandbox does not answer",
            _ => "Something went wrong",
        },
    };
    let action = error.suggested_action.as_deref().or_else(|| suggestion(error.code));
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head><body>\
         <h1>{title}</h1><p>{}</p>",
        escape(&sentence(&error.message))
    );
    if let Some(action) = action {
        let _ = write!(page, "<p>What to do: {}.</p>", escape(action));
    }
    let _ = writeln!(page, "<p><small>{} · {} · {id}</small></p></body></html>", status.as_u16(), error.code);
    page
}

/// Messages are lower-case and have no stop; people read sentences.
fn sentence(message: &str) -> String {
    let mut letters = message.chars();
    let first = letters.next().map(|first| first.to_uppercase().collect::<String>()).unwrap_or_default();
    format!("{first}{}.", letters.as_str())
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

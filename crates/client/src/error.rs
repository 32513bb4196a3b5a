//! Everything that can go wrong between a caller and a server, in one type.
//!
//! An error has a stable code whoever found it: the server (its code is passed on unchanged, known
//! to this crate or not), the transport (`transport_error`, `timeout`), or this crate itself
//! (`missing_api_key`, `invalid_request`, `invalid_response`).

use std::fmt;

use nullspace_types::upload::{UploadFailure, UploadReason};
use serde::Deserialize;
use serde_json::Value;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The connection could not be made or broke.
pub const TRANSPORT_ERROR: &str = "transport_error";
/// The server did not answer in time.
pub const TIMEOUT: &str = "timeout";
/// There is no API key to send.
pub const MISSING_API_KEY: &str = "missing_api_key";
/// A value was refused before anything was sent.
pub const INVALID_REQUEST: &str = "invalid_request";
/// The server's answer is not what the operation answers.
pub const INVALID_RESPONSE: &str = "invalid_response";
/// What is at the source is no longer what it was when the transfer began.
pub const SOURCE_CHANGED: &str = "source_conflict";
/// Something on this host could not be read or written.
pub const LOCAL_ERROR: &str = "local_error";
/// The server gave no code.
pub const UNKNOWN: &str = "unknown";

/// Whether a request may have reached the server, for errors below HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// The server answered, or nothing was sent.
    Certain,
    /// The connection was never made.
    Never,
    /// The request was sent and its answer was lost: it may have been carried out.
    Unknown,
}

/// What went wrong.
pub struct Error(Box<Inner>);

struct Inner {
    code: String,
    message: String,
    status: Option<u16>,
    request_id: Option<String>,
    retryable: Option<bool>,
    suggested_action: Option<String>,
    error_detail: Option<Value>,
    details: Option<Value>,
    retry_after: Option<f64>,
    reach: Reach,
}

impl Error {
    fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code: code.into(),
            message: message.into(),
            status: None,
            request_id: None,
            retryable: None,
            suggested_action: None,
            error_detail: None,
            details: None,
            retry_after: None,
            reach: Reach::Certain,
        }))
    }

    /// The stable code, in lower case.
    pub fn code(&self) -> &str {
        &self.0.code
    }

    /// The text for people.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The HTTP status, if there was an answer.
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// What the server's log calls the request.
    pub fn request_id(&self) -> Option<&str> {
        self.0.request_id.as_deref()
    }

    /// Whether the same request may succeed later; unknown when the server did not say.
    pub fn retryable(&self) -> Option<bool> {
        self.0.retryable
    }

    /// What to do about it, where that is known.
    pub fn suggested_action(&self) -> Option<&str> {
        self.0.suggested_action.as_deref()
    }

    /// The server's structured detail.
    pub fn error_detail(&self) -> Option<&Value> {
        self.0.error_detail.as_ref()
    }

    /// Why an upload was refused, if it was one and the server said.
    pub fn upload_failure(&self) -> Option<UploadFailure> {
        UploadFailure::deserialize(self.0.error_detail.as_ref()?).ok()
    }

    /// More of the server's, in no fixed form.
    pub fn details(&self) -> Option<&Value> {
        self.0.details.as_ref()
    }

    /// A value that was refused before anything was sent.
    pub(crate) fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(INVALID_REQUEST, message).retry(false)
    }

    pub(crate) fn invalid_response(message: impl Into<String>) -> Self {
        Self::new(INVALID_RESPONSE, message).suggest(
            "check that the URL is that of a Nullspace server, and that client and server fit together",
        )
    }

    pub(crate) fn missing_api_key() -> Self {
        Self::new(MISSING_API_KEY, "there is no API key").retry(false).suggest(
            "set NULLSPACE_API_KEY; a server's first key is in the file admin.key of its data directory",
        )
    }

    pub(crate) fn unreachable(url: &str, cause: impl fmt::Display) -> Self {
        let mut error = Self::new(TRANSPORT_ERROR, format!("cannot reach {url}: {cause}"))
            .retry(true)
            .suggest("start a server with `nullspace server`, or set NULLSPACE_API_URL to the one you mean");
        error.0.reach = Reach::Never;
        error
    }

    pub(crate) fn broken(url: &str, cause: impl fmt::Display) -> Self {
        let mut error =
            Self::new(TRANSPORT_ERROR, format!("the connection for {url} broke before its answer: {cause}"))
                .retry(true)
                .suggest("try again; if it goes on, look at the server's log");
        error.0.reach = Reach::Unknown;
        error
    }

    /// What cannot be read or written here, before or beside the server.
    pub(crate) fn local(doing: impl fmt::Display, cause: &std::io::Error) -> Self {
        Self::new(LOCAL_ERROR, format!("cannot {doing}: {cause}")).retry(false)
    }

    pub(crate) fn source_changed(message: impl Into<String>) -> Self {
        Self::new(SOURCE_CHANGED, message).retry(true).suggest("begin again")
    }

    /// An upload that the server has given up, told as the server would refuse it.
    pub(crate) fn upload_over(id: impl fmt::Display, reason: UploadReason, message: String) -> Self {
        let mut error = Self::new("file_upload_error", message).retry(false).suggest("begin a new upload");
        error.0.error_detail = serde_json::to_value(reason).ok().map(|reason| {
            serde_json::json!({
                "reason": reason, "message": error.0.message, "retryable": false, "upload_id": id.to_string(),
            })
        });
        error
    }

    /// What a frame of a socket says instead of an HTTP answer.
    pub(crate) fn from_frame(code: &str, message: String) -> Self {
        let code = if code.is_empty() { UNKNOWN.to_owned() } else { code.to_lowercase() };
        Self::new(code, message)
    }

    /// A peer that holds the connection and does not speak.
    pub(crate) fn silent(url: &str, limit: std::time::Duration) -> Self {
        let mut error =
            Self::new(TIMEOUT, format!("nothing came over {url} for {} seconds", limit.as_secs()))
                .retry(true)
                .suggest("try again; if it goes on, look at the network between here and the server");
        error.0.reach = Reach::Unknown;
        error
    }

    /// A connection that broke in the midst of a conversation.
    pub(crate) fn cut(url: &str, cause: impl fmt::Display) -> Self {
        let mut error = Self::new(TRANSPORT_ERROR, format!("the connection for {url} broke: {cause}"))
            .retry(true)
            .suggest("try again; if it goes on, look at the server's log");
        error.0.reach = Reach::Unknown;
        error
    }

    pub(crate) fn timed_out(url: &str, limit: std::time::Duration) -> Self {
        let mut error =
            Self::new(TIMEOUT, format!("no answer for {url} within {} seconds", limit.as_secs_f64()))
                .retry(true)
                .suggest("try again, or allow more time with NULLSPACE_REQUEST_TIMEOUT_SECONDS");
        error.0.reach = Reach::Unknown;
        error
    }

    pub(crate) fn suggest(mut self, action: impl Into<String>) -> Self {
        self.0.suggested_action = Some(action.into());
        self
    }

    fn retry(mut self, retryable: bool) -> Self {
        self.0.retryable = Some(retryable);
        self
    }

    /// Reads either form of the error envelope; whatever is none of them becomes the message.
    pub(crate) fn from_answer(
        status: u16,
        request_id: Option<String>,
        retry_after: Option<f64>,
        body: &[u8],
    ) -> Self {
        let mut error = match serde_json::from_slice::<Envelope>(body) {
            Ok(envelope) => envelope.into_error(status),
            Err(_) => {
                let text = String::from_utf8_lossy(body);
                let text = text.trim();
                let message = match text.char_indices().nth(500) {
                    _ if text.is_empty() => format!("the server answered {status} without a word"),
                    Some((end, _)) => format!("{}…", &text[..end]),
                    None => text.to_owned(),
                };
                Self::new(UNKNOWN, message)
            }
        };
        error.0.status = Some(status);
        error.0.request_id = error.0.request_id.take().or(request_id);
        error.0.retry_after = retry_after;
        error
    }

    /// For 429 that only asks for patience: how many seconds.
    pub(crate) fn rate_limited(&self) -> Option<f64> {
        let only_rate = matches!(self.code(), UNKNOWN | "rate_limit_exceeded");
        (self.0.status == Some(429) && only_rate).then(|| self.0.retry_after.unwrap_or(1.0))
    }

    /// Whether the connection failed, and with it only the way to the server.
    pub fn is_transport(&self) -> bool {
        self.0.reach != Reach::Certain
    }

    /// Whether what may safely be asked for again should be: the connection failed, or the server is just
    /// starting or stopping.
    pub fn is_passing(&self) -> bool {
        self.is_transport() || self.code() == "unavailable"
    }

    /// Whether a create with the same idempotency key finds out what became of this one.
    pub(crate) fn recoverable_create(&self) -> bool {
        self.0.reach == Reach::Unknown
            || matches!(self.code(), "transition_in_progress" | "transition_recovery_required")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("code", &self.0.code)
            .field("message", &self.0.message)
            .field("status", &self.0.status)
            .field("request_id", &self.0.request_id)
            .finish_non_exhaustive()
    }
}

impl std::error::Error for Error {}

/// Both forms at once: flat, or with everything under `error`.
#[derive(Deserialize)]
struct Envelope {
    error: Option<Value>,
    #[serde(flatten)]
    rest: Fields,
}

#[derive(Deserialize, Default)]
struct Fields {
    message: Option<Value>,
    code: Option<Value>,
    error_detail: Option<Value>,
    request_id: Option<Value>,
    retryable: Option<Value>,
    suggested_action: Option<Value>,
    details: Option<Value>,
}

impl Envelope {
    fn into_error(self, status: u16) -> Error {
        let (message, inner) = match self.error {
            Some(Value::Object(object)) => {
                let inner: Fields = serde_json::from_value(Value::Object(object)).unwrap_or_default();
                (text(inner.message.clone()), inner)
            }
            other => (text(other), Fields::default()),
        };
        let outer = self.rest;
        let message = message
            .or_else(|| text(outer.message))
            .unwrap_or_else(|| format!("the server answered {status} without a reason"));
        let code = text(inner.code).or_else(|| text(outer.code));
        let mut error =
            Error::new(code.map_or_else(|| UNKNOWN.to_owned(), |code| code.to_lowercase()), message);
        error.0.error_detail = inner.error_detail.or(outer.error_detail);
        error.0.request_id = text(inner.request_id).or_else(|| text(outer.request_id));
        error.0.retryable = inner.retryable.or(outer.retryable).and_then(|value| value.as_bool());
        error.0.suggested_action = text(inner.suggested_action).or_else(|| text(outer.suggested_action));
        error.0.details = inner.details.or(outer.details);
        error
    }
}

fn text(value: Option<Value>) -> Option<String> {
    match value {
        Some(Value::String(text)) if !text.is_empty() => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Error {
        Error::from_answer(404, Some("req_header".to_owned()), None, body.as_bytes())
    }

    #[test]
    fn both_forms_of_the_envelope_are_read() {
        let flat = read(
            r#"{"error":"no such sandbox","code":"SANDBOX_NOT_FOUND","request_id":"req_1","retryable":false,
                "suggested_action":"list them"}"#,
        );
        assert_eq!((flat.code(), flat.message()), ("sandbox_not_found", "no such sandbox"));
        assert_eq!((flat.request_id(), flat.retryable()), (Some("req_1"), Some(false)));
        assert_eq!(flat.suggested_action(), Some("list them"));

        let nested = read(r#"{"error":{"message":"busy","code":"conflict"},"details":{"a":1}}"#);
        assert_eq!((nested.code(), nested.message()), ("conflict", "busy"));
        assert_eq!(nested.request_id(), Some("req_header"));
        assert_eq!(nested.details(), Some(&serde_json::json!({"a": 1})));
    }

    #[test]
    fn an_answer_that_is_no_envelope_is_still_told() {
        assert_eq!(read("<html>Bad Gateway</html>").message(), "<html>Bad Gateway</html>");
        assert_eq!(read("[1]").code(), UNKNOWN);
        assert_eq!(read("").message(), "the server answered 404 without a word");
        assert_eq!(read("{}").message(), "the server answered 404 without a reason");
    }
}

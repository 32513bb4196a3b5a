//! What handlers are given: who asks, typed IDs from the path, query, bounded JSON bodies.

use axum::body::Body;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Query as AxumQuery, RawPathParams, Request};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use nullspace_types::id::{
    DeliveryId, PreviewGrantId, SandboxId, SessionId, SnapshotId, UploadId, WebhookId,
};
use nullspace_types::key::Principal;
use nullspace_types::{Code, Error, Result};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::error::Category;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::error::Failure;
use crate::{Api, ByteStream, Connected};

/// Most bytes of a JSON body.
pub(crate) const JSON_LIMIT: usize = 4 << 20;
/// Most bytes of a JSON body that has a file in it.
pub(crate) const FILE_JSON_LIMIT: usize = 64 << 20;
/// A body of which nothing comes for so long is given up.
const BODY_PAUSE: Duration = Duration::from_secs(60);

/// The implementation. Unlike axum's own `State` it says that the router's state is this and nothing
/// else, from which the routes' types are inferred.
pub(crate) struct Service<A>(pub A);

impl<A: Api> FromRequestParts<A> for Service<A> {
    type Rejection = Infallible;

    async fn from_request_parts(_: &mut Parts, api: &A) -> Result<Self, Infallible> {
        Ok(Self(api.clone()))
    }
}

/// Who asks: put into the request by the authentication that every such route stands behind.
pub(crate) struct Caller(pub Principal);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        match parts.extensions.get::<Principal>() {
            Some(principal) => Ok(Self(*principal)),
            None => Err(Error::internal("a route that needs a key was reached without one").into()),
        }
    }
}

/// That the server stops; never, if nobody says so.
pub(crate) struct Stopping(pub CancellationToken);

impl<S: Sync> FromRequestParts<S> for Stopping {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let connected = parts.extensions.get::<Connected>();
        Ok(Self(connected.map(|connected| connected.stopping.clone()).unwrap_or_default()))
    }
}

/// The sandbox that the path names. What is no ID at all answers like an ID that nothing has.
pub(crate) struct SandboxPath(pub SandboxId);

impl<S: Send + Sync> FromRequestParts<S> for SandboxPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let text = path_param(parts, state, "sandbox_id").await;
        text.parse().map(Self).map_err(|_| Failure(Error::sandbox_not_found(shown(&text))))
    }
}

/// What the path names a paused sandbox by: its own ID, or that of a snapshot. What is neither answers like
/// a sandbox's ID that nothing has.
pub(crate) struct PausedPath(pub String);

impl<S: Send + Sync> FromRequestParts<S> for PausedPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let text = path_param(parts, state, "sandbox_id").await;
        match text.parse::<SandboxId>().is_ok() || text.parse::<SnapshotId>().is_ok() {
            true => Ok(Self(text)),
            false => Err(Failure(Error::sandbox_not_found(shown(&text)))),
        }
    }
}

/// The snapshot that the path names.
pub(crate) struct SnapshotPath(pub SnapshotId);

impl<S: Send + Sync> FromRequestParts<S> for SnapshotPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let text = path_param(parts, state, "snapshot_id").await;
        text.parse().map(Self).map_err(|_| {
            let message = format!("snapshot {} does not exist", shown(&text));
            Failure(Error::new(Code::SnapshotNotFound, message))
        })
    }
}

/// The webhook that the path names.
pub(crate) struct WebhookPath(pub WebhookId);

impl<S: Send + Sync> FromRequestParts<S> for WebhookPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let text = path_param(parts, state, "webhook_id").await;
        text.parse().map(Self).map_err(|_| {
            let message = format!("webhook {} does not exist", shown(&text));
            Failure(Error::new(Code::WebhookNotFound, message))
        })
    }
}

/// The delivery that the path names, of the webhook that it names.
pub(crate) struct DeliveryPath(pub WebhookId, pub DeliveryId);

impl<S: Send + Sync> FromRequestParts<S> for DeliveryPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let WebhookPath(webhook) = WebhookPath::from_request_parts(parts, state).await?;
        let text = path_param(parts, state, "delivery_id").await;
        match text.parse() {
            Ok(delivery) => Ok(Self(webhook, delivery)),
            Err(_) => {
                let message = format!("delivery {} of webhook {webhook} does not exist", shown(&text));
                Err(Failure(Error::new(Code::DeliveryNotFound, message)))
            }
        }
    }
}

/// The process that the path names, in the sandbox that it names.
pub(crate) struct ProcessPath(pub SandboxId, pub u32);

impl<S: Send + Sync> FromRequestParts<S> for ProcessPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let SandboxPath(id) = SandboxPath::from_request_parts(parts, state).await?;
        let text = path_param(parts, state, "pid").await;
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(pid) if digits => Ok(Self(id, pid)),
            _ => Err(Failure(Error::new(
                Code::ProcessNotFound,
                format!("process {} does not exist in sandbox {id}", shown(&text)),
            ))),
        }
    }
}

/// The terminal session that the path names, in the sandbox that it names.
pub(crate) struct SessionPath(pub SandboxId, pub SessionId);

impl<S: Send + Sync> FromRequestParts<S> for SessionPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let SandboxPath(id) = SandboxPath::from_request_parts(parts, state).await?;
        let text = path_param(parts, state, "session_id").await;
        Ok(Self(id, session(id, &text)?))
    }
}

/// A session's ID. What is none answers like one that nothing has.
pub(crate) fn session(id: SandboxId, text: &str) -> Result<SessionId> {
    text.parse().map_err(|_| {
        let message = format!("terminal session {} does not exist in sandbox {id}", shown(text));
        Error::new(Code::TerminalNotFound, message)
    })
}

/// The upload that the path names, in the sandbox that it names.
pub(crate) struct UploadPath(pub SandboxId, pub UploadId);

impl<S: Send + Sync> FromRequestParts<S> for UploadPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let SandboxPath(id) = SandboxPath::from_request_parts(parts, state).await?;
        let text = path_param(parts, state, "upload_id").await;
        match text.parse() {
            Ok(upload) => Ok(Self(id, upload)),
            Err(_) => {
                let message = format!("upload {} does not exist in sandbox {id}", shown(&text));
                Err(Failure(Error::new(Code::UploadNotFound, message)))
            }
        }
    }
}

/// A part of the upload that the path names.
pub(crate) struct PartPath(pub SandboxId, pub UploadId, pub u32);

impl<S: Send + Sync> FromRequestParts<S> for PartPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let UploadPath(id, upload) = UploadPath::from_request_parts(parts, state).await?;
        let text = path_param(parts, state, "part").await;
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(part) if digits => Ok(Self(id, upload, part)),
            _ => Err(Failure(Error::invalid(format!(
                "a part's number must be between 0 and {}, got {}",
                u32::MAX,
                shown(&text)
            )))),
        }
    }
}

/// A port of the sandbox that the path names, as the path has it.
pub(crate) struct PortPath(pub SandboxId, pub String);

impl<S: Send + Sync> FromRequestParts<S> for PortPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let SandboxPath(id) = SandboxPath::from_request_parts(parts, state).await?;
        Ok(Self(id, path_param(parts, state, "port").await))
    }
}

/// The preview grant that the path names, of the sandbox that it names.
pub(crate) struct GrantPath(pub SandboxId, pub PreviewGrantId);

impl<S: Send + Sync> FromRequestParts<S> for GrantPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let SandboxPath(id) = SandboxPath::from_request_parts(parts, state).await?;
        let text = path_param(parts, state, "grant_id").await;
        match text.parse() {
            Ok(grant) => Ok(Self(id, grant)),
            Err(_) => {
                let message = format!("preview grant {} does not exist in sandbox {id}", shown(&text));
                Err(Failure(Error::new(Code::PreviewGrantNotFound, message)))
            }
        }
    }
}

/// The name that the path has, whatever may be called so.
pub(crate) struct NamePath(pub String);

impl<S: Send + Sync> FromRequestParts<S> for NamePath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        Ok(Self(path_param(parts, state, "name").await))
    }
}

/// A parameter of the path; empty if it is not UTF-8, which no ID is.
async fn path_param<S: Send + Sync>(parts: &mut Parts, state: &S, name: &str) -> String {
    match RawPathParams::from_request_parts(parts, state).await {
        Ok(params) => {
            params.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).unwrap_or_default()
        }
        Err(_) => String::new(),
    }
}

/// The ID of the path, in the place of one that the query or a frame may name too.
pub(crate) fn of_path(
    field: &str,
    given: Option<String>,
    id: impl std::fmt::Display,
) -> Result<Option<String>> {
    let id = id.to_string();
    match given {
        Some(given) if given != id => {
            let message = format!("{field} must be that of the path, {id}, or absent, got {}", shown(&given));
            Err(Error::invalid(message))
        }
        Some(_) | None => Ok(Some(id)),
    }
}

/// So much of a caller's text as may stand in a message.
fn shown(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The query. Unknown parameters are ignored; of a repeated one the last counts.
pub(crate) struct Query<T> {
    pub value: T,
    /// Whether there was any query at all.
    pub any: bool,
}

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let AxumQuery(pairs) = AxumQuery::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|error| Error::invalid(format!("the query cannot be read: {error}")))?;
        let any = !pairs.is_empty();
        let object: Map<String, Value> =
            pairs.into_iter().map(|(name, value)| (name, Value::String(value))).collect();
        let value = serde_path_to_error::deserialize(Value::Object(object)).map_err(|error| {
            Error::invalid(located(&error.path().to_string(), &error.inner().to_string()))
        })?;
        Ok(Self { value, any })
    }
}

/// The key under which a create is done at most once.
pub(crate) struct IdempotencyKey(pub Option<String>);

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let Some(value) = parts.headers.get("idempotency-key") else { return Ok(Self(None)) };
        let bytes = value.as_bytes();
        if bytes.is_empty() || bytes.len() > 255 || !bytes.iter().all(u8::is_ascii_graphic) {
            let text = "the header Idempotency-Key must have 1 to 255 visible ASCII characters";
            return Err(Error::invalid(text).into());
        }
        Ok(Self(value.to_str().ok().map(str::to_owned)))
    }
}

/// A JSON object as the body, of at most `LIMIT` bytes. Its content type is not looked at.
pub(crate) struct Json<T, const LIMIT: usize = JSON_LIMIT>(pub T);

impl<S: Sync, T: DeserializeOwned, const LIMIT: usize> FromRequest<S> for Json<T, LIMIT> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let body = read(request, LIMIT).await?;
        Ok(Self(parse(&body)?))
    }
}

/// The same where there may be no body at all.
pub(crate) struct OptionalJson<T>(pub Option<T>);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for OptionalJson<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let body = read(request, JSON_LIMIT).await?;
        Ok(Self(if body.is_empty() { None } else { Some(parse(&body)?) }))
    }
}

/// A body as it comes.
pub(crate) fn body_stream(body: Body) -> ByteStream {
    let body = body.into_data_stream();
    // Ends after the first error, so that a body that stands still is given up once.
    futures::stream::unfold(Some(body), |body| async move {
        let mut body = body?;
        match next(&mut body).await {
            Some(Ok(bytes)) => Some((Ok(bytes), Some(body))),
            Some(Err(error)) => Some((Err(error), None)),
            None => None,
        }
    })
    .boxed()
}

async fn next(body: &mut axum::body::BodyDataStream) -> Option<Result<Bytes>> {
    match tokio::time::timeout(BODY_PAUSE, body.next()).await {
        Ok(Some(Ok(bytes))) => Some(Ok(bytes)),
        Ok(Some(Err(error))) => Some(Err(Error::invalid("the body broke off before its end").context(error))),
        Ok(None) => None,
        Err(_) => Some(Err(Error::invalid(format!(
            "the body stood still for {} seconds and was given up",
            BODY_PAUSE.as_secs()
        )))),
    }
}

async fn read(request: Request, limit: usize) -> Result<Bytes> {
    let too_large =
        || Error::new(Code::PayloadTooLarge, format!("the body is larger than {} MiB", limit >> 20));
    let announced =
        request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > limit as u64) {
        return Err(too_large());
    }
    let mut stream = request.into_body().into_data_stream();
    let Some(first) = next(&mut stream).await.transpose()? else { return Ok(Bytes::new()) };
    let Some(second) = next(&mut stream).await.transpose()? else {
        return if first.len() > limit { Err(too_large()) } else { Ok(first) };
    };
    let mut whole = BytesMut::from(first);
    let mut more = Some(second);
    while let Some(bytes) = more {
        if whole.len() + bytes.len() > limit {
            return Err(too_large());
        }
        whole.extend_from_slice(&bytes);
        more = next(&mut stream).await.transpose()?;
    }
    Ok(whole.freeze())
}

pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    match body.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => return Err(Error::invalid("the body is empty; a JSON object is expected")),
        Some(b'{') => {}
        // Serde would take an array for a struct; the contract does not.
        Some(_) => {
            return Err(match serde_json::from_slice::<IgnoredAny>(body) {
                Ok(_) => Error::invalid("the body must be a JSON object"),
                Err(error) => malformed(&error),
            });
        }
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            Category::Data => Error::invalid(located(&path, &inner.to_string())),
            Category::Io | Category::Syntax | Category::Eof => malformed(&inner),
        }
    })?;
    deserializer.end().map_err(|error| malformed(&error))?;
    Ok(value)
}

fn malformed(error: &serde_json::Error) -> Error {
    Error::invalid(format!("the body is not valid JSON: {error}"))
}

/// What is wrong, and where in the document. The line is of no use beside the path.
fn located(path: &str, message: &str) -> String {
    let message = message.rsplit_once(" at line ").map_or(message, |(message, _)| message);
    if path == "." { message.to_owned() } else { format!("{path}: {message}") }
}

//! The public HTTP API: one trait per resource without bodies, an axum router generic over them, the
//! types' OpenAPI document, and the one place where an error becomes an HTTP answer.
//!
//! Handlers unpack, make one call, convert. Deliberately absent: what a verb means (that is control's),
//! sockets (the server crate listens), any state besides the implementation that the router is given.
//!
//! A call's future is dropped when its client goes away. What must end once begun belongs to a task of
//! the implementation, not to the future.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::MatchedPath;
use axum::middleware::{from_fn, from_fn_with_state};
use bytes::Bytes;
use futures::stream::BoxStream;
use http::Method;
use nullspace_types::key::Principal;
use nullspace_types::{Code, Error, Result};
use tokio_util::sync::CancellationToken;
use tower_http::cors::{AllowHeaders, Any, CorsLayer};
use utoipa_axum::router::OpenApiRouter;

mod drain;
pub mod error;
pub mod file;
pub mod health;
mod json_stream;
pub mod lifecycle;
mod middleware;
pub mod monitor;
mod multipart;
pub mod network;
pub mod not_built;
mod openapi;
pub mod preview;
pub mod process;
mod range;
mod request;
pub mod sandbox;
pub mod snapshot;
mod socket;
pub mod template;
pub mod terminal;
mod text;
pub mod upload;
pub mod webhook;

use crate::error::Failure;
use crate::middleware::{REQUEST_ID, SERVER_TIMING};

pub use file::FileApi;
pub use health::HealthApi;
pub use lifecycle::LifecycleApi;
pub use monitor::MonitorApi;
pub use network::NetworkApi;
pub use preview::PreviewApi;
pub use process::ProcessApi;
pub use sandbox::SandboxApi;
pub use snapshot::SnapshotApi;
pub use template::TemplateApi;
pub use terminal::TerminalApi;
pub use upload::UploadApi;
pub use webhook::WebhookApi;

/// Bytes that come in pieces. An error ends the stream; what came before it is not whole.
pub type ByteStream = BoxStream<'static, Result<Bytes, Error>>;

/// Finds out who asks, before anything else of a request is read.
#[async_trait]
pub trait Authenticate: Clone + Send + Sync + 'static {
    /// Judges the `Authorization` header as it stands; `None` if there is none or it is not ASCII.
    /// Everything that does not prove a principal is
    /// [`Code::Unauthorized`](nullspace_types::Code::Unauthorized).
    async fn authenticate(&self, authorization: Option<&str>) -> Result<Principal>;

    /// Judges a signed URL: the query as it stands, of a request for a sandbox's file. What was not
    /// signed for just this is [`Code::EdgeTokenInvalid`](nullspace_types::Code::EdgeTokenInvalid), what
    /// is too old [`Code::EdgeTokenExpired`](nullspace_types::Code::EdgeTokenExpired).
    async fn authenticate_grant(&self, method: &Method, sandbox_id: &str, query: &str) -> Result<Principal>;
}

/// All that the API needs.
pub trait Api:
    SandboxApi
    + SnapshotApi
    + ProcessApi
    + TerminalApi
    + FileApi
    + UploadApi
    + LifecycleApi
    + WebhookApi
    + MonitorApi
    + PreviewApi
    + NetworkApi
    + TemplateApi
    + HealthApi
    + Authenticate
{
}

impl<A> Api for A where
    A: SandboxApi
        + SnapshotApi
        + ProcessApi
        + TerminalApi
        + FileApi
        + UploadApi
        + LifecycleApi
        + WebhookApi
        + MonitorApi
        + PreviewApi
        + NetworkApi
        + TemplateApi
        + HealthApi
        + Authenticate
{
}

/// What whoever listens knows of a request's connection and puts into the request's extensions. A request
/// without it comes from nobody knows where, and its sockets have no end but their own.
#[derive(Debug, Clone)]
pub struct Connected {
    /// Who is at the other end: a client, or a proxy before it.
    pub peer: SocketAddr,
    /// The server stops: sockets end.
    pub stopping: CancellationToken,
}

/// The whole API over an implementation of it.
pub fn router<A: Api>(api: A) -> Router {
    let (routes, _) = documented().split_for_parts();
    not_built::add(routes)
        .fallback(async || Failure(Error::new(Code::NotFound, "no such route")))
        .method_not_allowed_fallback(async |method: Method, path: MatchedPath| {
            let text = format!("{} does not have the method {method}", path.as_str());
            Failure(Error::new(Code::MethodNotAllowed, text))
        })
        .layer(from_fn_with_state(api.clone(), middleware::authenticate::<A>))
        .layer(cors())
        .layer(from_fn(middleware::observe))
        .with_state(api)
}

/// The OpenAPI document of the routes that are built.
pub fn openapi() -> utoipa::openapi::OpenApi {
    openapi::document()
}

/// The routes that are built, with what is said about them.
fn documented<A: Api>() -> OpenApiRouter<A> {
    OpenApiRouter::new()
        .merge(sandbox::routes())
        .merge(snapshot::routes())
        .merge(process::routes())
        .merge(terminal::routes())
        .merge(file::routes())
        .merge(upload::routes())
        .merge(lifecycle::routes())
        .merge(webhook::routes())
        .merge(monitor::routes())
        .merge(preview::routes())
        .merge(network::routes())
        .merge(socket::routes())
        .merge(template::routes())
        .merge(health::routes())
}

/// Any page may call the API: what authorises is the key, and a browser adds none by itself.
fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([
            REQUEST_ID,
            SERVER_TIMING,
            file::LIMITED,
            http::header::RETRY_AFTER,
            http::header::CONTENT_RANGE,
            http::header::ACCEPT_RANGES,
            http::header::ETAG,
        ])
        .max_age(Duration::from_secs(3600))
}

//! What stands around every route: an ID, a span, the clock, panics turned into answers, errors written
//! out; and, inside of it, authentication.
//!
//! Nothing here logs headers, queries or bodies: they hold secrets.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use http::{HeaderName, HeaderValue, Method};
use http_body_util::BodyExt;
use nullspace_types::Error;
use nullspace_types::id::RequestId;
use tracing::Instrument;

use crate::drain::Drain;
use crate::error::{self, Failure};
use crate::{Authenticate, Connected};

/// The header with the request's ID.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Where the time went, in milliseconds.
pub(crate) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The operator's route: whoever is on the host itself needs no key for it.
const METRICS: &str = "/metrics";
/// What a proxy adds to requests of others, and a browser to those of a page.
const OF_OTHERS: [&str; 5] = ["forwarded", "x-forwarded-for", "x-real-ip", "via", "origin"];

/// Microseconds of the answer that the guest took; a handler puts it into the answer's extensions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GuestTime(pub u64);

/// The outermost layer.
pub(crate) async fn observe(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = RequestId::new();
    let path = request.extensions().get::<MatchedPath>().cloned();
    let path = path.as_ref().map_or("unmatched", MatchedPath::as_str);
    let span = tracing::info_span!("request", %id, method = %request.method(), path);
    let expects = request.headers().contains_key(http::header::EXPECT);
    let request = request.map(|body| Body::new(Drain::new(body, expects)));
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone()).await;
    let _entered = span.enter();
    let response = answer.unwrap_or_else(|panic| Failure(panicked(panic.as_ref())).into_response());
    let mut response = error::write(response, id);
    let total = begun.elapsed();
    let guest = response.extensions_mut().remove::<GuestTime>();
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, HeaderValue::from_str(&id.to_string()).expect("an ID is ASCII"));
    let mut timing = format!("total;dur={:.3}", total.as_secs_f64() * 1e3);
    if let Some(GuestTime(micros)) = guest {
        timing.insert_str(0, &format!("guest;dur={:.3}, ", micros as f64 / 1e3));
    }
    headers.insert(SERVER_TIMING, HeaderValue::from_str(&timing).expect("digits are ASCII"));
    let (status, duration_us) = (response.status().as_u16(), total.as_micros() as u64);
    match path {
        // Asked every few seconds by whatever watches the server.
        "/healthz" | METRICS => tracing::debug!(status, duration_us, "answered"),
        _ => tracing::info!(status, duration_us, "answered"),
    }
    response.map(|body| log_break(body, span.clone()))
}

/// Authentication: before path, query and body are looked at, and for routes that do not exist as well.
pub(crate) async fn authenticate<A: Authenticate>(
    State(api): State<A>,
    mut request: Request,
    next: Next,
) -> Response {
    if needs_key(&request) {
        let judged = match signed(&request) {
            Some((sandbox, query)) => api.authenticate_grant(request.method(), sandbox, query).await,
            None => {
                let header = request.headers().get(http::header::AUTHORIZATION);
                api.authenticate(header.and_then(|value| value.to_str().ok())).await
            }
        };
        match judged {
            Ok(principal) => request.extensions_mut().insert(principal),
            Err(error) => return Failure(error).into_response(),
        };
    }
    next.run(request).await
}

/// The sandbox and the query of a signed URL: one of a sandbox's file with a `grant` and no key beside it,
/// and with a method that such a URL is made for.
fn signed(request: &Request) -> Option<(&str, &str)> {
    if !matches!(*request.method(), Method::GET | Method::HEAD | Method::PUT | Method::POST) {
        return None;
    }
    let sandbox = request.uri().path().strip_prefix("/v1/sandboxes/")?.strip_suffix("/file")?;
    let query = request.uri().query()?;
    let granted = query.split('&').any(|pair| pair.starts_with("grant="));
    (granted && !request.headers().contains_key(http::header::AUTHORIZATION)).then_some((sandbox, query))
}

fn needs_key(request: &Request) -> bool {
    let path = request.uri().path();
    match path.strip_prefix("/v1") {
        Some(rest) => rest.is_empty() || rest.starts_with('/'),
        None => path == METRICS && !of_host(request),
    }
}

/// Whether a request comes from the host itself, and on nobody else's behalf.
fn of_host(request: &Request) -> bool {
    let connected = request.extensions().get::<Connected>();
    connected.is_some_and(|connected| connected.peer.ip().to_canonical().is_loopback())
        && !OF_OTHERS.iter().any(|name| request.headers().contains_key(*name))
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Error::internal(format!("a handler panicked: {}", text.unwrap_or("no message")))
}

/// Logs an error in the midst of a body: the status is long sent, the connection is all that can be
/// broken.
fn log_break(body: Body, span: tracing::Span) -> Body {
    if http_body::Body::size_hint(&body).exact().is_some() {
        return body;
    }
    Body::new(body.map_err(move |failure| {
        let _entered = span.enter();
        let source = std::error::Error::source(&failure).and_then(|source| source.downcast_ref::<Error>());
        match source {
            Some(error) => error::record(error),
            None => tracing::debug!(%failure, "refused"),
        }
        tracing::debug!("the answer was broken off before its end");
        failure
    }))
}

//! Serves the requests of one connection by sending each on over another one: HTTP/1 over HTTP/1, HTTP/2 over
//! HTTP/2. Every request passes a rule first, which may change it or refuse it.
//!
//! Bodies stream in both directions, at the pace of whoever takes them. A connection that breaks on one side
//! breaks on the other: nothing is answered in the host's name, and nothing is sent twice. Everything that is
//! begun here ends with the future that began it.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{HeaderName, Request, Response, StatusCode, Version};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{client, server};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::request::HEAD_BYTES_MAX;
use crate::splice;

/// Why a connection broke.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was spoken is not HTTP, or it broke off.
    #[error("HTTP failed")]
    Http(#[from] hyper::Error),
    /// A connection broke, or could not be made, or TLS in it.
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    /// There is no certificate.
    #[error(transparent)]
    Authority(#[from] crate::Error),
    /// A side took too long.
    #[error("it took too long")]
    Late(#[from] tokio::time::error::Elapsed),
    /// The host answered 101 to a request that did not ask for it.
    #[error("the host changes to a protocol that nobody asked for")]
    Unasked,
}

type Answer = Response<Either<Incoming, Full<Bytes>>>;

/// A side of a connection.
pub trait Side: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Side for T {}

/// What a request has to pass. It may change the request.
pub trait Rule: Fn(&mut Parts) -> Result<(), Refusal> + Clone + Send + Sync + 'static {}
impl<T: Fn(&mut Parts) -> Result<(), Refusal> + Clone + Send + Sync + 'static> Rule for T {}

/// Why a request is not sent on.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The status of the answer.
    pub status: StatusCode,
    /// A line that says why.
    pub text: String,
}

impl Refusal {
    fn answer(&self, version: Version) -> Answer {
        let mut answer = Response::new(Either::Right(Full::from(format!("nullspace: {}\n", self.text))));
        *answer.status_mut() = self.status;
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if version < Version::HTTP_2 {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }
}

/// Relays HTTP/1 until either side ends it. After an upgrade to WebSocket the bytes pass as they are.
pub async fn http1(guest: impl Side, outside: impl Side, rule: impl Rule) -> Result<(), Error> {
    let (sender, driving) = client::conn::http1::Builder::new()
        .preserve_header_case(true)
        .handshake::<_, Incoming>(TokioIo::new(outside))
        .await?;
    let sender = Arc::new(tokio::sync::Mutex::new(sender));
    // The one upgrade that a connection can have: while it is asked for, and once it is granted.
    let asked = Arc::new(Mutex::new(false));
    let (granted, mut upgrades) = mpsc::channel::<(OnUpgrade, OnUpgrade)>(1);
    let service = service_fn({
        let asked = asked.clone();
        move |request: Request<Incoming>| {
            let (rule, sender, asked, granted) =
                (rule.clone(), sender.clone(), asked.clone(), granted.clone());
            let set = move |now| *asked.lock().unwrap_or_else(PoisonError::into_inner) = now;
            async move {
                let (mut parts, body) = request.into_parts();
                if let Err(refusal) = rule(&mut parts) {
                    return Ok(refusal.answer(parts.version));
                }
                let upgrade = keep_only_websocket(&mut parts.headers);
                let mut request = Request::from_parts(parts, body);
                set(upgrade);
                let from_guest = upgrade.then(|| hyper::upgrade::on(&mut request));
                let mut sender = sender.lock().await;
                sender.ready().await?;
                let mut response = sender.send_request(request).await?;
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    let from_guest = from_guest.ok_or(Error::Unasked)?;
                    // A connection changes once: hyper reads no request after this one.
                    granted
                        .try_send((from_guest, hyper::upgrade::on(&mut response)))
                        .map_err(|_| Error::Unasked)?;
                } else {
                    set(false);
                }
                Ok::<Answer, Error>(response.map(Either::Left))
            }
        }
    });
    let mut serving = pin!(
        server::conn::http1::Builder::new()
            .half_close(true)
            .preserve_header_case(true)
            .auto_date_header(false)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(guest), service)
            .with_upgrades()
    );
    let mut driving = pin!(driving.with_upgrades());
    let mut driven = false;
    loop {
        tokio::select! {
            ended = &mut serving => break ended?,
            ended = &mut driving, if !driven => {
                ended?;
                driven = true;
                // The host ended the connection: it is closed after the answer that is on its way. An upgrade
                // looks the same from here, and its answer must not say that the connection closes.
                if !*asked.lock().unwrap_or_else(PoisonError::into_inner) {
                    serving.as_mut().graceful_shutdown();
                }
            }
        }
    }
    let Ok((from_guest, from_outside)) = upgrades.try_recv() else { return Ok(()) };
    let mut both = pin!(async { tokio::try_join!(from_guest, from_outside) });
    let (guest, outside) = loop {
        tokio::select! {
            both = &mut both => break both?,
            ended = &mut driving, if !driven => {
                ended?;
                driven = true;
            }
        }
    };
    splice::copy(&mut TokioIo::new(guest), &mut TokioIo::new(outside)).await?;
    Ok(())
}

/// Whether a change to WebSocket is asked for. No other change is passed on, since what would be spoken after
/// it is not known to keep to one host; a server may always go on without (RFC 9110, 7.8).
fn keep_only_websocket(headers: &mut HeaderMap) -> bool {
    let websocket =
        headers.get(UPGRADE).is_some_and(|asked| asked.as_bytes().eq_ignore_ascii_case(b"websocket"))
            && headers.get_all(UPGRADE).iter().count() == 1;
    if !websocket {
        headers.remove(UPGRADE);
        headers.remove(HeaderName::from_static("http2-settings"));
    }
    websocket
}

/// Relays HTTP/2 until either side ends it.
pub async fn http2(guest: impl Side, outside: impl Side, rule: impl Rule) -> Result<(), Error> {
    let tasks = Tasks::default();
    let _ended = tasks.0.clone().drop_guard();
    let (sender, driving) = client::conn::http2::Builder::new(tasks.clone())
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .handshake::<_, Incoming>(TokioIo::new(outside))
        .await?;
    let service = service_fn(move |request: Request<Incoming>| {
        let (rule, mut sender) = (rule.clone(), sender.clone());
        async move {
            let (mut parts, body) = request.into_parts();
            if let Err(refusal) = rule(&mut parts) {
                return Ok(refusal.answer(parts.version));
            }
            sender.ready().await?;
            let response = sender.send_request(Request::from_parts(parts, body)).await?;
            Ok::<Answer, Error>(response.map(Either::Left))
        }
    });
    let mut serving = pin!(
        server::conn::http2::Builder::new(tasks)
            .auto_date_header(false)
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .serve_connection(TokioIo::new(guest), service)
    );
    let mut driving = pin!(driving);
    let mut driven = false;
    loop {
        tokio::select! {
            ended = &mut serving => return Ok(ended?),
            ended = &mut driving, if !driven => {
                ended?;
                driven = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Refuses the requests of a connection that goes nowhere. It is closed after the first, so that the next one
/// is tried anew.
pub async fn refuse(guest: impl Side, version: Version, refusal: Refusal) -> Result<(), Error> {
    let answered = Arc::new(Notify::new());
    let service = service_fn({
        let answered = answered.clone();
        move |request: Request<Incoming>| {
            let answer = refusal.answer(request.version());
            answered.notify_one();
            async move { Ok::<Answer, Error>(answer) }
        }
    });
    let guest = TokioIo::new(guest);
    if version < Version::HTTP_2 {
        return Ok(server::conn::http1::Builder::new().serve_connection(guest, service).await?);
    }
    let tasks = Tasks::default();
    let _ended = tasks.0.clone().drop_guard();
    let mut serving = pin!(server::conn::http2::Builder::new(tasks).serve_connection(guest, service));
    tokio::select! {
        ended = &mut serving => return Ok(ended?),
        () = answered.notified() => serving.as_mut().graceful_shutdown(),
    }
    Ok(serving.await?)
}

/// Runs the streams of an HTTP/2 connection, until it is told to end.
#[derive(Clone, Default)]
struct Tasks(CancellationToken);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let ended = self.0.clone();
        tokio::spawn(async move { ended.run_until_cancelled(stream).await.map(drop) });
    }
}

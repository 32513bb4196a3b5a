//! One request on its way: judged, sent to the service over a connection of its own or one that was left, and
//! its answer sent back as it comes.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::header::{
    CONNECTION, EXPECT, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, SET_COOKIE, UPGRADE,
};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, request};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use nullspace_edge_api::{Admission, Admitted, Destination, Edge, Refusal};
use nullspace_types::id::RequestId;
use nullspace_types::preview::PreviewTransport;
use nullspace_types::{Code, Error};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::body::{AnswerBody, RequestBody, Wait};
use crate::exchange::{Exchange, leash, tie};
use crate::gateway::Room;
use crate::pool::Connected;
use crate::tunnel::tunnel;
use crate::{head, judge, refusal};

/// Most bytes that one connection reads ahead or holds back.
pub(crate) const BUFFER_MAX: usize = 128 * 1024;

/// Where a request came in.
pub(crate) struct Arrival {
    pub(crate) peer: IpAddr,
    pub(crate) tls: bool,
    /// The port of a sandbox that a local address stands for; on the domain's listener, the host says it.
    pub(crate) destination: Option<Destination>,
    /// The name of the cookie that counts here.
    pub(crate) cookie: String,
    /// Cuts all that came in here.
    pub(crate) cut: CancellationToken,
}

type Sent = Result<(Response<Incoming>, Connected), Refusal>;

impl<E: Edge> Room<E> {
    /// Answers a request, whatever happens to it.
    pub(crate) async fn answer(&self, arrival: &Arrival, request: Request<Incoming>) -> Response<AnswerBody> {
        let (people, version) = (refusal::for_people(request.headers()), request.version());
        match self.pass(arrival, request).await {
            Ok(answer) => answer,
            Err(refused) => {
                let mut answer = refusal::answer(&refused, people);
                // Where this request ends may be in doubt, and so where the next would begin.
                if refused.error.code == Code::InvalidRequest && version < Version::HTTP_2 {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                answer
            }
        }
    }

    async fn pass(
        &self,
        arrival: &Arrival,
        mut request: Request<Incoming>,
    ) -> Result<Response<AnswerBody>, Refusal> {
        let client_end = hyper::upgrade::on(&mut request);
        let (mut parts, body) = request.into_parts();
        // A WebSocket over HTTP/2 (RFC 8441).
        let protocol = parts.extensions.get::<Protocol>().map(Protocol::as_str);
        let extended = parts.method == Method::CONNECT && protocol == Some("websocket");
        if parts.method == Method::CONNECT && !extended {
            return Err(Error::new(Code::MethodNotAllowed, "CONNECT is not served here").into());
        }
        let host = judge::host(&parts)?;
        let destination = self.destination(arrival, &host)?;
        if !head::coding_is_known(&parts.headers) {
            return Err(Error::invalid("the only transfer coding that is understood is chunked").into());
        }
        let mut shown = judge::read(&mut parts, extended, &arrival.cookie)?;
        let trusted = arrival.peer.to_canonical().is_loopback() || shown.credentials.proxy_token.is_some();
        let admission = Admission { destination, transport: shown.transport, credentials: shown.credentials };
        let admitted = self.edge.admit(admission).await?;
        let exchange = Exchange::new(&self.edge, &admitted, seconds(self.config.idle_timeout_secs));
        tie(&exchange);

        if extended {
            become_http1(&mut parts);
            shown.upgrade = Some(HeaderValue::from_static("websocket"));
        }
        let (wait, on_continue) = expectation(&parts);
        let body = RequestBody::new((!extended).then_some(body), exchange.clone(), wait);
        let length_unknown = hyper::body::Body::size_hint(&body).exact().is_none();
        let client = head::Client { address: arrival.peer, tls: arrival.tls, host: &host, trusted };
        let service_host = admitted.host.as_deref().map(HeaderValue::from_str).transpose();
        let service_host = service_host
            .map_err(|error| Error::internal(format_args!("the masked host is no header value: {error}")))?;
        head::request(&mut parts, &client, service_host, shown.upgrade.as_ref(), length_unknown);
        let mut forwarded = Request::new(body);
        *forwarded.method_mut() = parts.method;
        *forwarded.uri_mut() = parts.uri;
        *forwarded.headers_mut() = parts.headers;
        // How the names were written is in here.
        *forwarded.extensions_mut() = parts.extensions;
        let waits = on_continue.is_some();
        if let Some(said) = on_continue {
            tell_on_continue(&mut forwarded, said);
        }

        let answered = async {
            let (mut answer, connected) = self.send(&admitted, &exchange, forwarded).await?;
            if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                let service_end = hyper::upgrade::on(&mut answer);
                let mut switched = switch(answer, shown.upgrade.as_ref(), extended, admitted.port)?;
                let (exchange, cut) = (exchange.clone(), arrival.cut.clone());
                self.connections.spawn(async move {
                    match futures::future::try_join(client_end, service_end).await {
                        Ok((client, service)) => {
                            tunnel(TokioIo::new(client), TokioIo::new(service), exchange, cut).await;
                        }
                        Err(error) => tracing::debug!(%error, "an upgrade did not come about"),
                    }
                });
                judge::drop_set_cookies(switched.headers_mut());
                return Ok(switched);
            }
            let (mut parts, body) = answer.into_parts();
            head::answer(&mut parts).map_err(|wrong| not_ready(admitted.port, wrong))?;
            judge::drop_set_cookies(&mut parts.headers);
            let unwanted = waits && !exchange.sent() && !exchange.is_read();
            let unwanted = unwanted.then(|| {
                // Whether the body will come after all is not known: what comes next could be either.
                parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
                connected.cut.clone().drop_guard()
            });
            let lent = self.pool.lend(admitted.sandbox_id, admitted.port, connected, admitted.ended.clone());
            let body = AnswerBody::service(body, exchange.clone(), lent, unwanted);
            Ok(Response::from_parts(parts, body))
        };
        let mut answer = answered.await.inspect_err(|refused: &Refusal| {
            if let Some(grant) = admitted.grant {
                self.edge.failed(grant, refused.error.code);
            }
        })?;
        if shown.transport == PreviewTransport::Http
            && let Some((value, good_for)) = &admitted.cookie
        {
            answer.headers_mut().append(SET_COOKIE, cookie(arrival, value, *good_for)?);
        }
        Ok(answer)
    }

    fn destination(&self, arrival: &Arrival, host: &HeaderValue) -> Result<Destination, Error> {
        let there = match &arrival.destination {
            Some(local) => Some(local.clone()),
            None => self
                .config
                .domain
                .as_ref()
                .zip(host.to_str().ok())
                .and_then(|(domain, host)| judge::destination(host, domain)),
        };
        there.ok_or_else(|| Error::new(Code::SandboxNotFound, "this host leads to no sandbox"))
    }

    /// Sends a request and waits for the answer's head. A connection that was left by another request may
    /// have been closed by the service meanwhile: a request of which nothing was sent, or one that may be sent
    /// twice, is then sent over a new one.
    async fn send(&self, to: &Admitted, exchange: &Arc<Exchange>, mut request: Request<RequestBody>) -> Sent {
        if let Some(connected) = self.pool.take(to.sandbox_id, to.port).await {
            let again = (is_repeatable(&request)).then(|| {
                let mut copy = Request::new(());
                *copy.method_mut() = request.method().clone();
                *copy.uri_mut() = request.uri().clone();
                *copy.headers_mut() = request.headers().clone();
                copy
            });
            match self.try_send(to, exchange, connected, request).await {
                Ok(answer) => return Ok(answer),
                Err(Failed::Refused(refused)) => return Err(refused),
                Err(Failed::Broken(mut broken)) => match (broken.take_message(), again) {
                    (Some(unsent), _) => request = unsent,
                    (None, Some(copy)) if is_stale(broken.error()) => {
                        request = copy.map(|()| RequestBody::none(exchange.clone()));
                    }
                    (None, _) => return Err(no_answer(to.port, broken.error())),
                },
            }
        }
        let connected = self.connect(to).await?;
        match self.try_send(to, exchange, connected, request).await {
            Ok(answer) => Ok(answer),
            Err(Failed::Refused(refused)) => Err(refused),
            Err(Failed::Broken(broken)) => Err(no_answer(to.port, broken.error())),
        }
    }

    async fn try_send(
        &self,
        to: &Admitted,
        exchange: &Exchange,
        mut connected: Connected,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Connected), Failed> {
        let patience = seconds(self.config.answer_timeout_secs);
        let mut answer = pin!(connected.sender.try_send_request(request));
        loop {
            // What the client still sends keeps the wait alive.
            let until = exchange.moved() + patience;
            tokio::select! {
                biased;
                answer = answer.as_mut() => {
                    return answer.map(|answer| (answer, connected)).map_err(Failed::Broken);
                }
                () = tokio::time::sleep_until(until) => {
                    if exchange.moved() + patience <= Instant::now() {
                        return Err(Failed::Refused(too_late(to.port, exchange.sent(), patience)));
                    }
                }
            }
        }
    }

    async fn connect(&self, to: &Admitted) -> Result<Connected, Refusal> {
        let stream = self.edge.connect(to.sandbox_id, to.port).await?;
        let shaken = hyper::client::conn::http1::Builder::new()
            .max_buf_size(BUFFER_MAX.max(self.config.head_bytes_max))
            .preserve_header_case(true)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, connection) = shaken.map_err(|error| no_answer(to.port, &error))?;
        let cut = self.cut.child_token();
        let connected = Connected { sender, cut: cut.clone() };
        let connection: BoxFuture<'static, hyper::Result<()>> = connection.with_upgrades().boxed();
        self.connections.spawn(async move {
            if let Some(Err(error)) = leash(cut, connection).await {
                tracing::debug!(%error, "a connection to a service ended early");
            }
        });
        Ok(connected)
    }
}

enum Failed {
    Refused(Refusal),
    Broken(hyper::client::conn::TrySendError<Request<RequestBody>>),
}

/// Whether it makes no difference if the service sees it twice (RFC 9110 §9.2.2), and it can be sent twice.
fn is_repeatable(request: &Request<RequestBody>) -> bool {
    request.method().is_idempotent() && request.body().is_empty() && !request.headers().contains_key(UPGRADE)
}

/// Whether the connection broke before the service had said anything.
fn is_stale(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_closed() || error.is_canceled() || is_io(error)
}

fn is_io(error: &hyper::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>())
}

fn not_ready(port: u16, wrong: &str) -> Refusal {
    Error::new(
        Code::PreviewServiceNotReady,
        format!("the service on port {port} did not answer as it should: {wrong}"),
    )
    .into()
}

fn no_answer(port: u16, error: &hyper::Error) -> Refusal {
    // What broke is the client's body, not the service.
    if error.is_user() {
        return Error::invalid("the request's body is not what its head says").context(error).into();
    }
    let mut refused =
        not_ready(port, if error.is_parse() { "its answer is not HTTP" } else { "it closed the connection" });
    refused.error = refused.error.context(error);
    refused
}

fn too_late(port: u16, sent: bool, patience: Duration) -> Refusal {
    let secs = patience.as_secs();
    if !sent {
        return Error::invalid(format!("the request's body stood still for {secs} s")).into();
    }
    let late = format!("the service on port {port} did not begin to answer within {secs} s");
    Error::new(Code::EdgeRuntimeHostUnreachable, late).into()
}

pub(crate) fn seconds(secs: u32) -> Duration {
    Duration::from_secs(secs.into())
}

/// What a client that asks before it sends its body waits for, and where the service's word goes.
fn expectation(parts: &request::Parts) -> (Option<Wait>, Option<oneshot::Sender<()>>) {
    let asks =
        parts.headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if !asks || parts.version != Version::HTTP_11 {
        return (None, None);
    }
    let (say, said) = oneshot::channel();
    (Some(Wait::new(said)), Some(say))
}

/// Passes the service's word on to the body that waits for it.
fn tell_on_continue(request: &mut Request<RequestBody>, said: oneshot::Sender<()>) {
    let said = Mutex::new(Some(said));
    hyper::ext::on_informational(request, move |answer| {
        if answer.status() != StatusCode::CONTINUE {
            return;
        }
        if let Some(said) = said.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A request that is over by then has nobody who waits.
            let _ = said.send(());
        }
    });
}

/// What lets a browser go on without the token in the URL.
fn cookie(arrival: &Arrival, value: &str, good_for: Duration) -> Result<HeaderValue, Error> {
    let secure = if arrival.tls { "; Secure" } else { "" };
    let (name, secs) = (&arrival.cookie, good_for.as_secs());
    let cookie = format!("{name}={value}; Max-Age={secs}; Path=/; HttpOnly; SameSite=Lax{secure}");
    HeaderValue::from_str(&cookie)
        .map_err(|error| Error::internal(format_args!("the cookie is no header value: {error}")))
}

/// Turns a WebSocket over HTTP/2 into the handshake that services know.
fn become_http1(parts: &mut request::Parts) {
    parts.method = Method::GET;
    // A nonce of 16 bytes in base64, made from the digits of an ID.
    let id = RequestId::new().to_string();
    let key = format!("{}A==", &id[id.len() - 21..]);
    parts.headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key).expect("digits are a header value"));
    parts.headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
}

/// The answer that switches protocols: what the service agreed to must be what it was asked for.
fn switch(
    answer: Response<Incoming>,
    asked: Option<&HeaderValue>,
    extended: bool,
    port: u16,
) -> Result<Response<AnswerBody>, Refusal> {
    let (mut parts, _) = answer.into_parts();
    let agreed = parts.headers.get(UPGRADE).cloned();
    let matches = match (&agreed, asked) {
        (Some(agreed), Some(asked)) => {
            let asked: Vec<_> = judge::tokens(asked).collect();
            judge::tokens(agreed).all(|token| asked.iter().any(|asked| asked.eq_ignore_ascii_case(token)))
        }
        _ => false,
    };
    let Some(agreed) = agreed.filter(|_| matches) else {
        return Err(not_ready(port, "it switches to a protocol that it was not asked for"));
    };
    head::answer(&mut parts).map_err(|wrong| not_ready(port, wrong))?;
    if extended {
        parts.status = StatusCode::OK;
        parts.headers.remove(SEC_WEBSOCKET_ACCEPT);
    } else {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, agreed);
    }
    Ok(Response::from_parts(parts, AnswerBody::empty()))
}

//! The agent's door: one TCP listener, HTTP/2, the token.
//!
//! Plain hyper carries the generated service; the full gRPC server stack would add layers (timeouts,
//! load limits, traces) that the agent does not use, and every one of them is code that a restored
//! machine has to translate before its first answer.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, header};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nullspace_guest_proto as pb;
use pb::agent_server::AgentServer;
use tokio::net::{TcpListener, TcpStream};
use tonic::Status;
use tonic::codegen::Service as _;

use crate::console::say;
use crate::links::{Link, LinkId, Links};
use crate::service::Service;
use crate::token::Tokens;

/// Calls at once on one connection.
const CALLS: u32 = 512;
const STREAM_WINDOW: u32 = 1 << 20;
const LINK_WINDOW: u32 = 2 << 20;
const SEND_BUFFER: usize = 256 << 10;
const HEADER_BYTES: u32 = 16 << 10;

/// Accepts and serves until the agent ends.
pub struct Server {
    inner: AgentServer<Service>,
    tokens: Arc<Tokens>,
    links: Arc<Links>,
    peer: Option<IpAddr>,
}

impl Server {
    /// Serves only `peer`, if there is one.
    pub fn new(service: Service, tokens: Arc<Tokens>, links: Arc<Links>, peer: Option<IpAddr>) -> Self {
        let inner = AgentServer::new(service)
            .max_decoding_message_size(pb::MESSAGE_LIMIT + (64 << 10))
            .max_encoding_message_size(pb::MESSAGE_LIMIT + (64 << 10));
        Self { inner, tokens, links, peer }
    }

    /// Runs for ever. Errors: the listener is unusable.
    pub async fn run(self, listener: TcpListener) -> io::Result<Infallible> {
        loop {
            let place = self.links.place().await;
            match listener.accept().await {
                Ok((stream, from)) if self.peer.is_none_or(|peer| peer == from.ip()) => {
                    let link = self.links.enter(place);
                    let (inner, tokens) = (self.inner.clone(), Arc::clone(&self.tokens));
                    tokio::spawn(serve(stream, Door { inner, tokens, link: link.id }, link));
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted) => {}
                // Descriptors or memory are used up; what frees them cannot be waited for.
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS)
                    ) =>
                {
                    say!("no connection could be taken: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

async fn serve(stream: TcpStream, door: Door, mut link: Link) {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .auto_date_header(false)
        .max_concurrent_streams(CALLS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(LINK_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEADER_BYTES);
    // A link that breaks is the node's to notice and to make anew.
    tokio::select! {
        _ = builder.serve_connection(TokioIo::new(stream), door) => {}
        () = link.ended() => {}
    }
}

/// When the head of a call came in; its message may take another packet.
#[derive(Clone, Copy)]
pub struct Arrived(pub Instant);

/// Lets a call in, if its token is right.
#[derive(Clone)]
struct Door {
    inner: AgentServer<Service>,
    tokens: Arc<Tokens>,
    link: LinkId,
}

type Answer = Result<Response<tonic::body::Body>, Infallible>;

impl hyper::service::Service<Request<Incoming>> for Door {
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(Arrived(Instant::now()));
        request.extensions_mut().insert(self.link);
        let authorization = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
        match self.tokens.check(request.uri().path(), authorization) {
            Ok(()) => self.inner.clone().call(request.map(Whole)),
            Err(status) => Box::pin(std::future::ready(Ok(status.into_http()))),
        }
    }
}

/// A request's body that ends only where the caller ended it. A call that was given up looks to the
/// gRPC library like one that was completed, if its body fails with what says `cancelled`; a file
/// would be put in place with half of its content. So it fails with something else here.
struct Whole(Incoming);

impl Body for Whole {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let given_up = || Poll::Ready(Some(Err(Status::aborted("the call was given up").into())));
        match Pin::new(&mut self.0).poll_frame(context) {
            Poll::Ready(Some(Err(_))) => given_up(),
            Poll::Ready(None) if !self.0.is_end_stream() => given_up(),
            Poll::Ready(frame) => Poll::Ready(frame.map(|frame| frame.map_err(Into::into))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

//! Bodies on their way: counted frame by frame, never gathered.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::oneshot;
use tokio::time::Sleep;
use tokio_util::sync::DropGuard;

use crate::exchange::Exchange;
use crate::pool::Lent;

/// How long a service may keep silent about a body that it is asked whether it wants.
const CONTINUE_PATIENCE: Duration = Duration::from_secs(1);

/// A request's body on its way to the service.
pub(crate) struct RequestBody {
    body: Option<Incoming>,
    exchange: Arc<Exchange>,
    wait: Option<Wait>,
    /// The service has answered without wanting it: it neither comes nor ends.
    unwanted: bool,
}

/// A client that waits to be told to go on (`Expect: 100-continue`): until the service has said so, or some time
/// has passed without any answer, nothing is read from it, and so nothing is said to it.
pub(crate) struct Wait {
    said: oneshot::Receiver<()>,
    patience: Pin<Box<Sleep>>,
}

impl Wait {
    /// Until the other end says so or is dropped.
    pub(crate) fn new(said: oneshot::Receiver<()>) -> Self {
        Self { said, patience: Box::pin(tokio::time::sleep(CONTINUE_PATIENCE)) }
    }

    /// Whether the body is wanted. The other end is dropped with the last answer: it never was, then.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        match Pin::new(&mut self.said).poll(cx) {
            Poll::Ready(said) => Poll::Ready(said.is_ok()),
            Poll::Pending => self.patience.as_mut().poll(cx).map(|()| true),
        }
    }
}

impl RequestBody {
    /// `None` is no body at all.
    pub(crate) fn new(body: Option<Incoming>, exchange: Arc<Exchange>, wait: Option<Wait>) -> Self {
        let body = body.filter(|body| !body.is_end_stream());
        if body.is_none() {
            exchange.set_sent();
        }
        let wait = wait.filter(|_| body.is_some());
        Self { body, exchange, wait, unwanted: false }
    }

    /// The body of a request that is sent again.
    pub(crate) fn none(exchange: Arc<Exchange>) -> Self {
        Self { body: None, exchange, wait: None, unwanted: false }
    }

    /// Whether there is none, so that the same can be sent again.
    pub(crate) fn is_empty(&self) -> bool {
        self.body.is_none()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(wait) = &mut self.wait {
            if !ready!(wait.poll(cx)) {
                // Let go of, so that the client's side can end. Whoever reads the answer ends the other.
                (self.body, self.wait, self.unwanted) = (None, None, true);
            } else {
                self.wait = None;
            }
        }
        if self.unwanted {
            return Poll::Pending;
        }
        self.exchange.set_read();
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => self.exchange.passed_in(frame.data_ref().map_or(0, Bytes::len)),
            Some(Err(_)) => {}
            None => self.exchange.set_sent(),
        }
        if self.is_end_stream() {
            self.exchange.set_sent();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.wait.is_none() && !self.unwanted && self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// An answer's body on its way to the client.
pub(crate) enum AnswerBody {
    /// The service's.
    Service {
        /// What comes.
        body: Incoming,
        /// Of which exchange.
        exchange: Arc<Exchange>,
        /// The connection that it comes over, which is used again if the body was read to its end.
        lent: Option<Lent>,
        /// Ends that connection with the answer, if it waits for a body that nobody wants.
        _unwanted: Option<DropGuard>,
    },
    /// The gateway's own.
    Own(Full<Bytes>),
}

impl AnswerBody {
    /// The service's. One that is empty has been read to its end already.
    pub(crate) fn service(
        body: Incoming,
        exchange: Arc<Exchange>,
        lent: Lent,
        unwanted: Option<DropGuard>,
    ) -> Self {
        let lent = if body.is_end_stream() && exchange.sent() {
            lent.give_back();
            None
        } else {
            Some(lent)
        };
        Self::Service { body, exchange, lent, _unwanted: unwanted }
    }

    /// No body.
    pub(crate) fn empty() -> Self {
        Self::Own(Full::default())
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Service { body, exchange, lent, .. } => {
                let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
                match &frame {
                    Some(Ok(frame)) => exchange.passed_out(frame.data_ref().map_or(0, Bytes::len)),
                    // Broken off: it is not used again.
                    Some(Err(error)) => {
                        tracing::debug!(%error, "an answer broke off");
                        *lent = None;
                    }
                    None => {}
                }
                if (frame.is_none() || body.is_end_stream())
                    && let Some(lent) = lent.take().filter(|_| exchange.sent())
                {
                    lent.give_back();
                }
                Poll::Ready(frame)
            }
            Self::Own(body) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.map_err(|never: Infallible| match never {})))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Service { body, .. } => body.is_end_stream(),
            Self::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Service { body, .. } => body.size_hint(),
            Self::Own(body) => body.size_hint(),
        }
    }
}

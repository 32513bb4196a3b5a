//! Request bodies that nobody reads to their end, because the request was refused, are read and thrown
//! away for a while. A connection that is closed with unread bytes is reset, and the reset may overtake
//! the answer: the caller would see a broken connection instead of a 413.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;

/// How long a refused body is read.
const PATIENCE: Duration = Duration::from_secs(5);
/// How much of it is read.
const MOST: usize = 128 << 20;

/// A body that is drained, within bounds, when it is dropped before its end.
pub(crate) struct Drain {
    body: Option<Body>,
    /// The caller sends nothing until it is asked to, and it was not: there is nothing to drain.
    waits: bool,
}

impl Drain {
    /// `expects` says whether the request has an `Expect` header.
    pub fn new(body: Body, expects: bool) -> Self {
        Self { body: Some(body), waits: expects }
    }
}

impl HttpBody for Drain {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.waits = false;
        let Some(body) = self.body.as_mut() else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !self.waits && !body.is_end_stream()) else { return };
        // Without a runtime there is no connection either.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // What comes of it is of no interest: the request is answered.
                _ = tokio::time::timeout(PATIENCE, discard(body)).await;
            });
        }
    }
}

async fn discard(mut body: Body) {
    let mut left = MOST;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        let Some(rest) = left.checked_sub(length) else { return };
        left = rest;
    }
}

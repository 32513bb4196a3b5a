//! Bodies that are sent piece by piece, and how far they have come. Time is counted from one piece to
//! the next: a long upload that keeps moving is never cut, and one that stands still ends. Waiting for
//! whoever gives the body is not standing still.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};

/// How far a body has come: shared by the body and whoever watches it.
#[derive(Clone, Default)]
pub(crate) struct Pace(Arc<State>);

#[derive(Default)]
struct State {
    handed_on: AtomicU64,
    at_source: AtomicBool,
}

impl Pace {
    /// Bytes that were handed to the connection.
    pub(crate) fn handed_on(&self) -> u64 {
        self.0.handed_on.load(Ordering::Relaxed)
    }

    fn at_source(&self) -> bool {
        self.0.at_source.load(Ordering::Relaxed)
    }

    /// The outcome of `work`; `None` once nothing has moved for as long as `limit`.
    pub(crate) async fn watch<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        let mut seen = self.handed_on();
        loop {
            if let Ok(done) = tokio::time::timeout(limit, &mut work).await {
                return Some(done);
            }
            if self.handed_on() == seen && !self.at_source() {
                return None;
            }
            seen = self.handed_on();
        }
    }
}

/// A body whose pieces are counted as they are handed on.
pub(crate) struct Paced<S> {
    content: Pin<Box<S>>,
    pace: Pace,
    told: Box<dyn Fn(u64) + Send>,
}

impl<S> Paced<S> {
    /// `told` hears of every piece how long it is.
    pub(crate) fn new(content: S, pace: Pace, told: impl Fn(u64) + Send + 'static) -> Self {
        Self { content: Box::pin(content), pace, told: Box::new(told) }
    }
}

impl<S: Stream<Item = io::Result<Bytes>>> Stream for Paced<S> {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.content.poll_next_unpin(cx);
        self.pace.0.at_source.store(polled.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(Some(Ok(piece))) = &polled {
            let length = piece.len() as u64;
            self.pace.0.handed_on.fetch_add(length, Ordering::Relaxed);
            (self.told)(length);
        }
        polled
    }
}

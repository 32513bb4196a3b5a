//! One exchange that was let pass: what is counted of it, and what ends it before its time.
//!
//! An [`Exchange`] lives as long as anything of it is open; the bodies and tunnels hold it. What is to be
//! cut is whatever future carries it: a connection's (HTTP/1.1), a stream's (HTTP/2), a tunnel's. Such a
//! future is put on a [`leash`]; the request that it serves ties its exchange to it with [`tie`].

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use nullspace_edge_api::{Admitted, Edge, Traffic};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often what passes is reported, and looked at for whether it moves.
const TICK: Duration = Duration::from_secs(10);

type End = Pin<Box<dyn Future<Output = ()> + Send>>;
type Report = Box<dyn Fn(Traffic) + Send + Sync>;

/// See the module.
pub(crate) struct Exchange {
    ended: CancellationToken,
    report: Option<Report>,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    begun: Instant,
    /// Milliseconds from `begun` to when something last moved.
    moved: AtomicU64,
    idle: Duration,
    /// Whether the request's body is read.
    read: AtomicBool,
    /// Whether the request has gone out whole.
    sent: AtomicBool,
}

impl Exchange {
    pub(crate) fn new<E: Edge>(edge: &E, admitted: &Admitted, idle: Duration) -> Arc<Self> {
        let report = admitted.grant.map(|grant| {
            let edge = edge.clone();
            Box::new(move |traffic| edge.passed(grant, traffic)) as Report
        });
        Arc::new(Self {
            ended: admitted.ended.clone(),
            report,
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            begun: Instant::now(),
            moved: AtomicU64::new(0),
            idle,
            read: AtomicBool::new(false),
            sent: AtomicBool::new(false),
        })
    }

    /// Counts bytes towards the sandbox.
    pub(crate) fn passed_in(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Relaxed);
        self.touch();
    }

    /// Counts bytes from the sandbox.
    pub(crate) fn passed_out(&self, bytes: usize) {
        self.bytes_out.fetch_add(bytes as u64, Relaxed);
        self.touch();
    }

    fn touch(&self) {
        self.moved.store(u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// When something last moved.
    pub(crate) fn moved(&self) -> Instant {
        self.begun + Duration::from_millis(self.moved.load(Relaxed))
    }

    /// Notes that the request's body is read.
    pub(crate) fn set_read(&self) {
        self.read.store(true, Relaxed);
    }

    /// Whether it is.
    pub(crate) fn is_read(&self) -> bool {
        self.read.load(Relaxed)
    }

    /// Notes that the request has gone out whole.
    pub(crate) fn set_sent(&self) {
        if !self.sent.swap(true, Relaxed) {
            self.touch();
        }
    }

    /// Whether it has.
    pub(crate) fn sent(&self) -> bool {
        self.sent.load(Relaxed)
    }

    fn report(&self) {
        let Some(report) = &self.report else { return };
        let traffic =
            Traffic { bytes_in: self.bytes_in.swap(0, Relaxed), bytes_out: self.bytes_out.swap(0, Relaxed) };
        if traffic != Traffic::default() {
            report(traffic);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.report();
    }
}

/// Waits until an exchange must end: what let it pass has ended, or nothing moves. Reports meanwhile.
/// Never ends for one that is over by itself.
async fn must_end(exchange: Weak<Exchange>, ended: CancellationToken) {
    loop {
        if tokio::time::timeout(TICK, ended.cancelled()).await.is_ok() {
            return;
        }
        let Some(exchange) = exchange.upgrade() else { return std::future::pending().await };
        exchange.report();
        if exchange.moved().elapsed() >= exchange.idle {
            return;
        }
    }
}

tokio::task_local! {
    static TIED: RefCell<Option<Arc<Exchange>>>;
}

/// Ties an exchange to the leash of the future that now runs: with it, that future is cut. The one before
/// it is let loose.
pub(crate) fn tie(exchange: &Arc<Exchange>) {
    let tied = TIED.try_with(|tied| *tied.borrow_mut() = Some(exchange.clone()));
    debug_assert!(tied.is_ok(), "requests are served on a leash");
}

/// Runs a future to its end, or until `cut` or what is tied to it must end: then the future is dropped where
/// it stands, even if it waits for a peer that does not read, and the answer is `None`.
pub(crate) async fn leash<F: Future>(cut: CancellationToken, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut cut = pin!(cut.cancelled_owned());
    let mut watched: Option<(Weak<Exchange>, End)> = None;
    poll_fn(|cx| {
        let slot = RefCell::new(None);
        let (polled, tied) = TIED.sync_scope(slot, || {
            let polled = future.as_mut().poll(cx);
            (polled, TIED.with(|tied| tied.borrow_mut().take()))
        });
        if let Poll::Ready(output) = polled {
            return Poll::Ready(Some(output));
        }
        if cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        if let Some(exchange) = tied {
            let weak = Arc::downgrade(&exchange);
            watched = Some((weak.clone(), Box::pin(must_end(weak, exchange.ended.clone()))));
        }
        if let Some((exchange, end)) = &mut watched {
            if exchange.strong_count() == 0 {
                watched = None;
            } else if end.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
        }
        Poll::Pending
    })
    .await
}

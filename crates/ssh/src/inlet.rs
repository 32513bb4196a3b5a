//! What clients send on channels, until the programs take it. Owns each channel's queue and its end.
//!
//! `russh` opens a channel's window again when its bytes arrive, not when somebody takes them, and gives no
//! other way to open it. So a program that does not read does not stop its client, and bytes pile up here. They
//! are bounded for the connection as a whole: with [`HELD_MAX`] held, the connection stops reading its socket,
//! and TCP stops the client, with all of its channels. That is right for one program that is busy with something
//! else; but others wait with it, and where its output waits for the client's window in turn, neither would
//! ever go on. Then, after [`PATIENCE`] without progress, the fullest channel is ended.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use russh::ChannelId;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Most bytes of a connection that nobody has taken. More than what lies in the sockets between a client and
/// its output: a program that copies its input is never held up by bytes that stand before a window's.
const HELD_MAX: usize = 16 << 20;
/// From how many bytes of all connections on each is held to [`SHARE`].
const EVERYTHING_MAX: usize = 256 << 20;
const SHARE: usize = 1 << 20;
/// What keeping a piece costs beside its bytes: clients may send them one by one.
const PIECE: usize = 128;
/// How long a connection stands still for one channel of several.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most bytes that are taken as one.
const GATHERED_MAX: usize = 64 << 10;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every channel of a connection.
pub(crate) struct Inlets {
    open: Mutex<HashMap<ChannelId, Arc<Inlet>>>,
    places: Arc<Semaphore>,
    held: Arc<Held>,
    /// Channels whose output waits for the client's window.
    starved: AtomicUsize,
    begun: Instant,
    /// Milliseconds after `begun` at which a byte last passed.
    active: AtomicU64,
    over: CancellationToken,
}

/// What all connections of the relay hold.
#[derive(Clone, Default)]
pub(crate) struct Everything(Arc<AtomicUsize>);

struct Held {
    bytes: AtomicUsize,
    freed: Notify,
    everything: Everything,
}

/// What a client sends on one channel.
pub(crate) struct Inlet {
    queue: Mutex<Queue>,
    news: Notify,
    held: Arc<Held>,
    closed: CancellationToken,
    stuck: CancellationToken,
}

#[derive(Default)]
struct Queue {
    parts: VecDeque<Bytes>,
    bytes: usize,
    ended: bool,
    discarded: bool,
}

/// A place among the channels, and the channel in it, until dropped.
pub(crate) struct Seat {
    pub(crate) inlet: Arc<Inlet>,
    pub(crate) inlets: Arc<Inlets>,
    id: ChannelId,
    _place: OwnedSemaphorePermit,
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.inlets.open).remove(&self.id);
        self.inlet.discard();
    }
}

impl Inlets {
    pub(crate) fn new(channels_max: usize, everything: Everything, over: CancellationToken) -> Self {
        Self {
            open: Mutex::default(),
            places: Arc::new(Semaphore::new(channels_max)),
            held: Arc::new(Held { bytes: AtomicUsize::new(0), freed: Notify::new(), everything }),
            starved: AtomicUsize::new(0),
            begun: Instant::now(),
            active: AtomicU64::new(0),
            over,
        }
    }

    /// A place for another channel, if there is one.
    pub(crate) fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().try_acquire_owned().ok()
    }

    /// Puts a channel in its place. What the client sent already, if there was a moment for it, is there.
    pub(crate) fn seat(self: &Arc<Self>, id: ChannelId, place: OwnedSemaphorePermit) -> Seat {
        Seat { inlet: self.expect(id), inlets: self.clone(), id, _place: place }
    }

    /// Makes ready for what a channel will be sent, before it has its place.
    pub(crate) fn expect(&self, id: ChannelId) -> Arc<Inlet> {
        let inlet = || {
            Arc::new(Inlet {
                queue: Mutex::default(),
                news: Notify::new(),
                held: self.held.clone(),
                closed: self.over.child_token(),
                stuck: CancellationToken::new(),
            })
        };
        lock(&self.open).entry(id).or_insert_with(inlet).clone()
    }

    fn get(&self, id: ChannelId) -> Option<Arc<Inlet>> {
        lock(&self.open).get(&id).cloned()
    }

    /// Takes what a client sent. Waits while too much is held.
    pub(crate) async fn push(&self, id: ChannelId, data: &[u8]) {
        let Some(inlet) = self.get(id) else { return };
        self.touch();
        inlet.add(Bytes::copy_from_slice(data));
        loop {
            let freed = self.held.freed.notified();
            if !self.held.full() {
                return;
            }
            tokio::select! {
                () = freed => {}
                () = self.over.cancelled() => return,
                () = tokio::time::sleep(PATIENCE) => self.end_fullest(),
            }
        }
    }

    /// The client sends no more on a channel.
    pub(crate) fn end(&self, id: ChannelId) {
        if let Some(inlet) = self.get(id) {
            lock(&inlet.queue).ended = true;
            inlet.news.notify_one();
        }
    }

    /// The client closed a channel. Whoever has its place learns that, and gives it up.
    pub(crate) fn close(&self, id: ChannelId) {
        self.end(id);
        if let Some(inlet) = self.get(id) {
            inlet.closed.cancel();
        }
    }

    /// One channel alone keeps nobody waiting, unless it waits for itself.
    fn end_fullest(&self) {
        let open = lock(&self.open);
        if open.len() < 2 && self.starved.load(Ordering::SeqCst) == 0 {
            return;
        }
        if let Some((id, fullest)) = open.iter().max_by_key(|(_, inlet)| lock(&inlet.queue).bytes) {
            tracing::debug!(channel = %id, "a channel's input is not read and holds up its connection");
            fullest.stuck.cancel();
            fullest.discard();
        }
    }

    /// Counts a channel whose output waits for the client's window, until what this gives is dropped.
    pub(crate) fn starve(&self) -> impl Drop + '_ {
        struct Starved<'a>(&'a AtomicUsize);
        impl Drop for Starved<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.starved.fetch_add(1, Ordering::SeqCst);
        Starved(&self.starved)
    }

    /// Waits until the connection is over.
    pub(crate) async fn over(&self) {
        self.over.cancelled().await;
    }

    /// A byte passed.
    pub(crate) fn touch(&self) {
        self.active.store(self.begun.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Waits until no byte has passed for so long.
    pub(crate) async fn idle(&self, limit: Duration) {
        loop {
            let last = self.begun + Duration::from_millis(self.active.load(Ordering::Relaxed));
            let due = last + limit;
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due.into()).await;
        }
    }
}

impl Inlet {
    fn add(&self, part: Bytes) {
        let mut queue = lock(&self.queue);
        if !queue.discarded {
            self.held.keep(part.len() + PIECE);
            queue.bytes += part.len() + PIECE;
            queue.parts.push_back(part);
            self.news.notify_one();
        }
    }

    fn take(&self) -> Option<Bytes> {
        let mut queue = lock(&self.queue);
        let part = queue.parts.pop_front()?;
        queue.bytes -= part.len() + PIECE;
        self.held.free(part.len() + PIECE);
        Some(part)
    }

    /// The next bytes; `None` at their end. For one caller at a time.
    pub(crate) async fn next(&self) -> Option<Bytes> {
        loop {
            if let Some(part) = self.take() {
                return Some(part);
            }
            if lock(&self.queue).ended {
                return None;
            }
            self.news.notified().await;
        }
    }

    /// The next bytes with those that have come after them.
    pub(crate) async fn gather(&self) -> Option<Bytes> {
        let first = self.next().await?;
        let mut all = BytesMut::from(first);
        while all.len() < GATHERED_MAX
            && let Some(part) = self.take()
        {
            all.extend_from_slice(&part);
        }
        Some(all.freeze())
    }

    /// Writes all that comes, and then its end. Whoever reads no more is left alone: it may go on for long.
    pub(crate) async fn feed(&self, mut to: impl AsyncWrite + Unpin) {
        let fed = async {
            while let Some(part) = self.next().await {
                to.write_all(&part).await?;
                to.flush().await?;
            }
            to.shutdown().await
        };
        if let Err(error) = fed.await {
            tracing::debug!(%error, "a channel's input is read no more");
            self.discard();
        }
    }

    /// Nobody takes any more.
    pub(crate) fn discard(&self) {
        let mut queue = lock(&self.queue);
        self.held.free(queue.bytes);
        *queue = Queue { ended: queue.ended, discarded: true, ..Queue::default() };
    }

    /// Waits until the client closes the channel or goes.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Waits until the channel has held up its connection for too long.
    pub(crate) async fn stuck(&self) {
        self.stuck.cancelled().await;
    }
}

impl Held {
    fn full(&self) -> bool {
        let crowded = self.everything.0.load(Ordering::SeqCst) > EVERYTHING_MAX;
        self.bytes.load(Ordering::SeqCst) > if crowded { SHARE } else { HELD_MAX }
    }

    fn keep(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
        self.everything.0.fetch_add(bytes, Ordering::SeqCst);
    }

    fn free(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        self.everything.0.fetch_sub(bytes, Ordering::SeqCst);
        self.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use russh::keys::ssh_encoding::Decode as _;

    use super::*;

    fn id(number: u8) -> ChannelId {
        ChannelId::decode(&mut &[0, 0, 0, number][..]).expect("a channel's number")
    }

    fn inlets() -> Arc<Inlets> {
        Arc::new(Inlets::new(8, Everything::default(), CancellationToken::new()))
    }

    fn seat(inlets: &Arc<Inlets>, number: u8) -> Seat {
        inlets.seat(id(number), inlets.place().expect("a place"))
    }

    /// Sends as much as is held at most; the next byte waits.
    async fn fill(inlets: &Inlets, number: u8) {
        let part = vec![0; (1 << 20) - PIECE];
        for _ in 0..HELD_MAX >> 20 {
            inlets.push(id(number), &part).await;
        }
    }

    #[tokio::test]
    async fn what_was_sent_before_the_place_was_taken_comes_in_order_to_its_end() {
        let inlets = inlets();
        inlets.expect(id(1));
        inlets.push(id(1), b"one ").await;
        let seat = seat(&inlets, 1);
        inlets.push(id(1), b"two").await;
        inlets.end(id(1));
        assert_eq!(seat.inlet.gather().await.as_deref(), Some(&b"one two"[..]));
        assert_eq!(seat.inlet.next().await, None);
    }

    #[tokio::test]
    async fn a_connection_that_holds_too_much_waits_until_something_is_taken() {
        let inlets = inlets();
        let seat = seat(&inlets, 1);
        fill(&inlets, 1).await;
        let more = inlets.push(id(1), b"more");
        tokio::pin!(more);
        assert!(futures::poll!(more.as_mut()).is_pending());
        seat.inlet.next().await;
        more.await;
        drop(seat);
        assert_eq!(inlets.held.bytes.load(Ordering::SeqCst), 0);
        assert_eq!(inlets.held.everything.0.load(Ordering::SeqCst), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_that_holds_up_others_for_too_long_is_ended() {
        let inlets = inlets();
        let (full, other) = (seat(&inlets, 1), seat(&inlets, 2));
        fill(&inlets, 1).await;
        inlets.push(id(2), b"waits with it").await;
        full.inlet.stuck().await;
        assert_eq!(other.inlet.next().await.as_deref(), Some(&b"waits with it"[..]));
        assert!(!other.inlet.stuck.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_that_is_alone_is_ended_only_if_it_waits_for_itself() {
        let inlets = inlets();
        let alone = seat(&inlets, 1);
        fill(&inlets, 1).await;
        let more = tokio::time::timeout(10 * PATIENCE, inlets.push(id(1), b"more")).await;
        assert!(more.is_err() && !alone.inlet.stuck.is_cancelled());
        let _starved = inlets.starve();
        inlets.push(id(1), b"more").await;
        assert!(alone.inlet.stuck.is_cancelled());
    }
}

//! The links that are open: how many there may be, and the end of those that are no more.
//!
//! A machine that was captured and restored has links of before whose other ends are the captured
//! machine's, or nobody's. The one adoption that makes it its own again comes over a new link; with the
//! others go the calls on them, and what was open for those alone: streams, watches, viewers, parts of
//! uploads. Processes, terminals and uploads are not theirs and go on.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Links at once. The node has one; more are its retries.
const LINKS: usize = 16;

/// Names a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(u64);

/// See the module.
pub struct Links {
    places: Arc<Semaphore>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    /// Dropped to end the link.
    ends: BTreeMap<LinkId, oneshot::Sender<Infallible>>,
}

/// A link that is open until this is dropped.
pub struct Link {
    pub id: LinkId,
    end: oneshot::Receiver<Infallible>,
    links: Arc<Links>,
    _place: OwnedSemaphorePermit,
}

impl Default for Links {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(LINKS)), open: Mutex::default() }
    }
}

impl Links {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().expect("no holder panics")
    }

    /// Waits for a place for one more.
    pub async fn place(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.places).acquire_owned().await.expect("never closed")
    }

    /// One more is open.
    pub fn enter(self: &Arc<Self>, place: OwnedSemaphorePermit) -> Link {
        let (sender, end) = oneshot::channel();
        let mut open = self.open();
        let id = LinkId(open.next);
        open.next += 1;
        open.ends.insert(id, sender);
        Link { id, end, links: Arc::clone(self), _place: place }
    }

    /// Ends all others.
    pub fn end_others(&self, kept: LinkId) {
        self.open().ends.retain(|id, _| *id == kept);
    }

    /// Waits until all are closed, at most this long.
    pub async fn closed(&self, patience: Duration) {
        // One place is held by the loop that accepts.
        let _ = tokio::time::timeout(patience, self.places.acquire_many(LINKS as u32 - 1)).await;
    }
}

impl Link {
    /// Resolves when it is to end.
    pub async fn ended(&mut self) {
        // Nothing can be sent: it is dropped.
        let _ = (&mut self.end).await;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.links.open().ends.remove(&self.id);
    }
}

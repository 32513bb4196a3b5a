//! The log of events as it grows. One task reads what is new, once for everybody, and keeps the newest of it
//! in memory; a [`Follower`] has its own place in the log and takes what comes from there: out of memory if
//! it keeps up, out of the store if it does not. So a slow one costs nothing but its own lag, and none misses
//! an event or hears one twice.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nullspace_store::event::{EventCursor, EventFilter, EventOrder, EventRow};
use nullspace_types::event::LifecycleEvent;
use nullspace_types::id::TenantId;
use nullspace_types::{Error, Result};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::access::stopping;
use crate::shared::Shared;

/// Events that are kept in memory.
const KEPT: usize = 2048;
/// Events read at once.
const READ: u32 = 500;
/// Events that a follower takes at once.
const BATCH: usize = 100;
/// Between two looks at the log if nobody told of anything: another process may write to it too.
const LOOK: Duration = Duration::from_secs(3);
/// Before the log is read again that could not be read, if nobody writes to it meanwhile.
const PAUSE: Duration = Duration::from_secs(1);

/// The newest part of the log.
pub(crate) struct Feed {
    head: watch::Sender<EventCursor>,
    recent: Mutex<Recent>,
}

struct Recent {
    /// All events behind this place are here.
    floor: EventCursor,
    rows: VecDeque<Arc<EventRow>>,
}

impl Feed {
    /// A feed of what comes behind a place.
    pub(crate) fn new(head: EventCursor) -> Self {
        let recent = Recent { floor: head, rows: VecDeque::new() };
        Self { head: watch::Sender::new(head), recent: Mutex::new(recent) }
    }

    /// Where the log is known to end: it changes whenever something was written.
    pub(crate) fn head(&self) -> watch::Receiver<EventCursor> {
        self.head.subscribe()
    }

    // No code under this lock can leave it half-changed, so going on after a panic is safe.
    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, rows: Vec<EventRow>) {
        let Some(last) = rows.last().map(|row| row.cursor) else { return };
        let mut recent = self.recent();
        recent.rows.extend(rows.into_iter().map(Arc::new));
        while recent.rows.len() > KEPT {
            recent.floor = recent.rows.pop_front().map_or(recent.floor, |row| row.cursor);
        }
        drop(recent);
        self.head.send_replace(last);
    }

    /// The next events behind a place, if they are still here.
    fn after(&self, cursor: EventCursor) -> Option<Vec<Arc<EventRow>>> {
        let recent = self.recent();
        if cursor < recent.floor {
            return None;
        }
        let first = recent.rows.partition_point(|row| row.cursor <= cursor);
        Some(recent.rows.iter().skip(first).take(BATCH).cloned().collect())
    }
}

/// Reads what is new until the server stops.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let mut written = shared.written.subscribe();
    let mut cursor = *shared.feed.head.borrow();
    loop {
        // Whoever writes from here on wakes this again.
        written.borrow_and_update();
        let look = match shared.store.events_after(cursor, READ).await {
            Ok(rows) => {
                let more = rows.len() == READ as usize;
                for row in &rows {
                    cursor = row.cursor;
                    count(&row.event);
                }
                shared.feed.push(rows);
                if more { Duration::ZERO } else { LOOK }
            }
            Err(error) => {
                tracing::warn!(%error, "the log of events could not be read; trying again");
                PAUSE
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            _ = written.changed() => {}
            () = sleep(look) => {}
        }
    }
}

fn count(event: &LifecycleEvent) {
    let (operation, status) = (event.operation.as_str(), event.status.as_str());
    ::metrics::counter!("nullspace_events_total", "operation" => operation, "status" => status).increment(1);
}

/// Somebody who follows a tenant's events. It holds a batch of them at most.
pub(crate) struct Follower {
    shared: Arc<Shared>,
    tenant: TenantId,
    filter: EventFilter,
    cursor: EventCursor,
    head: watch::Receiver<EventCursor>,
}

impl Follower {
    /// Follows the events behind a place that pass the filter, which has neither places nor an order.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        tenant: TenantId,
        filter: EventFilter,
        cursor: EventCursor,
    ) -> Self {
        Self { shared: shared.clone(), tenant, filter, cursor, head: shared.feed.head() }
    }

    /// The next events, one at least, as soon as there are any. Nothing is lost if this is dropped half-way.
    pub(crate) async fn batch(&mut self) -> Result<Vec<LifecycleEvent>> {
        loop {
            let head = *self.head.borrow_and_update();
            if head > self.cursor {
                let (cursor, events) = self.read(head).await?;
                self.cursor = cursor;
                if !events.is_empty() {
                    return Ok(events);
                }
                continue;
            }
            let stop = pin!(self.shared.stop.cancelled());
            tokio::select! {
                () = stop => return Err(stopping()),
                changed = self.head.changed() => changed.map_err(|_| stopping())?,
            }
        }
    }

    /// What there is behind the cursor up to `head`, and how far that goes.
    async fn read(&self, head: EventCursor) -> Result<(EventCursor, Vec<LifecycleEvent>)> {
        if let Some(rows) = self.shared.feed.after(self.cursor) {
            let cursor = rows.last().map_or(head, |row| row.cursor);
            let wanted = rows
                .iter()
                .filter(|row| row.tenant_id == self.tenant && self.filter.matches(&row.event))
                .map(|row| row.event.clone());
            return Ok((cursor, wanted.collect()));
        }
        let filter = EventFilter {
            after: Some(self.cursor),
            up_to: Some(head),
            order: EventOrder::Ascending,
            limit: BATCH as u32,
            ..self.filter.clone()
        };
        let rows = self.shared.store.event_list(self.tenant, &filter).await.map_err(Error::from)?;
        let cursor = rows.get(BATCH - 1).map_or(head, |row| row.cursor);
        Ok((cursor, rows.into_iter().map(|row| row.event).collect()))
    }
}

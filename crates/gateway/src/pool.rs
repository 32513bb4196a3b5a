//! Connections to services that are not in use just now.
//!
//! One is kept for a few seconds after its answer was read to the end, and no longer than what let that answer
//! pass: a sandbox that is gone or paused leaves none behind. The pool is bounded; what does not fit is closed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use nullspace_types::id::SandboxId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::body::RequestBody;

/// How long one is kept: less than the 5 seconds after which common servers close it from their side.
const KEEP: Duration = Duration::from_secs(4);
/// Most for one port.
const EACH_MAX: usize = 256;
/// Most of all.
const ALL_MAX: usize = 2048;

/// A connection to a service.
pub(crate) struct Connected {
    pub(crate) sender: SendRequest<RequestBody>,
    /// Ends it, whatever it waits for.
    pub(crate) cut: CancellationToken,
}

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Pool(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    idle: HashMap<(SandboxId, u16), Vec<Idle>>,
    count: usize,
    closed: bool,
}

struct Idle {
    connected: Connected,
    ended: CancellationToken,
    since: Instant,
}

impl Idle {
    fn is_good(&self) -> bool {
        !self.connected.sender.is_closed() && !self.ended.is_cancelled() && self.since.elapsed() < KEEP
    }
}

/// A connection in use, and where it goes afterwards.
pub(crate) struct Lent {
    pool: Pool,
    to: (SandboxId, u16),
    connected: Connected,
    ended: CancellationToken,
}

impl Pool {
    /// One that is connected and not in use: that which was used last.
    pub(crate) async fn take(&self, sandbox_id: SandboxId, port: u16) -> Option<Connected> {
        loop {
            let mut connected = self.take_idle((sandbox_id, port))?;
            if connected.sender.ready().await.is_ok() {
                return Some(connected);
            }
        }
    }

    fn take_idle(&self, to: (SandboxId, u16)) -> Option<Connected> {
        self.with(|state| {
            let idle = state.idle.get_mut(&to)?;
            let before = idle.len();
            let mut found = None;
            while found.is_none()
                && let Some(last) = idle.pop()
            {
                found = last.is_good().then_some(last.connected);
            }
            state.count -= before - idle.len();
            if idle.is_empty() {
                state.idle.remove(&to);
            }
            found
        })
    }

    /// Says where a connection belongs that is in use.
    pub(crate) fn lend(
        &self,
        sandbox_id: SandboxId,
        port: u16,
        connected: Connected,
        ended: CancellationToken,
    ) -> Lent {
        Lent { pool: self.clone(), to: (sandbox_id, port), connected, ended }
    }

    /// Closes what has been kept long enough.
    pub(crate) async fn sweep(self, stop: CancellationToken) {
        while tokio::time::timeout(KEEP, stop.cancelled()).await.is_err() {
            self.with(|state| {
                state.idle.retain(|_, idle| {
                    idle.retain(Idle::is_good);
                    !idle.is_empty()
                });
                state.count = state.idle.values().map(Vec::len).sum();
            });
        }
        self.with(|state| *state = State { closed: true, ..State::default() });
    }

    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Lent {
    /// Makes it ready for whoever comes next.
    pub(crate) fn give_back(self) {
        let Self { pool, to, connected, ended } = self;
        pool.with(|state| {
            if state.closed || state.count >= ALL_MAX {
                return;
            }
            let idle = state.idle.entry(to).or_default();
            if idle.len() < EACH_MAX {
                idle.push(Idle { connected, ended, since: Instant::now() });
                state.count += 1;
            }
        });
    }
}

//! Has the machine's programs stand still around a capture.
//!
//! What a program drew from the kernel's generator between the instant of a capture and the moment at which
//! a copy has been given entropy of its own, parent and copy would draw alike; so would the rest of a read
//! that was under way. So no program runs in between: all are frozen before, which ends their reads of the
//! generator early, and go on in the parent when it was captured and in a copy when it was adopted.
//!
//! Owned here: whether programs stand still and until when, and the gate at which starts wait meanwhile: a
//! program that is born in a frozen group never executes, and the agent waits for that. The groups of
//! programs themselves are in `group`. Deliberately absent: anything against a root of the guest that takes
//! its programs out of every group.

mod group;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::console::say;
use group::{Groups, Still};

/// How long programs may take to stand still, and starts that are under way to end.
const PATIENCE: Duration = Duration::from_millis(500);
/// After so long they go on by themselves: whoever wanted them to stand still is no more.
const LONGEST: Duration = Duration::from_secs(20);

/// See the module.
pub struct Freezer {
    /// None where the agent is a process among others.
    groups: Option<Groups>,
    gate: Arc<RwLock<()>>,
    frozen: Arc<Mutex<Option<Frozen>>>,
}

/// Programs stand still for as long as this is there.
struct Frozen {
    id: String,
    still: Vec<Still>,
    clock: Option<AbortHandle>,
    _closed: OwnedRwLockWriteGuard<()>,
}

/// The right to start a program: none begins to stand still until this is dropped.
pub struct Admission {
    group: Option<Arc<OwnedFd>>,
    _open: Option<OwnedRwLockReadGuard<()>>,
}

/// What stands still does so until this is dropped, and goes on then.
pub struct Held(OwnedMutexGuard<Option<Frozen>>);

impl Freezer {
    /// Nothing ever stands still.
    pub fn without_groups() -> Self {
        Self { groups: None, gate: Arc::default(), frozen: Arc::default() }
    }

    /// Makes its groups in `root`, a mounted file system of control groups, version 2. `own`: it is the
    /// machine's, where other programs find only what they cannot stop the agent with.
    pub fn with_groups(root: &Path, own: bool) -> io::Result<Self> {
        Ok(Self { groups: Some(Groups::make(root, own)?), ..Self::without_groups() })
    }

    /// Waits until programs may be started.
    pub async fn admit(&self) -> Admission {
        let open = Arc::clone(&self.gate).read_owned().await;
        Admission { group: self.groups.as_ref().map(|groups| groups.programs()), _open: Some(open) }
    }

    /// For a hook, which runs while the others stand still.
    pub fn admit_hook(&self) -> Admission {
        Admission { group: self.groups.as_ref().map(|groups| groups.hooks()), _open: None }
    }

    /// Has all programs stand still; the reason if that cannot be had, and then they go on. Those that do
    /// already do so anew for this caller.
    pub async fn freeze(&self, id: String) -> Result<(), String> {
        let groups = self.groups.as_ref().ok_or("this agent has no groups of its own")?;
        let mut frozen = Arc::clone(&self.frozen).lock_owned().await;
        let mut next = match frozen.take() {
            Some(before) => before,
            None => timeout(PATIENCE, self.all_stand_still(groups))
                .await
                .unwrap_or_else(|_| Err(format!("not all programs stood still within {PATIENCE:?}")))?,
        };
        next.id = id;
        next.wind(self.go_on_after(LONGEST));
        *frozen = Some(next);
        Ok(())
    }

    async fn all_stand_still(&self, groups: &Groups) -> Result<Frozen, String> {
        // Whoever gives up waiting drops this, and with it all that was done.
        let mut frozen = Frozen {
            id: String::new(),
            still: Vec::new(),
            clock: None,
            _closed: Arc::clone(&self.gate).write_owned().await,
        };
        groups.tell(&mut frozen.still).map_err(|error| format!("the control groups: {error}"))?;
        for still in &frozen.still {
            still.wait().await.map_err(|error| format!("the control group {}: {error}", still.name))?;
        }
        Ok(frozen)
    }

    /// Has them go on, if it is that freeze that they stand still for; an empty `id` is any.
    pub async fn thaw(&self, id: &str) {
        let mut frozen = self.frozen.lock().await;
        if frozen.as_ref().is_some_and(|frozen| id.is_empty() || frozen.id == id) {
            *frozen = None;
        }
    }

    /// For an adoption: who stands still does so to its end, and no clock and nobody else changes that.
    pub async fn hold(&self) -> Held {
        Held(Arc::clone(&self.frozen).lock_owned().await)
    }

    fn go_on_after(&self, longest: Duration) -> AbortHandle {
        let frozen = Arc::clone(&self.frozen);
        let clock = tokio::spawn(async move {
            tokio::time::sleep(longest).await;
            if let Some(frozen) = frozen.lock().await.take() {
                say!("programs stood still for {longest:?}, and go on by themselves");
                drop(frozen);
            }
        });
        clock.abort_handle()
    }
}

impl Admission {
    /// The group to start it in.
    pub fn group(&self) -> Option<BorrowedFd<'_>> {
        self.group.as_ref().map(|group| group.as_fd())
    }
}

impl Held {
    /// What earlier hooks left running goes on, so that new ones can be started beside it.
    pub fn let_hooks_run(&mut self) {
        if let Some(frozen) = &mut *self.0 {
            frozen.still.retain(|still| !still.is_of_hooks());
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.take();
    }
}

impl Frozen {
    /// Another clock in place of the one before.
    fn wind(&mut self, clock: AbortHandle) {
        if let Some(before) = self.clock.replace(clock) {
            before.abort();
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Before the gate opens.
        self.still.clear();
        if let Some(clock) = &self.clock {
            clock.abort();
        }
    }
}

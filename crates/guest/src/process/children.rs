//! Exit statuses, on their way from the reaper to whoever started the process.
//!
//! This owns who waits for which number, and thereby when a number stops being ours: a signal goes to a
//! process only through its [`Leader`], which knows whether it was reaped.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{Notify, oneshot};

use super::signal::Signal;

/// A program that the agent started. It leads a session and a process group, which have its number.
pub struct Leader {
    pub pid: u32,
    /// The kernel's process is gone: its number may belong to another one.
    reaped: AtomicBool,
}

impl Leader {
    /// Sends SIGKILL to the whole group. Nothing happens once the process was reaped.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Sends a signal to the whole group. Nothing happens once the process was reaped.
    pub fn signal(&self, signal: Signal) {
        // The reaper is on this thread, so it does not come between.
        if !self.reaped.load(Ordering::Acquire) {
            // The group exists at least until its leader is reaped, so the only error is none.
            let _ = signal.to_group(self.pid as i32);
        }
    }
}

/// A started program and the news of its exit, which come once and only with the agent's end not at all.
pub struct Child {
    pub leader: Arc<Leader>,
    pub exit: oneshot::Receiver<i32>,
}

/// See the module.
#[derive(Default)]
pub struct Children {
    inner: Mutex<Inner>,
    /// Told whenever a child of the agent was reaped.
    pub any_reaped: Notify,
}

#[derive(Default)]
struct Inner {
    waiting: BTreeMap<u32, (Arc<Leader>, oneshot::Sender<i32>)>,
    /// Starts under way on other threads. Their process may end before anybody waits for it.
    starting: usize,
    unclaimed: BTreeMap<u32, i32>,
}

impl Children {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// Before a start: from now on no exit status is lost.
    pub fn begin(&self) -> Beginning<'_> {
        self.inner().starting += 1;
        Beginning { children: self }
    }

    /// The reaper took this status.
    pub fn reaped(&self, pid: u32, code: i32) {
        let mut inner = self.inner();
        if let Some((leader, exit)) = inner.waiting.remove(&pid) {
            leader.reaped.store(true, Ordering::Release);
            // Its task may be gone only with the agent.
            let _ = exit.send(code);
        } else if inner.starting > 0 {
            inner.unclaimed.insert(pid, code);
        }
        drop(inner);
        self.any_reaped.notify_waiters();
    }
}

/// A start that is under way.
pub struct Beginning<'a> {
    children: &'a Children,
}

impl Beginning<'_> {
    /// It has become this process.
    pub fn child(self, pid: u32) -> Child {
        let (sender, exit) = oneshot::channel();
        let mut inner = self.children.inner();
        let reaped = inner.unclaimed.remove(&pid);
        let leader = Arc::new(Leader { pid, reaped: AtomicBool::new(reaped.is_some()) });
        match reaped {
            Some(code) => {
                // The receiver is in this function, so it is there.
                let _ = sender.send(code);
            }
            None => {
                inner.waiting.insert(pid, (Arc::clone(&leader), sender));
            }
        }
        drop(inner);
        Child { leader, exit }
    }
}

impl Drop for Beginning<'_> {
    fn drop(&mut self) {
        let mut inner = self.children.inner();
        inner.starting -= 1;
        if inner.starting == 0 {
            inner.unclaimed.clear();
        }
    }
}

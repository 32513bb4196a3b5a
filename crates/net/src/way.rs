//! The machine's way out of its slot: whether it is open, and the policy that is in force on it.
//!
//! The kernel forwards for the slot or does not (the gate), and its firewall holds the table of the
//! policy; DNS and the inspection of connections look here. All of them change together, in one order:
//! what fails on the way leaves the way closed.

use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use fs_err as fs;
use nullspace_egress::Enforced;
use nullspace_types::network::EgressPolicy;
use tokio::sync::watch;

use crate::config::Config;
use crate::error::{Doing, Result};
use crate::firewall::SlotTable;
use crate::namespace::Namespace;
use crate::slot::blocking;
use crate::{host, tool};

/// Whether a namespace forwards.
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// The setting of one namespace, held open: to write it is all that closing takes.
#[derive(Debug)]
pub(crate) struct Gate {
    file: fs::File,
}

impl Gate {
    /// That of the calling thread's namespace.
    pub(crate) fn open() -> Result<Self> {
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).open(FORWARD).doing(|| "cannot open a slot's gate".into())?;
        Ok(Self { file })
    }

    /// Lets the kernel forward, or not.
    pub(crate) fn set(&self, open: bool) -> Result<()> {
        // One write, at the file's beginning: the kernel takes no other.
        let mut file = self.file.file();
        std::io::Seek::rewind(&mut file)
            .and_then(|()| file.write_all(if open { b"1\n" } else { b"0\n" }))
            .doing(|| "cannot move a slot's gate".into())
    }
}

/// The way out of one slot.
pub(crate) struct Way {
    gate: Mutex<Guarded>,
    open: watch::Sender<bool>,
    enforced: watch::Sender<Arc<Enforced>>,
    /// The firewall's table that is in force, if it is known; held while that changes.
    table: tokio::sync::Mutex<Option<SlotTable>>,
}

#[derive(Debug)]
struct Guarded {
    gate: Gate,
    /// Whether the kernel forwards, if it is known.
    forwards: Option<bool>,
    /// How often the way was closed.
    closings: u64,
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = &self.enforced.borrow().policy;
        f.debug_struct("Way").field("open", &*self.open.borrow()).field("policy", policy).finish()
    }
}

impl Way {
    /// Of a new slot, with the default policy in force by that table, and open; or of one that was found,
    /// whose firewall is in force, but closed for what this process does until a policy is set.
    pub(crate) fn new(gate: Gate, table: Option<SlotTable>) -> Self {
        let open = table.is_some();
        let policy = EgressPolicy { internet_access: open, ..EgressPolicy::default() };
        Self {
            gate: Mutex::new(Guarded { gate, forwards: open.then_some(true), closings: 0 }),
            open: watch::Sender::new(open),
            enforced: watch::Sender::new(Arc::new(Enforced { policy, authority: None })),
            table: tokio::sync::Mutex::new(table),
        }
    }

    /// What is in force; nothing while the way is closed.
    pub(crate) fn enforced(&self) -> Option<Arc<Enforced>> {
        self.open.borrow().then(|| self.enforced.borrow().clone())
    }

    /// Tells each change of what is in force.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Enforced>> {
        self.enforced.subscribe()
    }

    /// Tells whether the way is open.
    pub(crate) fn opened(&self) -> watch::Receiver<bool> {
        self.open.subscribe()
    }

    /// Closes it. Wins over a policy that is being put in force.
    pub(crate) fn close(&self) -> Result<()> {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        gate.closings += 1;
        self.open.send_replace(false);
        gate.forwards = None;
        gate.gate.set(false)?;
        gate.forwards = Some(false);
        Ok(())
    }

    /// Puts a policy in force and opens the way, unless it is closed meanwhile.
    pub(crate) async fn set(
        &self,
        enforced: Arc<Enforced>,
        namespace: Arc<Namespace>,
        config: Arc<Config>,
    ) -> Result<()> {
        let mut table = self.table.lock().await;
        let closings = self.gate.lock().unwrap_or_else(PoisonError::into_inner).closings;
        let done = match self.apply(enforced, &mut table, namespace, config).await {
            Ok(()) => self.open(closings),
            failed => failed,
        };
        if done.is_err() {
            *table = None;
            if let Err(error) = self.close() {
                tracing::error!(%error, "the way out of a network slot can neither be changed nor closed");
            }
        }
        done
    }

    async fn apply(
        &self,
        enforced: Arc<Enforced>,
        table: &mut Option<SlotTable>,
        namespace: Arc<Namespace>,
        config: Arc<Config>,
    ) -> Result<()> {
        if table.is_some() && same(&self.enforced.borrow(), &enforced) {
            return Ok(());
        }
        let (before, wanted) = (table.take(), enforced.clone());
        let after = blocking(move || {
            let host = host::addresses()?;
            let after = SlotTable::new(&config.link, &wanted.policy, &config.allow, &host);
            let script = before.map_or_else(|| after.script(), |before| after.script_after(&before));
            if !script.is_empty() {
                namespace.enter(|| tool::nft(&script))?;
            }
            Ok(after)
        })
        .await?;
        *table = Some(after);
        self.enforced.send_replace(enforced);
        Ok(())
    }

    fn open(&self, closings: u64) -> Result<()> {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if gate.closings != closings {
            return Ok(());
        }
        if gate.forwards != Some(true) {
            gate.gate.set(true)?;
            gate.forwards = Some(true);
        }
        self.open.send_replace(true);
        Ok(())
    }
}

fn same(one: &Enforced, other: &Enforced) -> bool {
    let key = |enforced: &Enforced| enforced.authority.as_ref().map(|authority| authority.to_pem());
    one.policy == other.policy && key(one) == key(other)
}

#[cfg(test)]
impl Way {
    /// One that is open, with a policy in force and no slot around it.
    pub(crate) fn with(policy: EgressPolicy) -> Self {
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).open("/dev/null").expect("/dev/null is there");
        let way = Self::new(Gate { file }, None);
        way.enforced.send_replace(Arc::new(Enforced { policy, authority: None }));
        way.open.send_replace(true);
        way
    }
}

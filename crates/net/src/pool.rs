//! Slots made ahead. One task owns the unused ones and the work of making more; everyone else sends
//! it messages. How many slots there are in all is a semaphore of `max` permits, one of which each
//! slot holds from before it is made until it is removed.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use nullspace_types::network::Denial;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::config::Config;
use crate::denials::Denials;
use crate::dns::{Lookups, Resolvers};
use crate::error::{Error, Result};
use crate::make::{self, Made};
use crate::slot::{Shares, Slot, blocking};
use crate::{forwarding, host, inspection, probe};

/// Messages under way to the task; senders wait beyond it.
const MESSAGES: usize = 64;
/// Pauses after a failure to make a slot ahead: the first, doubled up to the last.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(30)];

/// How a pool stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolStatus {
    /// Unused slots.
    pub ready: usize,
    /// Slots being made.
    pub making: usize,
    /// Why the last slot that should have been made ahead could not be; gone with the next success.
    pub failure: Option<String>,
}

/// Slots of one server.
#[derive(Debug, Clone)]
pub struct SlotPool {
    messages: mpsc::Sender<Message>,
    busy: watch::Sender<bool>,
    status: watch::Receiver<PoolStatus>,
    denials: Arc<Denials>,
}

#[derive(Debug)]
enum Message {
    Take(oneshot::Sender<Result<Offer>>),
    Shutdown(oneshot::Sender<Result<()>>),
}

impl SlotPool {
    /// Prepares the host, finds the instance's slots of an earlier run and begins to make new ones.
    /// Those whose index is in `keep` are answered, still usable; all others are removed. An index
    /// in `keep` that is not answered is lost, and its machine has no network.
    ///
    /// Only one server may run for an instance; the caller sees to it.
    pub async fn start(config: Config, keep: BTreeSet<u32>) -> Result<(Self, Vec<Slot>)> {
        config.check()?;
        let config = Arc::new(config);
        let settings = config.clone();
        let found = blocking(move || prepare(&settings, &keep)).await?;

        let (messages, inbox) = mpsc::channel(MESSAGES);
        let (returns, returned) = mpsc::channel(config.max);
        let (busy, busy_seen) = watch::channel(false);
        let denials = Arc::new(Denials::default());
        let (status, status_seen) = watch::channel(PoolStatus::default());
        let task = Task {
            permits: Arc::new(Semaphore::new(config.max)),
            shares: Shares {
                lookups: Arc::new(Lookups::new(Arc::new(Resolvers::new(&config.resolvers)))),
                config,
                denials: denials.clone(),
                connections: inspection::connections()?,
                freed: Arc::default(),
            },
            // Making is the kernel's work for the most part, and much of it under one lock.
            parallel: std::thread::available_parallelism().map_or(2, |count| count.get().clamp(1, 4)),
            ready: VecDeque::new(),
            waiting: VecDeque::new(),
            making: JoinSet::new(),
            pause: PAUSES[0],
            not_before: None,
            failure: None,
            returns,
            busy: busy_seen,
            status,
        };
        let kept = found.into_iter().map(|made| task.found(made)).collect::<Result<_>>()?;
        tokio::spawn(task.run(inbox, returned));
        Ok((Self { messages, busy, status: status_seen, denials }, kept))
    }

    /// A slot of the caller's own; waits for one to be made if none is ready.
    pub async fn take(&self) -> Result<Slot> {
        let (answer, answered) = oneshot::channel();
        self.messages.send(Message::Take(answer)).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?.map(Offer::accept)
    }

    /// While busy, no more than one slot is made ahead: the processors are for the machines being
    /// created. Slots that somebody waits for are always made.
    pub fn set_busy(&self, busy: bool) {
        self.busy.send_if_modified(|value| std::mem::replace(value, busy) != busy);
    }

    /// What machines were denied since the last look, with the index of the slot: equal ones are one, with a
    /// count. Waits until there are some, and answers once in a second at most. What is not asked for is
    /// kept, bounded, and goes with its slot.
    pub async fn denials(&self) -> Vec<(u32, Denial)> {
        self.denials.next().await
    }

    /// How the pool stands now.
    pub fn status(&self) -> PoolStatus {
        self.status.borrow().clone()
    }

    /// Waits until that many slots are ready.
    pub async fn wait_ready(&self, count: usize) -> Result<()> {
        let mut status = self.status.clone();
        status.wait_for(|status| status.ready >= count).await.map_err(|_| Error::Closed)?;
        Ok(())
    }

    /// Removes the unused slots; those in use stay, for the next start to find. When there are none,
    /// this server's table leaves the host too. Whoever waits for a slot is told that there is none.
    pub async fn shutdown(&self) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        if self.messages.send(Message::Shutdown(answer)).await.is_err() {
            return Ok(());
        }
        answered.await.map_err(|_| Error::Closed)?
    }
}

fn prepare(config: &Config, keep: &BTreeSet<u32>) -> Result<Vec<Made>> {
    probe::try_with(config)?;
    host::install(config)?;
    for foreign in forwarding::foreign_drops()? {
        tracing::warn!(
            table = foreign.table,
            chain = foreign.chain,
            "another firewall drops what is forwarded: machines may not reach the internet; see `nullspace doctor`"
        );
    }
    make::recover(config, keep)
}

/// A slot on its way to a taker; goes back if the taker is gone when it arrives.
#[derive(Debug)]
struct Offer {
    slot: Option<Slot>,
    returns: mpsc::Sender<Slot>,
}

impl Offer {
    fn accept(mut self) -> Slot {
        self.slot.take().expect("only this and drop take it")
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        // There is room for every slot. If the pool is gone, the next start finds this one.
        if let Some(slot) = self.slot.take()
            && self.returns.try_send(slot).is_err()
        {
            tracing::debug!("a network slot came back when the pool was gone");
        }
    }
}

type Waiting = oneshot::Sender<Result<Offer>>;

struct Task {
    shares: Shares,
    permits: Arc<Semaphore>,
    parallel: usize,
    ready: VecDeque<Slot>,
    waiting: VecDeque<Waiting>,
    making: JoinSet<Result<(Made, OwnedSemaphorePermit)>>,
    /// How long to wait after the next failure, and until when after the last.
    pause: Duration,
    not_before: Option<Instant>,
    failure: Option<String>,
    returns: mpsc::Sender<Slot>,
    busy: watch::Receiver<bool>,
    status: watch::Sender<PoolStatus>,
}

impl Task {
    /// Ends at a shutdown, or when every handle of the pool is gone.
    async fn run(mut self, mut inbox: mpsc::Receiver<Message>, mut returned: mpsc::Receiver<Slot>) {
        let freed = self.shares.freed.clone();
        let mut busy = self.busy.clone();
        loop {
            self.advance();
            let pause = self.not_before;
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(Message::Take(waiting)) => self.waiting.push_back(waiting),
                    Some(Message::Shutdown(answer)) => {
                        // A caller that stopped waiting has no use for the answer.
                        let _ = answer.send(self.close(returned).await);
                        return;
                    }
                    None => return,
                },
                Some(slot) = returned.recv() => self.ready.push_back(slot),
                Some(ended) = self.making.join_next() => {
                    let made = ended.unwrap_or_else(|error| match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        Err(_) => Err(Error::Closed),
                    });
                    self.made(made.and_then(|(made, permit)| self.wrap(made, permit)));
                }
                () = freed.notified() => {}
                Ok(()) = busy.changed() => {}
                () = async { sleep_until(pause.unwrap_or_else(Instant::now)).await }, if pause.is_some() => {
                    self.not_before = None;
                }
            }
        }
    }

    /// Hands out what is ready, and begins to make what is missing.
    fn advance(&mut self) {
        self.waiting.retain(|waiting| !waiting.is_closed());
        while let Some(slot) = self.ready.pop_front() {
            let Some(waiting) = self.waiting.pop_front() else {
                self.ready.push_front(slot);
                break;
            };
            // If it is gone, the slot comes back.
            let _ = waiting.send(Ok(Offer { slot: Some(slot), returns: self.returns.clone() }));
        }
        while self.making.len() < self.wanted().min(self.parallel) {
            let Ok(permit) = self.permits.clone().try_acquire_owned() else { break };
            let config = self.shares.config.clone();
            self.making.spawn_blocking(move || Ok((make::make(&config)?, permit)));
        }
        // Those for whom nothing is being made, nor can be.
        if self.permits.available_permits() == 0 {
            while self.waiting.len() > self.making.len() {
                let Some(refused) = self.waiting.pop_back() else { break };
                let _ = refused.send(Err(Error::Exhausted { max: self.shares.config.max }));
            }
        }
        self.status.send_replace(PoolStatus {
            ready: self.ready.len(),
            making: self.making.len(),
            failure: self.failure.clone(),
        });
    }

    /// How many slots should be in the making.
    fn wanted(&self) -> usize {
        let ahead = match (self.not_before.is_some(), *self.busy.borrow()) {
            (true, _) => 0,
            (false, true) => self.shares.config.ready.min(1),
            (false, false) => self.shares.config.ready,
        };
        // Ahead, one at a time: nobody waits.
        let ahead = ahead.saturating_sub(self.ready.len()).min(1);
        self.waiting.len().max(ahead)
    }

    fn made(&mut self, made: Result<Slot>) {
        match made {
            Ok(slot) => {
                (self.pause, self.failure) = (PAUSES[0], None);
                self.ready.push_back(slot);
            }
            Err(error) => {
                self.failure = Some(error.to_string());
                tracing::warn!(error = %chain(&error), "a network slot cannot be made");
                match self.waiting.pop_front() {
                    // Who waits is told, and may try again.
                    Some(waiting) => drop(waiting.send(Err(error))),
                    None => {
                        self.not_before = Some(Instant::now() + self.pause);
                        self.pause = (self.pause * 2).min(PAUSES[1]);
                    }
                }
            }
        }
    }

    fn wrap(&self, made: Made, permit: OwnedSemaphorePermit) -> Result<Slot> {
        let index = made.index;
        Slot::new(made, &self.shares, permit).inspect_err(|_| {
            let config = self.shares.config.clone();
            tokio::task::spawn_blocking(move || {
                if let Err(error) = make::remove(&config.instance, &BTreeSet::from([index])) {
                    tracing::warn!(index, error = %chain(&error), "a network slot stays behind");
                }
            });
        })
    }

    fn found(&self, made: Made) -> Result<Slot> {
        let max = self.shares.config.max;
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| Error::Config {
            field: "max",
            problem: format!("{max} is fewer than the slots in use: raise it"),
        })?;
        self.wrap(made, permit)
    }

    async fn close(mut self, mut returned: mpsc::Receiver<Slot>) -> Result<()> {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(Err(Error::Closed));
        }
        // What is half-made is finished first, and then removed with the others.
        let mut unused: BTreeSet<u32> = BTreeSet::new();
        while let Some(ended) = self.making.join_next().await {
            if let Ok(Ok((made, _permit))) = ended {
                unused.insert(made.index);
            }
        }
        while let Ok(slot) = returned.try_recv() {
            self.ready.push_back(slot);
        }
        unused.extend(self.ready.iter().map(Slot::index));
        // Ends what is served in them, and so what holds their namespaces.
        self.ready.clear();
        let config = self.shares.config.clone();
        blocking(move || {
            make::remove(&config.instance, &unused)?;
            if make::any_left(&config.instance)? { Ok(()) } else { host::uninstall(&config.instance) }
        })
        .await
    }
}

/// An error with its causes on one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

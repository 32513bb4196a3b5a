//! One task per living sandbox. It owns the sandbox's record and its timer, and is the only one to change
//! either. Whatever happens is fed to [`step`](nullspace_domain::lifecycle::step); what comes out is first
//! written to the store, in one transaction with its events, then carried out, then shown.
//!
//! If the store cannot be written, new work is refused: a window is not set, a hibernation or a resume does
//! not begin, a create fails and its machine is ended. What cannot be refused goes on in memory, a machine's
//! loss, its capture and a sandbox's end, which may be what frees the full disk; its writing is tried again
//! until it succeeds.

mod begin;
mod change;
mod network;

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use nullspace_domain::lifecycle::{Action, Event, Rejected, State};
use nullspace_node_api::{Checkpoint, Machine};
use nullspace_store::idempotency::Idempotency;
use nullspace_types::id::{IncarnationId, SandboxId, SnapshotId};
use nullspace_types::sandbox::{SandboxTimeout, TimeoutAction};
use nullspace_types::{Code, Error, Result};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::access::{answered, refusal};
use crate::fork::Fork;
use crate::life::Life;
use crate::making::{capture, end, end_machine, make};
use crate::metrics::{SANDBOX_CREATE, SANDBOX_HIBERNATE, SANDBOX_RESUME, timed};
use crate::record::{Record, Unborn, View};
use crate::registry::{Entry, MAILBOX, Message};
use crate::shared::Shared;
use crate::write::Journal;

use change::Details;
use network::{NetworkChange, Renewal};

/// The longest sleep before the wall clock is looked at again: it may have been set.
const CLOCK_LOOK: Duration = Duration::from_secs(3600);
/// Between two attempts to hibernate a sandbox whose time is over: from the first to the second of these,
/// doubling.
const PAUSE_RETRY: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));

/// How a driver begins.
pub(crate) enum Begin {
    /// With a sandbox that was just asked for.
    Create(Option<Idempotency>),
    /// With a child of a fork, which writes the rows of all its children.
    Fork(Arc<Fork>),
    /// With one that stands in the store, at the start of the server; and with what the node has under its
    /// name. (Boxed: it is by far the largest.)
    Restart(Option<Box<Machine>>),
}

/// A task that tells a driver how a call to the node ended.
type Call<T> = Option<AbortOnDropHandle<T>>;

/// Callers that wait for the end of a change.
type Waiting<T> = Vec<oneshot::Sender<Result<T>>>;

pub(crate) struct Driver {
    shared: Arc<Shared>,
    id: SandboxId,
    record: Record,
    mailbox: mpsc::Receiver<Message>,
    view: watch::Sender<View>,
    journal: Journal,
    making: Call<Result<Machine>>,
    capturing: Call<Result<Checkpoint>>,
    ending: Call<()>,
    /// Ends the call that makes or captures, for a destroy.
    cancel: CancellationToken,
    /// Why the create failed.
    failure: Option<Error>,
    /// The key that made it, until that can be neither freed nor needed any more.
    key: Option<Idempotency>,
    /// The fork that it is a child of, while it is being made.
    fork: Option<Arc<Fork>>,
    /// Who waits until it is paused, and who until it runs.
    pausing: Waiting<SnapshotId>,
    waking: Waiting<Arc<Record>>,
    /// How long the next attempt waits if it cannot be hibernated at its timeout.
    pause_retry: Duration,
    /// Changes of its network settings that wait for the end of a call to the node.
    networks: VecDeque<NetworkChange>,
    /// That the node is to be told the policy again, if it is.
    renewal: Option<Renewal>,
}

/// Waits for a call to end; without a call, for ever.
async fn ended<T>(call: &mut Call<T>) -> std::result::Result<T, tokio::task::JoinError> {
    let outcome = match call {
        Some(task) => task.await,
        None => pending().await,
    };
    *call = None;
    outcome
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => pending().await,
    }
}

/// Tells everybody who waits. Who does not wait any more does not hear it.
fn answer<T: Clone>(waiting: &mut Waiting<T>, outcome: &Result<T>) {
    for caller in waiting.drain(..) {
        let _ = caller.send(outcome.clone());
    }
}

/// Lets a caller wait, and forgets those who gave up.
fn wait<T>(waiting: &mut Waiting<T>, caller: oneshot::Sender<Result<T>>) {
    waiting.retain(|other| !other.is_closed());
    waiting.push(caller);
}

/// Why an event had no effect.
enum Refused {
    Rule(Rejected),
    Store(Error),
}

impl Driver {
    /// Registers a sandbox and starts its driver. Dropping what is returned does not end it.
    pub(crate) fn start(shared: &Arc<Shared>, record: Record, begin: Begin) -> watch::Receiver<View> {
        let (sender, mailbox) = mpsc::channel(MAILBOX);
        let (view, seen) = watch::channel(View {
            record: Arc::new(record.clone()),
            unborn: None,
            life: Life::of(&record),
            taken_over: !matches!(begin, Begin::Restart(_)),
        });
        let (id, tenant_id) = (record.row.id, record.row.tenant_id);
        let label = shared.access.tokens.label(id).into();
        shared.registry.insert(id, Entry { tenant_id, label, mailbox: sender, view: seen.clone() });
        let driver = Self {
            shared: shared.clone(),
            id,
            record,
            mailbox,
            view,
            journal: Journal::new(id, tenant_id),
            making: None,
            capturing: None,
            ending: None,
            cancel: CancellationToken::new(),
            failure: None,
            key: None,
            fork: None,
            pausing: Vec::new(),
            waking: Vec::new(),
            pause_retry: PAUSE_RETRY.0,
            networks: VecDeque::new(),
            renewal: None,
        };
        shared.tasks.spawn(driver.run(begin));
        seen
    }

    async fn run(mut self, begin: Begin) {
        let alive = match begin {
            Begin::Create(key) => self.create(key).await,
            Begin::Fork(fork) => self.create_child(fork).await,
            Begin::Restart(machine) => self.restart(machine.map(|machine| *machine)).await,
        };
        let gone = match alive {
            Alive::Yes => self.drive().await,
            Alive::Unborn => true,
            Alive::Stopped => false,
        };
        if !gone {
            // The server stops; the sandbox goes on, and so does its entry, until the process ends.
            return;
        }
        self.shared.registry.remove(self.id);
        if self.record.row.observed.started_at.is_none()
            && let Some(key) = &self.key
        {
            let key = (self.record.row.tenant_id, key.key.clone());
            self.shared.keys.forget(&key, |made| *made == self.id);
        }
    }

    /// Until the sandbox is gone (true) or the server stops (false).
    async fn drive(&mut self) -> bool {
        let stop = self.shared.stop.clone();
        while self.record.state != State::Destroyed || !self.journal.is_empty() {
            self.change_networks().await;
            let (expiry, renewal) = (self.expiry(), self.renewal_due());
            tokio::select! {
                () = stop.cancelled() => return false,
                message = self.mailbox.recv() => match message {
                    Some(message) => self.receive(message).await,
                    None => return false,
                },
                made = ended(&mut self.making) => {
                    self.made(made.unwrap_or_else(|panic| Err(Error::internal(panic)))).await;
                }
                captured = ended(&mut self.capturing) => {
                    self.captured(captured.unwrap_or_else(|panic| Err(Error::internal(panic)))).await;
                }
                _ = ended(&mut self.ending) => {
                    let incarnation = self.record.row.desired.incarnation;
                    self.news(Event::MachineGone { incarnation }, Details::default()).await;
                }
                () = at(expiry) => self.expire().await,
                () = at(renewal) => self.renew().await,
                () = at(self.journal.due()) => self.journal.flush(&self.shared).await,
            }
        }
        true
    }

    async fn receive(&mut self, message: Message) {
        match message {
            Message::Destroy { decided } => {
                let message = format!("sandbox {} was destroyed meanwhile", self.id);
                let failure = Some(Error::new(Code::SandboxNotFound, message));
                let answer = self.apply(Event::Destroy, Details { failure, ..Details::default() }).await;
                // Whoever asked may be gone; the end goes on.
                let _ = decided.send(answer.map_err(|refused| self.refusal(refused)));
            }
            Message::SetTimeout { spec, done } => {
                let details = Details { window: Some(spec), ..Details::default() };
                let answer = self.apply(Event::SetTimeout, details).await;
                let _ = done.send(match answer {
                    Ok(()) => Ok(self.window()),
                    Err(refused) => Err(self.refusal(refused)),
                });
            }
            Message::Hibernate { done } => {
                let event = Event::Hibernate { snapshot: SnapshotId::new() };
                match self.apply(event, Details::default()).await {
                    Ok(()) => wait(&mut self.pausing, done),
                    Err(refused) => {
                        let _ = done.send(Err(self.refusal(refused)));
                    }
                }
                self.answer_waiting(None);
            }
            Message::Resume { done } => {
                wait(&mut self.waking, done);
                self.wake().await;
            }
            Message::SetNetwork { change, done } => {
                self.networks.retain(|waiting| !waiting.done.is_closed());
                self.networks.push_back(NetworkChange { change, done });
            }
            Message::RenewNetwork => self.renew_later(),
            Message::Lost { machine, reason } => {
                let event =
                    Event::MachineLost { incarnation: machine.incarnation, generation: machine.generation };
                self.news(event, Details { message: Some(reason), ..Details::default() }).await;
            }
        }
    }

    /// Begins what those who wait for a running sandbox need. While it is being hibernated they wait.
    async fn wake(&mut self) {
        if self.waking.is_empty() || matches!(self.record.state, State::Hibernating { .. }) {
            return;
        }
        let event = Event::Resume { incarnation: IncarnationId::new() };
        match self.apply(event, Details::default()).await {
            Ok(()) => self.answer_waiting(None),
            Err(refused) => {
                let refusal = self.refusal(refused);
                answer(&mut self.waking, &Err(refusal));
            }
        }
    }

    async fn made(&mut self, made: Result<Machine>) {
        let incarnation = self.record.row.desired.incarnation;
        let machine = match made {
            Ok(machine) => machine,
            Err(error) => {
                tracing::info!(sandbox = %self.id, %error, context = error.context, "a machine was not made");
                if matches!(self.record.state, State::Creating { .. }) {
                    self.failure.get_or_insert_with(|| error.clone());
                }
                let details = Details { failure: Some(error), ..Details::default() };
                return self.news(Event::MachineFailed { incarnation }, details).await;
            }
        };
        let event = Event::MachineMade { incarnation: machine.incarnation, generation: machine.generation };
        let lost = "the sandbox's machine was lost before it was handed over";
        let failure = Some(Error::new(Code::Unavailable, lost));
        match self.apply(event, Details { machine: Some(&machine), failure, ..Details::default() }).await {
            Ok(()) => {}
            Err(Refused::Rule(rejected)) => {
                tracing::error!(sandbox = %self.id, %rejected, "the node made a machine that was not asked for");
                self.give_up(Error::internal("the node made a machine of another life"));
            }
            Err(Refused::Store(error)) => {
                tracing::warn!(sandbox = %self.id, %error, context = error.context, "a machine could not be written; it is ended");
                if matches!(self.record.state, State::Creating { .. }) {
                    self.view.send_modify(|view| view.unborn = Some(Unborn::Failed(error.clone())));
                }
                self.give_up(error);
            }
        }
    }

    async fn captured(&mut self, captured: Result<Checkpoint>) {
        let snapshot = match self.record.state {
            State::Hibernating { snapshot, .. } => Some(snapshot),
            State::Destroying { checkpoints: [newest, _], .. } => newest,
            State::Absent
            | State::Creating { .. }
            | State::Running { .. }
            | State::Paused { .. }
            | State::Resuming { .. }
            | State::Lost { .. }
            | State::Destroyed => None,
        };
        let Some(snapshot) = snapshot else { return };
        match answered(self.id, captured) {
            Ok(checkpoint) => {
                self.pause_retry = PAUSE_RETRY.0;
                let details = Details { checkpoint: Some(&checkpoint), ..Details::default() };
                self.news(Event::Captured { snapshot }, details).await;
                self.wake().await;
            }
            Err(error) => {
                tracing::warn!(sandbox = %self.id, %snapshot, %error, context = error.context, "a sandbox was not hibernated");
                let details = Details { failure: Some(error), ..Details::default() };
                self.news(Event::CaptureFailed { snapshot }, details).await;
            }
        }
    }

    /// Ends what there is of a machine; then the making has failed, for the given reason.
    fn give_up(&mut self, why: Error) {
        let (node, id) = (self.shared.node.clone(), self.id);
        self.making = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            end_machine(&*node, id).await;
            Err(why)
        })));
    }

    async fn expire(&mut self) {
        // The clock may have been set back since the timer was set; then it is set anew.
        let now = self.shared.clock.now();
        if self.record.row.desired.timeout_at.is_none_or(|end| end > now) {
            return;
        }
        let hibernate = match self.record.row.desired.timeout_action {
            TimeoutAction::Destroy => None,
            TimeoutAction::Hibernate => Some(SnapshotId::new()),
        };
        match self.apply(Event::Expire { hibernate }, Details::default()).await {
            Ok(()) => {}
            Err(Refused::Rule(rejected)) => tracing::debug!(sandbox = %self.id, %rejected, "no news"),
            Err(Refused::Store(error)) => {
                tracing::warn!(sandbox = %self.id, %error, context = error.context, "a hibernation could not begin; trying again");
                self.record.row.desired.timeout_at = Some(self.next_attempt(now));
                self.publish();
            }
        }
    }

    /// When to try again to hibernate a sandbox whose time is over.
    fn next_attempt(&mut self, now: jiff::Timestamp) -> jiff::Timestamp {
        let pause = self.pause_retry;
        self.pause_retry = (pause * 2).min(PAUSE_RETRY.1);
        now.checked_add(pause).unwrap_or(jiff::Timestamp::MAX)
    }

    /// When the window is over, or the clock is to be looked at again.
    fn expiry(&self) -> Option<Instant> {
        let desired = &self.record.row.desired;
        match (self.record.state, desired.timeout_action) {
            (State::Running { .. }, TimeoutAction::Destroy | TimeoutAction::Hibernate)
            | (State::Lost { .. }, TimeoutAction::Destroy) => {}
            // There is nothing to hibernate.
            (State::Lost { .. }, TimeoutAction::Hibernate)
            | (
                State::Absent
                | State::Creating { .. }
                | State::Hibernating { .. }
                | State::Paused { .. }
                | State::Resuming { .. }
                | State::Destroying { .. }
                | State::Destroyed,
                TimeoutAction::Destroy | TimeoutAction::Hibernate,
            ) => return None,
        }
        let left = desired.timeout_at?.duration_since(self.shared.clock.now());
        Some(Instant::now() + Duration::try_from(left).unwrap_or_default().min(CLOCK_LOOK))
    }

    /// Something happened that nobody can be told no about.
    async fn news(&mut self, event: Event, details: Details<'_>) {
        match self.apply(event, details).await {
            Ok(()) => {}
            Err(Refused::Rule(rejected)) => tracing::debug!(sandbox = %self.id, ?event, %rejected, "no news"),
            Err(Refused::Store(error)) => {
                tracing::error!(sandbox = %self.id, ?event, %error, "news must not depend on the store");
            }
        }
    }

    /// Does what was decided, after it was written.
    fn carry_out(&mut self, actions: &[Action]) {
        let (node, id) = (self.shared.node.clone(), self.id);
        for action in actions {
            match *action {
                // These belong to the write.
                Action::Record { .. } | Action::FreeKey | Action::Drop(_) => {}
                Action::MakeMachine(_) => {
                    let cancel = self.cancel.clone();
                    let call = make(self.shared.clone(), self.record.clone(), cancel.clone());
                    let resumes = matches!(self.record.state, State::Resuming { .. });
                    let name = if resumes { SANDBOX_RESUME } else { SANDBOX_CREATE };
                    self.making = Some(AbortOnDropHandle::new(match &self.fork {
                        // All children together are timed.
                        Some(fork) => tokio::spawn(fork.clone().child(node.clone(), id, call, cancel)),
                        None => tokio::spawn(timed(name, call)),
                    }));
                }
                Action::Capture(snapshot) => {
                    let call = capture(node.clone(), id, snapshot, self.cancel.clone());
                    let call = timed(SANDBOX_HIBERNATE, call);
                    self.capturing = Some(AbortOnDropHandle::new(tokio::spawn(call)));
                }
                Action::Cancel => self.cancel.cancel(),
                Action::End(_, checkpoints) => {
                    let call = end(node.clone(), id, checkpoints);
                    self.ending = Some(AbortOnDropHandle::new(tokio::spawn(call)));
                }
            }
        }
    }

    fn publish(&self) {
        self.view.send_modify(|view| {
            view.life.follow(&self.record);
            view.record = Arc::new(self.record.clone());
            if let (None, Some(failure)) = (&view.unborn, &self.failure) {
                view.unborn = Some(Unborn::Failed(failure.clone()));
            }
        });
    }

    /// Tells those who wait for a state that it is reached, or why it was not.
    fn answer_waiting(&mut self, failure: Option<&Error>) {
        let refused = |rejected| refusal(&self.record, rejected);
        let failed = |rejected| failure.cloned().unwrap_or_else(|| refused(rejected));
        match self.record.state {
            State::Absent | State::Creating { .. } | State::Hibernating { .. } | State::Resuming { .. } => {}
            State::Running { .. } => {
                let not_paused = Err(failed(Rejected::Stale));
                answer(&mut self.pausing, &not_paused);
                answer(&mut self.waking, &Ok(Arc::new(self.record.clone())));
            }
            State::Paused { snapshot, .. } => {
                answer(&mut self.pausing, &Ok(snapshot));
                // Without a failure, those who want it to run are heard next.
                if let Some(failure) = failure {
                    answer(&mut self.waking, &Err(failure.clone()));
                }
            }
            State::Lost { .. } => {
                let (not_paused, not_running) =
                    (Err(failed(Rejected::MachineLost)), Err(refused(Rejected::MachineLost)));
                answer(&mut self.pausing, &not_paused);
                answer(&mut self.waking, &not_running);
            }
            State::Destroying { .. } | State::Destroyed => {
                let (not_paused, not_running) = (Err(refused(Rejected::Gone)), Err(refused(Rejected::Gone)));
                answer(&mut self.pausing, &not_paused);
                answer(&mut self.waking, &not_running);
            }
        }
    }

    fn window(&self) -> SandboxTimeout {
        let (desired, now) = (&self.record.row.desired, self.shared.clock.now());
        let timeout_at = desired.timeout_at.unwrap_or(now);
        SandboxTimeout {
            timeout_ms: desired.timeout_ms,
            timeout_action: desired.timeout_action,
            timeout_at,
            remaining_ms: u64::try_from(timeout_at.duration_since(now).as_millis()).unwrap_or(0),
        }
    }

    fn refusal(&self, refused: Refused) -> Error {
        match refused {
            Refused::Store(error) => error,
            Refused::Rule(rejected) => refusal(&self.record, rejected),
        }
    }
}

/// What a driver has after its beginning.
enum Alive {
    /// A sandbox.
    Yes,
    /// No sandbox: it was never written.
    Unborn,
    /// No time: the server stops.
    Stopped,
}

//! One task per living sandbox. It owns the sandbox's record and its timer, and is the only one to change
//! either. Whatever happens is fed to [`step`]; what comes out is first written to the store, in one
//! transaction with its events, then carried out, then shown.
//!
//! If the store cannot be written, new work is refused: a window is not set, a create fails and its machine
//! is ended. What cannot be refused goes on in memory, a machine's loss and a sandbox's end, which may be
//! what frees the full disk; its writing is tried again until it succeeds.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nullspace_domain::lifecycle::{Action, Event, Rejected, State, step};
use nullspace_domain::sandbox::TimeoutSpec;
use nullspace_node_api::Machine;
use nullspace_store::idempotency::Idempotency;
use nullspace_store::sandbox::{
    Change, DesiredState, Destruction, Insertion, Observation, ObservedState, Window,
};
use nullspace_types::event::{EventStatus, LifecycleEvent, Operation};
use nullspace_types::id::{EventId, SandboxId};
use nullspace_types::sandbox::SandboxTimeout;
use nullspace_types::{Code, Error, Result};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::clock::as_stored;
use crate::making::{end_machine, make_machine};
use crate::record::{Record, Unborn, View};
use crate::registry::{Entry, MAILBOX, Message};
use crate::shared::Shared;

/// Between two attempts to write what could not be written: from the first to the second, doubling.
const WRITE_PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// The longest sleep before the wall clock is looked at again: it may have been set.
const CLOCK_LOOK: Duration = Duration::from_secs(3600);

/// How a driver begins.
pub(crate) enum Begin {
    /// With a sandbox that was just asked for.
    Create(Option<Idempotency>),
    /// With one that stands in the store, at the start of the server; and with its machine, if the node has
    /// it. (Boxed: it is by far the largest.)
    Restart(Option<Box<Machine>>),
}

/// A task that tells a driver how a call to the node ended.
type Call<T> = Option<AbortOnDropHandle<T>>;

pub(crate) struct Driver {
    shared: Arc<Shared>,
    id: SandboxId,
    record: Record,
    mailbox: mpsc::Receiver<Message>,
    view: watch::Sender<View>,
    making: Call<Result<Machine>>,
    cancel_make: CancellationToken,
    ending: Call<()>,
    /// Why the create failed.
    failure: Option<Error>,
    /// The key that made it, until that can be neither freed nor needed any more.
    key: Option<Idempotency>,
    /// Whether the key is to be freed with the next write.
    free_key: bool,
    unwritten: Vec<LifecycleEvent>,
    /// When to try again to write, and how long to wait after that.
    write_again: Option<(Instant, Duration)>,
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

/// What happened, beyond what the rules need to know.
#[derive(Default)]
struct Details<'a> {
    machine: Option<&'a Machine>,
    message: Option<String>,
    window: Option<TimeoutSpec>,
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
        let (view, seen) = watch::channel(View { record: Arc::new(record.clone()), unborn: None });
        let id = record.row.id;
        let entry = Entry { tenant_id: record.row.tenant_id, mailbox: sender, view: seen.clone() };
        shared.registry.insert(id, entry);
        let driver = Self {
            shared: shared.clone(),
            id,
            record,
            mailbox,
            view,
            making: None,
            cancel_make: CancellationToken::new(),
            ending: None,
            failure: None,
            key: None,
            free_key: false,
            unwritten: Vec::new(),
            write_again: None,
        };
        shared.tasks.spawn(driver.run(begin));
        seen
    }

    async fn run(mut self, begin: Begin) {
        let alive = match begin {
            Begin::Create(key) => self.create(key).await,
            Begin::Restart(machine) => {
                self.restart(machine.map(|machine| *machine)).await;
                true
            }
        };
        if alive && !self.drive().await {
            // The server stops; the sandbox goes on, and so does its entry, until the process ends.
            return;
        }
        self.shared.registry.remove(self.id);
        if self.record.row.observed.state == ObservedState::None
            && let Some(key) = &self.key
        {
            self.shared.keys.forget(&(self.record.row.tenant_id, key.key.clone()), self.id);
        }
    }

    /// Until the sandbox is gone (true) or the server stops (false).
    async fn drive(&mut self) -> bool {
        let stop = self.shared.stop.clone();
        while self.record.state != State::Destroyed || self.write_again.is_some() {
            let expiry = self.expiry();
            tokio::select! {
                () = stop.cancelled() => return false,
                message = self.mailbox.recv() => match message {
                    Some(message) => self.receive(message).await,
                    None => return false,
                },
                made = ended(&mut self.making) => {
                    self.made(made.unwrap_or_else(|panic| Err(Error::internal(panic)))).await;
                }
                _ = ended(&mut self.ending) => {
                    let incarnation = self.record.row.desired.incarnation;
                    self.news(Event::MachineGone { incarnation }, Details::default()).await;
                }
                () = at(expiry) => self.expire().await,
                () = at(self.write_again.map(|(time, _)| time)) => self.write_later().await,
            }
        }
        true
    }

    /// Whether there is a sandbox to drive.
    async fn create(&mut self, key: Option<Idempotency>) -> bool {
        let incarnation = self.record.row.desired.incarnation;
        let (state, actions) = match step(self.record.state, Event::Create { incarnation }) {
            Ok(next) => next,
            Err(rejected) => {
                self.stay_unborn(Unborn::Failed(Error::internal(rejected))).await;
                return false;
            }
        };
        self.record.state = state;
        self.key = key;
        // The machine is being made while the row is being written: a machine without a row is removed at
        // the next start, and the row of one that is not made yet says so.
        self.carry_out(&actions);
        let new = self.record.new_sandbox();
        match self.shared.store.sandbox_insert(&new, self.key.as_ref(), &[]).await {
            Ok(Insertion::Inserted(_)) => true,
            Ok(Insertion::Existing(row)) => {
                self.stay_unborn(Unborn::Existing(row)).await;
                false
            }
            Ok(Insertion::KeyReused) => {
                self.stay_unborn(Unborn::Failed(nullspace_domain::sandbox::key_reused())).await;
                false
            }
            Err(error) => {
                let error = Error::from(error);
                tracing::warn!(sandbox = %self.id, %error, context = error.context, "a sandbox could not be written");
                self.stay_unborn(Unborn::Failed(error)).await;
                false
            }
        }
    }

    /// Ends the machine of a sandbox that has no row.
    async fn stay_unborn(&mut self, why: Unborn) {
        self.view.send_modify(|view| view.unborn = Some(why));
        if let Some(key) = &self.key {
            self.shared.keys.forget(&(self.record.row.tenant_id, key.key.clone()), self.id);
        }
        self.shared.registry.remove(self.id);
        self.cancel_make.cancel();
        if let Some(making) = self.making.take()
            && let Ok(Ok(_)) | Err(_) = making.await
        {
            end_machine(&*self.shared.node, self.id).await;
        }
    }

    /// Puts what the store knows and what the node has in step.
    async fn restart(&mut self, machine: Option<Machine>) {
        let incarnation = self.record.row.desired.incarnation;
        let machine = machine.filter(|machine| machine.incarnation == incarnation);
        match (self.record.state, machine) {
            // Whoever asked for it is gone with the server that was making it. The key is freed, so that
            // the same request makes a new one.
            (State::Creating { .. }, _) => {
                let message = "the server stopped while the sandbox was being created";
                self.give_up(Error::new(Code::Unavailable, message));
            }
            (State::Running { .. }, Some(machine)) => self.adopt(machine).await,
            (State::Running { generation, .. }, None) => {
                let event = Event::MachineLost { incarnation, generation: generation + 1 };
                let message = "the sandbox's machine was not found when the server started".to_owned();
                self.news(event, Details { message: Some(message), ..Details::default() }).await;
            }
            (State::Lost { .. } | State::Absent | State::Destroyed | State::Destroying { .. }, _) => {
                self.news(Event::Restart, Details::default()).await;
            }
        }
    }

    /// Takes over a machine that ran through the server's absence.
    async fn adopt(&mut self, machine: Machine) {
        let State::Running { incarnation, generation } = self.record.state else { return };
        if machine.generation <= generation {
            return;
        }
        self.record.state = State::Running { incarnation, generation: machine.generation };
        self.record.row.observed.generation = machine.generation;
        self.record.row.observed.disk_mb = Some(machine.disk_mb);
        self.publish();
        let observation = self.observation();
        if let Err(error) = self.shared.store.sandbox_observed(self.id, &observation, &[]).await {
            // It is read from the node again at the next start.
            tracing::warn!(sandbox = %self.id, %error, "an adopted machine's generation could not be written");
        }
    }

    async fn receive(&mut self, message: Message) {
        match message {
            Message::Destroy { decided } => {
                let answer = match self.apply(Event::Destroy, Details::default()).await {
                    Ok(()) => Ok(()),
                    Err(refused) => Err(self.refusal(refused)),
                };
                // Whoever asked may be gone; the end goes on.
                let _ = decided.send(answer);
            }
            Message::SetTimeout { spec, done } => {
                let details = Details { window: Some(spec), ..Details::default() };
                let answer = match self.apply(Event::SetTimeout, details).await {
                    Ok(()) => Ok(self.window()),
                    Err(refused) => Err(self.refusal(refused)),
                };
                let _ = done.send(answer);
            }
            Message::Lost { machine, reason } => {
                let event =
                    Event::MachineLost { incarnation: machine.incarnation, generation: machine.generation };
                self.news(event, Details { message: Some(reason), ..Details::default() }).await;
            }
        }
    }

    async fn made(&mut self, made: Result<Machine>) {
        let incarnation = self.record.row.desired.incarnation;
        let machine = match made {
            Ok(machine) => machine,
            Err(error) => {
                tracing::info!(sandbox = %self.id, %error, context = error.context, "a create failed");
                self.failure.get_or_insert(error);
                return self.news(Event::MachineFailed { incarnation }, Details::default()).await;
            }
        };
        let event = Event::MachineMade { incarnation: machine.incarnation, generation: machine.generation };
        match self.apply(event, Details { machine: Some(&machine), ..Details::default() }).await {
            Ok(()) => {}
            Err(Refused::Rule(rejected)) => {
                tracing::error!(sandbox = %self.id, %rejected, "the node made a machine that was not asked for");
                self.give_up(Error::internal("the node made a machine of another life"));
            }
            Err(Refused::Store(error)) => {
                tracing::warn!(sandbox = %self.id, %error, context = error.context, "a create could not be written; its machine is ended");
                self.view.send_modify(|view| view.unborn = Some(Unborn::Failed(error.clone())));
                self.give_up(error);
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
        let over = self.record.row.desired.timeout_at.is_some_and(|end| end <= self.shared.clock.now());
        if over {
            self.news(Event::Expire, Details::default()).await;
        }
    }

    /// When the window is over, or the clock is to be looked at again.
    fn expiry(&self) -> Option<Instant> {
        match self.record.state {
            State::Running { .. } | State::Lost { .. } => {}
            State::Absent | State::Creating { .. } | State::Destroying { .. } | State::Destroyed => {
                return None;
            }
        }
        let left = self.record.row.desired.timeout_at?.duration_since(self.shared.clock.now());
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

    async fn apply(&mut self, event: Event, details: Details<'_>) -> std::result::Result<(), Refused> {
        let (state, actions) = step(self.record.state, event).map_err(Refused::Rule)?;
        let before = (self.record.clone(), self.unwritten.len(), self.free_key);
        let now = self.shared.clock.now();
        self.advance(state, &details, now);
        for action in &actions {
            match *action {
                Action::Record { operation, status, actor, reason } => {
                    let event = self.lifecycle_event(now, operation, status, actor, reason);
                    self.unwritten.push(event);
                }
                Action::FreeKey => self.free_key = true,
                Action::MakeMachine(_) | Action::CancelMake(_) | Action::EndMachine(_) => {}
            }
        }
        if self.record.state != before.0.state || self.unwritten.len() > before.1 {
            match (self.write(now).await, event) {
                (Ok(()), _) => self.write_again = None,
                (Err(error), Event::MachineMade { .. } | Event::SetTimeout)
                    if matches!(state, State::Running { .. }) =>
                {
                    self.record = before.0;
                    self.unwritten.truncate(before.1);
                    self.free_key = before.2;
                    return Err(Refused::Store(error));
                }
                (Err(error), _) => self.write_failed(&error),
            }
        }
        self.carry_out(&actions);
        self.publish();
        Ok(())
    }

    /// Brings the row in step with a new state.
    fn advance(&mut self, state: State, details: &Details<'_>, now: Timestamp) {
        let row = &mut self.record.row;
        match state {
            State::Running { generation, .. } => {
                row.observed.state = ObservedState::Running;
                row.observed.generation = generation;
                if let Some(machine) = details.machine {
                    row.observed.disk_mb = Some(machine.disk_mb);
                    row.observed.started_at = Some(as_stored(machine.started_at));
                    row.desired.timeout_at = Some(window_end(now, row.desired.timeout_ms));
                }
                if let Some(window) = details.window {
                    row.desired.timeout_ms = window.timeout_ms;
                    row.desired.timeout_at = Some(window_end(now, window.timeout_ms));
                    row.desired.timeout_action = window.timeout_action.unwrap_or(row.desired.timeout_action);
                }
            }
            State::Lost { generation, .. } => {
                row.observed.state = ObservedState::Lost;
                row.observed.generation = generation;
                if details.message.is_some() {
                    row.observed.error_message.clone_from(&details.message);
                }
            }
            State::Destroying { cause, .. } => {
                row.desired.state = DesiredState::Destroyed;
                row.desired.destroy_reason.get_or_insert_with(|| cause.as_str().to_owned());
            }
            State::Destroyed => {
                row.desired.state = DesiredState::Destroyed;
                row.destroyed_at = Some(now);
                if let Some(failure) = &self.failure {
                    row.observed.error_message.get_or_insert_with(|| failure.message.clone());
                }
            }
            State::Absent | State::Creating { .. } => {}
        }
        // A machine that came and went before its create could be answered.
        if let (State::Destroying { .. } | State::Destroyed, State::Creating { .. }, None) =
            (state, self.record.state, &self.failure)
        {
            let message = match details.machine {
                Some(_) => "the sandbox's machine was lost before it was handed over".to_owned(),
                None => format!("sandbox {} was destroyed while it was being created", self.id),
            };
            let code = match details.machine {
                Some(_) => Code::Unavailable,
                None => Code::SandboxNotFound,
            };
            self.failure = Some(Error::new(code, message));
        }
        self.record.state = state;
    }

    fn observation(&self) -> Observation {
        Observation {
            incarnation: self.record.row.desired.incarnation,
            observed: self.record.row.observed.clone(),
        }
    }

    /// Writes the state and its events, in one transaction.
    async fn write(&mut self, now: Timestamp) -> Result<()> {
        let (store, id, row) = (&self.shared.store, self.id, &self.record.row);
        let events = &self.unwritten;
        let set_timeout = events.last().is_some_and(|event| event.operation == Operation::TimeoutUpdated);
        let written = match (self.record.state, row.desired.timeout_at) {
            (State::Running { .. }, Some(timeout_at)) if set_timeout => {
                let window = Window {
                    timeout_ms: row.desired.timeout_ms,
                    timeout_action: row.desired.timeout_action,
                    timeout_at,
                };
                store.sandbox_timeout_set(row.tenant_id, id, &window, events).await
            }
            (State::Running { .. }, Some(timeout_at)) => {
                store.sandbox_running(id, &self.observation(), timeout_at, events).await
            }
            (State::Running { .. }, None) | (State::Lost { .. }, _) => {
                store.sandbox_observed(id, &self.observation(), events).await
            }
            (State::Destroying { cause, .. }, _) => {
                // Between the end of the making and that of the machine there is nothing to write.
                if events.is_empty() {
                    return Ok(());
                }
                store.sandbox_destroy_request(id, cause.as_str(), self.free_key, events).await
            }
            (State::Destroyed, _) => {
                let reason = row.desired.destroy_reason.clone();
                let destruction = Destruction {
                    reason: reason.unwrap_or_else(|| "create_failed".to_owned()),
                    error_message: row.observed.error_message.clone(),
                    free_key: self.free_key,
                    at: now,
                };
                store.sandbox_destroyed(id, &destruction, events).await
            }
            (State::Absent | State::Creating { .. }, _) => return Ok(()),
        };
        if let Change::Stale = written? {
            // Only this driver writes the row, so this is a fault of ours or an operator at the database.
            tracing::error!(sandbox = %id, state = ?self.record.state, "the stored sandbox is past this state");
        }
        self.unwritten.clear();
        self.free_key = false;
        Ok(())
    }

    fn write_failed(&mut self, error: &Error) {
        let pause = self.write_again.map_or(WRITE_PAUSES.0, |(_, pause)| (pause * 2).min(WRITE_PAUSES.1));
        tracing::warn!(sandbox = %self.id, %error, context = error.context, ?pause, "a change could not be written; trying again");
        self.write_again = Some((Instant::now() + pause, pause));
    }

    async fn write_later(&mut self) {
        match self.write(self.shared.clock.now()).await {
            Ok(()) => self.write_again = None,
            Err(error) => self.write_failed(&error),
        }
    }

    fn lifecycle_event(
        &self,
        now: Timestamp,
        operation: Operation,
        status: EventStatus,
        actor_kind: nullspace_types::event::ActorKind,
        reason: Option<&str>,
    ) -> LifecycleEvent {
        let mut metadata = serde_json::Map::new();
        match operation {
            Operation::Create | Operation::TimeoutUpdated | Operation::TimeoutExpired => {
                let action = self.record.row.desired.timeout_action.as_str();
                metadata.insert("timeout_action".to_owned(), action.into());
            }
            Operation::Reconcile => {
                metadata.insert("status".to_owned(), self.record.status().as_str().into());
            }
            Operation::Destroy
            | Operation::Hibernate
            | Operation::SnapshotCreated
            | Operation::ResumeFromSnapshot
            | Operation::Fork => {}
        }
        let failure = self.failure.as_ref().filter(|_| status == EventStatus::Failed);
        let lost =
            self.record.row.observed.error_message.clone().filter(|_| operation == Operation::Reconcile);
        LifecycleEvent {
            id: EventId::new(),
            occurred_at: now,
            operation,
            status,
            actor_kind,
            sandbox_id: Some(self.id),
            reason: reason.map(str::to_owned),
            error_code: failure.map(|error| error.code.to_string()),
            error_message: failure.map(|error| error.message.clone()).or(lost),
            metadata,
        }
    }

    /// Does what was decided, after it was written.
    fn carry_out(&mut self, actions: &[Action]) {
        for action in actions {
            match *action {
                Action::Record { .. } | Action::FreeKey => {}
                Action::MakeMachine(_) => {
                    let limit = Duration::from_secs(u64::from(self.shared.limits.create_secs_max));
                    let call = make_machine(
                        self.shared.node.clone(),
                        self.record.machine_spec(),
                        limit,
                        self.cancel_make.clone(),
                    );
                    self.making = Some(AbortOnDropHandle::new(tokio::spawn(call)));
                }
                Action::CancelMake(_) => self.cancel_make.cancel(),
                Action::EndMachine(_) => {
                    let (node, id) = (self.shared.node.clone(), self.id);
                    self.ending =
                        Some(AbortOnDropHandle::new(tokio::spawn(
                            async move { end_machine(&*node, id).await },
                        )));
                }
            }
        }
    }

    fn publish(&self) {
        self.view.send_modify(|view| {
            view.record = Arc::new(self.record.clone());
            if let (None, Some(failure)) = (&view.unborn, &self.failure) {
                view.unborn = Some(Unborn::Failed(failure.clone()));
            }
        });
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
            Refused::Rule(rejected) => crate::access::refusal(&self.record, rejected),
        }
    }
}

/// The end of a window that begins now. Windows are bounded so that this is a date.
fn window_end(now: Timestamp, timeout_ms: u64) -> Timestamp {
    now.checked_add(Duration::from_millis(timeout_ms)).unwrap_or(Timestamp::MAX)
}

//! One change of a sandbox: the rules decide, the row follows, and what is to be written comes out.

use nullspace_domain::lifecycle::{Action, Event, PauseCause, State, step};
use nullspace_domain::sandbox::TimeoutSpec;
use nullspace_node_api::{Checkpoint, Machine};
use nullspace_store::sandbox::{DesiredState, Destruction, Observation, ObservedState, Window};
use nullspace_types::Error;
use nullspace_types::event::{ActorKind, EventStatus, LifecycleEvent, Operation};

use jiff::Timestamp;

use super::{Driver, Refused};
use crate::clock::as_stored;
use crate::log::event_now;
use crate::write::{Change, Write};

/// What happened, beyond what the rules need to know.
#[derive(Default)]
pub(super) struct Details<'a> {
    pub(super) machine: Option<&'a Machine>,
    pub(super) checkpoint: Option<&'a Checkpoint>,
    pub(super) window: Option<TimeoutSpec>,
    /// What went wrong, for people.
    pub(super) message: Option<String>,
    /// Why what was under way fails, if it does.
    pub(super) failure: Option<Error>,
}

/// The end of a window that begins now. Windows are bounded so that this is a date.
fn window_end(now: Timestamp, timeout_ms: u64) -> Timestamp {
    now.checked_add(std::time::Duration::from_millis(timeout_ms)).unwrap_or(Timestamp::MAX)
}

/// Whether a change is new work, which is refused if it cannot be written.
fn refusable(event: Event, state: State) -> bool {
    match event {
        Event::MachineMade { .. } | Event::SetTimeout => matches!(state, State::Running { .. }),
        Event::Hibernate { .. } | Event::Expire { .. } => matches!(state, State::Hibernating { .. }),
        Event::Resume { .. } => matches!(state, State::Resuming { .. }),
        Event::Create { .. }
        | Event::MachineFailed { .. }
        | Event::MachineLost { .. }
        | Event::MachineGone { .. }
        | Event::Captured { .. }
        | Event::CaptureFailed { .. }
        | Event::Destroy
        | Event::Restart => false,
    }
}

impl Driver {
    pub(super) async fn apply(
        &mut self,
        event: Event,
        details: Details<'_>,
    ) -> std::result::Result<(), Refused> {
        let (state, actions) = step(self.record.state, event).map_err(Refused::Rule)?;
        let before = self.record.clone();
        let now = self.shared.clock.now();
        self.advance(state, &details, now);
        let writes = self.writes(before.state, &actions, &details, now);
        if refusable(event, state) {
            for write in &writes {
                if let Err(error) = self.journal.write(&self.shared, write).await {
                    self.record = before;
                    return Err(Refused::Store(error));
                }
            }
        } else {
            self.journal.push(&self.shared, writes).await;
        }
        self.carry_out(&actions);
        self.publish();
        let failed = matches!(event, Event::CaptureFailed { .. })
            || matches!((before.state, state), (State::Resuming { .. }, State::Paused { .. }));
        self.answer_waiting(details.failure.as_ref().filter(|_| failed));
        Ok(())
    }

    /// Brings the row in step with a new state.
    fn advance(&mut self, state: State, details: &Details<'_>, now: Timestamp) {
        let before = self.record.state;
        let row = &mut self.record.row;
        match state {
            State::Running { generation, .. } => {
                row.desired.state = DesiredState::Running;
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
                    self.pause_retry = super::PAUSE_RETRY.0;
                }
            }
            State::Hibernating { snapshot, .. } => {
                row.desired.state = DesiredState::Paused;
                row.desired.snapshot_id = Some(snapshot);
                if details.message.is_some() {
                    row.observed.error_message.clone_from(&details.message);
                }
            }
            State::Paused { .. } => {
                row.desired.state = DesiredState::Paused;
                row.observed.state = ObservedState::Paused;
                row.observed.error_message = None;
                row.desired.timeout_at = None;
            }
            State::Resuming { incarnation, .. } => {
                row.desired.state = DesiredState::Running;
                if row.desired.incarnation != incarnation {
                    row.desired.incarnation = incarnation;
                    row.observed.generation = 0;
                }
            }
            State::Lost { generation, .. } => {
                row.desired.state = DesiredState::Running;
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
        // The window of a sandbox that could not be hibernated.
        if let (State::Hibernating { cause, .. }, State::Running { .. } | State::Lost { .. }) =
            (before, state)
        {
            let timeout_at = match cause {
                PauseCause::Manual => window_end(now, self.record.row.desired.timeout_ms),
                PauseCause::Timeout => self.next_attempt(now),
            };
            self.record.row.desired.timeout_at = Some(timeout_at);
        }
        // A create that ends with no machine to hand over.
        if let (State::Destroying { .. } | State::Destroyed, State::Creating { .. }, None) =
            (state, before, &self.failure)
        {
            self.failure.clone_from(&details.failure);
        }
        self.record.state = state;
    }

    pub(super) fn observation(&self) -> Observation {
        Observation {
            incarnation: self.record.row.desired.incarnation,
            observed: self.record.row.observed.clone(),
        }
    }

    /// What is to be written of a change that came from the given state.
    fn writes(&self, before: State, actions: &[Action], details: &Details<'_>, now: Timestamp) -> Vec<Write> {
        let mut events = Vec::new();
        let (mut free_key, mut former) = (false, None);
        for action in actions {
            match *action {
                Action::Record { operation, status, actor, reason } => {
                    events.push(self.lifecycle_event(now, operation, status, actor, reason, details));
                }
                Action::FreeKey => free_key = true,
                Action::Drop(snapshot) => former = Some(snapshot),
                Action::MakeMachine(_) | Action::Capture(_) | Action::Cancel | Action::End(..) => {}
            }
        }
        let row = &self.record.row;
        let timeout_at = row.desired.timeout_at.unwrap_or(now);
        let one = |change, events| vec![Write { change, events }];
        match (before, self.record.state) {
            (State::Creating { .. } | State::Resuming { .. }, State::Running { .. }) => {
                one(Change::Running { observation: self.observation(), timeout_at }, events)
            }
            (State::Running { .. }, State::Running { .. }) if !events.is_empty() => {
                let (timeout_ms, timeout_action) = (row.desired.timeout_ms, row.desired.timeout_action);
                one(Change::Window(Window { timeout_ms, timeout_action, timeout_at }), events)
            }
            (State::Hibernating { .. }, State::Running { .. }) => {
                one(Change::PauseUndone { timeout_at }, events)
            }
            (State::Hibernating { .. }, State::Lost { .. }) => {
                let (undone, lost) =
                    events.into_iter().partition(|event| event.operation == Operation::Hibernate);
                vec![
                    Write { change: Change::PauseUndone { timeout_at }, events: undone },
                    Write { change: Change::Lost(self.observation()), events: lost },
                ]
            }
            (State::Running { .. }, State::Lost { .. }) => one(Change::Lost(self.observation()), events),
            (State::Running { .. }, State::Hibernating { snapshot, .. }) => {
                one(Change::PauseBegun(snapshot), events)
            }
            (State::Hibernating { .. }, State::Paused { .. }) => {
                let Some(checkpoint) = details.checkpoint else { return vec![] };
                let snapshot = Box::new(self.record.hibernation(checkpoint));
                one(Change::Paused { snapshot, former }, events)
            }
            (State::Paused { .. }, State::Resuming { incarnation, .. }) => {
                one(Change::ResumeBegun(incarnation), events)
            }
            (State::Resuming { .. }, State::Paused { .. }) => one(Change::ResumeUndone, events),
            // Between the end of another call and that of the machine there is nothing to write.
            (State::Destroying { .. }, State::Destroying { .. }) => vec![],
            (_, State::Destroying { cause, .. }) => {
                one(Change::DestroyRequested { reason: cause.as_str(), free_key }, events)
            }
            (_, State::Destroyed) => {
                let reason = row.desired.destroy_reason.clone();
                let destruction = Destruction {
                    reason: reason.unwrap_or_else(|| "create_failed".to_owned()),
                    error_message: row.observed.error_message.clone(),
                    free_key,
                    at: now,
                };
                let ended = Write { change: Change::AccessEnded { at: now }, events: vec![] };
                vec![ended, Write { change: Change::Destroyed(destruction), events }]
            }
            (
                State::Absent
                | State::Creating { .. }
                | State::Running { .. }
                | State::Hibernating { .. }
                | State::Paused { .. }
                | State::Resuming { .. }
                | State::Lost { .. }
                | State::Destroying { .. }
                | State::Destroyed,
                State::Absent
                | State::Creating { .. }
                | State::Running { .. }
                | State::Hibernating { .. }
                | State::Paused { .. }
                | State::Resuming { .. }
                | State::Lost { .. },
            ) => vec![],
        }
    }

    fn lifecycle_event(
        &self,
        now: Timestamp,
        operation: Operation,
        status: EventStatus,
        actor: ActorKind,
        reason: Option<&str>,
        details: &Details<'_>,
    ) -> LifecycleEvent {
        let desired = &self.record.row.desired;
        let succeeded = status == EventStatus::Succeeded;
        let mut event = event_now(now, operation, status, actor);
        event.sandbox_id = Some(self.id);
        event.reason = reason.map(str::to_owned);
        match operation {
            Operation::Create => event.snapshot_id = desired.origin_id,
            Operation::Hibernate | Operation::SnapshotCreated => {
                event.snapshot_id = desired.snapshot_id.filter(|_| succeeded);
            }
            Operation::ResumeFromSnapshot => {
                event.snapshot_id = desired.snapshot_id;
                event.source_sandbox_id = Some(self.id);
                event.target_sandbox_id = Some(self.id).filter(|_| succeeded);
            }
            Operation::Fork => {
                event.source_sandbox_id = desired.parent_id;
                event.target_sandbox_id = Some(self.id).filter(|_| succeeded);
            }
            Operation::Reconcile => {
                event.metadata.insert("status".to_owned(), self.record.status().as_str().into());
                event.error_message.clone_from(&self.record.row.observed.error_message);
            }
            Operation::Destroy | Operation::TimeoutUpdated | Operation::TimeoutExpired => {}
        }
        match operation {
            Operation::Create
            | Operation::TimeoutUpdated
            | Operation::TimeoutExpired
            | Operation::Hibernate
            | Operation::SnapshotCreated => {
                event.metadata.insert("timeout_action".to_owned(), desired.timeout_action.as_str().into());
            }
            Operation::Destroy | Operation::ResumeFromSnapshot | Operation::Fork | Operation::Reconcile => {}
        }
        if operation == Operation::SnapshotCreated {
            event.metadata.insert("created_via".to_owned(), "hibernate".into());
        }
        if status == EventStatus::Failed
            && let Some(failure) = self.failure.as_ref().or(details.failure.as_ref())
        {
            event.error_code = Some(failure.code.to_string());
            event.error_message = Some(failure.message.clone());
        }
        event
    }
}

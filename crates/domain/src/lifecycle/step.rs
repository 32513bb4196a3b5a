//! The rules: one function per state, each with every event.

use nullspace_types::event::{ActorKind, EventStatus, Operation};
use nullspace_types::id::{IncarnationId, SnapshotId};

use super::{Action, Birth, Call, Cause, Checkpoints, Event, PauseCause, Rejected, State};

type Outcome = Result<(State, Vec<Action>), Rejected>;

const fn record(
    operation: Operation,
    status: EventStatus,
    actor: ActorKind,
    reason: Option<&'static str>,
) -> Action {
    Action::Record { operation, status, actor, reason }
}

const RESUMED: Action =
    record(Operation::ResumeFromSnapshot, EventStatus::Succeeded, ActorKind::User, Some("api"));
const RESUME_FAILED: Action =
    record(Operation::ResumeFromSnapshot, EventStatus::Failed, ActorKind::User, Some("api"));
const LOST: Action =
    record(Operation::Reconcile, EventStatus::Succeeded, ActorKind::Reconcile, Some("machine_lost"));
const EXPIRED: Action = record(
    Operation::TimeoutExpired,
    EventStatus::Succeeded,
    ActorKind::System,
    Some(Cause::Timeout.as_str()),
);

const fn born(birth: Birth) -> Action {
    let operation = match birth {
        Birth::Create => Operation::Create,
        Birth::Fork { .. } => Operation::Fork,
    };
    record(operation, EventStatus::Succeeded, ActorKind::User, Some("api"))
}

/// What is recorded and done about a sandbox that never came to be.
fn unborn(birth: Birth) -> Vec<Action> {
    let failed = |operation| record(operation, EventStatus::Failed, ActorKind::User, Some("api"));
    match birth {
        Birth::Create => vec![failed(Operation::Create), Action::FreeKey],
        Birth::Fork { first: true } => vec![failed(Operation::Fork), Action::FreeKey],
        Birth::Fork { first: false } => vec![Action::FreeKey],
    }
}

const fn actor_of(cause: Cause) -> ActorKind {
    match cause {
        Cause::Manual => ActorKind::User,
        Cause::Timeout | Cause::CreateFailed => ActorKind::System,
    }
}

const fn destroy_requested(cause: Cause) -> Action {
    record(Operation::Destroy, EventStatus::Requested, actor_of(cause), Some(cause.as_str()))
}

/// What is recorded when the last of a sandbox is gone. One that never came to be was recorded as a
/// failed create already.
fn ended(cause: Cause) -> Vec<Action> {
    match cause {
        Cause::Manual | Cause::Timeout => {
            vec![record(Operation::Destroy, EventStatus::Succeeded, actor_of(cause), Some(cause.as_str()))]
        }
        Cause::CreateFailed => vec![],
    }
}

const fn hibernate(status: EventStatus, cause: PauseCause) -> Action {
    record(Operation::Hibernate, status, pauser(cause), Some(cause.as_str()))
}

const fn pauser(cause: PauseCause) -> ActorKind {
    match cause {
        PauseCause::Manual => ActorKind::User,
        PauseCause::Timeout => ActorKind::System,
    }
}

/// The newest of the losses that were heard of while the machine could not be judged.
fn newest(known: Option<u64>, heard: u64) -> Option<u64> {
    Some(known.map_or(heard, |known| known.max(heard)))
}

/// The next state and what is to be done, or why the event does not fit.
pub fn step(state: State, event: Event) -> Outcome {
    match state {
        State::Absent => from_absent(event),
        State::Creating { incarnation, lost, birth } => from_creating(incarnation, lost, birth, event),
        State::Running { incarnation, generation, kept } => {
            from_running(incarnation, generation, kept, event)
        }
        State::Hibernating { .. } => from_hibernating(state, event),
        State::Paused { incarnation, snapshot } => from_paused(incarnation, snapshot, event),
        State::Resuming { incarnation, snapshot, lost } => from_resuming(incarnation, snapshot, lost, event),
        State::Lost { incarnation, kept, .. } => from_lost(state, incarnation, kept, event),
        State::Destroying { incarnation, call, checkpoints, cause } => {
            from_destroying(incarnation, call, checkpoints, cause, event)
        }
        State::Destroyed => from_destroyed(event),
    }
}

fn from_absent(event: Event) -> Outcome {
    match event {
        Event::Create { incarnation, birth } => {
            let state = State::Creating { incarnation, lost: None, birth };
            Ok((state, vec![Action::MakeMachine(incarnation)]))
        }
        Event::MachineMade { .. }
        | Event::MachineFailed { .. }
        | Event::MachineLost { .. }
        | Event::MachineGone { .. }
        | Event::Captured { .. }
        | Event::CaptureFailed { .. } => Err(Rejected::Stale),
        Event::Hibernate { .. }
        | Event::Resume { .. }
        | Event::Destroy
        | Event::Expire { .. }
        | Event::SetTimeout
        | Event::Restart => Err(Rejected::Gone),
    }
}

fn from_creating(incarnation: IncarnationId, lost: Option<u64>, birth: Birth, event: Event) -> Outcome {
    match event {
        Event::Create { .. } => Err(Rejected::Exists),
        Event::MachineMade { incarnation: of, generation } if of == incarnation => match lost {
            // It came and went before anybody heard of it. The node is told all the same: to end a
            // machine twice is harmless, to forget one is not.
            Some(lost) if lost >= generation => {
                let (state, end) = ending(incarnation, [None; 2], Cause::CreateFailed);
                let mut actions = unborn(birth);
                actions.push(end);
                Ok((state, actions))
            }
            Some(_) | None => Ok((State::Running { incarnation, generation, kept: None }, vec![born(birth)])),
        },
        Event::MachineFailed { incarnation: of } if of == incarnation => {
            Ok((State::Destroyed, unborn(birth)))
        }
        Event::MachineLost { incarnation: of, generation } if of == incarnation => {
            Ok((State::Creating { incarnation, lost: newest(lost, generation), birth }, vec![]))
        }
        Event::MachineMade { .. }
        | Event::MachineFailed { .. }
        | Event::MachineLost { .. }
        | Event::MachineGone { .. }
        | Event::Captured { .. }
        | Event::CaptureFailed { .. } => Err(Rejected::Stale),
        Event::Destroy => {
            let call = Call::Make;
            let mut actions = unborn(birth);
            actions.extend([destroy_requested(Cause::Manual), Action::Cancel]);
            let state = State::Destroying { incarnation, call, checkpoints: [None; 2], cause: Cause::Manual };
            Ok((state, actions))
        }
        // The window is counted from when it runs.
        Event::Hibernate { .. } | Event::Resume { .. } | Event::Expire { .. } | Event::SetTimeout => {
            Err(Rejected::NotRunning)
        }
        // The same life again: the node answers a repeated request with the same machine.
        Event::Restart => {
            let state = State::Creating { incarnation, lost: None, birth };
            Ok((state, vec![Action::MakeMachine(incarnation)]))
        }
    }
}

fn set_timeout(state: State) -> Outcome {
    Ok((
        state,
        vec![
            record(Operation::TimeoutUpdated, EventStatus::Requested, ActorKind::User, Some("api")),
            record(Operation::TimeoutUpdated, EventStatus::Succeeded, ActorKind::User, Some("api")),
        ],
    ))
}

fn ending(incarnation: IncarnationId, checkpoints: Checkpoints, cause: Cause) -> (State, Action) {
    (
        State::Destroying { incarnation, call: Call::End, checkpoints, cause },
        Action::End(incarnation, checkpoints),
    )
}

/// The end of a sandbox of which no call is under way.
fn end(incarnation: IncarnationId, checkpoints: Checkpoints, cause: Cause) -> Outcome {
    let mut actions = match cause {
        Cause::Timeout => vec![EXPIRED],
        Cause::Manual | Cause::CreateFailed => vec![],
    };
    let (state, end) = ending(incarnation, checkpoints, cause);
    actions.extend([destroy_requested(cause), end]);
    Ok((state, actions))
}

fn from_running(
    incarnation: IncarnationId,
    generation: u64,
    kept: Option<SnapshotId>,
    event: Event,
) -> Outcome {
    let state = State::Running { incarnation, generation, kept };
    let hibernating =
        |snapshot, cause| State::Hibernating { incarnation, generation, lost: None, snapshot, kept, cause };
    match event {
        Event::Create { .. } => Err(Rejected::Exists),
        // A report is news only if it is of this life and newer than what is known.
        Event::MachineLost { incarnation: of, generation: now } if of == incarnation && now > generation => {
            Ok((State::Lost { incarnation, generation: now, kept }, vec![LOST]))
        }
        Event::MachineMade { .. }
        | Event::MachineFailed { .. }
        | Event::MachineLost { .. }
        | Event::MachineGone { .. }
        | Event::Captured { .. }
        | Event::CaptureFailed { .. } => Err(Rejected::Stale),
        Event::Hibernate { snapshot } => Ok((
            hibernating(snapshot, PauseCause::Manual),
            vec![hibernate(EventStatus::Requested, PauseCause::Manual), Action::Capture(snapshot)],
        )),
        Event::Resume { .. } | Event::Restart => Ok((state, vec![])),
        Event::Destroy => end(incarnation, [None, kept], Cause::Manual),
        Event::Expire { hibernate: None } => end(incarnation, [None, kept], Cause::Timeout),
        Event::Expire { hibernate: Some(snapshot) } => Ok((
            hibernating(snapshot, PauseCause::Timeout),
            vec![EXPIRED, hibernate(EventStatus::Requested, PauseCause::Timeout), Action::Capture(snapshot)],
        )),
        Event::SetTimeout => set_timeout(state),
    }
}

fn from_hibernating(state: State, event: Event) -> Outcome {
    let State::Hibernating { incarnation, generation, lost, snapshot, kept, cause } = state else {
        return Err(Rejected::Stale);
    };
    match event {
        Event::Create { .. } => Err(Rejected::Exists),
        // A machine that was lost after it was captured has nothing left to lose.
        Event::Captured { snapshot: of } if of == snapshot => {
            let taken = Operation::SnapshotCreated;
            let mut actions = vec![
                hibernate(EventStatus::Succeeded, cause),
                record(taken, EventStatus::Succeeded, pauser(cause), Some(cause.as_str())),
            ];
            actions.extend(kept.map(Action::Drop));
            Ok((State::Paused { incarnation, snapshot }, actions))
        }
        Event::CaptureFailed { snapshot: of } if of == snapshot => {
            let failed = hibernate(EventStatus::Failed, cause);
            Ok(match lost {
                Some(generation) => (State::Lost { incarnation, generation, kept }, vec![failed, LOST]),
                None => (State::Running { incarnation, generation, kept }, vec![failed]),
            })
        }
        Event::MachineLost { incarnation: of, generation: now } if of == incarnation && now > generation => {
            let lost = newest(lost, now);
            Ok((State::Hibernating { incarnation, generation, lost, snapshot, kept, cause }, vec![]))
        }
        Event::MachineMade { .. }
        | Event::MachineFailed { .. }
        | Event::MachineLost { .. }
        | Event::MachineGone { .. }
        | Event::Captured { .. }
        | Event::CaptureFailed { .. } => Err(Rejected::Stale),
        // Whoever asks again waits for the same checkpoint.
        Event::Hibernate { .. } => Ok((state, vec![])),
        Event::Resume { .. } | Event::Expire { .. } | Event::SetTimeout => Err(Rejected::NotRunning),
        Event::Destroy => {
            let (call, checkpoints) = (Call::Capture, [Some(snapshot), kept]);
            Ok((
                State::Destroying { incarnation, call, checkpoints, cause: Cause::Manual },
                vec![hibernate(EventStatus::Failed, cause), destroy_requested(Cause::Manual), Action::Cancel],
            ))
        }
        Event::Restart => Ok((
            State::Hibernating { incarnation, generation, lost: None, snapshot, kept, cause },
            vec![Action::Capture(snapshot)],
        )),
    }
}

fn from_paused(incarnation: IncarnationId, snapshot: SnapshotId, event: Event) -> Outcome {
    let state = State::Paused { incarnation, snapshot };
    match event {
        Event::Create { .. } => Err(Rejected::Exists),
        Event::MachineMade { .. }
        | Event::MachineFailed { .. }
        | Event::MachineLost { .. }
        | Event::MachineGone { .. }
        | Event::Captured { .. }
        | Event::CaptureFailed { .. } => Err(Rejected::Stale),
        Event::Resume { incarnation } => Ok((
            State::Resuming { incarnation, snapshot, lost: None },
            vec![Action::MakeMachine(incarnation)],
        )),
        Event::Hibernate { .. } | Event::Restart => Ok((state, vec![])),
        Event::Destroy => end(incarnation, [Some(snapshot), None], Cause::Manual),
        // A paused sandbox has no clock.
        Event::Expire { .. } | Event::SetTimeout => Err(Rejected::NotRunning),
    }
}

fn from_resuming(
    incarnation: IncarnationId,
    snapshot: SnapshotId,
    lost: Option<u64>,
    event: Event,
) -> Outcome {
    let paused = State::Paused { incarnation, snapshot };
    match event {
        Event::Create { .. } => Err(Rejected::Exists),
        Event::MachineMade { incarnation: of, generation } if of == incarnation => Ok(match lost {
            // It came and went before anybody used it: nothing is lost, the checkpoint is there.
            Some(lost) if lost >= generation => (paused, vec![RESUME_FAILED]),
            Some(_) | None => {
                (State::Running { incarnation, generation, kept: Some(snapshot) }, vec![RESUMED])
            }
        }),
        Event::MachineFailed { incarnation: of } if of == incarnation => Ok((paused, vec![RESUME_FAILED])),
        Event::MachineLost { incarnation: of, generation } if of == incarnation => {
            Ok((State::Resuming { incarnation, snapshot, lost: newest(lost, generation) }, vec![]))
        }
        Event::MachineMade { .. }
        | Event::MachineFailed { .. }
        | Event::MachineLost { .. }
        | Event::MachineGone { .. }
        | Event::Captured { .. }
        | Event::CaptureFailed { .. } => Err(Rejected::Stale),
        // Whoever asks again waits for the same machine.
        Event::Resume { .. } => Ok((State::Resuming { incarnation, snapshot, lost }, vec![])),
        Event::Hibernate { .. } | Event::Expire { .. } | Event::SetTimeout => Err(Rejected::NotRunning),
        Event::Destroy => {
            let (call, checkpoints) = (Call::Make, [Some(snapshot), None]);
            Ok((
                State::Destroying { incarnation, call, checkpoints, cause: Cause::Manual },
                vec![RESUME_FAILED, destroy_requested(Cause::Manual), Action::Cancel],
            ))
        }
        Event::Restart => Ok((
            State::Resuming { incarnation, snapshot, lost: None },
            vec![Action::MakeMachine(incarnation)],
        )),
    }
}

fn from_lost(state: State, incarnation: IncarnationId, kept: Option<SnapshotId>, event: Event) -> Outcome {
    match event {
        Event::Create { .. } => Err(Rejected::Exists),
        Event::MachineMade { .. }
        | Event::MachineFailed { .. }
        | Event::MachineLost { .. }
        | Event::MachineGone { .. }
        | Event::Captured { .. }
        | Event::CaptureFailed { .. } => Err(Rejected::Stale),
        Event::Destroy => end(incarnation, [None, kept], Cause::Manual),
        Event::Expire { hibernate: None } => end(incarnation, [None, kept], Cause::Timeout),
        // There is nothing to hibernate, and nobody said that it may be thrown away.
        Event::Hibernate { .. }
        | Event::Resume { .. }
        | Event::Expire { hibernate: Some(_) }
        | Event::SetTimeout => Err(Rejected::MachineLost),
        Event::Restart => Ok((state, vec![])),
    }
}

fn from_destroying(
    incarnation: IncarnationId,
    call: Call,
    checkpoints: Checkpoints,
    cause: Cause,
    event: Event,
) -> Outcome {
    let end = || {
        let (state, end) = ending(incarnation, checkpoints, cause);
        Ok((state, vec![end]))
    };
    match event {
        Event::Create { .. } => Err(Rejected::Exists),
        // The making won the race against its cancelling.
        Event::MachineMade { incarnation: of, .. } if of == incarnation && call == Call::Make => end(),
        Event::MachineFailed { incarnation: of } if of == incarnation && call == Call::Make => {
            match checkpoints {
                [None, None] => Ok((State::Destroyed, ended(cause))),
                [Some(_), _] | [None, Some(_)] => end(),
            }
        }
        Event::Captured { snapshot } | Event::CaptureFailed { snapshot }
            if call == Call::Capture && checkpoints[0] == Some(snapshot) =>
        {
            end()
        }
        Event::MachineGone { incarnation: of } if of == incarnation && call == Call::End => {
            Ok((State::Destroyed, ended(cause)))
        }
        Event::MachineMade { .. }
        | Event::MachineFailed { .. }
        | Event::MachineLost { .. }
        | Event::MachineGone { .. }
        | Event::Captured { .. }
        | Event::CaptureFailed { .. } => Err(Rejected::Stale),
        // Whoever asks again waits for the same end.
        Event::Destroy => Ok((State::Destroying { incarnation, call, checkpoints, cause }, vec![])),
        Event::Hibernate { .. } | Event::Resume { .. } | Event::Expire { .. } | Event::SetTimeout => {
            Err(Rejected::Gone)
        }
        Event::Restart => end(),
    }
}

fn from_destroyed(event: Event) -> Outcome {
    match event {
        Event::Create { .. } => Err(Rejected::Exists),
        Event::MachineMade { .. }
        | Event::MachineFailed { .. }
        | Event::MachineLost { .. }
        | Event::MachineGone { .. }
        | Event::Captured { .. }
        | Event::CaptureFailed { .. } => Err(Rejected::Stale),
        Event::Hibernate { .. }
        | Event::Resume { .. }
        | Event::Destroy
        | Event::Expire { .. }
        | Event::SetTimeout
        | Event::Restart => Err(Rejected::Gone),
    }
}

//! The life of a sandbox as a pure function. [`step`] is the only way from one [`State`] to the next:
//! there is no setter beside it, and every match names every case, so that a new state or event does
//! not compile until all its meetings are decided.
//!
//! Control's driver owns a sandbox's state, feeds what happens in as [`Event`]s and carries out the
//! [`Action`]s: first it writes the new state and every [`Action::Record`] in one transaction, then it
//! does the rest.
//!
//! ```text
//!  Absent ──Create──► Creating ──MachineMade──► Running ──MachineLost──► Lost
//!                        │ │                       │                      │
//!              MachineFailed └──Destroy──┐      Destroy                Destroy
//!                        ▼               ▼         ▼                      │
//!                    Destroyed ◄── Destroying ◄────┴──────────────────────┘
//! ```

use nullspace_types::event::{ActorKind, EventStatus, Operation};
use nullspace_types::id::IncarnationId;

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Not asked for yet.
    Absent,
    /// A machine is being made for it.
    Creating {
        /// The life that is beginning.
        incarnation: IncarnationId,
        /// The generation of a loss that was reported before the making ended.
        lost: Option<u64>,
    },
    /// Its machine runs.
    Running {
        /// Which life.
        incarnation: IncarnationId,
        /// The newest generation heard of.
        generation: u64,
    },
    /// Its machine went away by itself.
    Lost {
        /// Which life it was.
        incarnation: IncarnationId,
        /// The generation of the loss.
        generation: u64,
    },
    /// Its end was decided; its machine may still be there.
    Destroying {
        /// The life that is ending.
        incarnation: IncarnationId,
        /// Whether the call that makes the machine has not ended yet.
        making: bool,
        /// Why it ends.
        cause: Cause,
    },
    /// Gone for good.
    Destroyed,
}

/// Why a sandbox ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Somebody asked for it.
    Manual,
    /// Its time was over.
    Timeout,
    /// Its machine could not be made, or did not live until it was handed over.
    CreateFailed,
}

impl Cause {
    /// The `reason` of the events and the word in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Timeout => "timeout",
            Self::CreateFailed => "create_failed",
        }
    }

    /// The cause that a stored word names. A word from elsewhere was somebody's wish.
    pub fn from_stored(word: Option<&str>) -> Self {
        [Self::Timeout, Self::CreateFailed]
            .into_iter()
            .find(|cause| Some(cause.as_str()) == word)
            .unwrap_or(Self::Manual)
    }
}

/// What can happen to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It is asked for, with the ID of its machine's life.
    Create {
        /// The life to begin.
        incarnation: IncarnationId,
    },
    /// The node made the machine.
    MachineMade {
        /// Which life.
        incarnation: IncarnationId,
        /// Its first generation.
        generation: u64,
    },
    /// The node could not make the machine; nothing of it is left.
    MachineFailed {
        /// Which life.
        incarnation: IncarnationId,
    },
    /// The node lost the machine; nothing of it is left.
    MachineLost {
        /// Which life.
        incarnation: IncarnationId,
        /// The generation of this news.
        generation: u64,
    },
    /// The node ended the machine as it was asked to, or does not have it.
    MachineGone {
        /// Which life.
        incarnation: IncarnationId,
    },
    /// Somebody asked for its end.
    Destroy,
    /// Its time is over.
    Expire,
    /// Somebody set its window anew.
    SetTimeout,
    /// The server begins again: no call to the node is under way any more.
    Restart,
}

/// What is to be done about a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Write this lifecycle event in the transaction that writes the state.
    Record {
        /// What.
        operation: Operation,
        /// How far.
        status: EventStatus,
        /// By whom.
        actor: ActorKind,
        /// Why.
        reason: Option<&'static str>,
    },
    /// Free the idempotency key in the same transaction, so that the same request may be made again.
    FreeKey,
    /// Ask the node for the machine; the answer comes as `MachineMade` or `MachineFailed`.
    MakeMachine(IncarnationId),
    /// Tell the node to end what it is making, so that the answer to `MakeMachine` comes soon.
    CancelMake(IncarnationId),
    /// Tell the node to end the machine; the answer comes as `MachineGone`.
    EndMachine(IncarnationId),
}

/// An event that does not fit the state. The state stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// There is one already.
    #[error("the sandbox exists already")]
    Exists,
    /// There is none, or none any more.
    #[error("the sandbox does not exist")]
    Gone,
    /// Its machine is still being made.
    #[error("the sandbox is still being created")]
    NotReady,
    /// Its machine is lost.
    #[error("the sandbox's machine is lost")]
    MachineLost,
    /// The news is of another life, or older than what is known.
    #[error("the report is stale")]
    Stale,
}

const fn record(
    operation: Operation,
    status: EventStatus,
    actor: ActorKind,
    reason: Option<&'static str>,
) -> Action {
    Action::Record { operation, status, actor, reason }
}

const CREATED: Action = record(Operation::Create, EventStatus::Succeeded, ActorKind::User, Some("api"));
const CREATE_FAILED: Action = record(Operation::Create, EventStatus::Failed, ActorKind::User, Some("api"));

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

const EXPIRED: Action = record(
    Operation::TimeoutExpired,
    EventStatus::Succeeded,
    ActorKind::System,
    Some(Cause::Timeout.as_str()),
);

/// The next state and what is to be done, or why the event does not fit.
pub fn step(state: State, event: Event) -> Result<(State, Vec<Action>), Rejected> {
    match state {
        State::Absent => from_absent(event),
        State::Creating { incarnation, lost } => from_creating(incarnation, lost, event),
        State::Running { incarnation, generation } => from_running(incarnation, generation, event),
        State::Lost { incarnation, generation } => from_lost(incarnation, generation, event),
        State::Destroying { incarnation, making, cause } => {
            from_destroying(incarnation, making, cause, event)
        }
        State::Destroyed => from_destroyed(event),
    }
}

fn from_absent(event: Event) -> Result<(State, Vec<Action>), Rejected> {
    match event {
        Event::Create { incarnation } => {
            Ok((State::Creating { incarnation, lost: None }, vec![Action::MakeMachine(incarnation)]))
        }
        Event::MachineMade { .. }
        | Event::MachineFailed { .. }
        | Event::MachineLost { .. }
        | Event::MachineGone { .. } => Err(Rejected::Stale),
        Event::Destroy | Event::Expire | Event::SetTimeout | Event::Restart => Err(Rejected::Gone),
    }
}

fn from_creating(
    incarnation: IncarnationId,
    lost: Option<u64>,
    event: Event,
) -> Result<(State, Vec<Action>), Rejected> {
    match event {
        Event::Create { .. } => Err(Rejected::Exists),
        Event::MachineMade { incarnation: of, generation } if of == incarnation => match lost {
            // It came and went before anybody heard of it. The node is told all the same: to end a
            // machine twice is harmless, to forget one is not.
            Some(lost) if lost >= generation => Ok((
                State::Destroying { incarnation, making: false, cause: Cause::CreateFailed },
                vec![CREATE_FAILED, Action::FreeKey, Action::EndMachine(incarnation)],
            )),
            Some(_) | None => Ok((State::Running { incarnation, generation }, vec![CREATED])),
        },
        Event::MachineFailed { incarnation: of } if of == incarnation => {
            Ok((State::Destroyed, vec![CREATE_FAILED, Action::FreeKey]))
        }
        Event::MachineLost { incarnation: of, generation } if of == incarnation => Ok((
            State::Creating { incarnation, lost: Some(lost.map_or(generation, |old| old.max(generation))) },
            vec![],
        )),
        Event::MachineMade { .. }
        | Event::MachineFailed { .. }
        | Event::MachineLost { .. }
        | Event::MachineGone { .. } => Err(Rejected::Stale),
        Event::Destroy => Ok((
            State::Destroying { incarnation, making: true, cause: Cause::Manual },
            vec![
                CREATE_FAILED,
                destroy_requested(Cause::Manual),
                Action::FreeKey,
                Action::CancelMake(incarnation),
            ],
        )),
        // The window is counted from when it runs.
        Event::Expire | Event::SetTimeout => Err(Rejected::NotReady),
        // The same life again: the node answers a repeated request with the same machine.
        Event::Restart => {
            Ok((State::Creating { incarnation, lost: None }, vec![Action::MakeMachine(incarnation)]))
        }
    }
}

fn set_timeout(state: State) -> Result<(State, Vec<Action>), Rejected> {
    Ok((
        state,
        vec![
            record(Operation::TimeoutUpdated, EventStatus::Requested, ActorKind::User, Some("api")),
            record(Operation::TimeoutUpdated, EventStatus::Succeeded, ActorKind::User, Some("api")),
        ],
    ))
}

fn end(incarnation: IncarnationId, cause: Cause) -> (State, Vec<Action>) {
    let mut actions = match cause {
        Cause::Timeout => vec![EXPIRED],
        Cause::Manual | Cause::CreateFailed => vec![],
    };
    actions.extend([destroy_requested(cause), Action::EndMachine(incarnation)]);
    (State::Destroying { incarnation, making: false, cause }, actions)
}

fn from_running(
    incarnation: IncarnationId,
    generation: u64,
    event: Event,
) -> Result<(State, Vec<Action>), Rejected> {
    match event {
        Event::Create { .. } => Err(Rejected::Exists),
        // A report is news only if it is of this life and newer than what is known.
        Event::MachineLost { incarnation: of, generation: now } if of == incarnation && now > generation => {
            Ok((
                State::Lost { incarnation, generation: now },
                vec![record(
                    Operation::Reconcile,
                    EventStatus::Succeeded,
                    ActorKind::Reconcile,
                    Some("machine_lost"),
                )],
            ))
        }
        Event::MachineMade { .. }
        | Event::MachineFailed { .. }
        | Event::MachineLost { .. }
        | Event::MachineGone { .. } => Err(Rejected::Stale),
        Event::Destroy => Ok(end(incarnation, Cause::Manual)),
        Event::Expire => Ok(end(incarnation, Cause::Timeout)),
        Event::SetTimeout => set_timeout(State::Running { incarnation, generation }),
        Event::Restart => Ok((State::Running { incarnation, generation }, vec![])),
    }
}

fn from_lost(
    incarnation: IncarnationId,
    generation: u64,
    event: Event,
) -> Result<(State, Vec<Action>), Rejected> {
    match event {
        Event::Create { .. } => Err(Rejected::Exists),
        Event::MachineMade { .. }
        | Event::MachineFailed { .. }
        | Event::MachineLost { .. }
        | Event::MachineGone { .. } => Err(Rejected::Stale),
        Event::Destroy => Ok(end(incarnation, Cause::Manual)),
        Event::Expire => Ok(end(incarnation, Cause::Timeout)),
        Event::SetTimeout => Err(Rejected::MachineLost),
        Event::Restart => Ok((State::Lost { incarnation, generation }, vec![])),
    }
}

fn from_destroying(
    incarnation: IncarnationId,
    making: bool,
    cause: Cause,
    event: Event,
) -> Result<(State, Vec<Action>), Rejected> {
    let state = State::Destroying { incarnation, making, cause };
    match event {
        Event::Create { .. } => Err(Rejected::Exists),
        // The making won the race against its cancelling.
        Event::MachineMade { incarnation: of, .. } if of == incarnation && making => Ok((
            State::Destroying { incarnation, making: false, cause },
            vec![Action::EndMachine(incarnation)],
        )),
        Event::MachineFailed { incarnation: of } if of == incarnation && making => {
            Ok((State::Destroyed, ended(cause)))
        }
        Event::MachineGone { incarnation: of } if of == incarnation && !making => {
            Ok((State::Destroyed, ended(cause)))
        }
        Event::MachineMade { .. }
        | Event::MachineFailed { .. }
        | Event::MachineLost { .. }
        | Event::MachineGone { .. } => Err(Rejected::Stale),
        // Whoever asks again waits for the same end.
        Event::Destroy => Ok((state, vec![])),
        Event::Expire | Event::SetTimeout => Err(Rejected::Gone),
        Event::Restart => Ok((
            State::Destroying { incarnation, making: false, cause },
            vec![Action::EndMachine(incarnation)],
        )),
    }
}

fn from_destroyed(event: Event) -> Result<(State, Vec<Action>), Rejected> {
    match event {
        Event::Create { .. } => Err(Rejected::Exists),
        Event::MachineMade { .. }
        | Event::MachineFailed { .. }
        | Event::MachineLost { .. }
        | Event::MachineGone { .. } => Err(Rejected::Stale),
        Event::Destroy | Event::Expire | Event::SetTimeout | Event::Restart => Err(Rejected::Gone),
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;

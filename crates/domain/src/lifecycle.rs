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
//!                        │                      │  ▲  ▲
//!              MachineFailed            Hibernate  │  └──MachineMade──┐
//!                        │                      ▼  │CaptureFailed     │
//!                        ▼                 Hibernating ──Captured──► Paused ◄─MachineFailed─┐
//!                    Destroyed                                        │                     │
//!                        ▲                                            └──Resume──► Resuming ┘
//!                        └── Destroying ◄──Destroy── any of them
//! ```
//!
//! At most one call to the node is under way at any time: it makes a machine, captures it, or ends it. A
//! sandbox whose end was asked for meanwhile waits for that call, and then ends what it left.

mod step;

use nullspace_types::event::{ActorKind, EventStatus, Operation};
use nullspace_types::id::{IncarnationId, SnapshotId};

pub use step::step;

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
        /// How it comes to be.
        birth: Birth,
    },
    /// Its machine runs.
    Running {
        /// Which life.
        incarnation: IncarnationId,
        /// The newest generation heard of.
        generation: u64,
        /// The checkpoint that it was last resumed from. It is kept until the next one is there.
        kept: Option<SnapshotId>,
    },
    /// Its machine is being captured, and ended with that.
    Hibernating {
        /// The life that pauses.
        incarnation: IncarnationId,
        /// The newest generation heard of.
        generation: u64,
        /// The generation of a loss that was reported before the capture ended.
        lost: Option<u64>,
        /// The checkpoint that is being made.
        snapshot: SnapshotId,
        /// The checkpoint before it.
        kept: Option<SnapshotId>,
        /// Why it is hibernated.
        cause: PauseCause,
    },
    /// It is on the disk; no machine is there.
    Paused {
        /// The life that paused.
        incarnation: IncarnationId,
        /// What it goes on from.
        snapshot: SnapshotId,
    },
    /// A machine is being made from its checkpoint.
    Resuming {
        /// The life that is beginning.
        incarnation: IncarnationId,
        /// What it goes on from.
        snapshot: SnapshotId,
        /// The generation of a loss that was reported before the making ended.
        lost: Option<u64>,
    },
    /// Its machine went away by itself.
    Lost {
        /// Which life it was.
        incarnation: IncarnationId,
        /// The generation of the loss.
        generation: u64,
        /// The checkpoint that it was last resumed from.
        kept: Option<SnapshotId>,
    },
    /// Its end was decided; its machine and checkpoints may still be there.
    Destroying {
        /// The life that is ending.
        incarnation: IncarnationId,
        /// Which call to the node is under way.
        call: Call,
        /// The checkpoints of its hibernations that may be there.
        checkpoints: Checkpoints,
        /// Why it ends.
        cause: Cause,
    },
    /// Gone for good.
    Destroyed,
}

/// The checkpoints of a sandbox's hibernations: the newest, which may still be in the making, and the one
/// before it.
pub type Checkpoints = [Option<SnapshotId>; 2];

/// How a sandbox comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Birth {
    /// Somebody asked for it, from a template or a snapshot.
    Create,
    /// It is a child of a fork. A fork that fails is told of once, by the first of its children.
    Fork {
        /// Whether it is the first.
        first: bool,
    },
}

/// The call to the node that a sandbox's end waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// The one that makes its machine.
    Make,
    /// The one that captures it.
    Capture,
    /// The one that ends it.
    End,
}

/// Why a sandbox is hibernated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PauseCause {
    /// Somebody asked for it.
    Manual,
    /// Its time was over.
    Timeout,
}

impl PauseCause {
    /// The `reason` of the events.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Timeout => "timeout",
        }
    }
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
        /// How it comes to be.
        birth: Birth,
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
    /// The node ended the machine and removed the checkpoints as it was asked to, or does not have them.
    MachineGone {
        /// Which life.
        incarnation: IncarnationId,
    },
    /// Somebody asked for it to be hibernated, to a new checkpoint.
    Hibernate {
        /// The checkpoint to make.
        snapshot: SnapshotId,
    },
    /// The checkpoint is on the disk, and the machine is ended.
    Captured {
        /// Which checkpoint.
        snapshot: SnapshotId,
    },
    /// There is no such checkpoint, and the machine goes on if it is still there.
    CaptureFailed {
        /// Which checkpoint.
        snapshot: SnapshotId,
    },
    /// Somebody asked for it to go on, or used it.
    Resume {
        /// The life to begin if it is paused.
        incarnation: IncarnationId,
    },
    /// Somebody asked for its end.
    Destroy,
    /// Its time is over.
    Expire {
        /// The checkpoint to make if it is to be hibernated; none if it is to be destroyed.
        hibernate: Option<SnapshotId>,
    },
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
    /// Ask the node to hibernate the machine to this checkpoint; the answer comes as `Captured` or
    /// `CaptureFailed`. Asked again, the node answers the checkpoint that is there.
    Capture(SnapshotId),
    /// The call under way is to end soon, whatever comes of it.
    Cancel,
    /// Tell the node to end the machine, then to remove the checkpoints; the answer comes as `MachineGone`.
    End(IncarnationId, Checkpoints),
    /// Remove a checkpoint that nothing needs any more, once the change is written.
    Drop(SnapshotId),
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
    /// It does not run now: it is being created, hibernated or resumed, or is paused.
    #[error("the sandbox does not run")]
    NotRunning,
    /// Its machine is lost.
    #[error("the sandbox's machine is lost")]
    MachineLost,
    /// The news is of another life, or older than what is known.
    #[error("the report is stale")]
    Stale,
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;

//! What is shown of a sandbox: a pure function of what was asked for and what was seen.

use nullspace_types::sandbox::SandboxStatus;

/// What the user asked for. Control writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Desired {
    /// That it runs.
    Running,
    /// That it is hibernated.
    Paused,
    /// That it is gone.
    Destroyed,
}

/// What was seen of its machine. It follows the node's news.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Observed {
    /// None yet.
    Creating,
    /// It runs.
    Running,
    /// It is on the disk, and no machine is there.
    Paused,
    /// It went away by itself.
    Lost,
    /// It was ended, and nothing of it is left.
    Gone,
}

/// The status that callers see. A sandbox whose end was asked for is gone for its users at once, however
/// long its machine takes to end: nothing can be done with it any more. One that is being hibernated is
/// running until it is paused, and one that is being resumed is paused until it runs: who finds it paused
/// resumes it, and waits for the same machine.
pub const fn shown(desired: Desired, observed: Observed) -> SandboxStatus {
    match (desired, observed) {
        (
            Desired::Destroyed,
            Observed::Creating | Observed::Running | Observed::Paused | Observed::Lost | Observed::Gone,
        )
        | (Desired::Running | Desired::Paused, Observed::Gone) => SandboxStatus::Destroyed,
        (Desired::Running, Observed::Creating) => SandboxStatus::Creating,
        (Desired::Running | Desired::Paused, Observed::Running) => SandboxStatus::Running,
        (Desired::Running | Desired::Paused, Observed::Paused) => SandboxStatus::Paused,
        // One that was never seen to run cannot be hibernated.
        (Desired::Running | Desired::Paused, Observed::Lost) | (Desired::Paused, Observed::Creating) => {
            SandboxStatus::Error
        }
    }
}

//! What is shown of a sandbox: a pure function of what was asked for and what was seen.

use nullspace_types::sandbox::SandboxStatus;

/// What the user asked for. Control writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Desired {
    /// That it runs.
    Running,
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
    /// It went away by itself.
    Lost,
    /// It was ended, and nothing of it is left.
    Gone,
}

/// The status that callers see. A sandbox whose end was asked for is gone for its users at once, however
/// long its machine takes to end: nothing can be done with it any more.
pub const fn shown(desired: Desired, observed: Observed) -> SandboxStatus {
    match (desired, observed) {
        (Desired::Destroyed, Observed::Creating | Observed::Running | Observed::Lost | Observed::Gone)
        | (Desired::Running, Observed::Gone) => SandboxStatus::Destroyed,
        (Desired::Running, Observed::Creating) => SandboxStatus::Creating,
        (Desired::Running, Observed::Running) => SandboxStatus::Running,
        (Desired::Running, Observed::Lost) => SandboxStatus::Error,
    }
}

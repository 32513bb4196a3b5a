//! Places at which a test can have the server die, as `kill -9` or a power cut would have it: with the
//! environment variable `NULLSPACE_CRASH_AT` the process kills itself the first time it gets there. They
//! stand between any two steps of what must be whole or not at all. Without the variable they do nothing.

use std::sync::LazyLock;

use nullspace_types::{Code, Error};

/// The variable that names a step.
const VARIABLE: &str = "NULLSPACE_CRASH_AT";

/// Every step, in the order in which a hibernation, a resume and an end pass them.
pub const STEPS: &[&str] = &[
    "capture.begun",
    "capture.layer_added",
    "capture.stalled",
    "capture.paused",
    "capture.devices_saved",
    "capture.memory_copied",
    "capture.frozen",
    "capture.resumed",
    "capture.layer_named",
    "capture.recorded",
    "checkpoint.memory_written",
    "checkpoint.record_written",
    "checkpoint.published",
    "hibernate.ended",
    "restore.begun",
    "restore.restored",
    "restore.running",
    "restore.adopted",
    "restore.recorded",
    "destroy.begun",
    "destroy.monitor_ended",
    "destroy.directory_removed",
    "destroy.layers_released",
    "checkpoint_delete.renamed",
    "checkpoint_delete.removed",
    "checkpoint_delete.layers_released",
];

static AT: LazyLock<Option<String>> = LazyLock::new(|| std::env::var(VARIABLE).ok());

/// Refuses a step that there is not: a test of it would test nothing.
pub fn check() -> Result<(), Error> {
    match AT.as_deref() {
        Some(name) if !STEPS.contains(&name) => {
            let message = format!("{VARIABLE}: there is no step {name:?}; there are: {}", STEPS.join(", "));
            Err(Error::new(Code::Unavailable, message))
        }
        _ => Ok(()),
    }
}

/// The process is here now.
pub fn step(name: &'static str) {
    debug_assert!(STEPS.contains(&name), "{name} is not in the list");
    if AT.as_deref() == Some(name) {
        let killed = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        unreachable!("a process outlived its end: {killed:?}");
    }
}

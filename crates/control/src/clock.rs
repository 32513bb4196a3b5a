//! The wall clock, as an argument: timeouts are dates, and tests choose them.

use jiff::Timestamp;

/// Tells the time, in the resolution of the store.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Timestamp;
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        nullspace_store::now()
    }
}

/// A time from elsewhere, in the resolution of the store: what is shown before it was stored must equal
/// what is read back.
pub(crate) fn as_stored(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
}

//! How often a machine may ask: a bucket of tokens, filled with time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What one query costs in time: at most 50 in a second.
const QUERY: Duration = Duration::from_millis(20);
/// As many may come at once.
const BURST: u32 = 200;

/// A bucket, full at first.
#[derive(Debug)]
pub(super) struct Budget {
    /// When it will be full again.
    full_at: Mutex<Instant>,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self { full_at: Mutex::new(now) }
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&self, now: Instant) -> bool {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let after = (*full_at).max(now) + QUERY;
        let enough = after - now <= QUERY * BURST;
        if enough {
            *full_at = after;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_so_many_as_time_allows() {
        let begun = Instant::now();
        let budget = Budget::new(begun);
        assert_eq!((0..500).filter(|_| budget.take(begun)).count(), 200);
        let second = begun + Duration::from_secs(1);
        assert_eq!((0..500).filter(|_| budget.take(second)).count(), 50);
        let later = begun + Duration::from_secs(3600);
        assert_eq!((0..500).filter(|_| budget.take(later)).count(), 200, "no more than a burst is saved up");
    }
}

//! How often a connection that broke is made again: what follows something for as long as it goes on counts
//! its failures here.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::RetryPolicy;
use crate::error::{Error, Result};

/// A connection that held this long was a good one, even if the server had nothing to say.
const GOOD_CONNECTION: Duration = Duration::from_secs(60);

/// Connections that failed in a row, without anything new from them.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    failures: u32,
    connected_at: Option<Instant>,
    /// When the next attempt is due; it stays so when a caller gives up waiting and comes back.
    due_at: Option<Instant>,
}

impl Attempts {
    /// There is a connection.
    pub(crate) fn connected(&mut self) {
        self.connected_at = Some(Instant::now());
    }

    /// Something new came from it.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// It broke, or could not be made. Answers whether to go on, and the error if not: when it will not
    /// pass, or is one too many. From then on it is counted anew.
    pub(crate) fn failed(&mut self, error: Error, policy: &RetryPolicy) -> Result<()> {
        let held = self.connected_at.take().is_some_and(|at| at.elapsed() >= GOOD_CONNECTION);
        if held {
            self.failures = 0;
        }
        self.due_at = Some(Instant::now() + policy.resume_delay(self.failures));
        if error.is_passing() && self.failures < policy.resume_retries {
            self.failures += 1;
            return Ok(());
        }
        self.failures = 0;
        Err(error)
    }

    /// The pause before the next attempt.
    pub(crate) async fn wait(&self) {
        if let Some(due_at) = self.due_at {
            tokio::time::sleep_until(due_at).await;
        }
    }
}

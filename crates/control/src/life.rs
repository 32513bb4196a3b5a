//! What ends connections into a sandbox: its machine's end, and that its ports are no longer public. Its
//! driver keeps this in step with the record, before anybody sees the change.

use nullspace_domain::lifecycle::State;
use tokio_util::sync::CancellationToken;

use crate::record::Record;

/// The tokens of one life of a machine. Both are cancelled while there is none.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    /// Cancelled when the machine ends, in whatever way.
    pub(crate) running: CancellationToken,
    /// Cancelled then too, and when the ports become private.
    pub(crate) public: CancellationToken,
}

impl Life {
    pub(crate) fn of(record: &Record) -> Self {
        let running = CancellationToken::new();
        let public = running.child_token();
        let mut life = Self { running, public };
        life.follow(record);
        life
    }

    /// Cancels what is over, and begins what begins.
    pub(crate) fn follow(&mut self, record: &Record) {
        let lives = match record.state {
            // A capture that fails leaves the machine as it was.
            State::Running { .. } | State::Hibernating { .. } => true,
            State::Absent
            | State::Creating { .. }
            | State::Paused { .. }
            | State::Resuming { .. }
            | State::Lost { .. }
            | State::Destroying { .. }
            | State::Destroyed => false,
        };
        if !lives {
            self.running.cancel();
            return;
        }
        if self.running.is_cancelled() {
            self.running = CancellationToken::new();
        }
        if !record.row.desired.network.allow_public_traffic {
            self.public.cancel();
        } else if self.public.is_cancelled() {
            self.public = self.running.child_token();
        }
    }
}

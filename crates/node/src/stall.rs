//! Has a guest's programs stand still around the capture of its memory: from before the pause until it goes
//! on, and in what is restored from the capture until that was adopted. None of them then draws from the
//! kernel's generator what another machine draws too.
//!
//! The guest decides whether it does that: one that does not, or does not answer, is captured all the same.
//! It lets its programs go on by itself when nobody tells it to, so that nothing here has to be remembered.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use nullspace_guest_proto as proto;

use crate::Node;
use crate::guest::repeated;
use crate::running::Running;

/// How long a guest may take for it. It gives up earlier itself.
const PATIENCE: Duration = Duration::from_secs(1);

/// A pause of a machine, for which its programs stand still, or may.
pub struct Stall {
    id: String,
    /// When they began to, if they do.
    begun: Option<Instant>,
}

impl Stall {
    /// For a pause that nothing is restored from: only the clock has to catch up afterwards.
    pub fn none() -> Self {
        // A late word to go on must not be taken for the next capture's.
        Self { id: uuid::Uuid::now_v7().simple().to_string(), begun: None }
    }

    /// Has a machine's programs stand still, if the guest does that.
    pub async fn begin(running: &Running) -> Self {
        let (none, begun) = (Self::none(), Instant::now());
        let sandbox = running.record.spec.sandbox_id;
        let mut client = match running.client() {
            Ok(client) => client,
            Err(error) => {
                tracing::warn!(%sandbox, %error, context = error.context, "its programs do not stand still for its capture");
                return none;
            }
        };
        let request = proto::FreezeRequest { freeze_id: none.id.clone() };
        let reason = match tokio::time::timeout(PATIENCE, client.freeze(request)).await {
            Ok(Ok(reply)) => match reply.into_inner() {
                proto::FreezeReply { frozen: true, .. } => return Self { begun: Some(begun), ..none },
                proto::FreezeReply { reason, .. } => reason,
            },
            Ok(Err(status)) if !crate::guest::link_broke(&status) => {
                format!("{:?}: {}", status.code(), status.message())
            }
            answer => {
                tracing::warn!(%sandbox, ?answer, "it is not known whether its programs stand still for its capture");
                return Self { begun: Some(begun), ..none };
            }
        };
        tracing::warn!(%sandbox, reason, "its programs do not stand still for its capture");
        none
    }

    /// Has them go on, and the clock catch up. Nobody waits for that.
    pub fn end(self, node: &Node, running: &Running) {
        go_on(node, running, self.id, self.begun);
    }
}

/// Has programs go on that the last server may have left standing still.
pub fn end_any(node: &Node, running: &Running) {
    go_on(node, running, String::new(), None);
}

fn go_on(node: &Node, running: &Running, id: String, begun: Option<Instant>) {
    let sandbox = running.record.spec.sandbox_id;
    let client = match running.client() {
        Ok(client) => client,
        Err(error) => {
            tracing::warn!(%sandbox, %error, context = error.context, "its programs are not told to go on");
            return;
        }
    };
    let (gone, stopping) = (running.gone(), node.stopping.clone());
    node.tasks.spawn(async move {
        let thawed = repeated(|| {
            let now = u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0);
            let request = proto::ThawRequest { freeze_id: id.clone(), unix_time_ns: now };
            let mut client = client.clone();
            async move { client.thaw(request).await }
        });
        tokio::select! {
            thawed = thawed => match (thawed, begun) {
                (Ok(_), Some(begun)) => {
                    metrics::histogram!("nullspace_checkpoint_stall_seconds").record(begun.elapsed().as_secs_f64());
                    tracing::debug!(%sandbox, stall = ?begun.elapsed(), "its programs go on");
                }
                (Ok(_), None) => {}
                // An agent of before knows no such call.
                (Err(status), _) if status.code() == tonic::Code::Unimplemented => {}
                (Err(status), _) => tracing::warn!(%sandbox, %status, "its programs were not told to go on, and do so by themselves later"),
            },
            () = gone => {}
            () = stopping.cancelled() => {}
        }
    });
}

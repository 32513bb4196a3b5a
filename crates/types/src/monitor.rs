//! The frames of the monitor's socket, `/v1/monitor/ws`, and of the lifecycle sockets, `/v1/lifecycle/ws` and
//! `/v1/sandboxes/{id}/lifecycle/ws`: JSON texts, told apart by `type`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::{LifecycleEvent, LifecycleSubscription};
use crate::id::SandboxId;
use crate::process::ProcessInfo;
use crate::sandbox::{Sandbox, SandboxMetrics};

/// What a client of the monitor says. `id` is the client's own and comes back in every answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MonitorRequest {
    /// Tell it of all sandboxes of the key.
    MonitorSubscribe {
        /// The client's.
        id: String,
        /// Milliseconds between two samples; 2000 when absent. What is below 250 or above 60000 is taken as
        /// that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        interval_ms: Option<i64>,
        /// Whether to tell of processes too; false when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        include_processes: Option<bool>,
    },
    /// No more.
    MonitorUnsubscribe {
        /// The client's.
        id: String,
    },
}

/// What the monitor tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MonitorFrame {
    /// All sandboxes as they are now; the first frame.
    MonitorSnapshot {
        /// The client's.
        id: String,
        /// The sandboxes.
        sandboxes: Vec<Sandbox>,
    },
    /// One changed.
    MonitorUpdate {
        /// The client's.
        id: String,
        /// Which.
        sandbox_id: SandboxId,
        /// As it is now; none once it is gone.
        sandbox: Option<Box<Sandbox>>,
        /// Whether it is gone.
        removed: bool,
    },
    /// What one uses.
    MonitorMetrics {
        /// The client's.
        id: String,
        /// Which.
        sandbox_id: SandboxId,
        /// A sample.
        metrics: SandboxMetrics,
    },
    /// What runs in one.
    MonitorProcesses {
        /// The client's.
        id: String,
        /// Which.
        sandbox_id: SandboxId,
        /// Its processes.
        processes: Vec<ProcessInfo>,
    },
    /// What was asked for cannot be told.
    MonitorError {
        /// The client's, as far as it is known.
        id: String,
        /// Why.
        message: String,
    },
}

/// What a monitor tells next, before it has a client's ID.
#[derive(Debug, Clone, PartialEq)]
pub enum MonitorNews {
    /// See [`MonitorFrame::MonitorSnapshot`].
    Snapshot(Vec<Sandbox>),
    /// See [`MonitorFrame::MonitorUpdate`]; none once it is gone.
    Update(SandboxId, Option<Box<Sandbox>>),
    /// See [`MonitorFrame::MonitorMetrics`].
    Metrics(SandboxId, SandboxMetrics),
    /// See [`MonitorFrame::MonitorProcesses`].
    Processes(SandboxId, Vec<ProcessInfo>),
}

/// How a monitor shall tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MonitorSpec {
    /// Milliseconds between two samples.
    pub interval_ms: u64,
    /// Whether to tell of processes too.
    pub include_processes: bool,
}

/// What a client of a lifecycle socket says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum LifecycleRequest {
    /// Tell it of these events; again replaces what was asked for before.
    Subscribe(LifecycleSubscription),
}

/// What a lifecycle socket tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum LifecycleFrame {
    /// What is told from here on; the first frame.
    Subscribed {
        /// As it was asked for.
        subscription: LifecycleSubscription,
        /// `after_event_id`: how a client goes on after its connection broke.
        reconnect_mode: String,
        /// When the subscription began.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subscribed_at: Option<Timestamp>,
    },
    /// An event.
    Event {
        /// The event.
        event: Box<LifecycleEvent>,
    },
    /// What was asked for cannot be told. The socket ends.
    Error {
        /// Why.
        message: String,
        /// For programs.
        code: String,
    },
}

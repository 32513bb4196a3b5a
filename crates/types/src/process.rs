//! Commands and processes inside a sandbox.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::sandbox::Envs;

/// A command to run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ExecRequest {
    /// With `shell`, a line for `/bin/sh -c`; otherwise the executable.
    pub command: String,
    /// Exact arguments of the executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Run `command` through a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<bool>,
    /// Working directory, absolute; the sandbox's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Added to the sandbox's environment for this command alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<std::collections::BTreeMap<String, String>>))]
    pub envs: Option<Envs>,
    /// User to run as; `root` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Seconds until the process group is killed; 30 when absent. Not applied in the background.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<f64>,
    /// Answer with the PID at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background: Option<bool>,
}

/// How a command ended. Text that is not UTF-8 is replaced by U+FFFD.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ExecResult {
    /// The exit status; 128 and the signal's number for one killed by a signal.
    pub exit_code: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// Its process ID in the sandbox.
    pub pid: u32,
}

/// A command started in the background.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ExecStarted {
    /// Its process ID in the sandbox.
    pub pid: u32,
}

/// A process in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ProcessInfo {
    /// Its process ID in the sandbox.
    pub pid: u32,
    /// Its command line.
    pub command: String,
    /// Whether it still runs.
    pub running: bool,
}

/// Text for a process's standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ProcessStdin {
    /// The text.
    pub data: String,
}

/// All that a process has written, from its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ProcessLogs {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Both, in the order in which they came.
    pub output: String,
    /// The exit status; null while it runs.
    pub exit_code: Option<i32>,
}

/// What happens to a process that is followed. Order: one `Started`, any number of `Output`, one `Exited`,
/// and then the stream ends. A stream that ends before with an error was broken; the process was not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessEvent {
    /// It is there.
    Started {
        /// Its PID.
        pid: u32,
    },
    /// It wrote.
    Output {
        /// To standard error, not to standard output.
        stderr: bool,
        /// What.
        data: Bytes,
    },
    /// It has ended.
    Exited {
        /// Exit status.
        exit_code: i32,
        /// Whether its time ran out.
        timed_out: bool,
        /// Microseconds that the guest took; of one that was only attached to, since its start.
        guest_us: u64,
    },
}

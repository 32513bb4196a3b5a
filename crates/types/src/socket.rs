//! The frames of a sandbox's socket, `/v1/sandboxes/{id}/ws`: JSON texts, told apart by `type`. Commands,
//! terminals and watches share it; the first frame of the client says which.

use serde::{Deserialize, Serialize};

use crate::id::SessionId;
use crate::process::ExecRequest;
use crate::sandbox::Envs;

/// What a client says. `id` is the client's own and comes back in every answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientFrame {
    /// Start a command and follow it.
    ExecStart {
        /// The client's.
        id: String,
        /// The command.
        #[serde(flatten)]
        request: ExecRequest,
    },
    /// Follow a process that was started before.
    ExecConnect {
        /// The client's.
        id: String,
        /// Which.
        pid: u32,
        /// Bytes of standard output that the client has already; the frames begin behind them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdout_offset: Option<u64>,
        /// Bytes of standard error that the client has already.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stderr_offset: Option<u64>,
    },
    /// Write to standard input.
    ExecStdin {
        /// The client's.
        id: String,
        /// Which.
        pid: u32,
        /// The text.
        data: String,
    },
    /// End standard input.
    ExecStdinClose {
        /// The client's.
        id: String,
        /// Which.
        pid: u32,
    },
    /// Kill the process group.
    ExecKill {
        /// The client's.
        id: String,
        /// Which.
        pid: u32,
    },
    /// Start a terminal session and watch it.
    PtyStart {
        /// The client's.
        id: String,
        /// Columns; 120 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cols: Option<u32>,
        /// Rows; 30 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rows: Option<u32>,
        /// Working directory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cwd: Option<String>,
        /// Over the sandbox's environment.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        envs: Option<Envs>,
        /// Whose; root's when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
    },
    /// Watch a session that was started before: by its ID, or by its program's process ID.
    PtyConnect {
        /// The client's.
        id: String,
        /// Which.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session_id: Option<String>,
        /// Which.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
    },
    /// Type: exactly one of the two.
    PtyInput {
        /// The client's.
        id: String,
        /// Which.
        session_id: String,
        /// Text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        data: Option<String>,
        /// Bytes in base64.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        data_base64: Option<String>,
    },
    /// Set the size. Not answered.
    PtyResize {
        /// The client's.
        id: String,
        /// Which.
        session_id: String,
        /// Columns.
        cols: u32,
        /// Rows.
        rows: u32,
    },
    /// End the session.
    PtyKill {
        /// The client's.
        id: String,
        /// Which.
        session_id: String,
    },
    /// Watch a path for changes.
    FileWatch {
        /// The client's.
        id: String,
        /// A directory or a file.
        path: String,
        /// The user on whose behalf.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        /// With all that is below it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        recursive: Option<bool>,
        /// Seconds after which no more events are sent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_secs: Option<f64>,
    },
}

/// What the server says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame {
    /// The process is there.
    ExecStarted {
        /// The client's.
        id: String,
        /// Its process ID.
        pid: u32,
    },
    /// It wrote to standard output. What is not UTF-8 is replaced by U+FFFD.
    ExecStdout {
        /// The client's.
        id: String,
        /// Its process ID.
        pid: u32,
        /// The text.
        data: String,
    },
    /// It wrote to standard error.
    ExecStderr {
        /// The client's.
        id: String,
        /// Its process ID.
        pid: u32,
        /// The text.
        data: String,
    },
    /// It has ended, and all its output was sent. 124 if its time ran out.
    ExecExit {
        /// The client's.
        id: String,
        /// Its process ID.
        pid: u32,
        /// The exit status.
        exit_code: i32,
    },
    /// The session is there. Always the first frame of one.
    PtyStarted {
        /// The client's.
        id: String,
        /// Its ID.
        session_id: SessionId,
        /// The process ID of its program.
        pid: u32,
        /// Columns.
        cols: u32,
        /// Rows.
        rows: u32,
    },
    /// Its screen as it is, then what its program writes.
    PtyOutput {
        /// The client's.
        id: String,
        /// Which.
        session_id: SessionId,
        /// The bytes.
        data_base64: String,
    },
    /// Its program has ended, and all its output was sent.
    PtyExited {
        /// The client's.
        id: String,
        /// Which.
        session_id: SessionId,
        /// The exit status.
        exit_code: i32,
    },
    /// Changes are seen from now on.
    FileWatchStarted {
        /// The client's.
        id: String,
    },
    /// Something changed.
    FileEvent {
        /// The client's.
        id: String,
        /// What.
        event: FileEventKind,
        /// Relative to the watched path.
        name: String,
        /// Absolute.
        path: String,
    },
    /// It cannot be done; or, in the midst of a watch or a session, it has come to an end.
    Error {
        /// The client's, if it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
        /// For people.
        message: String,
        /// For programs.
        code: String,
    },
}

/// What happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileEventKind {
    /// It is new.
    Create,
    /// Its content changed.
    Write,
    /// It has another name: told with the old one, and with the new one.
    Rename,
    /// Its permissions or its owner changed.
    Chmod,
    /// It is gone.
    Remove,
    /// Changes were lost, because too many came at once: look at everything again.
    Overflow,
}

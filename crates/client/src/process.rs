//! Commands and processes inside a sandbox, by plain requests. Following one as it runs is in
//! `process_stream`.

use std::time::Duration;

use nullspace_types::process::{
    ExecRequest, ExecResult, ExecStarted, ProcessInfo, ProcessLogs, ProcessStdin,
};
use reqwest::Method;

use crate::error::Result;
use crate::sandbox::path;
use crate::transport::{Call, Client};

/// What the server allows a command that names no time of its own.
const EXEC_TIMEOUT_DEFAULT: f64 = 30.0;
/// Between the end of a command's time and the end of our patience.
const EXEC_MARGIN: Duration = Duration::from_secs(30);
/// A server cuts the output of a process at 256 MiB; a byte takes up to six as JSON.
const EXEC_ANSWER_MAX: usize = 6 * (256 << 20) + (1 << 20);

impl Client {
    /// Runs a command to its end. A status other than 0 is no error.
    ///
    /// # Errors
    /// `exec_failed` when it could not be run, `exec_timeout` when its time ran out; see [`crate::Error`].
    pub async fn exec(&self, id: &str, request: &ExecRequest) -> Result<ExecResult> {
        let seconds = request.timeout_secs.unwrap_or(EXEC_TIMEOUT_DEFAULT);
        // Whether the number is allowed is the server's to say; here it only must not panic.
        let limit =
            Duration::try_from_secs_f64(seconds).unwrap_or_default().min(Duration::from_secs(31_536_000));
        let request = ExecRequest { background: Some(false), ..request.clone() };
        let call = Call::new(Method::POST, path(id, "/exec")?)
            .body(&request)?
            .at_least(limit + EXEC_MARGIN)
            .answer_max(EXEC_ANSWER_MAX);
        self.json(call).await
    }

    /// Starts a command and answers with its PID at once.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn exec_background(&self, id: &str, request: &ExecRequest) -> Result<ExecStarted> {
        let request = ExecRequest { background: Some(true), ..request.clone() };
        self.json(Call::new(Method::POST, path(id, "/exec")?).body(&request)?).await
    }

    /// The processes that were started through the API, ended ones too.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn process_list(&self, id: &str) -> Result<Vec<ProcessInfo>> {
        self.json(Call::new(Method::GET, path(id, "/processes")?)).await
    }

    /// Kills a process and its group.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn process_kill(&self, id: &str, pid: u32) -> Result<()> {
        self.empty(Call::new(Method::POST, path(id, &format!("/processes/{pid}/kill"))?)).await
    }

    /// Writes text to a process's standard input.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn process_stdin(&self, id: &str, pid: u32, data: &str) -> Result<()> {
        let body = ProcessStdin { data: data.to_owned() };
        self.empty(Call::new(Method::POST, path(id, &format!("/processes/{pid}/stdin"))?).body(&body)?).await
    }

    /// All that a process has written so far.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn process_logs(&self, id: &str, pid: u32) -> Result<ProcessLogs> {
        let call = Call::new(Method::GET, path(id, &format!("/processes/{pid}/logs"))?);
        // The output stands there twice: by stream and interleaved.
        self.json(call.answer_max(2 * EXEC_ANSWER_MAX)).await
    }
}

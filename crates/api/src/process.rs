//! Commands and processes inside a sandbox: exec, list, kill, stdin, logs. Following them while they run
//! is the [`socket`](crate::socket)'s.

use async_trait::async_trait;
use axum::response::{IntoResponse, Response};
use futures::stream::BoxStream;
use http::StatusCode;
use nullspace_types::Result;
use nullspace_types::id::SandboxId;
use nullspace_types::key::Principal;
use nullspace_types::process::{
    ExecRequest, ExecResult, ExecStarted, ProcessEvent, ProcessInfo, ProcessLogs, ProcessStdin,
};
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::Failure;
use crate::json_stream::JsonStream;
use crate::middleware::GuestTime;
use crate::openapi::{Conflict, Malformed, Missing, NotRun, Refused, TooLarge};
use crate::request::{Caller, Json, ProcessPath, SandboxPath, Service};
use crate::{Api, ByteStream};

/// How an exec is answered.
pub enum ExecReply {
    /// The command ended, and all of its output is here.
    Finished {
        /// The answer.
        result: ExecResult,
        /// Microseconds that the guest took.
        guest_us: u64,
    },
    /// The command ended, and its output is too much to hold: it is written out as it comes.
    Spilled {
        /// The exit status.
        exit_code: i32,
        /// Its process ID in the sandbox.
        pid: u32,
        /// Microseconds that the guest took.
        guest_us: u64,
        /// Standard output.
        stdout: ByteStream,
        /// Standard error.
        stderr: ByteStream,
    },
    /// The command runs in the background.
    Started(ExecStarted),
}

/// All that a process has written, as bytes; the API layer makes JSON of it while it comes. The streams
/// are read one after the other, in the order of the fields.
pub struct LogsReply {
    /// Standard output.
    pub stdout: ByteStream,
    /// Standard error.
    pub stderr: ByteStream,
    /// Both, in the order in which they came.
    pub output: ByteStream,
    /// The exit status; none while it runs.
    pub exit_code: Option<i32>,
}

/// What happens to a process, as it happens. A reader that is slow holds the process back; one that is
/// dropped does not, and does not end it.
pub type ProcessEvents = BoxStream<'static, Result<ProcessEvent>>;

/// What can be asked about commands and processes.
#[async_trait]
pub trait ProcessApi: Clone + Send + Sync + 'static {
    /// Runs a command to its end, or starts it in the background.
    async fn process_exec(&self, caller: Principal, id: SandboxId, request: ExecRequest)
    -> Result<ExecReply>;

    /// Starts a command and follows it. One that ran out of its time ends with the exit status 124.
    async fn process_stream(
        &self,
        caller: Principal,
        id: SandboxId,
        request: ExecRequest,
    ) -> Result<ProcessEvents>;

    /// Follows a process, from so many bytes of its two streams on.
    async fn process_attach(
        &self,
        caller: Principal,
        id: SandboxId,
        pid: u32,
        stdout_offset: u64,
        stderr_offset: u64,
    ) -> Result<ProcessEvents>;

    /// Every process in the sandbox.
    async fn process_list(&self, caller: Principal, id: SandboxId) -> Result<Vec<ProcessInfo>>;

    /// Kills the process and its group.
    async fn process_kill(&self, caller: Principal, id: SandboxId, pid: u32) -> Result<()>;

    /// Writes to the process's standard input.
    async fn process_stdin(
        &self,
        caller: Principal,
        id: SandboxId,
        pid: u32,
        request: ProcessStdin,
    ) -> Result<()>;

    /// Ends the process's standard input.
    async fn process_stdin_close(&self, caller: Principal, id: SandboxId, pid: u32) -> Result<()>;

    /// All that the process has written so far, from its start.
    async fn process_logs(&self, caller: Principal, id: SandboxId, pid: u32) -> Result<LogsReply>;
}

pub(crate) fn routes<A: Api>() -> OpenApiRouter<A> {
    OpenApiRouter::new()
        .routes(routes!(process_exec))
        .routes(routes!(process_list))
        .routes(routes!(process_kill))
        .routes(routes!(process_stdin))
        .routes(routes!(process_logs))
}

/// What an exec answers: how the command ended, or that it runs in the background.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes the answer; the parts are written out one by one")]
enum ExecAnswer {
    /// In the foreground.
    Finished(ExecResult),
    /// In the background.
    Started(ExecStarted),
}

/// Run a command.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/exec", tag = "process",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    request_body = ExecRequest,
    responses((status = 200, description = "The command ended, whatever its exit code; or it was started",
            body = ExecAnswer,
            headers(("server-timing" = String,
                description = "Milliseconds: `guest` in the machine, `total` in the server, machine included"))),
        Malformed, TooLarge, Refused, Missing, Conflict, NotRun))]
async fn process_exec<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    Json(request): Json<ExecRequest>,
) -> Result<Response, Failure> {
    Ok(api.process_exec(caller, id, request).await?.into_response().await?)
}

impl ExecReply {
    async fn into_response(self) -> Result<Response> {
        let (mut response, guest_us) = match self {
            Self::Started(started) => return Ok(axum::Json(started).into_response()),
            Self::Finished { result, guest_us } => (axum::Json(result).into_response(), guest_us),
            Self::Spilled { exit_code, pid, guest_us, stdout, stderr } => {
                let json = JsonStream::default()
                    .literal(format!("{{\"exit_code\":{exit_code},\"pid\":{pid},\"stdout\":"))
                    .text(stdout)
                    .literal(",\"stderr\":")
                    .text(stderr)
                    .literal("}");
                (json.respond().await?, guest_us)
            }
        };
        response.extensions_mut().insert(GuestTime(guest_us));
        Ok(response)
    }
}

/// List the sandbox's processes.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/processes", tag = "process",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    responses((status = 200, description = "The processes", body = Vec<ProcessInfo>),
        Refused, Missing, Conflict))]
async fn process_list<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
) -> Result<axum::Json<Vec<ProcessInfo>>, Failure> {
    Ok(axum::Json(api.process_list(caller, id).await?))
}

/// Kill a process and its group.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/processes/{pid}/kill", tag = "process",
    params(("sandbox_id" = String, Path, description = "The sandbox"),
        ("pid" = u32, Path, description = "The process")),
    responses((status = 204, description = "It is killed"), Refused, Missing, Conflict))]
async fn process_kill<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    ProcessPath(id, pid): ProcessPath,
) -> Result<StatusCode, Failure> {
    api.process_kill(caller, id, pid).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Write to a process's standard input.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/processes/{pid}/stdin", tag = "process",
    params(("sandbox_id" = String, Path, description = "The sandbox"),
        ("pid" = u32, Path, description = "The process")),
    request_body = ProcessStdin,
    responses((status = 204, description = "It is written"), Malformed, TooLarge, Refused, Missing, Conflict))]
async fn process_stdin<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    ProcessPath(id, pid): ProcessPath,
    Json(request): Json<ProcessStdin>,
) -> Result<StatusCode, Failure> {
    api.process_stdin(caller, id, pid, request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// All that a process has written so far, and its exit code once it has ended.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/processes/{pid}/logs", tag = "process",
    params(("sandbox_id" = String, Path, description = "The sandbox"),
        ("pid" = u32, Path, description = "The process")),
    responses((status = 200, description = "Its output from the start", body = ProcessLogs),
        Refused, Missing, Conflict))]
async fn process_logs<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    ProcessPath(id, pid): ProcessPath,
) -> Result<Response, Failure> {
    Ok(api.process_logs(caller, id, pid).await?.into_response().await?)
}

impl LogsReply {
    async fn into_response(self) -> Result<Response> {
        let exit_code = self.exit_code.map_or_else(|| "null".to_owned(), |code| code.to_string());
        JsonStream::default()
            .literal("{\"stdout\":")
            .text(self.stdout)
            .literal(",\"stderr\":")
            .text(self.stderr)
            .literal(",\"output\":")
            .text(self.output)
            .literal(format!(",\"exit_code\":{exit_code}}}"))
            .respond()
            .await
    }
}

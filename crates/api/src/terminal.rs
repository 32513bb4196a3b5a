//! Terminal sessions inside a sandbox: list, get, resize, kill. Starting and watching one is the
//! [`socket`](crate::socket)'s. The wire calls them `pty`.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use http::StatusCode;
use nullspace_types::Result;
use nullspace_types::id::{SandboxId, SessionId};
use nullspace_types::key::Principal;
use nullspace_types::sandbox::Envs;
use nullspace_types::terminal::{TerminalEvent, TerminalInfo, TerminalResize};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Api;
use crate::error::Failure;
use crate::openapi::{Conflict, Malformed, Missing, Refused, TooLarge};
use crate::request::{Caller, Json, SandboxPath, Service, SessionPath};

/// A session to start; what is absent has a default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TerminalStart {
    /// Columns.
    pub cols: Option<u32>,
    /// Rows.
    pub rows: Option<u32>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Over the sandbox's environment.
    pub envs: Option<Envs>,
    /// Whose.
    pub user: Option<String>,
}

/// Which session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TerminalTarget {
    /// By its ID.
    Session(SessionId),
    /// By the process ID of its program.
    Process(u32),
}

/// What a viewer of a session sees. A viewer that is dropped ends nothing.
pub type TerminalEvents = BoxStream<'static, Result<TerminalEvent>>;

/// What can be asked about terminal sessions.
#[async_trait]
pub trait TerminalApi: Clone + Send + Sync + 'static {
    /// Starts a session and watches it.
    async fn terminal_start(
        &self,
        caller: Principal,
        id: SandboxId,
        start: TerminalStart,
    ) -> Result<TerminalEvents>;

    /// Watches a session.
    async fn terminal_attach(
        &self,
        caller: Principal,
        id: SandboxId,
        target: TerminalTarget,
    ) -> Result<TerminalEvents>;

    /// Types into a session.
    async fn terminal_write(
        &self,
        caller: Principal,
        id: SandboxId,
        session: SessionId,
        data: Bytes,
    ) -> Result<()>;

    /// Sets a session's size.
    async fn terminal_resize(
        &self,
        caller: Principal,
        id: SandboxId,
        session: SessionId,
        size: TerminalResize,
    ) -> Result<()>;

    /// Ends a session and all its processes.
    async fn terminal_kill(&self, caller: Principal, id: SandboxId, session: SessionId) -> Result<()>;

    /// The sessions that run.
    async fn terminal_list(&self, caller: Principal, id: SandboxId) -> Result<Vec<TerminalInfo>>;

    /// A session that runs.
    async fn terminal_get(
        &self,
        caller: Principal,
        id: SandboxId,
        session: SessionId,
    ) -> Result<TerminalInfo>;
}

pub(crate) fn routes<A: Api>() -> OpenApiRouter<A> {
    OpenApiRouter::new()
        .routes(routes!(terminal_list))
        .routes(routes!(terminal_get, terminal_kill))
        .routes(routes!(terminal_resize))
}

/// List the sandbox's terminal sessions.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/pty", tag = "terminal",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    responses((status = 200, description = "Those that run", body = Vec<TerminalInfo>),
        Refused, Missing, Conflict))]
async fn terminal_list<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
) -> Result<axum::Json<Vec<TerminalInfo>>, Failure> {
    Ok(axum::Json(api.terminal_list(caller, id).await?))
}

/// Get a terminal session.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/pty/{session_id}", tag = "terminal",
    params(("sandbox_id" = String, Path, description = "The sandbox"),
        ("session_id" = String, Path, description = "The session")),
    responses((status = 200, description = "The session", body = TerminalInfo), Refused, Missing, Conflict))]
async fn terminal_get<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SessionPath(id, session): SessionPath,
) -> Result<axum::Json<TerminalInfo>, Failure> {
    Ok(axum::Json(api.terminal_get(caller, id, session).await?))
}

/// End a terminal session and all its processes.
#[utoipa::path(delete, path = "/v1/sandboxes/{sandbox_id}/pty/{session_id}", tag = "terminal",
    params(("sandbox_id" = String, Path, description = "The sandbox"),
        ("session_id" = String, Path, description = "The session")),
    responses((status = 204, description = "It is ended"), Refused, Missing, Conflict))]
async fn terminal_kill<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SessionPath(id, session): SessionPath,
) -> Result<StatusCode, Failure> {
    api.terminal_kill(caller, id, session).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Set a terminal session's size.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/pty/{session_id}/resize", tag = "terminal",
    params(("sandbox_id" = String, Path, description = "The sandbox"),
        ("session_id" = String, Path, description = "The session")),
    request_body = TerminalResize,
    responses((status = 204, description = "It is set"), Malformed, TooLarge, Refused, Missing, Conflict))]
async fn terminal_resize<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SessionPath(id, session): SessionPath,
    Json(size): Json<TerminalResize>,
) -> Result<StatusCode, Failure> {
    api.terminal_resize(caller, id, session, size).await?;
    Ok(StatusCode::NO_CONTENT)
}

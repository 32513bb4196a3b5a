//! What the relay asks of the rest: whether somebody may come in, and what can be done inside.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use nullspace_node_api::{Listening, PipedProcess, Stream};
use nullspace_types::Result;
use nullspace_types::id::{SandboxId, SessionId, SshAccessId};
use nullspace_types::key::Principal;
use nullspace_types::sandbox::Envs;
use nullspace_types::terminal::TerminalEvent;
use tokio_util::sync::CancellationToken;

/// What a certificate of ours says, its signature and its time having been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Which certificate.
    pub access_id: SshAccessId,
    /// For which sandbox.
    pub sandbox_id: SandboxId,
    /// On whose behalf, and by which key, which must still be good.
    pub principal: Principal,
    /// Whom to be inside: the principal that the client logs in as.
    pub user: String,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// The user's login shell, reading from a pipe.
    Shell,
    /// A line for that shell.
    Line(String),
    /// The file transfer server.
    Sftp,
}

/// A program with a terminal.
pub struct Terminal {
    /// Its session.
    pub session_id: SessionId,
    /// What it writes, and its end.
    pub events: BoxStream<'static, Result<TerminalEvent>>,
}

/// The rest of the server, as the relay sees it. All but the first is about the sandbox and user of claims
/// that were let in; each wakes the sandbox if it has to.
#[async_trait]
pub trait Machines: Clone + Send + Sync + 'static {
    /// Lets somebody in and wakes the sandbox, or says why not. What this answers is cancelled when the
    /// sandbox is gone or paused: the connection then ends.
    async fn enter(&self, claims: &Claims) -> Result<CancellationToken>;

    /// Runs a program without a terminal.
    async fn process(&self, claims: &Claims, program: Program, envs: Envs) -> Result<PipedProcess>;

    /// Sends a signal to such a program and all that it started.
    async fn signal(&self, claims: &Claims, pid: u32, signal: i32) -> Result<()>;

    /// Runs a line, or the login shell, with a terminal of this size.
    async fn terminal(
        &self,
        claims: &Claims,
        line: Option<String>,
        envs: Envs,
        cols: u32,
        rows: u32,
    ) -> Result<Terminal>;

    /// Types into a terminal.
    async fn terminal_write(&self, claims: &Claims, session: SessionId, data: Bytes) -> Result<()>;

    /// Sets a terminal's size.
    async fn terminal_resize(&self, claims: &Claims, session: SessionId, cols: u32, rows: u32) -> Result<()>;

    /// Ends a terminal with all that runs in it.
    async fn terminal_end(&self, claims: &Claims, session: SessionId) -> Result<()>;

    /// Connects to what a program inside would reach at this name and port.
    async fn connect(&self, claims: &Claims, host: String, port: u16) -> Result<Stream>;

    /// Connects to a Unix socket inside.
    async fn connect_socket(&self, claims: &Claims, path: String) -> Result<Stream>;

    /// Listens on a port inside; any, if it is 0.
    async fn listen(&self, claims: &Claims, host: String, port: u16) -> Result<Listening>;
}

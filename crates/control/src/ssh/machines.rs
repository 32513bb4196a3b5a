//! What the relay asks. A connection is let in once, by the key that its certificate was asked for with; what
//! comes after that is about the same sandbox, and wakes it if it has to.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use nullspace_domain::envs;
use nullspace_domain::lifecycle::{Rejected, State};
use nullspace_edge_api::{Claims, Listening, Machines, PipedProcess, Program, Stream, Terminal};
use nullspace_node_api::{Command, Door, Piped, TerminalSpec};
use nullspace_types::Result;
use nullspace_types::id::{SandboxId, SessionId};
use nullspace_types::sandbox::Envs;
use nullspace_types::terminal::{COLS_DEFAULT, ROWS_DEFAULT, SIDE_MAX};
use tokio_util::sync::CancellationToken;

use crate::Control;
use crate::access::{answered, awake, refusal, taken_over};

/// How long a connection inside may take to come about.
const PATIENCE: Duration = Duration::from_secs(10);

/// Clients without a terminal of their own ask for one of no size.
fn side(asked: u32, default: u32) -> u32 {
    if asked == 0 { default } else { asked.min(SIDE_MAX) }
}

impl Control {
    /// What ends or sizes something inside is for what runs: nothing is woken for it.
    fn running(&self, claims: &Claims) -> Result<SandboxId> {
        let entry = self.living(claims.principal.tenant_id, claims.sandbox_id)?;
        let record = entry.view.borrow().record.clone();
        match record.state {
            State::Running { .. } => Ok(claims.sandbox_id),
            _ => Err(refusal(&record, Rejected::NotRunning)),
        }
    }

    async fn inside(&self, claims: &Claims) -> Result<SandboxId> {
        awake(&self.shared, claims.principal.tenant_id, claims.sandbox_id).await?;
        Ok(claims.sandbox_id)
    }

    fn judged(&self, envs: Envs) -> Result<Envs> {
        envs::check("env", &envs, self.shared.limits.envs_bytes_max)?;
        Ok(envs)
    }
}

#[async_trait]
impl Machines for Control {
    async fn enter(&self, claims: &Claims) -> Result<CancellationToken> {
        self.shared.access.authenticator.still_good(claims.principal).await?;
        let id = self.inside(claims).await?;
        let entry = self.living(claims.principal.tenant_id, id)?;
        taken_over(&entry).await?;
        let view = entry.view.borrow();
        Ok(view.life.running.clone())
    }

    async fn process(&self, claims: &Claims, program: Program, envs: Envs) -> Result<PipedProcess> {
        let envs = self.judged(envs)?;
        let user = Some(claims.user.clone());
        let shell =
            |command| Command { command, shell: true, envs, user: user.clone(), ..Command::default() };
        let program = match program {
            Program::Shell => Piped::Command(shell(String::new())),
            Program::Line(line) => Piped::Command(shell(line)),
            Program::Sftp => Piped::Sftp(user),
        };
        let id = self.inside(claims).await?;
        answered(id, self.shared.node.process_pipe(id, program).await)
    }

    async fn signal(&self, claims: &Claims, pid: u32, signal: i32) -> Result<()> {
        let id = self.running(claims)?;
        answered(id, self.shared.node.process_signal(id, pid, signal).await)
    }

    async fn terminal(
        &self,
        claims: &Claims,
        line: Option<String>,
        envs: Envs,
        cols: u32,
        rows: u32,
    ) -> Result<Terminal> {
        let session_id = SessionId::new();
        let spec = TerminalSpec {
            session_id,
            cols: side(cols, COLS_DEFAULT),
            rows: side(rows, ROWS_DEFAULT),
            cwd: None,
            envs: self.judged(envs)?,
            user: Some(claims.user.clone()),
            command: line,
        };
        let id = self.inside(claims).await?;
        let events = self.terminal_begin(id, spec).await?;
        Ok(Terminal { session_id, events: events.boxed() })
    }

    async fn terminal_write(&self, claims: &Claims, session: SessionId, data: Bytes) -> Result<()> {
        self.terminal_write(claims.principal.tenant_id, claims.sandbox_id, session, data).await
    }

    async fn terminal_resize(&self, claims: &Claims, session: SessionId, cols: u32, rows: u32) -> Result<()> {
        let id = self.running(claims)?;
        let (cols, rows) = (side(cols, COLS_DEFAULT), side(rows, ROWS_DEFAULT));
        answered(id, self.shared.node.terminal_resize(id, session, cols, rows).await)
    }

    async fn terminal_end(&self, claims: &Claims, session: SessionId) -> Result<()> {
        let id = self.running(claims)?;
        answered(id, self.shared.node.terminal_kill(id, session).await)
    }

    async fn connect(&self, claims: &Claims, host: String, port: u16) -> Result<Stream> {
        let id = self.inside(claims).await?;
        answered(id, self.shared.node.connect(id, Door::Inside { host, port }, PATIENCE).await)
    }

    async fn connect_socket(&self, claims: &Claims, path: String) -> Result<Stream> {
        let id = self.inside(claims).await?;
        answered(id, self.shared.node.connect(id, Door::Socket(path), PATIENCE).await)
    }

    async fn listen(&self, claims: &Claims, host: String, port: u16) -> Result<Listening> {
        let id = self.inside(claims).await?;
        answered(id, self.shared.node.listen(id, host, port).await)
    }
}

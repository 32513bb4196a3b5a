//! What can be done with terminal sessions. They are the machine's; here it is judged whether it may be
//! asked.

use bytes::Bytes;
use futures::StreamExt as _;
use nullspace_domain::terminal::{self, TerminalRequest};
use nullspace_node_api::{TerminalEvents, TerminalSpec};
use nullspace_types::id::{SandboxId, SessionId, TenantId};
use nullspace_types::terminal::{TerminalInfo, TerminalResize};
use nullspace_types::{Code, Error, Result};

use crate::Control;
use crate::access::{answered, awake, usable};

fn missing(what: impl std::fmt::Display) -> Error {
    Error::new(Code::TerminalNotFound, format!("there is no terminal session {what}"))
        .suggest("list the sandbox's sessions")
}

impl Control {
    /// Starts a session and watches it.
    pub async fn terminal_start(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        request: TerminalRequest,
    ) -> Result<TerminalEvents> {
        let sandbox = usable(&self.shared, tenant_id, id)?;
        let spec = terminal::validate(request, &self.shared.limits)?;
        sandbox.awake().await?;
        let spec = TerminalSpec {
            session_id: SessionId::new(),
            cols: spec.cols,
            rows: spec.rows,
            cwd: spec.cwd,
            envs: spec.envs,
            user: spec.user,
            command: None,
        };
        self.terminal_begin(id, spec).await
    }

    /// Starts a session that is known to be valid, in a sandbox that runs, and watches it.
    pub(crate) async fn terminal_begin(&self, id: SandboxId, spec: TerminalSpec) -> Result<TerminalEvents> {
        let session = spec.session_id;
        answered(id, self.shared.node.terminal_start(id, spec).await)?;
        let watched = self.watch(id, session).await;
        if watched.is_err() {
            // Nobody knows of it, so nobody would ever end it.
            if let Err(error) = self.shared.node.terminal_kill(id, session).await {
                tracing::warn!(sandbox = %id, %session, %error, "a terminal session is left that nobody watches");
            }
        }
        watched
    }

    async fn watch(&self, id: SandboxId, session: SessionId) -> Result<TerminalEvents> {
        let events = answered(id, self.shared.node.terminal_attach(id, session).await)?;
        Ok(events.map(move |event| answered(id, event)).boxed())
    }

    /// Watches a session.
    pub async fn terminal_attach(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        session: SessionId,
    ) -> Result<TerminalEvents> {
        awake(&self.shared, tenant_id, id).await?;
        self.watch(id, session).await
    }

    /// Watches the session whose program has this process ID.
    pub async fn terminal_attach_process(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        pid: u32,
    ) -> Result<TerminalEvents> {
        let sessions = self.terminal_list(tenant_id, id).await?;
        let found = sessions.into_iter().find(|session| session.pid == pid);
        let session = found.ok_or_else(|| missing(format_args!("whose program is process {pid}")))?;
        self.watch(id, session.session_id).await
    }

    /// Types into a session.
    pub async fn terminal_write(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        session: SessionId,
        data: Bytes,
    ) -> Result<()> {
        let sandbox = usable(&self.shared, tenant_id, id)?;
        terminal::input(&data)?;
        sandbox.awake().await?;
        answered(id, self.shared.node.terminal_write(id, session, data).await)
    }

    /// Sets a session's size.
    pub async fn terminal_resize(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        session: SessionId,
        size: TerminalResize,
    ) -> Result<()> {
        let sandbox = usable(&self.shared, tenant_id, id)?;
        terminal::size(size.cols, size.rows)?;
        sandbox.awake().await?;
        answered(id, self.shared.node.terminal_resize(id, session, size.cols, size.rows).await)
    }

    /// Ends a session.
    pub async fn terminal_kill(&self, tenant_id: TenantId, id: SandboxId, session: SessionId) -> Result<()> {
        awake(&self.shared, tenant_id, id).await?;
        answered(id, self.shared.node.terminal_kill(id, session).await)
    }

    /// The sessions that run.
    pub async fn terminal_list(&self, tenant_id: TenantId, id: SandboxId) -> Result<Vec<TerminalInfo>> {
        awake(&self.shared, tenant_id, id).await?;
        answered(id, self.shared.node.terminal_list(id).await)
    }

    /// A session that runs.
    pub async fn terminal_get(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        session: SessionId,
    ) -> Result<TerminalInfo> {
        let sessions = self.terminal_list(tenant_id, id).await?;
        let found = sessions.into_iter().find(|info| info.session_id == session);
        found.ok_or_else(|| missing(session))
    }
}

use async_trait::async_trait;
use bytes::Bytes;
use nullspace_api::TerminalApi;
use nullspace_api::terminal::{TerminalEvents, TerminalStart, TerminalTarget};
use nullspace_domain::terminal::TerminalRequest;
use nullspace_types::Result;
use nullspace_types::id::{SandboxId, SessionId};
use nullspace_types::key::Principal;
use nullspace_types::terminal::{TerminalInfo, TerminalResize};

use super::App;

#[async_trait]
impl TerminalApi for App {
    async fn terminal_start(
        &self,
        caller: Principal,
        id: SandboxId,
        start: TerminalStart,
    ) -> Result<TerminalEvents> {
        let TerminalStart { cols, rows, cwd, envs, user } = start;
        let request = TerminalRequest { cols, rows, cwd, envs, user };
        self.control()?.terminal_start(caller.tenant_id, id, request).await
    }

    async fn terminal_attach(
        &self,
        caller: Principal,
        id: SandboxId,
        target: TerminalTarget,
    ) -> Result<TerminalEvents> {
        let control = self.control()?;
        match target {
            TerminalTarget::Session(session) => control.terminal_attach(caller.tenant_id, id, session).await,
            TerminalTarget::Process(pid) => control.terminal_attach_process(caller.tenant_id, id, pid).await,
        }
    }

    async fn terminal_write(
        &self,
        caller: Principal,
        id: SandboxId,
        session: SessionId,
        data: Bytes,
    ) -> Result<()> {
        self.control()?.terminal_write(caller.tenant_id, id, session, data).await
    }

    async fn terminal_resize(
        &self,
        caller: Principal,
        id: SandboxId,
        session: SessionId,
        size: TerminalResize,
    ) -> Result<()> {
        self.control()?.terminal_resize(caller.tenant_id, id, session, size).await
    }

    async fn terminal_kill(&self, caller: Principal, id: SandboxId, session: SessionId) -> Result<()> {
        self.control()?.terminal_kill(caller.tenant_id, id, session).await
    }

    async fn terminal_list(&self, caller: Principal, id: SandboxId) -> Result<Vec<TerminalInfo>> {
        self.control()?.terminal_list(caller.tenant_id, id).await
    }

    async fn terminal_get(
        &self,
        caller: Principal,
        id: SandboxId,
        session: SessionId,
    ) -> Result<TerminalInfo> {
        self.control()?.terminal_get(caller.tenant_id, id, session).await
    }
}

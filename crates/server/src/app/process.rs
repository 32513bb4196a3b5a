use async_trait::async_trait;
use nullspace_api::ProcessApi;
use nullspace_api::process::{ExecReply, LogsReply, ProcessEvents};
use nullspace_control::{Execution, Logs};
use nullspace_types::Result;
use nullspace_types::id::SandboxId;
use nullspace_types::key::Principal;
use nullspace_types::process::{ExecRequest, ProcessInfo, ProcessStdin};

use super::App;

fn reply(execution: Execution) -> ExecReply {
    match execution {
        Execution::Finished { result, guest_us } => ExecReply::Finished { result, guest_us },
        Execution::Spilled { exit_code, pid, guest_us, stdout, stderr } => {
            ExecReply::Spilled { exit_code, pid, guest_us, stdout, stderr }
        }
        Execution::Started(started) => ExecReply::Started(started),
    }
}

#[async_trait]
impl ProcessApi for App {
    async fn process_exec(
        &self,
        caller: Principal,
        id: SandboxId,
        request: ExecRequest,
    ) -> Result<ExecReply> {
        self.control()?.process_exec(caller.tenant_id, id, request).await.map(reply)
    }

    async fn process_stream(
        &self,
        caller: Principal,
        id: SandboxId,
        request: ExecRequest,
    ) -> Result<ProcessEvents> {
        self.control()?.process_stream(caller.tenant_id, id, request).await
    }

    async fn process_attach(
        &self,
        caller: Principal,
        id: SandboxId,
        pid: u32,
        stdout_offset: u64,
        stderr_offset: u64,
    ) -> Result<ProcessEvents> {
        self.control()?.process_attach(caller.tenant_id, id, pid, stdout_offset, stderr_offset).await
    }

    async fn process_list(&self, caller: Principal, id: SandboxId) -> Result<Vec<ProcessInfo>> {
        self.control()?.process_list(caller.tenant_id, id).await
    }

    async fn process_kill(&self, caller: Principal, id: SandboxId, pid: u32) -> Result<()> {
        self.control()?.process_kill(caller.tenant_id, id, pid).await
    }

    async fn process_stdin(
        &self,
        caller: Principal,
        id: SandboxId,
        pid: u32,
        request: ProcessStdin,
    ) -> Result<()> {
        self.control()?.process_stdin(caller.tenant_id, id, pid, request).await
    }

    async fn process_stdin_close(&self, caller: Principal, id: SandboxId, pid: u32) -> Result<()> {
        self.control()?.process_stdin_close(caller.tenant_id, id, pid).await
    }

    async fn process_logs(&self, caller: Principal, id: SandboxId, pid: u32) -> Result<LogsReply> {
        let Logs { stdout, stderr, output, exit_code } =
            self.control()?.process_logs(caller.tenant_id, id, pid).await?;
        Ok(LogsReply { stdout, stderr, output, exit_code })
    }
}

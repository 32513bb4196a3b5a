//! What can be done with commands and processes. All of it is the node's work; here it is judged whether it
//! may be asked.

use bytes::Bytes;
use futures::StreamExt as _;
use nullspace_domain::process::{self, CommandSpec};
use nullspace_node_api::{ByteStream, Captured, Command, LogStream, ProcessEvents, ProcessState};
use nullspace_types::id::{SandboxId, TenantId};
use nullspace_types::process::{
    ExecRequest, ExecResult, ExecStarted, ProcessEvent, ProcessInfo, ProcessStdin,
};
use nullspace_types::{Code, Error, Result};

use crate::Control;
use crate::access::{answered, awake, usable};

/// The exit status of a command whose time ran out, as `timeout(1)` has it.
const TIMED_OUT: i32 = 124;

/// How an exec ended.
pub enum Execution {
    /// It ended, and all of its output is here.
    Finished {
        /// The answer.
        result: ExecResult,
        /// Microseconds that the guest took.
        guest_us: u64,
    },
    /// It ended, and its output is read while it is sent on.
    Spilled {
        /// The exit status.
        exit_code: i32,
        /// Its process ID.
        pid: u32,
        /// Microseconds that the guest took.
        guest_us: u64,
        /// Standard output.
        stdout: ByteStream,
        /// Standard error.
        stderr: ByteStream,
    },
    /// It runs in the background.
    Started(ExecStarted),
}

/// All that a process has written.
pub struct Logs {
    /// Standard output.
    pub stdout: ByteStream,
    /// Standard error.
    pub stderr: ByteStream,
    /// Both, in the order in which they came.
    pub output: ByteStream,
    /// The exit status; none while it runs.
    pub exit_code: Option<i32>,
}

/// Bytes as text; what is not UTF-8 is replaced.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

fn timed_out(limit_ms: u64) -> Error {
    let secs = limit_ms as f64 / 1000.0;
    Error::new(
        Code::ExecTimeout,
        format!("the command did not end within timeout_secs ({secs}) and its process group was killed"),
    )
    .suggest("set a longer timeout_secs, or run it with background: true")
}

/// A valid command as the node takes it.
fn command(spec: CommandSpec) -> Command {
    Command {
        command: spec.command,
        args: spec.args,
        shell: spec.shell,
        cwd: spec.cwd,
        envs: spec.envs,
        user: spec.user,
        timeout_ms: spec.timeout_ms,
    }
}

/// What followers are told.
fn followed(id: SandboxId, events: ProcessEvents) -> ProcessEvents {
    let shown = move |event| {
        answered(id, event).map(|event| match event {
            ProcessEvent::Exited { timed_out: true, guest_us, .. } => {
                ProcessEvent::Exited { exit_code: TIMED_OUT, timed_out: true, guest_us }
            }
            event => event,
        })
    };
    events.map(shown).boxed()
}

impl Control {
    /// Runs a command to its end, or starts it in the background.
    pub async fn process_exec(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        request: ExecRequest,
    ) -> Result<Execution> {
        let node = &self.shared.node;
        let sandbox = usable(&self.shared, tenant_id, id)?;
        let spec = process::validate(request, &self.shared.limits)?;
        sandbox.awake().await?;
        let limit_ms = spec.timeout_ms;
        let command = command(spec);
        let Some(limit_ms) = limit_ms else {
            let pid = answered(id, node.process_start(id, command).await)?;
            return Ok(Execution::Started(ExecStarted { pid }));
        };
        let finished = answered(id, node.process_run(id, command).await)?;
        if finished.timed_out {
            return Err(timed_out(limit_ms));
        }
        let (exit_code, pid, guest_us) = (finished.exit_code, finished.pid, finished.guest_us);
        match finished.output {
            Captured::Inline { stdout, stderr } => Ok(Execution::Finished {
                result: ExecResult { exit_code, stdout: text(stdout), stderr: text(stderr), pid },
                guest_us,
            }),
            Captured::Log => Ok(Execution::Spilled {
                exit_code,
                pid,
                guest_us,
                stdout: answered(id, node.process_log(id, pid, LogStream::Stdout).await)?,
                stderr: answered(id, node.process_log(id, pid, LogStream::Stderr).await)?,
            }),
        }
    }

    /// Starts a command and follows it. One that ran out of its time ends with 124.
    pub async fn process_stream(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        request: ExecRequest,
    ) -> Result<ProcessEvents> {
        let sandbox = usable(&self.shared, tenant_id, id)?;
        let command = command(process::validate(request, &self.shared.limits)?);
        sandbox.awake().await?;
        let events = answered(id, self.shared.node.process_stream(id, command).await)?;
        Ok(followed(id, events))
    }

    /// Follows a process from the given offsets of its two streams.
    pub async fn process_attach(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        pid: u32,
        stdout_offset: u64,
        stderr_offset: u64,
    ) -> Result<ProcessEvents> {
        awake(&self.shared, tenant_id, id).await?;
        let node = &self.shared.node;
        let events = answered(id, node.process_attach(id, pid, stdout_offset, stderr_offset).await)?;
        Ok(followed(id, events))
    }

    async fn processes(&self, tenant_id: TenantId, id: SandboxId) -> Result<Vec<ProcessState>> {
        awake(&self.shared, tenant_id, id).await?;
        answered(id, self.shared.node.process_list(id).await)
    }

    /// Every process in the sandbox.
    pub async fn process_list(&self, tenant_id: TenantId, id: SandboxId) -> Result<Vec<ProcessInfo>> {
        Ok(self.processes(tenant_id, id).await?.into_iter().map(|state| state.info).collect())
    }

    /// Kills the process and its group.
    pub async fn process_kill(&self, tenant_id: TenantId, id: SandboxId, pid: u32) -> Result<()> {
        awake(&self.shared, tenant_id, id).await?;
        answered(id, self.shared.node.process_kill(id, pid).await)
    }

    /// Writes to the process's standard input.
    pub async fn process_stdin(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        pid: u32,
        request: ProcessStdin,
    ) -> Result<()> {
        awake(&self.shared, tenant_id, id).await?;
        answered(id, self.shared.node.process_stdin(id, pid, Bytes::from(request.data), false).await)
    }

    /// Ends the process's standard input.
    pub async fn process_stdin_close(&self, tenant_id: TenantId, id: SandboxId, pid: u32) -> Result<()> {
        awake(&self.shared, tenant_id, id).await?;
        answered(id, self.shared.node.process_stdin(id, pid, Bytes::new(), true).await)
    }

    /// All that the process has written so far, from its start.
    pub async fn process_logs(&self, tenant_id: TenantId, id: SandboxId, pid: u32) -> Result<Logs> {
        let node = &self.shared.node;
        // The status first: when it says that the process has ended, the logs below are whole.
        let states = self.processes(tenant_id, id).await?;
        let state = states.into_iter().find(|state| state.info.pid == pid);
        let log = |stream| async move { answered(id, node.process_log(id, pid, stream).await) };
        Ok(Logs {
            stdout: log(LogStream::Stdout).await?,
            stderr: log(LogStream::Stderr).await?,
            output: log(LogStream::Interleaved).await?,
            exit_code: state.and_then(|state| state.exit_code),
        })
    }
}

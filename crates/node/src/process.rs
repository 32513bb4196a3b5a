//! Commands and processes of a machine, as calls on its agent.

use bytes::Bytes;
use futures::StreamExt;
use nullspace_guest_proto as proto;
use nullspace_guest_proto::run_event::Event;
use nullspace_node_api::{ByteStream, Captured, Command, Finished, LogStream, ProcessState};
use nullspace_types::process::ProcessInfo;
use nullspace_types::{Code, Error, Result};
use tonic::{Status, Streaming};

use crate::guest::{PATIENCE, answered, process_error};
use crate::running::Running;

/// Output of a foreground command that is held here; more of it is read from its log.
const INLINE_LIMIT: u64 = 1 << 20;
/// A command that ends by then is answered in one packet.
const HOLD_MS: u64 = 50;
/// How often a broken link is tried again before a command's end is given up.
const ATTACH_TRIES: u32 = 3;

fn request(command: Command, background: bool) -> proto::RunRequest {
    proto::RunRequest {
        command: command.command,
        args: command.args,
        shell: command.shell,
        cwd: command.cwd.unwrap_or_default(),
        envs: command.envs.into_iter().collect(),
        user: command.user.unwrap_or_default(),
        timeout_ms: command.timeout_ms.unwrap_or(0),
        background,
        inline_limit: INLINE_LIMIT,
        hold_ms: HOLD_MS,
    }
}

/// Runs a command to its end, however often the link breaks in between.
pub async fn run(machine: &Running, command: Command) -> Result<Finished> {
    let patience = command.timeout_ms.map(|ms| std::time::Duration::from_millis(ms) + PATIENCE);
    let ended = follow(machine, request(command, false));
    let ended = async {
        match patience {
            Some(patience) => tokio::time::timeout(patience, ended).await.unwrap_or_else(|_| {
                Err(Error::new(Code::ExecFailed, "the sandbox does not answer")
                    .suggest("try again; if it stays so, destroy the sandbox and create another"))
            }),
            None => ended.await,
        }
    };
    tokio::select! {
        finished = ended => finished,
        () = machine.gone() => Err(Running::lost()),
    }
}

/// What has been heard of a command so far.
#[derive(Default)]
struct Heard {
    pid: Option<u32>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    cut: bool,
}

async fn follow(machine: &Running, request: proto::RunRequest) -> Result<Finished> {
    let mut client = machine.client()?;
    let mut heard = Heard::default();
    let events = client.run(request).await.map_err(|status| process_error(&status))?;
    let mut outcome = listen(events.into_inner(), &mut heard).await;
    for _ in 0..ATTACH_TRIES {
        let (Err(Broken::Link(status)), Some(pid)) = (&outcome, heard.pid) else { break };
        tracing::debug!(pid, %status, "a command is followed again after its link broke");
        let attach = proto::AttachRequest {
            pid,
            stdout_offset: heard.stdout.len() as u64,
            stderr_offset: heard.stderr.len() as u64,
        };
        outcome = match client.attach(attach).await {
            Ok(events) => listen(events.into_inner(), &mut heard).await,
            Err(status) => Err(Broken::Link(status)),
        };
    }
    match outcome {
        Ok(exited) => Ok(Finished {
            pid: heard.pid.unwrap_or(0),
            exit_code: exited.exit_code,
            timed_out: exited.timed_out,
            guest_us: exited.duration_us,
            output: if heard.cut {
                Captured::Log
            } else {
                Captured::Inline { stdout: heard.stdout, stderr: heard.stderr }
            },
        }),
        Err(Broken::Command(error)) => Err(error),
        Err(Broken::Link(status)) => Err(process_error(&status)),
    }
}

enum Broken {
    Command(Error),
    Link(Status),
}

async fn listen(mut events: Streaming<proto::RunEvent>, heard: &mut Heard) -> Result<proto::Exited, Broken> {
    while let Some(event) = events.message().await.map_err(Broken::Link)? {
        match event.event {
            Some(Event::Started(started)) => heard.pid = Some(started.pid),
            // An attached stream has no bound of its own: what is too much here is left to the log.
            Some(Event::Output(_)) if heard.cut => {}
            Some(Event::Output(output)) => {
                let into = if output.stream() == proto::Stream::Stderr {
                    &mut heard.stderr
                } else {
                    &mut heard.stdout
                };
                into.extend_from_slice(&output.data);
                heard.cut = (heard.stdout.len() + heard.stderr.len()) as u64 > INLINE_LIMIT;
            }
            Some(Event::OutputCut(_)) => heard.cut = true,
            Some(Event::Exited(exited)) => return Ok(exited),
            Some(Event::Failed(failed)) => return Err(Broken::Command(not_started(&failed))),
            None => {}
        }
    }
    Err(Broken::Link(Status::unavailable("the stream ended before the command")))
}

fn not_started(failed: &proto::Failed) -> Error {
    use proto::failed::Reason;
    match failed.reason() {
        Reason::BadCwd | Reason::BadUser => Error::invalid(failed.message.clone()),
        _ => Error::new(Code::ExecFailed, failed.message.clone()),
    }
}

/// Starts a command and answers its PID.
pub async fn start(machine: &Running, command: Command) -> Result<u32> {
    let mut client = machine.client()?;
    let started = async {
        let mut events = client.run(request(command, true)).await?.into_inner();
        events.message().await
    };
    let first = match tokio::time::timeout(PATIENCE, started).await {
        Ok(first) => first.map_err(|status| process_error(&status))?,
        Err(_) => return Err(process_error(&Status::deadline_exceeded("the guest does not answer"))),
    };
    match first.and_then(|event| event.event) {
        Some(Event::Started(started)) => Ok(started.pid),
        Some(Event::Failed(failed)) => Err(not_started(&failed)),
        _ => Err(process_error(&Status::internal("the agent did not say whether the command started"))),
    }
}

/// Every process of the machine.
pub async fn list(machine: &Running) -> Result<Vec<ProcessState>> {
    let mut client = machine.client()?;
    let reply = answered(client.list_processes(proto::ListProcessesRequest {})).await;
    let reply = reply.map_err(|status| process_error(&status))?;
    let state = |process: proto::Process| ProcessState {
        exit_code: process.has_exit_code.then_some(process.exit_code),
        info: ProcessInfo { pid: process.pid, command: process.command, running: process.running },
    };
    Ok(reply.processes.into_iter().map(state).collect())
}

/// Kills a process group.
pub async fn kill(machine: &Running, pid: u32) -> Result<()> {
    let mut client = machine.client()?;
    let reply = answered(client.kill_process(proto::KillProcessRequest { pid })).await;
    reply.map(drop).map_err(|status| process_error(&status))
}

/// Writes to a process's standard input.
pub async fn stdin(machine: &Running, pid: u32, data: Bytes) -> Result<()> {
    let mut client = machine.client()?;
    for start in (0..data.len()).step_by(proto::CHUNK_BYTES) {
        let piece = data.slice(start..data.len().min(start + proto::CHUNK_BYTES));
        let write = proto::WriteStdinRequest { pid, data: piece, close: false };
        answered(client.write_stdin(write)).await.map_err(|status| process_error(&status))?;
    }
    Ok(())
}

/// The recorded output of a process.
pub async fn log(machine: &Running, pid: u32, stream: LogStream) -> Result<ByteStream> {
    let stream = match stream {
        LogStream::Stdout => proto::Stream::Stdout,
        LogStream::Stderr => proto::Stream::Stderr,
        LogStream::Interleaved => proto::Stream::Interleaved,
    };
    let mut client = machine.client()?;
    let read = proto::ReadLogRequest { pid, stream: stream.into(), offset: 0 };
    let chunks = answered(client.read_log(read)).await.map_err(|status| process_error(&status))?;
    Ok(chunks.map(|chunk| chunk.map(|chunk| chunk.data).map_err(|status| process_error(&status))).boxed())
}

//! Commands and processes of a machine, as calls on its agent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use nullspace_guest_proto as proto;
use nullspace_guest_proto::run_event::Event;
use nullspace_node_api::{ByteStream, Captured, Command, Finished, LogStream, ProcessEvents, ProcessState};
use nullspace_types::process::{ProcessEvent, ProcessInfo};
use nullspace_types::{Code, Error, Result};
use tonic::Status;

use crate::follow::Follow;
use crate::guest::{PATIENCE, answered, patient, process_error, repeated, silent};
use crate::running::Running;

/// Output of a foreground command that is held here; more of it is read from its log.
const INLINE_LIMIT: u64 = 1 << 20;
/// A command that ends by then is answered in one packet.
const HOLD_MS: u64 = 50;
/// The same for one that is followed, whose first output is waited for no longer.
const STREAM_HOLD_MS: u64 = 20;

fn request(command: Command) -> proto::RunRequest {
    proto::RunRequest {
        command: command.command,
        args: command.args,
        shell: command.shell,
        cwd: command.cwd.unwrap_or_default(),
        envs: command.envs.into_iter().collect(),
        user: command.user.unwrap_or_default(),
        timeout_ms: command.timeout_ms.unwrap_or(0),
        ..Default::default()
    }
}

/// Runs a command to its end, however often the link breaks in between.
pub async fn run(machine: Arc<Running>, command: Command) -> Result<Finished> {
    let patience = command.timeout_ms.map(|ms| Duration::from_millis(ms) + PATIENCE);
    let request = proto::RunRequest { inline_limit: INLINE_LIMIT, hold_ms: HOLD_MS, ..request(command) };
    let ended = collect(Follow::run(Arc::clone(&machine), request));
    let ended = async {
        match patience {
            // However much it writes, as a hostile guest could forever.
            Some(patience) => tokio::time::timeout(patience, ended).await.unwrap_or_else(|_| {
                Err(silent(&Status::deadline_exceeded("the command's end did not come")))
            }),
            None => ended.await,
        }
    };
    machine.while_there(ended).await
}

async fn collect(mut events: Follow) -> Result<Finished> {
    let (mut pid, mut stdout, mut stderr, mut cut) = (0, Vec::new(), Vec::new(), false);
    loop {
        match events.next().await? {
            Event::Started(started) => pid = started.pid,
            // A stream that was attached anew has no bound of its own: what is too much is left to the log.
            Event::Output(_) if cut => {}
            Event::Output(output) => {
                let into = if output.stream() == proto::Stream::Stderr { &mut stderr } else { &mut stdout };
                into.extend_from_slice(&output.data);
                cut = (stdout.len() + stderr.len()) as u64 > INLINE_LIMIT;
            }
            Event::OutputCut(_) => cut = true,
            Event::Exited(exited) => {
                return Ok(Finished {
                    pid,
                    exit_code: exited.exit_code,
                    timed_out: exited.timed_out,
                    guest_us: exited.duration_us,
                    output: if cut { Captured::Log } else { Captured::Inline { stdout, stderr } },
                });
            }
            Event::Failed(failed) => return Err(Error::internal(failed.message)),
        }
    }
}

/// Starts a command and answers its PID.
pub async fn start(machine: Arc<Running>, command: Command) -> Result<u32> {
    let request = proto::RunRequest { background: true, ..request(command) };
    let mut events = Follow::run(Arc::clone(&machine), request);
    match machine.while_there(events.next()).await? {
        Event::Started(started) => Ok(started.pid),
        _ => Err(silent(&Status::internal("the agent did not say whether the command started"))),
    }
}

/// Starts a command with its standard input open, and follows it.
pub async fn stream(machine: Arc<Running>, command: Command) -> Result<ProcessEvents> {
    let request = proto::RunRequest { stdin: true, paced: true, hold_ms: STREAM_HOLD_MS, ..request(command) };
    events(&machine, Follow::run(Arc::clone(&machine), request)).await
}

/// Follows a process from the given offsets of its two streams.
pub async fn attach(machine: Arc<Running>, pid: u32, stdout: u64, stderr: u64) -> Result<ProcessEvents> {
    events(&machine, Follow::attach(Arc::clone(&machine), pid, stdout, stderr)).await
}

/// The events of a process, the first of which has been heard.
async fn events(machine: &Running, mut events: Follow) -> Result<ProcessEvents> {
    let place = machine.place()?;
    let first = event(machine.while_there(events.next()).await?)?;
    let rest = stream::unfold(Some(events), |events| async {
        let mut events = events?;
        let item = events.next().await.and_then(event);
        let last = !matches!(item, Ok(ProcessEvent::Started { .. } | ProcessEvent::Output { .. }));
        Some((item, (!last).then_some(events)))
    });
    Ok(machine.stream(place, stream::iter([Ok(first)]).chain(rest)))
}

fn event(heard: Event) -> Result<ProcessEvent> {
    Ok(match heard {
        Event::Started(started) => ProcessEvent::Started { pid: started.pid },
        Event::Output(output) => {
            ProcessEvent::Output { stderr: output.stream() == proto::Stream::Stderr, data: output.data }
        }
        Event::Exited(exited) => ProcessEvent::Exited {
            exit_code: exited.exit_code,
            timed_out: exited.timed_out,
            guest_us: exited.duration_us,
        },
        Event::OutputCut(_) | Event::Failed(_) => {
            return Err(silent(&Status::internal(
                "the agent left something out of a stream without a bound",
            )));
        }
    })
}

/// Every process of the machine.
pub async fn list(machine: &Running) -> Result<Vec<ProcessState>> {
    let client = machine.client()?;
    let list = || async { client.clone().list_processes(proto::ListProcessesRequest {}).await };
    let reply = repeated(list).await.map_err(|status| process_error(&status))?;
    let state = |process: proto::Process| ProcessState {
        exit_code: process.has_exit_code.then_some(process.exit_code),
        info: ProcessInfo { pid: process.pid, command: process.command, running: process.running },
    };
    Ok(reply.processes.into_iter().map(state).collect())
}

/// Kills a process group.
pub async fn kill(machine: &Running, pid: u32) -> Result<()> {
    let (client, request) = (machine.client()?, proto::KillProcessRequest { pid, signal: 0 });
    let kill = || async { client.clone().kill_process(request).await };
    repeated(kill).await.map(drop).map_err(|status| process_error(&status))
}

/// Sends a signal to a process group, once.
pub async fn signal(machine: &Running, pid: u32, signal: i32) -> Result<()> {
    let signal = u32::try_from(signal).unwrap_or(u32::MAX);
    let call = machine.client()?.kill_process(proto::KillProcessRequest { pid, signal }).await;
    call.map(drop).map_err(|status| process_error(&status))
}

/// Writes to a process's standard input, and closes it behind that where asked to. Never sent twice: whether
/// a call whose link broke was heard, nobody knows.
pub async fn stdin(machine: &Running, pid: u32, mut data: Bytes, close: bool) -> Result<()> {
    let mut client = machine.client()?;
    loop {
        let piece = data.split_to(data.len().min(proto::CHUNK_BYTES));
        let last = data.is_empty();
        let write = proto::WriteStdinRequest { pid, data: piece, close: close && last };
        answered(client.write_stdin(write)).await.map_err(|status| match status.code() {
            // It waits for the process to read.
            tonic::Code::DeadlineExceeded => {
                let secs = PATIENCE.as_secs();
                let message = format!("process {pid} has not read its standard input for {secs} seconds");
                Error::new(Code::ExecFailed, message).suggest("write less at once, or kill the process")
            }
            _ => process_error(&status),
        })?;
        if last {
            return Ok(());
        }
    }
}

/// The recorded output of a process.
pub async fn log(machine: &Running, pid: u32, stream: LogStream) -> Result<ByteStream> {
    let stream = match stream {
        LogStream::Stdout => proto::Stream::Stdout,
        LogStream::Stderr => proto::Stream::Stderr,
        LogStream::Interleaved => proto::Stream::Interleaved,
    };
    let place = machine.place()?;
    let mut client = machine.client()?;
    let read = proto::ReadLogRequest { pid, stream: stream.into(), offset: 0 };
    let chunks = answered(client.read_log(read)).await.map_err(|status| process_error(&status))?;
    let data =
        patient(chunks).map(|chunk| chunk.map(|chunk| chunk.data).map_err(|status| process_error(&status)));
    Ok(machine.stream(place, data))
}

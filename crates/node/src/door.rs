//! Ways into a machine that carry bytes and nothing else: connections to what listens in it, ports in it that
//! somebody outside listens on, programs whose standard streams are somebody's outside.
//!
//! A port of the machine's address is reached over its link like any other. All else goes through the agent
//! and its bulk lanes: the call names what is meant, the lanes are joined to it in the machine. None of it is
//! recorded or taken up again: what breaks has ended.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt, stream};
use nullspace_guest_proto as proto;
use nullspace_guest_proto::run_event::Event;
use nullspace_node_api::{Door, Incoming, Listening, Piped, PipedProcess, Stream};
use nullspace_types::{Code, Error, Result};
use tonic::{Status, Streaming};

use crate::bulk::{Lane, ticket};
use crate::guest::{answered, process_error, silent};
use crate::running::Running;

/// How long the agent may take to find out that something in the machine does not answer.
const INSIDE: Duration = Duration::from_secs(12);

/// Connects to something in the machine.
pub async fn connect(machine: Arc<Running>, to: Door, patience: Duration) -> Result<Stream> {
    let connected = async {
        match to {
            Door::Port(port) => machine.slot().dial(port, patience).await,
            Door::Inside { host, port } => {
                let what = format!("{host}:{port}");
                let request = proto::ConnectRequest { host, port: port.into(), ..Default::default() };
                inside(&machine, request, &what).await
            }
            Door::Socket(path) => {
                let what = path.clone();
                inside(&machine, proto::ConnectRequest { path, ..Default::default() }, &what).await
            }
        }
    };
    machine.while_there(connected).await
}

/// Through the agent, which answers once it is connected.
async fn inside(machine: &Running, request: proto::ConnectRequest, what: &str) -> Result<Stream> {
    let (mut client, ticket) = (machine.client()?, ticket());
    let request = proto::ConnectRequest { ticket: ticket.clone(), ..request };
    let call = async {
        match tokio::time::timeout(INSIDE, client.connect(request)).await {
            Ok(answer) => answer.map_err(|status| not_connected(&status, what)),
            Err(_) => Err(unreachable()),
        }
    };
    let (_, lane) = tokio::try_join!(call, lane(machine, &ticket))?;
    Ok(lane)
}

async fn lane(machine: &Running, ticket: &[u8]) -> Result<Stream> {
    match Lane::open(machine, ticket).await {
        Ok(lane) => Ok(lane.into_stream()),
        Err(error) => Err(unreachable().context(error)),
    }
}

fn not_connected(status: &Status, what: &str) -> Error {
    match status.code() {
        tonic::Code::Unavailable if std::error::Error::source(status).is_none() => {
            refused(what, status.message())
        }
        tonic::Code::InvalidArgument => Error::invalid(status.message()),
        tonic::Code::ResourceExhausted => Error::new(Code::QuotaExceeded, status.message()),
        _ => silent(status),
    }
}

fn refused(what: &str, why: impl std::fmt::Display) -> Error {
    Error::new(Code::PreviewServiceNotReady, format!("nothing in the sandbox answers at {what}: {why}"))
        .suggest("start the service; to be reached from outside it must listen on 0.0.0.0")
}

fn unreachable() -> Error {
    Error::new(Code::EdgeRuntimeHostUnreachable, "the sandbox's machine does not answer")
        .suggest("try again; if it stays so, look at the sandbox's status")
}

/// What a connection to a port of the machine that could not be made says.
pub fn dial_error(port: u16, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => {
            refused(&format!("port {port}"), "the connection was refused")
        }
        _ => unreachable().context(error),
    }
}

/// Listens on a port inside.
pub async fn listen(machine: Arc<Running>, host: String, port: u16) -> Result<Listening> {
    let place = machine.place()?;
    let mut client = machine.client()?;
    let request = proto::ListenRequest { host, port: port.into() };
    let listening = async {
        let mut events = answered(client.listen(request)).await.map_err(|status| process_error(&status))?;
        match answered_next(&mut events).await?.and_then(|event| event.event) {
            Some(proto::listen_event::Event::Listening(listening)) => {
                let port = u16::try_from(listening.port).map_err(|_| odd("the agent listens on no port"))?;
                Ok((port, events))
            }
            _ => Err(odd("the agent did not say whether it listens")),
        }
    };
    let (port, events) = machine.while_there(listening).await?;
    let taken = Arc::clone(&machine);
    let connections = stream::unfold(events, |mut events| async move {
        match events.message().await {
            Ok(Some(event)) => Some((Ok(event), events)),
            Ok(None) => None,
            Err(status) => Some((Err(silent(&status)), events)),
        }
    });
    let connections = connections.filter_map(move |event| take(Arc::clone(&taken), event));
    Ok(Listening { port, connections: machine.stream(place, connections) })
}

/// A connection that was made to such a port; none if whoever made it is gone already.
async fn take(machine: Arc<Running>, event: Result<proto::ListenEvent>) -> Option<Result<Incoming>> {
    let arrived = match event {
        Ok(event) => match event.event {
            Some(proto::listen_event::Event::Arrived(arrived)) => arrived,
            _ => return Some(Err(odd("the agent says something else in place of a connection"))),
        },
        Err(error) => return Some(Err(error)),
    };
    let taking = async {
        let (mut client, ticket) = (machine.client()?, ticket());
        let request = proto::TakeConnectionRequest { connection: arrived.connection, ticket: ticket.clone() };
        let call = async {
            answered(client.take_connection(request)).await.map_err(|status| process_error(&status))
        };
        let (_, stream) = tokio::try_join!(call, lane(&machine, &ticket))?;
        Ok::<_, Error>(stream)
    };
    match taking.await {
        Ok(stream) => {
            let port = u16::try_from(arrived.port).unwrap_or(0);
            Some(Ok(Incoming { host: arrived.host, port, stream }))
        }
        Err(error) => {
            tracing::debug!(sandbox = %machine.record.spec.sandbox_id, %error, "a connection could not be taken");
            None
        }
    }
}

fn odd(what: &str) -> Error {
    silent(&Status::internal(what))
}

async fn answered_next<T>(events: &mut Streaming<T>) -> Result<Option<T>> {
    match tokio::time::timeout(crate::guest::PATIENCE, events.message()).await {
        Ok(event) => event.map_err(|status| process_error(&status)),
        Err(_) => Err(odd("the guest does not answer")),
    }
}

/// Starts a program whose standard streams are lanes.
pub async fn pipe(machine: Arc<Running>, program: Piped) -> Result<PipedProcess> {
    let place = machine.place()?;
    let (stdio_ticket, stderr_ticket) = (ticket(), ticket());
    let request = match program {
        Piped::Command(command) => proto::RunPipedRequest {
            command: command.command,
            args: command.args,
            shell: command.shell,
            cwd: command.cwd.unwrap_or_default(),
            envs: command.envs.into_iter().collect(),
            user: command.user.unwrap_or_default(),
            ..Default::default()
        },
        Piped::Sftp(user) => {
            proto::RunPipedRequest { user: user.unwrap_or_default(), sftp: true, ..Default::default() }
        }
    };
    let request = proto::RunPipedRequest {
        stdio_ticket: stdio_ticket.clone(),
        stderr_ticket: stderr_ticket.clone(),
        ..request
    };
    let mut client = machine.client()?;
    let call = async { answered(client.run_piped(request)).await.map_err(|status| process_error(&status)) };
    let started = async {
        let (mut events, stdio, stderr) =
            tokio::try_join!(call, lane(&machine, &stdio_ticket), lane(&machine, &stderr_ticket))?;
        match answered_next(&mut events).await?.and_then(|event| event.event) {
            Some(Event::Started(started)) => Ok((started.pid, events, stdio, stderr)),
            Some(Event::Failed(failed)) => Err(Error::new(Code::ExecFailed, failed.message)),
            _ => Err(odd("the agent did not say whether the program started")),
        }
    };
    let (pid, mut events, stdio, stderr) = machine.while_there(started).await?;
    let there = Arc::clone(&machine);
    let exit = async move {
        let _place = place;
        let exited = async {
            loop {
                match events.message().await.map_err(|status| silent(&status))?.and_then(|event| event.event)
                {
                    Some(Event::Exited(exited)) => return Ok(exited.exit_code),
                    Some(Event::Output(_) | Event::OutputCut(_) | Event::Started(_)) => {}
                    Some(Event::Failed(failed)) => return Err(Error::new(Code::ExecFailed, failed.message)),
                    None => return Err(odd("the program's end did not come")),
                }
            }
        };
        there.while_there(exited).await
    };
    Ok(PipedProcess { pid, stdio, stderr, exit: exit.boxed() })
}

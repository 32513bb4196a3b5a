//! Terminal sessions of a machine, as calls on its agent.

use bytes::Bytes;
use futures::stream;
use nullspace_guest_proto as proto;
use nullspace_guest_proto::terminal_event::Event;
use nullspace_node_api::{TerminalEvents, TerminalSpec};
use nullspace_types::Result;
use nullspace_types::id::SessionId;
use nullspace_types::terminal::{TerminalEvent, TerminalInfo};
use tonic::Status;

use crate::guest::{answered, repeated, silent, terminal_error};
use crate::running::Running;

/// What the public API says of a session. The guest is not asked which it is.
fn info(session_id: SessionId, terminal: &proto::Terminal) -> TerminalInfo {
    TerminalInfo { session_id, pid: terminal.pid, cols: terminal.cols, rows: terminal.rows }
}

/// Starts a session, or finds it started.
pub async fn start(machine: &Running, spec: TerminalSpec) -> Result<TerminalInfo> {
    let session_id = spec.session_id;
    let request = proto::StartTerminalRequest {
        session_id: session_id.to_string(),
        cols: spec.cols,
        rows: spec.rows,
        cwd: spec.cwd.unwrap_or_default(),
        envs: spec.envs.into_iter().collect(),
        user: spec.user.unwrap_or_default(),
        command: spec.command.unwrap_or_default(),
    };
    let client = machine.client()?;
    let start = || async { client.clone().start_terminal(request.clone()).await };
    let terminal = repeated(start).await.map_err(|status| terminal_error(&status))?;
    Ok(info(session_id, &terminal))
}

/// Watches a session. A link that breaks ends the stream with an error: the screen is drawn anew for
/// whoever watches again.
pub async fn attach(machine: &Running, session: SessionId) -> Result<TerminalEvents> {
    let place = machine.place()?;
    let client = machine.client()?;
    let request = proto::TerminalRequest { session_id: session.to_string() };
    let opened = repeated(|| async { client.clone().attach_terminal(request.clone()).await }).await;
    let events = opened.map_err(|status| terminal_error(&status))?;
    let events = stream::unfold(Some(events), move |events| async move {
        let mut events = events?;
        let item = match events.message().await {
            Ok(message) => event(session, message.and_then(|message| message.event)),
            Err(status) => Err(terminal_error(&status)),
        };
        let last = !matches!(item, Ok(TerminalEvent::Attached(_) | TerminalEvent::Output(_)));
        Some((item, (!last).then_some(events)))
    });
    Ok(machine.stream(place, events))
}

fn event(session: SessionId, heard: Option<Event>) -> Result<TerminalEvent> {
    match heard {
        Some(Event::Terminal(terminal)) => Ok(TerminalEvent::Attached(info(session, &terminal))),
        Some(Event::Output(data)) => Ok(TerminalEvent::Output(data)),
        Some(Event::Exited(exited)) => Ok(TerminalEvent::Exited { exit_code: exited.exit_code }),
        None => Err(silent(&Status::unavailable("the stream ended before the session"))),
    }
}

/// Types into a session. Never sent twice: whether a call whose link broke was heard, nobody knows.
pub async fn write(machine: &Running, session: SessionId, data: Bytes) -> Result<()> {
    let mut client = machine.client()?;
    for data in crate::feed::cut(data) {
        let write = proto::WriteTerminalRequest { session_id: session.to_string(), data };
        answered(client.write_terminal(write)).await.map_err(|status| terminal_error(&status))?;
    }
    Ok(())
}

/// Sets a session's size.
pub async fn resize(machine: &Running, session: SessionId, cols: u32, rows: u32) -> Result<()> {
    let client = machine.client()?;
    let request = proto::ResizeTerminalRequest { session_id: session.to_string(), cols, rows };
    let resize = || async { client.clone().resize_terminal(request.clone()).await };
    repeated(resize).await.map(drop).map_err(|status| terminal_error(&status))
}

/// Ends a session.
pub async fn kill(machine: &Running, session: SessionId) -> Result<()> {
    let client = machine.client()?;
    let request = proto::TerminalRequest { session_id: session.to_string() };
    let kill = || async { client.clone().kill_terminal(request.clone()).await };
    repeated(kill).await.map(drop).map_err(|status| terminal_error(&status))
}

/// The sessions that run. One whose ID is none was not started from here, and is not shown.
pub async fn list(machine: &Running) -> Result<Vec<TerminalInfo>> {
    let client = machine.client()?;
    let list = || async { client.clone().list_terminals(proto::ListTerminalsRequest {}).await };
    let reply = repeated(list).await.map_err(|status| terminal_error(&status))?;
    let known = |terminal: &proto::Terminal| Some(info(terminal.session_id.parse().ok()?, terminal));
    Ok(reply.terminals.iter().filter_map(known).collect())
}

//! Watching a terminal session: its screen, then what its program writes, its end last; and meanwhile
//! what is typed, its size, and its kill.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::StreamExt;
use nullspace_types::id::{SandboxId, SessionId};
use nullspace_types::socket::{ClientFrame, ServerFrame};
use nullspace_types::terminal::{TerminalEvent, TerminalResize};
use nullspace_types::{Error, Result};
use tokio::sync::watch::{Receiver, Sender, channel};

use super::request::Request;
use super::{Connection, Ending, Incoming, Outgoing, Session};
use crate::Api;
use crate::terminal::{TerminalEvents, TerminalTarget};

/// Bytes of output in a frame.
const PIECE: usize = 48 << 10;

/// The session that a client names: exactly one of the two.
pub(super) fn target(
    sandbox: SandboxId,
    session_id: Option<&str>,
    pid: Option<u32>,
) -> Result<TerminalTarget> {
    match (session_id, pid) {
        (Some(text), None) => Ok(TerminalTarget::Session(crate::request::session(sandbox, text)?)),
        (None, Some(pid)) => Ok(TerminalTarget::Process(pid)),
        (Some(_), Some(_)) | (None, None) => {
            Err(Error::invalid("exactly one of session_id and pid must be given"))
        }
    }
}

/// Serves the socket to its end.
pub(super) async fn watch<A: Api>(
    session: Session<A>,
    id: String,
    events: Result<TerminalEvents>,
    connection: &mut Connection,
) -> Ending {
    let events = match events {
        Ok(events) => events,
        Err(error) => return Ending::refused(Some(id), error),
    };
    let (outgoing, incoming) = connection.sides();
    let (attached, known) = channel(None);
    tokio::select! {
        ending = tell(&id, events, outgoing, attached) => ending,
        ending = listen(&session, incoming, known) => ending,
    }
}

async fn tell(
    id: &str,
    mut events: TerminalEvents,
    outgoing: &mut Outgoing,
    attached: Sender<Option<SessionId>>,
) -> Ending {
    let id = || id.to_owned();
    // The first frame of all is that the session is there.
    let session_id = match events.next().await {
        Some(Ok(TerminalEvent::Attached(info))) => {
            let started = ServerFrame::PtyStarted {
                id: id(),
                session_id: info.session_id,
                pid: info.pid,
                cols: info.cols,
                rows: info.rows,
            };
            if outgoing.send(&started).await.is_err() {
                return Ending::Gone;
            }
            attached.send_replace(Some(info.session_id));
            info.session_id
        }
        Some(Ok(TerminalEvent::Output(_) | TerminalEvent::Exited { .. })) | None => {
            return Ending::refused(Some(id()), Error::internal("a session did not say that it is there"));
        }
        Some(Err(error)) => return Ending::refused(Some(id()), error),
    };
    loop {
        let Ok(event) = outgoing.until(events.next()).await else { return Ending::Gone };
        match event {
            Some(Ok(TerminalEvent::Output(mut data))) => {
                while !data.is_empty() {
                    let data_base64 = BASE64.encode(data.split_to(data.len().min(PIECE)));
                    let output = ServerFrame::PtyOutput { id: id(), session_id, data_base64 };
                    if outgoing.send(&output).await.is_err() {
                        return Ending::Gone;
                    }
                }
            }
            Some(Ok(TerminalEvent::Exited { exit_code })) => {
                let exited = ServerFrame::PtyExited { id: id(), session_id, exit_code };
                return Ending::Close(axum::extract::ws::close_code::NORMAL, Some(exited));
            }
            Some(Ok(TerminalEvent::Attached(_))) => {}
            Some(Err(error)) => return Ending::refused(Some(id()), error),
            None => {
                let error = Error::internal("the events of a session ended before it did");
                return Ending::refused(Some(id()), error);
            }
        }
    }
}

/// Hears the client to its end. A kill does not wait for what is being typed.
async fn listen<A: Api>(
    session: &Session<A>,
    incoming: &mut Incoming,
    known: Receiver<Option<SessionId>>,
) -> Ending {
    let urgent = |frame: &ClientFrame| matches!(frame, ClientFrame::PtyKill { .. });
    let act = |frame| {
        let mut known = known.clone();
        async move {
            // What comes before the session is there waits for it. The other side's end is this one's too.
            let Ok(Some(own)) = known.wait_for(Option::is_some).await.map(|known| *known) else {
                return Ok(());
            };
            act(session, own, frame).await.map_err(|(id, error)| ClientFrame::told(Some(id), error))
        }
    };
    incoming.serve(urgent, act).await
}

/// Does what a frame asks for.
async fn act<A: Api>(
    session: &Session<A>,
    own: SessionId,
    frame: ClientFrame,
) -> Result<(), (String, Error)> {
    let Session { api, caller, sandbox } = session;
    let (id, named, deed) = match frame {
        ClientFrame::PtyInput { id, session_id, data, data_base64 } => {
            (id, session_id, input(data, data_base64).map(Deed::Type))
        }
        ClientFrame::PtyResize { id, session_id, cols, rows } => {
            (id, session_id, Ok(Deed::Resize(TerminalResize { cols, rows })))
        }
        ClientFrame::PtyKill { id, session_id } => (id, session_id, Ok(Deed::Kill)),
        ClientFrame::PtyStart { id, .. } | ClientFrame::PtyConnect { id, .. } => {
            return Err((id, Error::invalid("this socket watches a session already: open another one")));
        }
        ClientFrame::ExecStart { id, .. }
        | ClientFrame::ExecConnect { id, .. }
        | ClientFrame::ExecStdin { id, .. }
        | ClientFrame::ExecStdinClose { id, .. }
        | ClientFrame::ExecKill { id, .. }
        | ClientFrame::FileWatch { id, .. } => {
            return Err((id, Error::invalid("this socket watches a session: open another one for that")));
        }
    };
    let done = async {
        if crate::request::session(*sandbox, &named)? != own {
            return Err(Error::invalid(format!("session_id must be that of this socket, {own}")));
        }
        match deed? {
            Deed::Type(data) => api.terminal_write(*caller, *sandbox, own, data).await,
            Deed::Resize(size) => api.terminal_resize(*caller, *sandbox, own, size).await,
            Deed::Kill => api.terminal_kill(*caller, *sandbox, own).await,
        }
    };
    done.await.map_err(|error| (id, error))
}

enum Deed {
    Type(Bytes),
    Resize(TerminalResize),
    Kill,
}

/// What is typed: exactly one of the two.
fn input(data: Option<String>, data_base64: Option<String>) -> Result<Bytes> {
    match (data, data_base64) {
        (Some(text), None) => Ok(text.into()),
        (None, Some(text)) => BASE64
            .decode(text)
            .map(Bytes::from)
            .map_err(|error| Error::invalid(format!("data_base64 is not valid base64: {error}"))),
        (Some(_), Some(_)) | (None, None) => {
            Err(Error::invalid("exactly one of data and data_base64 must be given"))
        }
    }
}

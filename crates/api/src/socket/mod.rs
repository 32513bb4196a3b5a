//! A sandbox's socket, `GET /v1/sandboxes/{id}/ws`: commands, terminals and watches, followed as they
//! happen. Its frames are in [`nullspace_types::socket`].
//!
//! The first frame says which of the three it is ([`exec`], [`terminal`], [`watch`]); `connection` is what
//! they share. A socket owns nothing but itself: whatever way it ends, the command, the session or the files
//! are as they would be without it.

mod connection;
mod exec;
mod terminal;
mod watch;

use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::response::{IntoResponse, Response};
use nullspace_types::id::SandboxId;
use nullspace_types::key::Principal;
use nullspace_types::sandbox::SandboxGetQuery;
use nullspace_types::socket::{ClientFrame, ServerFrame};
use nullspace_types::{Error, Result};
use tracing::Instrument;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Api;
use crate::error::{Failure, log};
use crate::openapi::{Malformed, Missing, Refused};
use crate::request::{Caller, SandboxPath, Service};
use connection::{Connection, Ending, Incoming, Outgoing};

/// Most bytes of a message: it may quote what the client sent, and escaping makes seven times of it.
const MESSAGE: usize = 4096;

/// How long a client may take to say what it wants.
const FIRST_FRAME: Duration = Duration::from_secs(30);

pub(crate) fn routes<A: Api>() -> OpenApiRouter<A> {
    OpenApiRouter::new().routes(routes!(sandbox_socket))
}

/// Who is served, and with what.
struct Session<A> {
    api: A,
    caller: Principal,
    sandbox: SandboxId,
}

/// Follow a command, a terminal session, or changes of files, over a WebSocket. Its frames are described in
/// `docs/reference/websocket.md`.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/ws", tag = "socket",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    responses((status = 101, description = "The WebSocket is open"), Malformed, Refused, Missing))]
async fn sandbox_socket<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failure> {
    // A client cannot read the body of a refused upgrade, but it sees the status.
    api.sandbox_get(caller, id, SandboxGetQuery::default()).await?;
    let upgrade =
        upgrade.map_err(|refused| Error::invalid(format!("this is a WebSocket: {}", refused.body_text())))?;
    let session = Session { api, caller, sandbox: id };
    let span = tracing::Span::current();
    Ok(connection::bounded(upgrade)
        .on_upgrade(move |socket| serve(session, socket).instrument(span))
        .into_response())
}

async fn serve<A: Api>(session: Session<A>, socket: WebSocket) {
    let mut connection = Connection::new(socket);
    let ending = match tokio::time::timeout(FIRST_FRAME, connection.first()).await {
        Ok(Ok(frame)) => begin(session, frame, &mut connection).await,
        Ok(Err(ending)) => ending,
        Err(_) => {
            let seconds = FIRST_FRAME.as_secs();
            Ending::refused(None, Error::invalid(format!("no frame came within {seconds} seconds")))
        }
    };
    connection.end(ending).await;
}

/// Does what the first frame asks for, to its end.
async fn begin<A: Api>(session: Session<A>, frame: ClientFrame, connection: &mut Connection) -> Ending {
    match frame {
        ClientFrame::ExecStart { id, request } => {
            let started = session.api.process_stream(session.caller, session.sandbox, request).await;
            exec::follow(session, id, started, connection).await
        }
        ClientFrame::ExecConnect { id, pid, stdout_offset, stderr_offset } => {
            let (stdout, stderr) = (stdout_offset.unwrap_or(0), stderr_offset.unwrap_or(0));
            let attach = session.api.process_attach(session.caller, session.sandbox, pid, stdout, stderr);
            let attached = attach.await;
            exec::follow(session, id, attached, connection).await
        }
        ClientFrame::PtyStart { id, cols, rows, cwd, envs, user } => {
            let start = crate::terminal::TerminalStart { cols, rows, cwd, envs, user };
            let started = session.api.terminal_start(session.caller, session.sandbox, start).await;
            terminal::watch(session, id, started, connection).await
        }
        ClientFrame::PtyConnect { id, session_id, pid } => {
            let attached = match terminal::target(session.sandbox, session_id.as_deref(), pid) {
                Ok(target) => session.api.terminal_attach(session.caller, session.sandbox, target).await,
                Err(error) => Err(error),
            };
            terminal::watch(session, id, attached, connection).await
        }
        ClientFrame::FileWatch { id, path, user, recursive, timeout_secs } => {
            let request = crate::file::FileWatch { path, user, recursive: recursive.unwrap_or(false) };
            watch::watch(session, id, request, timeout_secs, connection).await
        }
        ClientFrame::ExecStdin { id, .. }
        | ClientFrame::ExecStdinClose { id, .. }
        | ClientFrame::ExecKill { id, .. }
        | ClientFrame::PtyInput { id, .. }
        | ClientFrame::PtyResize { id, .. }
        | ClientFrame::PtyKill { id, .. } => Ending::refused(
            Some(id),
            Error::invalid("this frame belongs behind exec_start, exec_connect, pty_start or pty_connect"),
        ),
    }
}

/// What a client is told of an error.
fn told(id: Option<String>, error: Error) -> ServerFrame {
    log(&error);
    let code = error.code.as_str().to_owned();
    let mut message = error.message;
    if message.len() > MESSAGE {
        message.truncate(message.floor_char_boundary(MESSAGE));
        message.push('…');
    }
    ServerFrame::Error { id, message, code }
}

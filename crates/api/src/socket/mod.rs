//! The sockets: connections on which the server tells of something as it happens. `request` has what is said
//! on them, `connection` is what all of them share.
//!
//! On a sandbox's socket, `GET /v1/sandboxes/{id}/ws`, the first frame says which of three it is ([`exec`],
//! [`terminal`], [`watch`]). The others follow the log of events ([`lifecycle`]) and all sandboxes of a key
//! ([`monitor`]). A socket owns nothing but itself: whatever way it ends, what it followed is as it would be
//! without it.

mod connection;
mod exec;
mod lifecycle;
mod monitor;
mod request;
mod terminal;
mod watch;

use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::response::{IntoResponse, Response};
use nullspace_types::id::SandboxId;
use nullspace_types::key::Principal;
use nullspace_types::sandbox::SandboxGetQuery;
use nullspace_types::socket::ClientFrame;
use nullspace_types::{Error, Result};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Api;
use crate::error::Failure;
use crate::openapi::{Malformed, Missing, Refused};
use crate::request::{Caller, SandboxPath, Service, Stopping};
use connection::{Connection, Ending, Incoming, Outgoing};
use request::Request;

/// How long a client may take to say what it wants.
const FIRST_FRAME: Duration = Duration::from_secs(30);

/// What a handler is given of a request to become a socket.
type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

pub(crate) fn routes<A: Api>() -> OpenApiRouter<A> {
    OpenApiRouter::new()
        .routes(routes!(sandbox_socket))
        .routes(routes!(lifecycle::lifecycle_socket))
        .routes(routes!(lifecycle::sandbox_lifecycle_socket))
        .routes(routes!(monitor::monitor_socket))
}

/// A kind of socket: what serves one.
trait Kind: Send + 'static {
    /// What its clients say.
    type Request: Request;

    /// How it ends when the server stops.
    fn stopped() -> Ending<Self::Request>;

    /// Does what the first frame asks for, to its end.
    fn begin(
        self,
        first: Self::Request,
        connection: &mut Connection<Self::Request>,
    ) -> impl Future<Output = Ending<Self::Request>> + Send;
}

/// Turns a request into a socket.
fn open<K: Kind>(kind: K, upgrade: Upgrade, stopping: CancellationToken) -> Result<Response, Failure> {
    let upgrade =
        upgrade.map_err(|refused| Error::invalid(format!("this is a WebSocket: {}", refused.body_text())))?;
    let span = tracing::Span::current();
    Ok(connection::bounded(upgrade)
        .on_upgrade(move |socket| serve(kind, socket, stopping).instrument(span))
        .into_response())
}

async fn serve<K: Kind>(kind: K, socket: WebSocket, stopping: CancellationToken) {
    let mut connection = Connection::new(socket);
    let ending = tokio::select! {
        ending = hear(kind, &mut connection) => ending,
        () = stopping.cancelled() => K::stopped(),
    };
    connection.end(ending).await;
}

async fn hear<K: Kind>(kind: K, connection: &mut Connection<K::Request>) -> Ending<K::Request> {
    match tokio::time::timeout(FIRST_FRAME, connection.first()).await {
        Ok(Ok(frame)) => kind.begin(frame, connection).await,
        Ok(Err(ending)) => ending,
        Err(_) => {
            let seconds = FIRST_FRAME.as_secs();
            Ending::refused(None, Error::invalid(format!("no frame came within {seconds} seconds")))
        }
    }
}

/// Who is served at a sandbox's socket, and with what.
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
    Stopping(stopping): Stopping,
    upgrade: Upgrade,
) -> Result<Response, Failure> {
    // A client cannot read the body of a refused upgrade, but it sees the status.
    api.sandbox_get(caller, id, SandboxGetQuery::default()).await?;
    open(Session { api, caller, sandbox: id }, upgrade, stopping)
}

impl<A: Api> Kind for Session<A> {
    type Request = ClientFrame;

    /// Nothing is said that would look like the end of what is followed.
    fn stopped() -> Ending {
        Ending::Gone
    }

    async fn begin(self, frame: ClientFrame, connection: &mut Connection) -> Ending {
        let session = self;
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
                Error::invalid(
                    "this frame belongs behind exec_start, exec_connect, pty_start or pty_connect",
                ),
            ),
        }
    }
}

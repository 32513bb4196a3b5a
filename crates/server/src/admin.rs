//! The operator's own way in: a Unix socket in the data directory that nobody but the server's user can
//! connect to, and the commands that speak through it. Plain HTTP, and no key: whoever may connect owns the
//! data anyway.
//!
//! Both ends are here, so that what one says the other knows. Deliberately absent: anything that a tenant
//! may ask for (the API), and what works on the store alone (`key`).

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::Context as _;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use nullspace_node_api::{Garbage, Node};
use nullspace_types::{Code, Error};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::args::GcArgs;

/// The socket's name in the data directory.
const SOCKET: &str = "admin.sock";
/// Connections that wait to be accepted.
const BACKLOG: u32 = 16;
/// No answer is longer.
const ANSWER_MAX: usize = 64 << 20;

/// The node, once it is up.
type LateNode = Arc<OnceLock<Arc<dyn Node>>>;

/// What lies on a node's disk and nobody needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GarbageReport {
    /// Whether it was removed.
    pub applied: bool,
    /// Bytes of all of it.
    pub bytes: u64,
    /// Each piece.
    pub items: Vec<Garbage>,
}

/// What a failure answers.
#[derive(Serialize, Deserialize)]
struct Refusal {
    error: String,
    code: String,
}

/// Binds the socket in a data directory that this process has locked. It is nobody else's from its first
/// moment on.
pub(crate) fn bind(data_dir: &Path) -> anyhow::Result<UnixListener> {
    let path = data_dir.join(SOCKET);
    match fs_err::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let failed = || format!("cannot listen on {}", path.display());
    let socket = UnixSocket::new_stream().with_context(failed)?;
    let (_open, address) = short(data_dir).with_context(failed)?;
    socket.bind(address).with_context(failed)?;
    fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG).with_context(failed)
}

/// The socket's path in a form that fits into a socket's address however deep the directory is. Good as long
/// as the directory is held open.
fn short(data_dir: &Path) -> std::io::Result<(File, PathBuf)> {
    let directory = File::open(data_dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(SOCKET);
    Ok((directory, path))
}

/// Serves until `stop`; what is being answered then may end.
pub(crate) async fn serve(listener: UnixListener, node: LateNode, stop: CancellationToken) {
    let router = Router::new().route("/v1/gc", get(garbage_list).post(garbage_collect)).with_state(node);
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "the operator's socket is no longer served");
    }
}

async fn garbage_list(State(node): State<LateNode>) -> Response {
    garbage(&node, false).await
}

async fn garbage_collect(State(node): State<LateNode>) -> Response {
    garbage(&node, true).await
}

async fn garbage(node: &LateNode, apply: bool) -> Response {
    let found = match node.get().cloned() {
        // In a task of its own: what has begun is brought to its end whether or not the operator waits.
        Some(node) => tokio::spawn(async move { node.garbage_collect(apply).await })
            .await
            .unwrap_or_else(|panic| Err(Error::internal(panic))),
        None => Err(Error::new(Code::Unavailable, "the server is starting; try again in a few seconds")),
    };
    match found {
        Ok(items) => {
            let bytes = items.iter().map(|item| item.bytes).sum();
            Json(GarbageReport { applied: apply, bytes, items }).into_response()
        }
        Err(error) => {
            let context = error.context.as_deref().unwrap_or_default();
            tracing::warn!(code = error.code.as_str(), %error, context, "garbage could not be collected");
            // The operator may see what callers may not.
            let told = match context {
                "" => error.to_string(),
                context => format!("{error}: {context}"),
            };
            let refusal = Refusal { error: told, code: error.code.as_str().to_owned() };
            (StatusCode::SERVICE_UNAVAILABLE, Json(refusal)).into_response()
        }
    }
}

/// `nullspace gc`: asks the running server. Errors of the border keep their type, for the exit status.
pub async fn gc(args: GcArgs) -> anyhow::Result<GarbageReport> {
    let method = if args.apply { Method::POST } else { Method::GET };
    let (status, body) = ask(&args.data_dir, method, "/v1/gc").await?;
    if status.is_success() {
        return serde_json::from_slice(&body).context("the server's answer is not as expected");
    }
    let refusal: Refusal = serde_json::from_slice(&body)
        .with_context(|| format!("the server answered {status} and nothing that can be read"))?;
    match Code::ALL.iter().find(|code| code.as_str() == refusal.code) {
        Some(code) => Err(Error::new(*code, refusal.error).into()),
        None => anyhow::bail!(refusal.error),
    }
}

/// One request to the server on a data directory.
async fn ask(data_dir: &Path, method: Method, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = connect(data_dir).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "localhost")
        .body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("the server's answer broke off: {error}"))?;
        Ok((status, body.to_bytes()))
    };
    let mut answer = std::pin::pin!(answer);
    // The connection moves the bytes of both directions; its end without an answer is told by the answer.
    tokio::select! {
        answer = answer.as_mut() => return answer,
        ended = connection => ended.context("the server broke the connection")?,
    }
    answer.await
}

async fn connect(data_dir: &Path) -> anyhow::Result<UnixStream> {
    let connecting = async {
        let (_open, address) = short(data_dir)?;
        UnixStream::connect(address).await
    };
    let error = match connecting.await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => anyhow::bail!(
            "no server runs on the data directory {}; start it with `nullspace server`, or name another with \
             --data-dir",
            data_dir.display()
        ),
        ErrorKind::PermissionDenied => anyhow::bail!(
            "the socket in {} is for the user alone that the server runs as; run this as that user",
            data_dir.display()
        ),
        _ => Err(error).with_context(|| format!("cannot reach the server on {}", data_dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(data_dir: &Path) -> GcArgs {
        GcArgs { data_dir: data_dir.to_owned(), apply: false }
    }

    #[tokio::test]
    async fn the_socket_is_its_owners_alone_and_replaces_one_that_was_left_behind() {
        // Deeper than a socket's address is long.
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let said = gc(args(&deep)).await.unwrap_err().to_string();
        assert!(said.contains("no server runs on the data directory"), "{said}");
        drop(bind(&deep).unwrap());
        let said = gc(args(&deep)).await.unwrap_err().to_string();
        assert!(said.contains("no server runs on the data directory"), "{said}");

        let (listener, stop) = (bind(&deep).unwrap(), CancellationToken::new());
        let mode = std::fs::metadata(deep.join(SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let serving = tokio::spawn(serve(listener, LateNode::default(), stop.clone()));
        let error = gc(args(&deep)).await.unwrap_err();
        assert_eq!(error.downcast_ref::<Error>().map(|error| error.code), Some(Code::Unavailable));
        stop.cancel();
        serving.await.unwrap();
    }
}

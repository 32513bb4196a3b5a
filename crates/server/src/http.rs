//! The HTTP side of the server: accepts connections, serves each in a task of its own, and lets them
//! end when the server stops; sockets that do not are cut then. Owns the listener and the connections; knows
//! nothing of what is served.

use std::sync::Arc;
use std::time::Duration;

use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nullspace_api::Connected;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::leash::{Leashed, leashed};

/// How long a client may take to send a request's head. It also ends a connection that was idle as
/// long; clients expect to keep one for at least 5 seconds.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long to wait after the system refused a connection for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a socket may take to say goodbye when the server stops.
const GOODBYE: Duration = Duration::from_secs(1);

/// Serves until `stop`, then returns; the connections are in `connections` and end by themselves, each
/// after the request it is answering.
pub async fn serve(
    listener: TcpListener,
    router: axum::Router,
    connections_max: usize,
    stop: CancellationToken,
    connections: TaskTracker,
) {
    let places = Arc::new(Semaphore::new(connections_max));
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let connected = Connected { peer, stopping: stop.clone() };
                let connection = serve_connection(stream, router.clone(), connected);
                connections.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, router: axum::Router, connected: Connected) {
    // Answers are small and clients wait for each: gathering them into fuller packets costs up to 40 ms.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let (stream, leash) = leashed(stream);
    let stop = connected.stopping.clone();
    speak(stream, router, connected).await;
    // One that became a socket is now somebody else's, and has no end of its own.
    tokio::select! {
        () = leash.dropped() => {}
        () = stop.cancelled() => {
            if tokio::time::timeout(GOODBYE, leash.dropped()).await.is_err() {
                leash.cut();
                leash.dropped().await;
            }
        }
    }
}

/// Serves requests until there are no more, or the connection has become a socket.
async fn speak(stream: Leashed<TcpStream>, router: axum::Router, connected: Connected) {
    let stop = connected.stopping.clone();
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(connected.clone());
        router.call(request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

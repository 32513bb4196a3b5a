//! The gateway itself: its listeners, and the one task that owns their end.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nullspace_edge_api::{Destination, Edge};
use nullspace_types::id::SandboxId;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::connection::{serve_host, serve_local};
use crate::forward::{Arrival, seconds};
use crate::judge::COOKIE_NAME;
use crate::pool::Pool;
use crate::tls::Tls;
use crate::wire::Wire;

/// How long to wait after the system refused a connection for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long what is open may go on when the gateway stops.
const GOODBYE: Duration = Duration::from_secs(3);

/// What all connections share.
pub(crate) struct Room<E> {
    pub(crate) edge: E,
    pub(crate) config: Config,
    pub(crate) pool: Pool,
    pub(crate) connections: TaskTracker,
    /// No more is begun.
    pub(crate) stop: CancellationToken,
    /// Nothing goes on.
    pub(crate) cut: CancellationToken,
    places: Arc<Semaphore>,
}

/// An open local address.
struct Local {
    target: (SandboxId, u16),
    cut: CancellationToken,
    accepting: JoinHandle<()>,
}

/// See the crate.
pub struct Gateway<E: Edge> {
    room: Arc<Room<E>>,
    address: Option<SocketAddr>,
    locals: Mutex<HashMap<u16, Local>>,
}

impl<E: Edge> Gateway<E> {
    /// Starts; with a domain, its listener is bound when this answers. It works until `stop`, and what it does
    /// then still is in `tasks` and ends within a few seconds.
    pub async fn start(
        config: Config,
        edge: E,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> io::Result<Self> {
        config.check().map_err(|wrong| io::Error::new(io::ErrorKind::InvalidInput, wrong))?;
        let connections = TaskTracker::new();
        let tls = Tls::load(&config, &edge, &connections).await?;
        let room = Arc::new(Room {
            places: Arc::new(Semaphore::new(config.connections_max)),
            edge,
            pool: Pool::default(),
            connections,
            stop: stop.clone(),
            cut: CancellationToken::new(),
            config,
        });
        let mut address = None;
        if room.config.domain.is_some() {
            let listen = room.config.listen;
            let listener = TcpListener::bind(listen).await.map_err(|error| {
                io::Error::new(error.kind(), format!("the gateway cannot listen on {listen}: {error}"))
            })?;
            address = Some(listener.local_addr()?);
            let cut = room.cut.child_token();
            room.connections.spawn(accept(room.clone(), listener, None, tls.clone(), cut));
        }
        if let Some(Tls::Files(files)) = tls {
            room.connections.spawn(files.watch(stop.clone()));
        }
        room.connections.spawn(room.pool.clone().sweep(stop));
        tasks.spawn(end(room.clone()));
        Ok(Self { room, address, locals: Mutex::default() })
    }

    /// Opens the local address with the port `local`, which stands for a port of a sandbox. Again for the same
    /// is no change; [`io::ErrorKind::AddrInUse`] if it stands for another, or is somebody else's.
    pub async fn open(&self, local: u16, sandbox_id: SandboxId, port: u16) -> io::Result<()> {
        let target = (sandbox_id, port);
        let mut locals = self.locals.lock().await;
        if let Some(open) = locals.get(&local) {
            return if open.target == target { Ok(()) } else { Err(io::ErrorKind::AddrInUse.into()) };
        }
        let listener = TcpListener::bind((self.room.config.bind, local)).await?;
        let cut = self.room.cut.child_token();
        let room = self.room.clone();
        let accepting = accept(room, listener, Some((local, target)), None, cut.clone());
        let accepting = self.room.connections.spawn(accepting);
        locals.insert(local, Local { target, cut, accepting });
        Ok(())
    }

    /// Closes a local address and cuts what is open on it; the port is free when this answers.
    pub async fn close(&self, local: u16) {
        let Some(open) = self.locals.lock().await.remove(&local) else { return };
        open.cut.cancel();
        if let Err(error) = open.accepting.await {
            tracing::error!(%error, local, "the task of a local address failed");
        }
    }

    /// Where the domain's listener is.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

/// Lets what is open go on for a moment once the gateway stops, and cuts what has not ended then.
async fn end<E: Edge>(room: Arc<Room<E>>) {
    room.stop.cancelled().await;
    room.connections.close();
    if tokio::time::timeout(GOODBYE, room.connections.wait()).await.is_err() {
        room.cut.cancel();
        room.connections.wait().await;
    }
}

async fn accept<E: Edge>(
    room: Arc<Room<E>>,
    listener: TcpListener,
    local: Option<(u16, (SandboxId, u16))>,
    tls: Option<Tls<E>>,
    cut: CancellationToken,
) {
    loop {
        // One more than there are places for is taken: a listener that waits for clients needs none.
        let accepted = async {
            let accepted = listener.accept().await;
            (room.places.clone().acquire_owned().await, accepted)
        };
        let (place, accepted) = tokio::select! {
            () = room.stop.cancelled() => return,
            () = cut.cancelled() => return,
            accepted = accepted => accepted,
        };
        // The places are never closed.
        let Ok(place) = place else { return };
        match accepted {
            Ok((stream, peer)) => {
                // What is small is mostly waited for.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY could not be set");
                }
                let arrival = Arrival {
                    peer: peer.ip(),
                    tls: tls.is_some(),
                    destination: local.map(|(_, (sandbox_id, port))| Destination::Local { port, sandbox_id }),
                    cookie: local.map_or_else(
                        || COOKIE_NAME.to_owned(),
                        |(local, _)| format!("{COOKIE_NAME}_{local}"),
                    ),
                    cut: cut.clone(),
                };
                room.connections.spawn(serve(room.clone(), arrival, stream, place, tls.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve<E: Edge>(
    room: Arc<Room<E>>,
    arrival: Arrival,
    stream: TcpStream,
    place: OwnedSemaphorePermit,
    tls: Option<Tls<E>>,
) {
    let cut = arrival.cut.clone();
    let served = async {
        match tls {
            None if arrival.destination.is_some() => {
                serve_local(room, arrival, Wire::new(stream, place)).await;
            }
            None => serve_host(room, arrival, Wire::new(stream, place)).await,
            Some(tls) => {
                let patience = seconds(room.config.head_timeout_secs);
                match tokio::time::timeout(patience, tls.accept(stream)).await {
                    Ok(Ok(stream)) => serve_host(room, arrival, Wire::new(stream, place)).await,
                    Ok(Err(error)) => tracing::debug!(%error, "TLS did not come about"),
                    Err(_) => tracing::debug!("TLS did not come about in time"),
                }
            }
        }
    };
    // What is waited for before there is anything to cut ends too.
    cut.run_until_cancelled_owned(served).await;
}

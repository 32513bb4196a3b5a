//! Ports in the machine on which somebody outside listens. A connection that comes is told, and waits to be
//! taken for a bounded time; so many wait, and further ones stay in the kernel's queue.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::Duration;

use nullspace_guest_proto as pb;
use pb::listen_event::Event;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;
use tonic::Status;

use super::{Doors, PORTS, port, resolve};
use crate::bulk::Over;
use crate::console::say;
use crate::file::stream::Told;

/// Connections of one port that wait to be taken, and for how long.
const WAITING: usize = 64;
const PATIENCE: Duration = Duration::from_secs(20);
/// What waits in the kernel beside.
const BACKLOG: u32 = 128;

/// Connections that have come and wait.
#[derive(Default)]
pub struct Arrivals(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    next: u64,
    waiting: HashMap<u64, Waiting>,
}

struct Waiting {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
    _clock: Clock,
}

/// Runs until this is dropped.
struct Clock(AbortHandle);

impl Drop for Clock {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Arrivals {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder panics")
    }

    fn put(self: &Arc<Self>, stream: TcpStream, place: OwnedSemaphorePermit) -> u64 {
        let mut inner = self.inner();
        let id = inner.next;
        inner.next += 1;
        let arrivals = Arc::clone(self);
        let clock = tokio::spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            arrivals.inner().waiting.remove(&id);
        });
        let clock = Clock(clock.abort_handle());
        inner.waiting.insert(id, Waiting { stream, _place: place, _clock: clock });
        id
    }

    /// The connection with this number.
    pub fn take(&self, id: u64) -> Result<TcpStream, Status> {
        let waiting = self.inner().waiting.remove(&id);
        waiting
            .map(|waiting| waiting.stream)
            .ok_or_else(|| Status::not_found(format!("no connection {id} waits to be taken")))
    }
}

impl Doors {
    /// Listens until the answer is dropped.
    pub async fn listen(&self, request: pb::ListenRequest) -> Result<Told<pb::ListenEvent>, Status> {
        let place = Arc::clone(&self.ports)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted(format!("{PORTS} ports are listened on already")))?;
        let addresses = match request.host.as_str() {
            "" => vec![Ipv6Addr::UNSPECIFIED.into()],
            host => resolve::addresses(host).await?,
        };
        let sockets = bind_all(&addresses, port(request.port)?)?;
        let (events, told) = mpsc::channel(1);
        let port = Port { sockets, arrivals: Arc::clone(&self.arrivals), events, _place: place };
        tokio::spawn(port.serve(self.tickets.over()));
        Ok(told.into())
    }
}

/// One port, on all of its addresses.
struct Port {
    sockets: Vec<TcpListener>,
    arrivals: Arc<Arrivals>,
    events: mpsc::Sender<Result<pb::ListenEvent, Status>>,
    _place: OwnedSemaphorePermit,
}

impl Port {
    async fn serve(self, mut over: Over) {
        let mut put = Vec::new();
        tokio::select! {
            () = self.accept(&mut put) => {}
            () = self.events.closed() => {}
            () = over.come() => {}
        }
        // Nobody is left to take them.
        let mut inner = self.arrivals.inner();
        for id in put {
            inner.waiting.remove(&id);
        }
    }

    /// Tells of what comes, until nobody listens. `put`: those that may wait.
    async fn accept(&self, put: &mut Vec<u64>) {
        let Some(port) = self.sockets.first().and_then(|socket| socket.local_addr().ok()) else { return };
        let listening = Event::Listening(pb::Listening { port: port.port().into() });
        if !self.tell(listening).await {
            return;
        }
        let places = Arc::new(Semaphore::new(WAITING));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let (stream, from) = match self.next().await {
                Ok(next) => next,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                // Descriptors or memory are used up; what frees them cannot be waited for.
                Err(error) => {
                    say!("no connection to port {} could be taken: {error}", port.port());
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Only slower without.
            let _ = stream.set_nodelay(true);
            let connection = self.arrivals.put(stream, place);
            put.retain(|id| self.arrivals.inner().waiting.contains_key(id));
            put.push(connection);
            let host = from.ip().to_canonical().to_string();
            let arrived = pb::Arrived { connection, host, port: from.port().into() };
            if !self.tell(Event::Arrived(arrived)).await {
                return;
            }
        }
    }

    async fn tell(&self, event: Event) -> bool {
        self.events.send(Ok(pb::ListenEvent { event: Some(event) })).await.is_ok()
    }

    /// The next connection to any of the addresses.
    async fn next(&self) -> io::Result<(TcpStream, SocketAddr)> {
        poll_fn(|context| {
            let mut polled = self.sockets.iter().map(|socket| socket.poll_accept(context));
            polled.find(Poll::is_ready).unwrap_or(Poll::Pending)
        })
        .await
    }
}

/// Listens on the first address, and on the others on the same port where that can be had: a machine may
/// have only one of two families.
fn bind_all(addresses: &[IpAddr], port: u16) -> Result<Vec<TcpListener>, Status> {
    let mut sockets = Vec::new();
    let mut chosen = port;
    let mut first_error = None;
    for address in addresses {
        let bound = bind(SocketAddr::new(*address, chosen)).or_else(|error| match address {
            // A machine without the family that stands for both.
            IpAddr::V6(any) if any.is_unspecified() => {
                bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, chosen)))
            }
            _ => Err(error),
        });
        match bound.and_then(|socket| Ok((socket.local_addr()?.port(), socket))) {
            Ok((port, socket)) => {
                chosen = port;
                sockets.push(socket);
            }
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    match first_error {
        Some(error) if sockets.is_empty() => Err(refusal(&error, port)),
        _ => Ok(sockets),
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn refusal(error: &io::Error, port: u16) -> Status {
    let message = format!("port {port}: {error}");
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => Status::already_exists(message),
        Some(libc::EADDRNOTAVAIL | libc::EACCES) => Status::invalid_argument(message),
        _ => Status::resource_exhausted(message),
    }
}

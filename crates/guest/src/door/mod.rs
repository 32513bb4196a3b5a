//! Connections that begin or end outside the machine, carried by lanes: to what a program in it would reach,
//! and from ports in it on which somebody outside listens (`listen`). `resolve` is what names mean.
//!
//! Owned here: how many there are. The bytes are moved by a task for each connection, which ends with
//! it; a side that has ended its sending is told to the other one, and the other direction goes on.

mod listen;
mod resolve;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nullspace_guest_proto as pb;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use crate::bulk::{Over, Tickets};
use listen::Arrivals;

/// Connections at once, in both directions.
const CONNECTIONS: usize = 256;
/// Ports at once.
const PORTS: usize = 32;
/// How long what is connected to may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is moved at once, each way.
const PIECE: usize = 32 << 10;
/// Bytes of the path of a Unix socket.
const PATH_BYTES: usize = 107;

/// See the module.
pub struct Doors {
    tickets: Arc<Tickets>,
    connections: Arc<Semaphore>,
    ports: Arc<Semaphore>,
    arrivals: Arc<Arrivals>,
}

impl Doors {
    /// None yet.
    pub fn new(tickets: Arc<Tickets>) -> Self {
        Self {
            tickets,
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            ports: Arc::new(Semaphore::new(PORTS)),
            arrivals: Arc::default(),
        }
    }

    /// Connects, and joins that to the lane with the request's ticket.
    pub async fn connect(&self, request: pb::ConnectRequest) -> Result<(), Status> {
        let place = self.place()?;
        let over = self.tickets.over();
        // The lane is waited for from the beginning, so that it finds its call.
        let lane = self.tickets.connection(&request.ticket);
        match (request.host.as_str(), request.path.as_str()) {
            ("", "") => Err(Status::invalid_argument("neither host nor path is set")),
            (host, "") => {
                let port = port(request.port)?;
                if port == 0 {
                    return Err(Status::invalid_argument("port is 0; it must be 1 to 65535"));
                }
                let (stream, lane) = tokio::try_join!(to_host(host, port), lane)?;
                tokio::spawn(join(stream, lane, over, place));
                Ok(())
            }
            ("", path) => {
                let (stream, lane) = tokio::try_join!(to_socket(path), lane)?;
                tokio::spawn(join(stream, lane, over, place));
                Ok(())
            }
            (_, _) => Err(Status::invalid_argument("host and path are both set; it is one or the other")),
        }
    }

    /// Joins a connection that came to a port to the lane with the request's ticket.
    pub async fn take(&self, request: pb::TakeConnectionRequest) -> Result<(), Status> {
        let place = self.place()?;
        let over = self.tickets.over();
        let stream = self.arrivals.take(request.connection)?;
        let lane = self.tickets.connection(&request.ticket).await?;
        tokio::spawn(join(stream, lane, over, place));
        Ok(())
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.connections)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted(format!("{CONNECTIONS} connections are open already")))
    }
}

fn port(port: u32) -> Result<u16, Status> {
    port.try_into().map_err(|_| Status::invalid_argument(format!("port is {port}; at most 65535")))
}

async fn to_host(host: &str, port: u16) -> Result<TcpStream, Status> {
    let connecting = async {
        let mut refused = None;
        for address in resolve::addresses(host).await? {
            match TcpStream::connect((address, port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => refused = Some(error),
            }
        }
        let why = refused.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into());
        Err(unavailable(&format!("{host}:{port}"), &why))
    };
    let stream = in_time(&format!("{host}:{port}"), connecting).await?;
    // Only slower without.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

async fn to_socket(path: &str) -> Result<UnixStream, Status> {
    if !path.starts_with('/') || path.contains('\0') || path.len() > PATH_BYTES {
        return Err(Status::invalid_argument(format!(
            "path must be absolute, without NUL bytes, and have at most {PATH_BYTES} bytes"
        )));
    }
    let connecting = async { UnixStream::connect(path).await.map_err(|error| unavailable(path, &error)) };
    in_time(path, connecting).await
}

async fn in_time<T>(what: &str, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => Err(unavailable(what, &io::ErrorKind::TimedOut.into())),
    }
}

fn unavailable(what: &str, why: &io::Error) -> Status {
    Status::unavailable(format!("{what}: {why}"))
}

/// Until both directions have ended, one side breaks, or the machine is another one.
async fn join<S: AsyncRead + AsyncWrite + Unpin>(
    mut inside: S,
    mut lane: TcpStream,
    mut over: Over,
    _place: OwnedSemaphorePermit,
) {
    tokio::select! {
        // A side that breaks is closed with the other one, which so learns of it.
        _ = copy_bidirectional_with_sizes(&mut inside, &mut lane, PIECE, PIECE) => {}
        () = over.come() => {}
    }
}

//! Serves the sockets of one slot.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::message::Query;
use super::relay::{self, Transport};
use super::service::NameService;
use crate::error::{Doing, Result};

/// TCP connections of one machine that are served at a time.
const CONNECTIONS: usize = 8;
/// Longest query that is relayed: no honest one comes near.
const LONGEST_QUERY: usize = 1232;
/// How long a connection may stay without a query, or take over one.
const IDLE: Duration = Duration::from_secs(10);
/// How long accepting pauses after it failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The sockets, made inside the slot's namespace and staying there.
#[derive(Debug)]
pub(crate) struct Sockets {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

impl Sockets {
    /// Binds port 53 of the gateway's address in the namespace of the calling thread.
    pub(crate) fn bind(gateway: Ipv4Addr) -> Result<Self> {
        Self::bind_to((gateway, 53).into())
    }

    fn bind_to(address: SocketAddr) -> Result<Self> {
        let what = || format!("cannot serve DNS at {address} of a slot");
        let udp = std::net::UdpSocket::bind(address).doing(what)?;
        udp.set_nonblocking(true).doing(what)?;
        let tcp = std::net::TcpListener::bind(udp.local_addr().doing(what)?).doing(what)?;
        tcp.set_nonblocking(true).doing(what)?;
        Ok(Self { udp, tcp })
    }
}

/// The task that serves them; ends when this is dropped or stopped.
#[derive(Debug)]
pub(crate) struct Forwarder {
    task: JoinHandle<()>,
}

impl Forwarder {
    /// Begins to serve, on the current runtime.
    pub(crate) fn start(
        index: u32,
        sockets: Sockets,
        guest: Ipv4Addr,
        names: Arc<NameService>,
    ) -> io::Result<Self> {
        let udp = UdpSocket::from_std(sockets.udp)?;
        let tcp = TcpListener::from_std(sockets.tcp)?;
        let served = Served { index, guest, names };
        Ok(Self { task: tokio::spawn(served.run(udp, tcp)) })
    }

    /// Ends it; when this returns the sockets are closed.
    pub(crate) async fn stop(mut self) {
        self.task.abort();
        if let Err(error) = (&mut self.task).await
            && error.is_panic()
        {
            tracing::error!("the DNS forwarder of a network slot had panicked");
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
struct Served {
    index: u32,
    guest: Ipv4Addr,
    names: Arc<NameService>,
}

impl Served {
    async fn run(self, udp: UdpSocket, tcp: TcpListener) {
        let udp = Arc::new(udp);
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        // Everything that was begun for this slot; dropped with this task, and so ended.
        let mut tasks = JoinSet::new();
        let mut buffer = vec![0; LONGEST_QUERY + 1];
        loop {
            tokio::select! {
                received = udp.recv_from(&mut buffer) => match received {
                    Ok((length, from)) => self.datagram(&buffer[..length], from, &udp, &mut tasks),
                    // Of an earlier answer that could not be delivered; says nothing of the socket.
                    Err(error) => tracing::debug!(slot = self.index, %error, "a DNS query cannot be read"),
                },
                // Not accepted while as many as allowed are served: they wait in the kernel's queue.
                accepted = accept(&tcp, &connections) => match accepted {
                    Ok((stream, from, permit)) if from.ip() == IpAddr::V4(self.guest) => {
                        let names = self.names.clone();
                        let index = self.index;
                        tasks.spawn(async move {
                            if let Err(error) = connection(stream, &names).await {
                                tracing::debug!(slot = index, %error, "a DNS connection broke");
                            }
                            drop(permit);
                        });
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(slot = self.index, %error, "a DNS connection cannot be accepted");
                    }
                },
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(slot = self.index, %error, "relaying a DNS query failed");
                    }
                }
            }
        }
    }

    fn datagram(&self, bytes: &[u8], from: SocketAddr, udp: &Arc<UdpSocket>, tasks: &mut JoinSet<()>) {
        if from.ip() != IpAddr::V4(self.guest) {
            return;
        }
        let Some(query) = Query::parse(bytes).filter(|_| bytes.len() <= LONGEST_QUERY) else { return };
        let permit = match (self.names.answer_at_once(&query), self.names.admit()) {
            (None, Some(permit)) => permit,
            (at_once, _) => {
                // Dropped if the socket is full, as any datagram may be.
                if let Err(error) = udp.try_send_to(&at_once.unwrap_or_else(|| query.servfail()), from) {
                    tracing::debug!(slot = self.index, %error, "a refused DNS query stays unanswered");
                }
                return;
            }
        };
        let (udp, names, index) = (udp.clone(), self.names.clone(), self.index);
        tasks.spawn(async move {
            let answer = names.answer(&query, Transport::Udp).await;
            if let Err(error) = udp.send_to(&answer, from).await {
                tracing::debug!(slot = index, %error, "an answer of DNS cannot be delivered");
            }
            drop(permit);
        });
    }
}

async fn accept(
    tcp: &TcpListener,
    connections: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = connections.clone().acquire_owned().await.map_err(io::Error::other)?;
    match tcp.accept().await {
        Ok((stream, from)) => Ok((stream, from, permit)),
        Err(error) => {
            // Most likely no descriptors are left, which trying again at once does not change.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            Err(error)
        }
    }
}

/// One query after the other, until the machine closes or is silent for too long.
async fn connection(mut stream: TcpStream, names: &NameService) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let Some(message) = timeout(IDLE, relay::read_message(&mut stream)).await?? else { return Ok(()) };
        let query = Query::parse(&message).filter(|_| message.len() <= LONGEST_QUERY);
        let Some(query) = query else { return Ok(()) };
        let answer = match (names.answer_at_once(&query), names.admit()) {
            (Some(answer), _) => answer,
            (None, Some(_permit)) => names.answer(&query, Transport::Tcp).await,
            (None, None) => query.servfail(),
        };
        timeout(IDLE, relay::write_message(&mut stream, &answer)).await??;
    }
}

#[cfg(test)]
#[path = "forwarder_tests.rs"]
mod tests;

//! Ports forwarded either way: a channel for each connection, joined to what is inside or comes from there.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::maybe_done;
use futures::stream::BoxStream;
use nullspace_edge_api::{Claims, Incoming, Listening, Machines, Stream as Duplex};
use nullspace_types::{Error, Result};
use russh::ChannelOpenFailure;
use russh::server::{ChannelOpenHandle, Handle};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::inlet::{Inlets, Seat};
use crate::outlet::{Outlet, Stream};
use crate::relay::{Phase, entered};
use crate::session::{forever, reason};

/// Most ports of a connection that something inside can connect to.
const LISTENERS_MAX: usize = 16;
/// How long such a port may take to come about. The connection's loop waits for it.
const LISTENING: Duration = Duration::from_secs(10);
/// RFC 4254, 5.1.
const PROHIBITED: u32 = 1;
const CONNECT_FAILED: u32 = 2;

/// Where a local forwarding leads.
#[derive(Debug)]
pub(crate) enum Target {
    Port(String, u16),
    Socket(String),
}

/// In whose name something is forwarded.
#[derive(Clone)]
pub(crate) struct Owner<M> {
    pub(crate) machines: M,
    pub(crate) claims: Arc<Claims>,
    pub(crate) phase: watch::Receiver<Phase>,
}

/// A connection that the client forwards.
pub(crate) struct Direct<M> {
    pub(crate) owner: Owner<M>,
    pub(crate) seat: Seat,
    pub(crate) outlet: Outlet,
}

impl<M: Machines> Direct<M> {
    /// Connects inside, then answers the client, then passes bytes until both sides have ended.
    pub(crate) async fn run(self, target: Target, reply: ChannelOpenHandle) {
        let Self { owner: Owner { machines, claims, mut phase }, seat, outlet } = self;
        let connecting = async {
            entered(&mut phase).await.map_err(|error| refused(PROHIBITED, &error))?;
            let stream = match target {
                Target::Port(host, port) => machines.connect(&claims, host, port).await,
                Target::Socket(path) => machines.connect_socket(&claims, path).await,
            };
            stream.map_err(|error| refused(CONNECT_FAILED, &error))
        };
        let connected = tokio::select! {
            connected = connecting => connected,
            () = seat.inlet.closed() => return,
        };
        match connected {
            Ok(stream) => {
                reply.accept().await;
                pass(stream, &seat, &outlet).await;
            }
            Err(why) => reply.reject(why).await,
        }
    }
}

fn refused(code: u32, error: &Error) -> ChannelOpenFailure {
    ChannelOpenFailure::Other { code, reason: reason(error) }
}

/// Passes bytes both ways; either side may end before the other.
async fn pass(stream: Duplex, seat: &Seat, outlet: &Outlet) {
    let (mut from, to) = tokio::io::split(stream);
    let mut nowhere = tokio::io::sink();
    let mut inwards = pin!(maybe_done(seat.inlet.feed(to)));
    let outwards = async {
        // A connection that breaks off ends like one that is closed: the protocol knows no other end.
        if let Err(error) = outlet.send_all(Stream::Output, &mut from).await {
            tracing::debug!(%error, "a forwarded connection broke off");
        }
        outlet.eof().await
    };
    tokio::select! {
        _ = async { tokio::join!(inwards.as_mut(), outwards) } => {}
        // A client that has heard all closes with its last bytes: these are still delivered.
        () = seat.inlet.closed() => tokio::select! {
            () = inwards => return,
            () = forever(tokio::io::copy(&mut from, &mut nowhere)) => return,
            () = seat.inlet.stuck() => return,
            () = seat.inlets.over() => return,
        },
        () = seat.inlet.stuck() => {}
    }
    if outlet.close().await.is_err() {
        tracing::debug!("the connection ended with its forwarded one");
    }
}

/// The ports inside that lead to the client.
pub(crate) struct Listeners {
    open: HashMap<(String, u32), CancellationToken>,
    over: CancellationToken,
}

impl Listeners {
    pub(crate) fn new(over: CancellationToken) -> Self {
        Self { open: HashMap::new(), over }
    }

    /// Opens one, and gives its port.
    pub(crate) async fn open<M: Machines>(
        &mut self,
        owner: Owner<M>,
        address: &str,
        port: u16,
        accepting: Accepting,
    ) -> Result<u16> {
        // Those whose machine is gone.
        self.open.retain(|_, closed| !closed.is_cancelled());
        if self.open.len() >= LISTENERS_MAX {
            return Err(Error::invalid(format!("at most {LISTENERS_MAX} ports can be forwarded")));
        }
        if self.open.contains_key(&(address.to_owned(), u32::from(port))) {
            return Err(Error::invalid(format!("{address}:{port} is forwarded already")));
        }
        // Clients say `localhost` for what no other machine shall reach, and nothing or `*` for all (RFC 4254,
        // 7.1).
        let host = match address {
            "localhost" => "127.0.0.1",
            "*" => "",
            address => address,
        };
        let Owner { machines, claims, mut phase } = owner;
        let opening = async {
            entered(&mut phase).await?;
            machines.listen(&claims, host.to_owned(), port).await
        };
        let Listening { port, connections } = tokio::select! {
            opened = tokio::time::timeout(LISTENING, opening) => {
                opened.map_err(|_| Error::internal(format!("port {port} took too long to open")))??
            }
            () = self.over.cancelled() => return Err(Error::internal("the connection is over")),
        };
        let closed = self.over.child_token();
        self.open.insert((address.to_owned(), u32::from(port)), closed.clone());
        let tasks = accepting.tasks.clone();
        tasks.spawn(accepting.run(address.to_owned(), port, connections, closed));
        Ok(port)
    }

    /// Closes one; false if there is none such.
    pub(crate) fn close(&mut self, address: &str, port: u32) -> bool {
        let closed = self.open.remove(&(address.to_owned(), port));
        closed.inspect(CancellationToken::cancel).is_some()
    }
}

/// What it takes to lead connections to the client.
pub(crate) struct Accepting {
    pub(crate) handle: Handle,
    pub(crate) inlets: Arc<Inlets>,
    pub(crate) tasks: TaskTracker,
}

impl Accepting {
    async fn run(
        self,
        address: String,
        port: u16,
        mut connections: BoxStream<'static, Result<Incoming>>,
        closed: CancellationToken,
    ) {
        let _closed = closed.clone().drop_guard();
        loop {
            let incoming = tokio::select! {
                () = closed.cancelled() => return,
                incoming = connections.next() => incoming,
            };
            let incoming = match incoming {
                Some(Ok(incoming)) => incoming,
                Some(Err(error)) => {
                    tracing::debug!(%error, port, "a forwarded port is gone");
                    return;
                }
                None => return,
            };
            // One too many is closed, as a listener with a full queue would.
            let Some(place) = self.inlets.place() else { continue };
            let (handle, inlets, address) = (self.handle.clone(), self.inlets.clone(), address.clone());
            self.tasks.spawn(async move {
                let Incoming { host, port: from, stream } = incoming;
                let opening =
                    handle.channel_open_forwarded_tcpip(address, u32::from(port), host, u32::from(from));
                let opened = tokio::select! {
                    opened = opening => opened,
                    () = inlets.over() => return,
                };
                match opened {
                    Ok(channel) => {
                        let seat = inlets.seat(channel.id(), place);
                        let outlet = Outlet::new(channel, inlets);
                        pass(stream, &seat, &outlet).await;
                    }
                    Err(error) => tracing::debug!(%error, port, "the client takes no connection"),
                }
            });
        }
    }
}

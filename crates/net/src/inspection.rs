//! Takes the connections that the firewall redirects, and gives each to the inspector of its slot: it looks
//! into them, and sends on what may pass by the way that is here ([`Outside`]).
//!
//! Bounded in the slot by its policy's bound on connections or by one of its own, and over all slots by the
//! descriptors that this process may have. What is closed or too much is reset at once.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{getsockopt, sockopt::OriginalDst};
use nullspace_egress::{Inspector, Outside, Settings};
use nullspace_types::network::{DeniedProtocol, DeniedTarget, DenyReason};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::denials::SlotDenials;
use crate::dns::NameService;
use crate::error::{Doing, Result};
use crate::firewall::INSPECTION_PORT;
use crate::namespace::Namespace;
use crate::way::Way;

/// Connections of one slot, where its policy has no bound.
const CONNECTIONS: usize = 1024;
/// How long a connection to the outside may take to open.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long accepting pauses after it failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Leave for connections of all slots: each takes two descriptors, and together they take no more than half
/// of those that this process may have.
pub(crate) fn connections() -> Result<Arc<Semaphore>> {
    let (most, _) =
        getrlimit(Resource::RLIMIT_NOFILE).doing(|| "cannot tell the limit of open files".into())?;
    let most = usize::try_from(most / 4).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS);
    Ok(Arc::new(Semaphore::new(most)))
}

/// Listens where connections are redirected to, in the namespace of the calling thread.
pub(crate) fn listen(gateway: Ipv4Addr) -> Result<std::net::TcpListener> {
    let what = || format!("cannot listen at {gateway}:{INSPECTION_PORT} of a slot");
    let listener = std::net::TcpListener::bind((gateway, INSPECTION_PORT)).doing(what)?;
    listener.set_nonblocking(true).doing(what)?;
    Ok(listener)
}

/// What a slot's connections need.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) index: u32,
    pub(crate) guest: Ipv4Addr,
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) way: Arc<Way>,
    pub(crate) names: Arc<NameService>,
    pub(crate) denials: SlotDenials,
}

#[async_trait]
impl Outside for Surroundings {
    async fn connect(&self, to: SocketAddrV4) -> io::Result<TcpStream> {
        if self.way.enforced().is_none() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let socket = self.namespace.tcp_socket().await.map_err(io::Error::other)?;
        socket.set_nodelay(true)?;
        timeout(PATIENCE, socket.connect(to.into())).await?
    }

    async fn gives(&self, name: &str, address: Ipv4Addr) -> bool {
        self.names.gives(name, address).await
    }

    fn knows(&self, address: Ipv4Addr) -> bool {
        self.names.knows(address)
    }

    fn denied(&self, target: DeniedTarget) {
        self.denials.add(target);
    }
}

/// The task that takes them; ends, and they with it, when this is dropped or stopped.
#[derive(Debug)]
pub(crate) struct Inspection {
    task: JoinHandle<()>,
}

impl Inspection {
    /// Begins to take them, on the current runtime.
    pub(crate) fn start(
        listener: std::net::TcpListener,
        around: Surroundings,
        settings: Settings,
        of_all: Arc<Semaphore>,
    ) -> io::Result<Self> {
        let listener = TcpListener::from_std(listener)?;
        let around = Arc::new(around);
        let inspector = Arc::new(Inspector::new(around.clone(), settings, around.way.changes()));
        let taken = Taken { around, inspector, of_all, tasks: JoinSet::new() };
        Ok(Self { task: tokio::spawn(taken.run(listener)) })
    }

    /// Ends it; when this returns the sockets are closed.
    pub(crate) async fn stop(mut self) {
        self.task.abort();
        if let Err(error) = (&mut self.task).await
            && error.is_panic()
        {
            tracing::error!("the inspection of a network slot's connections had panicked");
        }
    }
}

impl Drop for Inspection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Taken {
    around: Arc<Surroundings>,
    inspector: Arc<Inspector>,
    of_all: Arc<Semaphore>,
    /// One for each connection; dropped with this, and so ended.
    tasks: JoinSet<()>,
}

impl Taken {
    async fn run(mut self, listener: TcpListener) {
        let index = self.around.index;
        let mut opened = self.around.way.opened();
        loop {
            tokio::select! {
                accepted = accept(&listener) => match accepted {
                    Ok((stream, from)) => self.take(stream, from),
                    Err(error) => {
                        tracing::warn!(slot = index, %error, "a redirected connection cannot be accepted");
                    }
                },
                Ok(()) = opened.changed() => {
                    if !*opened.borrow_and_update() {
                        self.tasks.abort_all();
                    }
                }
                Some(ended) = self.tasks.join_next() => {
                    if let Err(error) = ended
                        && error.is_panic()
                    {
                        tracing::error!(slot = index, %error, "looking into a connection failed");
                    }
                }
            }
        }
    }

    fn take(&mut self, stream: TcpStream, from: SocketAddr) {
        let original = original(&stream).filter(|_| from.ip() == IpAddr::V4(self.around.guest));
        let admitted = original.and_then(|original| Some((original, self.admit(original)?)));
        let Some((original, leave)) = admitted else {
            if let Err(error) = stream.set_zero_linger() {
                tracing::debug!(slot = self.around.index, %error, "a connection is closed and not reset");
            }
            return;
        };
        let inspector = self.inspector.clone();
        self.tasks.spawn(async move {
            inspector.serve(stream, original).await;
            drop(leave);
        });
    }

    /// Leave for one more connection.
    fn admit(&self, original: SocketAddrV4) -> Option<OwnedSemaphorePermit> {
        let limits = self.around.way.enforced()?.policy.limits;
        // Whatever its policy has, it takes no more than is left for all others together.
        let left = self.of_all.available_permits();
        let most = limits.connections_max.map_or(CONNECTIONS, |most| most as usize).min(left);
        let leave = self.of_all.clone().try_acquire_owned().ok().filter(|_| self.tasks.len() < most);
        if leave.is_none() {
            self.around.denials.add(DeniedTarget {
                protocol: DeniedProtocol::Tcp,
                address: Some(*original.ip()),
                port: Some(original.port()),
                name: None,
                reason: DenyReason::Limit,
            });
        }
        leave
    }
}

async fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    match listener.accept().await {
        Ok(accepted) => Ok(accepted),
        Err(error) => {
            // Most likely no descriptors are left, which trying again at once does not change.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            Err(error)
        }
    }
}

/// Where a connection was for before it was redirected; none if the machine is gone already.
fn original(stream: &TcpStream) -> Option<SocketAddrV4> {
    let address = getsockopt(stream, OriginalDst).ok()?;
    let ip = Ipv4Addr::from_bits(u32::from_be(address.sin_addr.s_addr));
    Some(SocketAddrV4::new(ip, u16::from_be(address.sin_port)))
}

//! One slot: what its holder can do with it, and what this process serves in it.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nullspace_egress::{Enforced, Settings};
use nullspace_types::network::Denial;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::config::{Config, TAP, namespace_name};
use crate::denials::{Denials, SlotDenials};
use crate::dns::{Forwarder, Lookups, NameService};
use crate::error::{Doing, Error, Result};
use crate::inspection::{Inspection, Surroundings};
use crate::make::{self, Made};
use crate::namespace::Namespace;
use crate::nflog::Reader;
use crate::tap;
use crate::way::Way;

/// Bytes that passed the machine's link, its agent's included, as the machine sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that the machine received.
    pub received_bytes: u64,
    /// Bytes that the machine sent.
    pub sent_bytes: u64,
}

/// A slot, from a [`SlotPool`](crate::SlotPool). All clones are the same slot.
///
/// It stays when this is dropped, as it must when the server stops while its machine runs; only
/// [`Slot::release`] removes it. DNS in it, and the connections that are looked into, end with the last
/// clone.
#[derive(Debug, Clone)]
pub struct Slot {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    index: u32,
    config: Arc<Config>,
    /// None once released.
    live: Mutex<Option<Live>>,
    /// Held by the one that releases.
    releasing: tokio::sync::Mutex<()>,
    /// Told when this has been released.
    freed: Arc<Notify>,
}

#[derive(Debug)]
struct Live {
    namespace: Arc<Namespace>,
    way: Arc<Way>,
    denials: SlotDenials,
    served: Option<Served>,
    /// One of the pool's `max`.
    _permit: OwnedSemaphorePermit,
}

/// What this process does in the slot.
#[derive(Debug)]
struct Served {
    dns: Forwarder,
    inspection: Inspection,
    log: Reader,
}

impl Served {
    async fn stop(self) {
        let Self { dns, inspection, log } = self;
        tokio::join!(dns.stop(), inspection.stop(), log.stop());
    }
}

/// What the slots of a pool have in common.
#[derive(Debug)]
pub(crate) struct Shares {
    pub(crate) config: Arc<Config>,
    pub(crate) lookups: Arc<Lookups>,
    pub(crate) denials: Arc<Denials>,
    /// Leave for connections that are looked into.
    pub(crate) connections: Arc<Semaphore>,
    /// Told when a slot is released.
    pub(crate) freed: Arc<Notify>,
}

impl Slot {
    /// Wraps what [`make::make`] or [`make::recover`] gave, and begins to serve in it.
    pub(crate) fn new(made: Made, shares: &Shares, permit: OwnedSemaphorePermit) -> Result<Self> {
        let Made { index, namespace, inside, table } = made;
        let (namespace, way) = (Arc::new(namespace), Arc::new(Way::new(inside.gate, table)));
        let denials = SlotDenials::new(index, shares.denials.clone());
        let config = shares.config.clone();
        let guest = config.link.guest;
        let names = Arc::new(NameService::new(way.clone(), denials.clone(), shares.lookups.clone()));
        let around = Surroundings {
            index,
            guest,
            namespace: namespace.clone(),
            way: way.clone(),
            names: names.clone(),
            denials: denials.clone(),
        };
        let settings = Settings { roots: config.roots.clone() };
        let (_, uplink) = config.pair(index);
        let serve = || {
            Ok::<_, io::Error>(Served {
                dns: Forwarder::start(index, inside.dns, guest, names)?,
                inspection: Inspection::start(
                    inside.redirected,
                    around,
                    settings,
                    shares.connections.clone(),
                )?,
                log: Reader::start(inside.log, uplink, denials.clone())?,
            })
        };
        let served = serve().doing(|| format!("cannot serve in network slot {index}"))?;
        let live = Live { namespace, way, denials, served: Some(served), _permit: permit };
        let (live, freed) = (Mutex::new(Some(live)), shares.freed.clone());
        Ok(Self { shared: Arc::new(Shared { index, config, live, releasing: Default::default(), freed }) })
    }

    /// Its number among all slots of the host.
    pub fn index(&self) -> u32 {
        self.shared.index
    }

    /// The user and group ID that the machine's monitor runs as; no other slot of the host has it.
    pub fn uid(&self) -> u32 {
        self.shared.config.uid_base + self.shared.index
    }

    /// The name of its namespace, as `ip netns` shows it.
    pub fn netns_name(&self) -> String {
        namespace_name(&self.shared.config.instance, self.shared.index)
    }

    /// The file of its namespace, for whoever has to enter it.
    pub fn netns_path(&self) -> PathBuf {
        Namespace::path(&self.netns_name())
    }

    /// Opens the tap for the monitor to inherit (`-netdev tap,fd=N`). One at a time can have it open.
    /// Blocks for the time of a thread's start.
    pub fn open_tap(&self) -> Result<OwnedFd> {
        self.namespace()?.enter(|| tap::open(TAP))
    }

    /// Connects to a port of the machine, without delay of small packets. The socket stays in the
    /// namespace. Blocks up to `timeout`; see [`Slot::dial`] for async callers.
    pub fn connect(&self, port: u16, timeout: Duration) -> Result<TcpStream> {
        let address = self.guest(port);
        // Zero is no time-out to the system, but an error.
        let patience = timeout.max(Duration::from_millis(1));
        let connected = self.namespace()?.enter(|| Ok(TcpStream::connect_timeout(&address, patience)))?;
        let stream = connected.map_err(|error| self.not_connected(port, timeout, error))?;
        stream.set_nodelay(true).doing(|| self.connecting(port))?;
        Ok(stream)
    }

    /// [`Slot::connect`] without a thread that waits.
    pub async fn dial(&self, port: u16, timeout: Duration) -> Result<tokio::net::TcpStream> {
        let socket = self.namespace()?.tcp_socket().await?;
        socket.set_nodelay(true).doing(|| self.connecting(port))?;
        match tokio::time::timeout(timeout, socket.connect(self.guest(port))).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(self.not_connected(port, timeout, error)),
            Err(_) => Err(self.not_connected(port, timeout, io::ErrorKind::TimedOut.into())),
        }
    }

    /// What has passed the machine's link since the slot was made. Blocks for the time of a thread's
    /// start.
    pub fn traffic(&self) -> Result<Traffic> {
        let text = self.namespace()?.enter(|| {
            fs_err::read_to_string("/proc/thread-self/net/dev").doing(|| "cannot read the traffic".into())
        })?;
        parse_traffic(&text, TAP).ok_or_else(|| {
            let missing = io::Error::new(io::ErrorKind::NotFound, format!("{TAP} is not listed"));
            Error::io("cannot read the traffic", missing)
        })
    }

    /// Closes the machine's way out at once, without a new process: nothing is forwarded, DNS refuses,
    /// connections that are looked into end. It stays closed until a policy is set after this.
    pub fn close(&self) -> Result<()> {
        self.with_live(|live| live.way.clone())?.close()
    }

    /// Puts a policy in force, all at once, and opens the way out: connections that are no longer allowed
    /// stop too. On failure the way is closed. One that is in force already costs nothing. Goes on to the
    /// end if the caller stops waiting.
    ///
    /// To be called before the machine runs if it is to be certain that nothing else passed.
    pub async fn set_egress(&self, enforced: Arc<Enforced>) -> Result<()> {
        let (way, namespace) = self.with_live(|live| (live.way.clone(), live.namespace.clone()))?;
        let config = self.shared.config.clone();
        joined(tokio::spawn(async move { way.set(enforced, namespace, config).await })).await
    }

    /// What the machine was denied and nobody has been told of: whoever ends it tells it.
    pub fn take_denials(&self) -> Result<Vec<Denial>> {
        self.with_live(|live| live.denials.take())
    }

    /// Removes the slot and all it holds; its index and user may then be another's. Whatever ran in
    /// it or as its user must have ended. May be called again, after a failure too; goes on to the
    /// end if the caller stops waiting.
    pub async fn release(&self) -> Result<()> {
        let slot = self.clone();
        joined(tokio::spawn(async move { slot.release_whole().await })).await
    }

    async fn release_whole(&self) -> Result<()> {
        let _alone = self.shared.releasing.lock().await;
        let Ok(served) = self.with_live(|live| live.served.take()) else { return Ok(()) };
        if let Some(served) = served {
            served.stop().await;
        }
        let (instance, index) = (self.shared.config.instance.clone(), self.shared.index);
        blocking(move || make::remove(&instance, &BTreeSet::from([index]))).await?;
        // The namespace's last handle and the permit go here.
        let live = self.shared.live.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(live) = live {
            live.denials.take();
        }
        self.shared.freed.notify_one();
        Ok(())
    }

    fn namespace(&self) -> Result<Arc<Namespace>> {
        self.with_live(|live| live.namespace.clone())
    }

    fn with_live<T>(&self, work: impl FnOnce(&mut Live) -> T) -> Result<T> {
        let mut live = self.shared.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.as_mut().map(work).ok_or(Error::Released { index: self.shared.index })
    }

    fn guest(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.shared.config.link.guest, port))
    }

    fn connecting(&self, port: u16) -> String {
        format!("cannot connect to port {port} of the machine in slot {}", self.shared.index)
    }

    fn not_connected(&self, port: u16, timeout: Duration, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                Error::ConnectTimeout { index: self.shared.index, port, milliseconds: timeout.as_millis() }
            }
            _ => Error::Io { doing: self.connecting(port), source: error },
        }
    }
}

/// Runs blocking work away from the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    joined(tokio::task::spawn_blocking(work)).await
}

async fn joined<T>(task: tokio::task::JoinHandle<Result<T>>) -> Result<T> {
    match task.await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is shutting down.
        Err(_) => Err(Error::Closed),
    }
}

/// The machine's view of a link in the text of `/proc/net/dev`: what the tap sends, it receives.
fn parse_traffic(text: &str, link: &str) -> Option<Traffic> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(link)?.strip_prefix(':'))?;
    let mut fields = line.split_whitespace().map(str::parse);
    let sent_bytes = fields.next()?.ok()?;
    // Eight fields are of what was received, then come those of what was sent.
    let received_bytes = fields.nth(7)?.ok()?;
    Some(Traffic { received_bytes, sent_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_told_from_the_machines_side() {
        let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
  tap0:     111       2    0    0    0     0          0         0      999       7    0    0    0     0       0          0
 tap01:       1       2    0    0    0     0          0         0        3       7    0    0    0     0       0          0
";
        let expected = Traffic { received_bytes: 999, sent_bytes: 111 };
        assert_eq!(parse_traffic(text, "tap0"), Some(expected));
        assert_eq!(parse_traffic(text, "eth0"), None);
    }
}

//! One slot: how it is made, what its holder can do with it, how it is removed.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit};

use crate::config::{Config, Egress, TAP, UPLINK, host_link, namespace_name};
use crate::dns::{Forwarder, Resolvers, Sockets};
use crate::error::{Doing, Error, Result};
use crate::namespace::Namespace;
use crate::{claim, firewall, host, tap, tool};

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
/// [`Slot::release`] removes it. DNS in it ends with the last clone.
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
    dns: Option<Forwarder>,
    /// One of the pool's `max`.
    _permit: OwnedSemaphorePermit,
}

impl Slot {
    /// Wraps what [`make`] or [`recover`] gave, and begins to serve DNS in it.
    pub(crate) fn new(
        made: Made,
        config: Arc<Config>,
        resolvers: Arc<Resolvers>,
        permit: OwnedSemaphorePermit,
        freed: Arc<Notify>,
    ) -> Result<Self> {
        let Made { index, namespace, sockets } = made;
        let dns = Forwarder::start(index, sockets, config.link.guest, resolvers)
            .doing(|| format!("cannot serve DNS in network slot {index}"))?;
        let live = Live { namespace: Arc::new(namespace), dns: Some(dns), _permit: permit };
        let live = Mutex::new(Some(live));
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
        let namespace = self.namespace()?;
        let socket = blocking(move || {
            let made = || tokio::net::TcpSocket::new_v4().doing(|| "cannot make a socket".into());
            namespace.enter(made)
        })
        .await?;
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

    /// Changes what the machine may reach, all at once: connections that are no longer allowed stop
    /// too. To be called before the machine runs if it is to be certain that nothing passed.
    pub async fn set_egress(&self, egress: Egress) -> Result<()> {
        let (namespace, config) = (self.namespace()?, self.shared.config.clone());
        blocking(move || {
            let host = host::addresses()?;
            let script = firewall::slot_script(&config.link, egress, &config.allow, &host);
            namespace.enter(|| tool::nft(&script))
        })
        .await
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
        let Ok(dns) = self.with_live(|live| live.dns.take()) else { return Ok(()) };
        if let Some(dns) = dns {
            dns.stop().await;
        }
        let (instance, index) = (self.shared.config.instance.clone(), self.shared.index);
        blocking(move || remove(&instance, &BTreeSet::from([index]))).await?;
        // The namespace's last handle and the permit go here.
        drop(self.shared.live.lock().unwrap_or_else(PoisonError::into_inner).take());
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

/// A slot in the kernel, not yet served.
#[derive(Debug)]
pub(crate) struct Made {
    index: u32,
    namespace: Namespace,
    sockets: Sockets,
}

impl Made {
    pub(crate) fn index(&self) -> u32 {
        self.index
    }
}

/// Makes a slot, or nothing of it. Blocks for some ten milliseconds.
pub(crate) fn make(config: &Config) -> Result<Made> {
    let (lock, index) = claim_index(config)?;
    set_up(config, index).inspect_err(|_| {
        if let Err(error) = remove_locked(&lock, &config.instance, &BTreeSet::from([index])) {
            // Its claim stays, and with it the next start's chance to remove it.
            tracing::warn!(index, %error, "a network slot that could not be made stays behind");
        }
    })
}

fn claim_index(config: &Config) -> Result<(claim::Shared, u32)> {
    let take = || -> Result<Option<(claim::Shared, u32)>> {
        let lock = claim::share()?;
        Ok(claim::take(&lock, &config.instance, config.indexes())?.map(|index| (lock, index)))
    };
    if let Some(claimed) = take()? {
        return Ok(claimed);
    }
    claim::sweep()?;
    take()?.ok_or(Error::Exhausted { max: config.indexes() as usize })
}

fn set_up(config: &Config, index: u32) -> Result<Made> {
    let name = namespace_name(&config.instance, index);
    // The claim is this instance's: what still has its names is left from a crash or a reboot.
    host::delete_links([index])?;
    Namespace::remove(&name)?;
    let namespace = Namespace::create(&name)?;

    let (near, far) = config.pair(index);
    let link = host_link(index);
    let inside = format!("/proc/{}/fd/{}", std::process::id(), namespace.file().as_raw_fd());
    tool::ip(&format!(
        "link add name {link} type veth peer name {UPLINK} netns {inside}\n\
         addr add {near}/30 dev {link}\n\
         link set dev {link} up\n"
    ))?;
    host::set(&format!("ipv6/conf/{link}/disable_ipv6"), "1")?;

    let host = host::addresses()?;
    let sockets = namespace.enter(|| {
        host::set("ipv6/conf/all/disable_ipv6", "1")?;
        host::set("ipv6/conf/default/disable_ipv6", "1")?;
        host::set("ipv4/ip_forward", "1")?;
        // The machine learns of no address but its gateway's, and is sent to no other router.
        host::set("ipv4/conf/all/arp_ignore", "1")?;
        host::set("ipv4/conf/all/send_redirects", "0")?;
        host::set("ipv4/conf/default/send_redirects", "0")?;
        tap::create(TAP)?;
        // Rules before links are up: never a moment without.
        tool::nft(&firewall::slot_script(&config.link, Egress::Internet, &config.allow, &host))?;
        let l = &config.link;
        tool::ip(&format!(
            "link set dev lo up\n\
             link set dev {TAP} address {gateway_mac}\n\
             addr add {gateway}/{prefix} dev {TAP}\n\
             link set dev {TAP} up\n\
             neigh replace {guest} lladdr {guest_mac} dev {TAP} nud permanent\n\
             addr add {far}/30 dev {UPLINK}\n\
             link set dev {UPLINK} up\n\
             route add default via {near} dev {UPLINK}\n",
            gateway_mac = l.gateway_mac,
            gateway = l.gateway,
            prefix = l.prefix,
            guest = l.guest,
            guest_mac = l.guest_mac,
        ))?;
        Sockets::bind(l.gateway)
    })?;
    Ok(Made { index, namespace, sockets })
}

/// Removes slots with all they hold, claims last. Goes on when one fails; the first failure is
/// answered.
pub(crate) fn remove(instance: &str, indexes: &BTreeSet<u32>) -> Result<()> {
    remove_locked(&claim::share()?, instance, indexes)
}

fn remove_locked(lock: &claim::Shared, instance: &str, indexes: &BTreeSet<u32>) -> Result<()> {
    // A namespace of ours whose index is another instance's by now has lost its links already.
    let ours: Vec<u32> = claim::of(instance)?.intersection(indexes).copied().collect();
    host::delete_links(ours)?;
    let mut failed = Ok(());
    for &index in indexes {
        let removed = Namespace::remove(&namespace_name(instance, index))
            .and_then(|()| claim::give_back(lock, instance, index));
        failed = failed.and(removed);
    }
    failed
}

/// Finds the slots of an instance that runs no server now: those in `keep` are answered, all others
/// removed. Blocks.
pub(crate) fn recover(config: &Config, keep: &BTreeSet<u32>) -> Result<Vec<Made>> {
    claim::sweep()?;
    let instance = &config.instance;
    let prefix = namespace_name(instance, 0);
    let prefix = prefix.trim_end_matches('0');
    let named = Namespace::names(prefix)?;
    let named = named.iter().filter_map(|name| name.strip_prefix(prefix)?.parse().ok());
    let found: BTreeSet<u32> = claim::of(instance)?.into_iter().chain(named).collect();

    let lock = claim::share()?;
    let mut kept = Vec::new();
    let mut unwanted: BTreeSet<u32> = found.difference(keep).copied().collect();
    for &index in found.intersection(keep) {
        let Some(namespace) = Namespace::open(&namespace_name(instance, index))? else {
            unwanted.insert(index);
            continue;
        };
        if !claim::keep(&lock, instance, index)? {
            tracing::error!(index, "another server has taken the index of a network slot in use");
            unwanted.insert(index);
            continue;
        }
        let sockets = namespace.enter(|| Sockets::bind(config.link.gateway))?;
        kept.push(Made { index, namespace, sockets });
    }
    if !unwanted.is_empty() {
        tracing::info!(slots = unwanted.len(), "removing network slots that no machine uses");
        remove_locked(&lock, instance, &unwanted)?;
    }
    Ok(kept)
}

/// Whether the instance has any slot left.
pub(crate) fn any_left(instance: &str) -> Result<bool> {
    Ok(!claim::of(instance)?.is_empty())
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

//! Where a port of a sandbox is reached. With a domain that follows from the sandbox's label. Without one,
//! each port that is asked for gets a port of this host: it is stored, stays the same for as long as the
//! sandbox lives, and is given back at its end.

use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use nullspace_domain::lifecycle::State;
use nullspace_domain::preview::LOCAL_PORTS_MAX;
use nullspace_store::preview::LocalPort;
use nullspace_types::id::SandboxId;
use nullspace_types::{Code, Error, Result};
use rand::Rng as _;
use tokio::sync::Mutex;

use crate::ingress::PreviewAddresses;
use crate::shared::Shared;

/// Where a port is reached.
pub(super) struct Address {
    /// Host, with its port where that is not the scheme's own.
    pub(super) host: String,
    tls: bool,
    pub(super) only_from_this_host: bool,
}

impl Address {
    pub(super) fn http(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.host)
    }

    pub(super) fn websocket(&self) -> String {
        format!("{}://{}", if self.tls { "wss" } else { "ws" }, self.host)
    }
}

/// The address of a port, given to it now if it has none.
pub(super) async fn of(shared: &Arc<Shared>, id: SandboxId, port: u16) -> Result<Address> {
    match &shared.access.previews {
        PreviewAddresses::Domain { domain, tls, port: public } => {
            let label = shared.access.tokens.label(id);
            let own = if *tls { 443 } else { 80 };
            let mut host = format!("{port}-{label}.{domain}");
            if *public != own {
                host = format!("{host}:{public}");
            }
            Ok(Address { host, tls: *tls, only_from_this_host: false })
        }
        PreviewAddresses::Local { bind, .. } => {
            let own = shared.clone();
            // A task, because what was opened must be written or closed, whether or not the caller waits.
            let given = shared.tasks.spawn(async move { assign(&own, id, port).await });
            let local = given.await.map_err(Error::internal)??;
            let shown = match bind {
                IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
                ip => *ip,
            };
            let host = SocketAddr::new(shown, local).to_string();
            Ok(Address { host, tls: false, only_from_this_host: bind.is_loopback() })
        }
    }
}

/// The addresses that are given. One change at a time.
#[derive(Default)]
pub(crate) struct LocalPorts {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    given: BTreeMap<(SandboxId, u16), Given>,
    taken: HashSet<u16>,
}

#[derive(Clone, Copy)]
struct Given {
    local: u16,
    open: bool,
}

impl Table {
    fn give(&mut self, port: LocalPort, open: bool) {
        self.given.insert((port.sandbox_id, port.port), Given { local: port.local, open });
        self.taken.insert(port.local);
    }

    fn of(&self, id: SandboxId) -> impl Iterator<Item = (u16, Given)> {
        self.given.range((id, 0)..=(id, u16::MAX)).map(|((_, port), given)| (*port, *given))
    }
}

/// Whether a sandbox may still be given something: its end takes back only what it has by then.
fn lives(shared: &Shared, id: SandboxId) -> bool {
    shared.registry.get(id).is_some_and(|entry| match entry.view.borrow().record.state {
        State::Destroying { .. } | State::Destroyed => false,
        State::Absent
        | State::Creating { .. }
        | State::Running { .. }
        | State::Hibernating { .. }
        | State::Paused { .. }
        | State::Resuming { .. }
        | State::Lost { .. } => true,
    })
}

async fn assign(shared: &Shared, sandbox_id: SandboxId, port: u16) -> Result<u16> {
    let PreviewAddresses::Local { ports, .. } = &shared.access.previews else {
        return Err(Error::internal("a local address with a domain"));
    };
    let (doors, store) = (&shared.access.doors, &shared.store);
    let mut table = shared.ports.table.lock().await;
    if !lives(shared, sandbox_id) {
        return Err(Error::sandbox_not_found(sandbox_id));
    }
    if let Some(Given { local, open }) = table.given.get(&(sandbox_id, port)).copied() {
        if open {
            return Ok(local);
        }
        let before = LocalPort { local, sandbox_id, port };
        match doors.open(before).await {
            Ok(()) => {
                table.give(before, true);
                return Ok(local);
            }
            Err(error) => {
                tracing::warn!(sandbox = %sandbox_id, port, local, %error, "a local address cannot be listened on; giving another");
                store.local_port_release(local).await?;
                table.given.remove(&(sandbox_id, port));
                table.taken.remove(&local);
            }
        }
    }
    if table.of(sandbox_id).count() >= LOCAL_PORTS_MAX {
        let message = format!("sandbox {sandbox_id} has {LOCAL_PORTS_MAX} ports with an address already");
        return Err(Error::new(Code::QuotaExceeded, message).suggest("use one of the ports that have one"));
    }
    let (first, count) = (u32::from(*ports.start()), u32::try_from(ports.len()).map_err(Error::internal)?);
    let start = if count == 0 { 0 } else { rand::rng().random_range(0..count) };
    for step in 0..count {
        let local = u16::try_from(first + (start + step) % count).map_err(Error::internal)?;
        if table.taken.contains(&local) {
            continue;
        }
        let candidate = LocalPort { local, sandbox_id, port };
        match doors.open(candidate).await {
            Ok(()) => {}
            // Somebody else's.
            Err(error) if matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::PermissionDenied) => {
                continue;
            }
            Err(error) => {
                return Err(Error::new(Code::Unavailable, "no address can be listened on now; try again")
                    .context(error));
            }
        }
        match store.local_port_assign(candidate).await {
            Ok(given) if given == candidate => {
                table.give(candidate, true);
                return Ok(local);
            }
            Ok(given) => {
                doors.close(local).await;
                doors.open(given).await.map_err(Error::internal)?;
                table.give(given, true);
                return Ok(given.local);
            }
            Err(error) => {
                doors.close(local).await;
                match error {
                    nullspace_store::Error::Conflict(_) => {}
                    nullspace_store::Error::NotFound(_) => return Err(Error::sandbox_not_found(sandbox_id)),
                    error => return Err(error.into()),
                }
            }
        }
    }
    let (first, last) = (ports.start(), ports.end());
    Err(Error::new(Code::CapacityExceeded, format!("all local addresses, {first} to {last}, are in use"))
        .suggest("destroy sandboxes that are not needed, or configure more ports or a domain"))
}

/// Takes all addresses of a sandbox back. Closed first: once they are given back, they may be another's.
pub(crate) async fn release(shared: &Shared, id: SandboxId) -> Result<()> {
    let mut table = shared.ports.table.lock().await;
    let ports: Vec<_> = table.of(id).collect();
    for (port, given) in &ports {
        if given.open {
            shared.access.doors.close(given.local).await;
            table.given.insert((id, *port), Given { open: false, ..*given });
        }
    }
    shared.store.local_ports_release(id).await?;
    for (port, given) in ports {
        table.given.remove(&(id, port));
        table.taken.remove(&given.local);
    }
    Ok(())
}

/// Listens on what was given before, at the start of a server. What sandboxes have that are gone is taken
/// back; an address that cannot be listened on is tried again when it is asked for.
pub(crate) async fn restore(shared: &Shared) -> Result<()> {
    let mut gone = HashSet::new();
    let mut table = shared.ports.table.lock().await;
    let local = matches!(shared.access.previews, PreviewAddresses::Local { .. });
    for given in shared.store.local_port_list().await? {
        let LocalPort { local: address, sandbox_id, port } = given;
        if shared.registry.get(sandbox_id).is_none() {
            gone.insert(sandbox_id);
            continue;
        }
        let opened = if local { Some(shared.access.doors.open(given).await) } else { None };
        table.give(given, matches!(opened, Some(Ok(()))));
        if let Some(Err(error)) = opened {
            tracing::warn!(sandbox = %sandbox_id, port, local = address, %error, "a local address cannot be listened on; it is tried again when it is asked for");
        }
    }
    for id in gone {
        shared.store.local_ports_release(id).await?;
    }
    Ok(())
}

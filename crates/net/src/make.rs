//! A slot's part in the kernel: how it is made, found again, and removed. What this process serves in it is
//! opened here, from inside, and served by [`Slot`](crate::Slot).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use nullspace_types::network::EgressPolicy;

use crate::config::{Config, TAP, UPLINK, host_link, namespace_name};
use crate::error::{Error, Result};
use crate::firewall::SlotTable;
use crate::namespace::Namespace;
use crate::nflog::Log;
use crate::way::Gate;
use crate::{claim, dns, host, inspection, tap, tool};

/// A slot in the kernel, not yet served.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) index: u32,
    pub(crate) namespace: Namespace,
    pub(crate) inside: Inside,
    /// The firewall's table for the default policy, if that is in force. Of one that was found it is
    /// unknown what is.
    pub(crate) table: Option<SlotTable>,
}

/// What this process has open inside a slot.
#[derive(Debug)]
pub(crate) struct Inside {
    pub(crate) dns: dns::Sockets,
    pub(crate) redirected: std::net::TcpListener,
    pub(crate) log: Log,
    pub(crate) gate: Gate,
}

impl Inside {
    /// Opens it in the namespace of the calling thread.
    fn open(gateway: Ipv4Addr) -> Result<Self> {
        Ok(Self {
            dns: dns::Sockets::bind(gateway)?,
            redirected: inspection::listen(gateway)?,
            log: Log::open()?,
            gate: Gate::open()?,
        })
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

    let policy = EgressPolicy::default();
    let table = SlotTable::new(&config.link, &policy, &config.allow, &host::addresses()?);
    let inside = namespace.enter(|| {
        host::set("ipv6/conf/all/disable_ipv6", "1")?;
        host::set("ipv6/conf/default/disable_ipv6", "1")?;
        // The machine learns of no address but its gateway's, and is sent to no other router.
        host::set("ipv4/conf/all/arp_ignore", "1")?;
        host::set("ipv4/conf/all/send_redirects", "0")?;
        host::set("ipv4/conf/default/send_redirects", "0")?;
        tap::create(TAP)?;
        // Rules before links are up: never a moment without.
        tool::nft(&table.script())?;
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
        let inside = Inside::open(l.gateway)?;
        inside.gate.set(true)?;
        Ok(inside)
    })?;
    Ok(Made { index, namespace, inside, table: Some(table) })
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
        let inside = namespace.enter(|| Inside::open(config.link.gateway))?;
        kept.push(Made { index, namespace, inside, table: None });
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

//! The host's side: forwarding, the server's table, the links to slots, the host's own addresses.
//!
//! All of it acts in the network namespace of the calling thread, which is the host's.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use fs_err as fs;

use crate::config::{Config, host_link};
use crate::error::{Doing, Result};
use crate::{firewall, tool};

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Makes the host route for slots and puts this server's table in place, replacing an older one.
pub(crate) fn install(config: &Config) -> Result<()> {
    let forwards = fs::read_to_string(FORWARD).doing(|| "cannot tell whether the host forwards".into())?;
    if forwards.trim() != "1" {
        fs::write(FORWARD, "1").doing(|| "cannot make the host forward".into())?;
        tracing::info!("set net.ipv4.ip_forward to 1, so that machines reach the internet; it stays so");
    }
    tool::nft(&firewall::host_script(config))
}

/// Removes this server's table.
pub(crate) fn uninstall(instance: &str) -> Result<()> {
    tool::nft(&firewall::host_removal_script(instance))
}

/// Every IPv4 address of the host.
pub(crate) fn addresses() -> Result<Vec<Ipv4Addr>> {
    let interfaces = nix::ifaddrs::getifaddrs().doing(|| "cannot list the host's addresses".into())?;
    let addresses: BTreeSet<Ipv4Addr> = interfaces
        // The ends of slots' own pairs are private addresses, denied as such; a hundred more elements
        // in every set would only cost time.
        .filter(|interface| !interface.interface_name.starts_with(crate::config::HOST_LINK_PREFIX))
        .filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()))
        .collect();
    Ok(addresses.into_iter().collect())
}

/// Whether the host has that link.
pub(crate) fn has_link(name: &str) -> Result<bool> {
    match nix::net::if_::if_nametoindex(name) {
        Ok(_) => Ok(true),
        Err(nix::errno::Errno::ENODEV | nix::errno::Errno::ENXIO) => Ok(false),
        Err(error) => Err(error).doing(|| format!("cannot look for the link {name}")),
    }
}

/// Deletes the host's ends of these slots' pairs, and so the slots' ends: from then on nothing passes.
pub(crate) fn delete_links(indexes: impl IntoIterator<Item = u32>) -> Result<()> {
    let mut script = String::new();
    for index in indexes {
        let link = host_link(index);
        if has_link(&link)? {
            script.push_str(&format!("link del dev {link}\n"));
        }
    }
    if script.is_empty() { Ok(()) } else { tool::ip(&script) }
}

/// Writes a setting of the calling thread's namespace; one that this kernel does not have is skipped.
pub(crate) fn set(name: &str, value: &str) -> Result<()> {
    match fs::write(format!("/proc/sys/net/{name}"), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.doing(|| format!("cannot set net/{name}")),
    }
}

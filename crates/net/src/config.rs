//! The settings of slots. Plain data with defaults; checked once, when the pool starts.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A range of IPv4 addresses, written `10.201.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Range {
    base: Ipv4Addr,
    prefix: u8,
}

impl Range {
    /// A range; bits of the base beyond the prefix must be zero.
    pub fn new(base: Ipv4Addr, prefix: u8) -> Result<Self, String> {
        if prefix > 32 {
            return Err(format!("/{prefix} is not a prefix length of 0 to 32"));
        }
        let range = Self { base, prefix };
        let lowest = Ipv4Addr::from_bits(base.to_bits() & range.mask());
        if lowest != base {
            return Err(format!("{base}/{prefix} has bits beyond its prefix: write {lowest}/{prefix}"));
        }
        Ok(range)
    }

    const fn mask(self) -> u32 {
        if self.prefix == 0 { 0 } else { u32::MAX << (32 - self.prefix) }
    }

    /// How many /30 networks it holds.
    const fn links(self) -> u32 {
        if self.prefix > 30 { 0 } else { 1 << (30 - self.prefix) }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (base, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let base = base.parse().map_err(|_| format!("{text:?} is not of the form 192.0.2.0/24"))?;
        let prefix = prefix.parse().map_err(|_| format!("{text:?} is not of the form 192.0.2.0/24"))?;
        Self::new(base, prefix)
    }
}

impl TryFrom<String> for Range {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Range> for String {
    fn from(range: Range) -> Self {
        range.to_string()
    }
}

/// The hardware address of an end of the tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not of the form 02:00:00:00:00:01");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self(bytes))
    }
}

/// The link between a machine and its gateway: the same in every slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkConfig {
    /// The machine's address.
    pub guest: Ipv4Addr,
    /// The gateway's, in the slot's namespace.
    pub gateway: Ipv4Addr,
    /// Prefix length of the network that both are in.
    pub prefix: u8,
    /// The machine's hardware address.
    pub guest_mac: MacAddress,
    /// The gateway's.
    pub gateway_mac: MacAddress,
}

/// What a machine may reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// Public addresses, the ranges that the operator allows, and DNS. Slots are made like this.
    #[default]
    Internet,
    /// Nothing at all, not even DNS.
    None,
}

/// Settings of a [`SlotPool`](crate::SlotPool).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Tells the servers of a host apart: 1 to 16 of `a-z0-9`, from the data directory.
    pub instance: String,
    /// The link to the machine.
    pub link: LinkConfig,
    /// Addresses of the pairs between host and slots, one /30 for each index. Servers that share a
    /// host share this too (the index is host-wide); it must not overlap networks in use.
    pub addresses: Range,
    /// How many unused slots are kept.
    pub ready: usize,
    /// How many slots this server may hold, unused ones included.
    pub max: usize,
    /// User and group ID of slot 0's machine; slot *n* has this plus *n*.
    pub uid_base: u32,
    /// Ranges that machines may reach although they are private or special.
    pub allow: Vec<Range>,
    /// Resolvers that DNS queries are relayed to; those of `/etc/resolv.conf` when empty.
    pub resolvers: Vec<IpAddr>,
}

impl Config {
    /// The defaults for an instance and a link.
    pub fn new(instance: impl Into<String>, link: LinkConfig) -> Self {
        Self {
            instance: instance.into(),
            link,
            addresses: Range { base: Ipv4Addr::new(10, 201, 0, 0), prefix: 16 },
            ready: 8,
            max: 512,
            uid_base: 600_000,
            allow: Vec::new(),
            resolvers: Vec::new(),
        }
    }

    /// How many indexes there are on the host.
    pub(crate) fn indexes(&self) -> u32 {
        // Link names have 15 characters; `nsv` leaves room for far more than any host can hold.
        self.addresses.links().min(1 << 20)
    }

    /// The addresses of slot `index`'s pair: the host's end and the slot's.
    pub(crate) fn pair(&self, index: u32) -> (Ipv4Addr, Ipv4Addr) {
        let base = self.addresses.base.to_bits() + index * 4;
        (Ipv4Addr::from_bits(base + 1), Ipv4Addr::from_bits(base + 2))
    }

    /// Refuses what cannot work.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |field, problem: String| Err(Error::Config { field, problem });
        let named = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if self.instance.is_empty() || self.instance.len() > 16 || !self.instance.bytes().all(named) {
            return wrong("instance", format!("{:?} must be 1 to 16 of a-z and 0-9", self.instance));
        }
        if self.max == 0 || self.max > self.indexes() as usize {
            let most = self.indexes();
            return wrong("max", format!("{} must be 1 to {most}, the /30s in {}", self.max, self.addresses));
        }
        if !(1..=30).contains(&self.link.prefix) {
            return wrong("link.prefix", format!("{} must be 1 to 30", self.link.prefix));
        }
        let mask = u32::MAX << (32 - self.link.prefix);
        let network = |address: Ipv4Addr| address.to_bits() & mask;
        if self.link.guest == self.link.gateway || network(self.link.guest) != network(self.link.gateway) {
            return wrong("link", "guest and gateway must be two addresses of one network".into());
        }
        if network(self.link.guest) == network(self.addresses.base) {
            return wrong("addresses", format!("{} overlaps the machine's link", self.addresses));
        }
        // 65534 is nobody everywhere; below 65536 are the host's own users.
        let top = u64::from(self.uid_base) + u64::from(self.indexes());
        if self.uid_base < 65_536 || top >= u64::from(u32::MAX) {
            return wrong(
                "uid_base",
                format!("{} must be 65536 or more and leave room above", self.uid_base),
            );
        }
        Ok(())
    }
}

/// The namespace of a slot.
pub(crate) fn namespace_name(instance: &str, index: u32) -> String {
    format!("nullspace-{instance}-{index}")
}

/// The host's end of a slot's pair.
pub(crate) fn host_link(index: u32) -> String {
    format!("{HOST_LINK_PREFIX}{index}")
}

/// What the host's ends of all slots of all servers begin with.
pub(crate) const HOST_LINK_PREFIX: &str = "nsv";
/// The slot's end of its pair.
pub(crate) const UPLINK: &str = "eth0";
/// The machine's tap.
pub(crate) const TAP: &str = "tap0";

//! The settings of slots. Plain data with defaults; checked once, when the pool starts.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::sync::Arc;

pub use nullspace_types::network::Ipv4Range as Range;
use rustls::RootCertStore;

use crate::error::{Error, Result};

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

/// Settings of a [`SlotPool`](crate::SlotPool).
#[derive(Debug, Clone)]
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
    /// Whom to believe that a host is who it says, where TLS is ended and begun anew on the way.
    pub roots: Arc<RootCertStore>,
}

impl Config {
    /// The defaults for an instance and a link.
    pub fn new(instance: impl Into<String>, link: LinkConfig) -> Self {
        Self {
            instance: instance.into(),
            link,
            addresses: Range::new(Ipv4Addr::new(10, 201, 0, 0), 16).expect("a /16 with nothing beyond it"),
            ready: 8,
            max: 512,
            uid_base: 600_000,
            allow: Vec::new(),
            resolvers: Vec::new(),
            roots: Arc::new(RootCertStore::empty()),
        }
    }

    /// How many indexes there are on the host.
    pub(crate) fn indexes(&self) -> u32 {
        // Link names have 15 characters; `nsv` leaves room for far more than any host can hold.
        links(self.addresses).min(1 << 20)
    }

    /// The addresses of slot `index`'s pair: the host's end and the slot's.
    pub(crate) fn pair(&self, index: u32) -> (Ipv4Addr, Ipv4Addr) {
        let base = self.addresses.base().to_bits() + index * 4;
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
        if network(self.link.guest) == network(self.addresses.base()) {
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

/// How many /30 networks a range holds.
const fn links(range: Range) -> u32 {
    if range.prefix() > 30 { 0 } else { 1 << (30 - range.prefix()) }
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

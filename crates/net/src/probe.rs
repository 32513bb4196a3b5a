//! Tries what a slot needs in a nameless namespace that ends with the try: for `doctor`, and for a
//! clear refusal before the first slot is made.

use std::net::Ipv4Addr;

use nullspace_types::network::{DomainPattern, EgressLimits, EgressPolicy, Injection};

use crate::config::{Config, LinkConfig, MacAddress, TAP};
use crate::error::Result;
use crate::firewall::SlotTable;
use crate::nflog::Log;
use crate::{firewall, namespace, tap, tool};

/// Whether this host can make slots: a namespace, a tap, a pair, both firewall tables with every kind
/// of rule, and the firewall's log are made and let go. Blocks for some ten milliseconds; touches nothing of the host.
pub fn try_host() -> Result<()> {
    // Any addresses do: nothing is sent.
    let link = LinkConfig {
        guest: Ipv4Addr::new(192, 0, 2, 2),
        gateway: Ipv4Addr::new(192, 0, 2, 1),
        prefix: 30,
        guest_mac: MacAddress([2, 0, 0, 0, 0, 2]),
        gateway_mac: MacAddress([2, 0, 0, 0, 0, 1]),
    };
    try_with(&Config::new("try", link))
}

/// The same with the settings that will be used.
pub(crate) fn try_with(config: &Config) -> Result<()> {
    namespace::scratch(|| {
        tap::create(TAP)?;
        tool::ip("link add name try0 type veth peer name try1\nlink set dev try0 up\n")?;
        tool::nft(&SlotTable::new(&config.link, &every_kind(), &config.allow, &[]).script())?;
        Log::open()?;
        tool::nft(&firewall::host_script(config))
    })
}

/// A policy that needs every kind of rule there is.
fn every_kind() -> EgressPolicy {
    EgressPolicy {
        deny: vec!["192.0.2.0/24".parse().expect("a range")],
        deny_domains: vec![DomainPattern::from_normal("example.test".into())],
        injections: vec![Injection { host: "example.test".into(), header: "x-try".into(), value: None }],
        limits: EgressLimits {
            connections_max: Some(1),
            connections_per_second: Some(1),
            bytes_per_second: Some(1 << 20),
        },
        ..EgressPolicy::default()
    }
}

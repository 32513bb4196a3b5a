//! Tries what a slot needs in a nameless namespace that ends with the try: for `doctor`, and for a
//! clear refusal before the first slot is made.

use std::net::Ipv4Addr;

use crate::config::{Config, Egress, LinkConfig, MacAddress, TAP};
use crate::error::Result;
use crate::{firewall, namespace, tap, tool};

/// Whether this host can make slots: a namespace, a tap, a pair, and both firewall tables are made
/// and let go. Blocks for some ten milliseconds; touches nothing of the host.
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
        tool::nft(&firewall::slot_script(&config.link, Egress::Internet, &config.allow, &[]))?;
        tool::nft(&firewall::host_script(config))
    })
}

//! The rules, as text for `nft`. Pure: from settings to a script; each script replaces its table
//! whole in one transaction, so there is no moment without rules.
//!
//! There are two tables. The one inside a slot decides what the machine may reach and is the
//! boundary; if all of it were gone, the one on the host would still keep slots from the host and
//! from each other.

use std::fmt::Write;
use std::net::Ipv4Addr;

use crate::config::{Config, Egress, HOST_LINK_PREFIX, LinkConfig, Range, TAP, UPLINK};

/// Never reachable unless the operator says so: private, shared, link-local (the metadata services
/// of clouds), benchmarking, multicast and reserved addresses (RFC 6890 and what it lists).
const SPECIAL: [&str; 11] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// Connections a machine may have open: more than any honest one needs, few enough that one machine
/// cannot fill the host's table of connections.
const CONNECTION_LIMIT: u32 = 8192;

/// The table inside a slot. `host` are the host's own addresses.
pub(crate) fn slot_script(link: &LinkConfig, egress: Egress, allow: &[Range], host: &[Ipv4Addr]) -> String {
    let LinkConfig { guest, gateway, .. } = link;
    let denied =
        elements(SPECIAL.iter().map(ToString::to_string).chain(host.iter().map(ToString::to_string)));
    let allowed = elements(allow.iter().map(ToString::to_string));
    let dns = match egress {
        Egress::Internet => format!("ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept"),
        Egress::None => "jump refuse".into(),
    };
    let forward = match egress {
        Egress::Internet => format!(
            "\
        iifname \"{TAP}\" oifname \"{UPLINK}\" jump outward
        iifname \"{UPLINK}\" oifname \"{TAP}\" ct state established,related accept"
        ),
        Egress::None => format!("        iifname \"{TAP}\" jump refuse"),
    };
    // `ct direction reply` in `input`: the machine answers on connections that were made to it, and
    // begins none itself but to the DNS forwarder.
    format!(
        "table inet slot
delete table inet slot
table inet slot {{
    set denied {{
        type ipv4_addr
        flags interval
        auto-merge
{denied}    }}
    set allowed {{
        type ipv4_addr
        flags interval
        auto-merge
{allowed}    }}
    chain refuse {{
        meta l4proto tcp reject with tcp reset
        reject with icmpx admin-prohibited
    }}
    chain outward {{
        ct state new ct count over {CONNECTION_LIMIT} drop
        ip daddr @allowed accept
        ip daddr @denied jump refuse
        ct state new,established,related accept
    }}
    chain prerouting {{
        type filter hook prerouting priority raw; policy accept;
        iifname \"{TAP}\" meta nfproto ipv6 drop
        iifname \"{TAP}\" ip saddr != {guest} drop
        iifname \"{UPLINK}\" ip saddr {guest} drop
    }}
    chain input {{
        type filter hook input priority filter; policy drop;
        iifname != \"{TAP}\" drop
        ct state invalid drop
        ct direction reply ct state established accept
        {dns}
        jump refuse
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state invalid drop
{forward}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname \"{UPLINK}\" masquerade
    }}
}}
"
    )
}

/// The table of one server on the host. It speaks of the slots of all servers, so that it stays
/// right for each while others come and go: a packet must pass the table of every server, and they
/// all say the same.
pub(crate) fn host_script(config: &Config) -> String {
    let table = host_table(&config.instance);
    let addresses = config.addresses;
    let slots = format!("\"{HOST_LINK_PREFIX}*\"");
    format!(
        "table inet {table}
delete table inet {table}
table inet {table} {{
    chain prerouting {{
        type filter hook prerouting priority mangle; policy accept;
        iifname {slots} meta nfproto ipv6 drop
        iifname {slots} fib daddr type local drop
    }}
    chain input {{
        type filter hook input priority filter - 5; policy accept;
        iifname {slots} drop
    }}
    chain forward {{
        type filter hook forward priority filter - 5; policy accept;
        iifname {slots} oifname {slots} drop
        iifname {slots} tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
        iifname {slots} accept
        oifname {slots} ct state established,related accept
        oifname {slots} drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {addresses} oifname != {slots} masquerade
    }}
}}
"
    )
}

/// Removes the table of one server from the host, if it is there.
pub(crate) fn host_removal_script(instance: &str) -> String {
    let table = host_table(instance);
    format!("table inet {table}\ndelete table inet {table}\n")
}

fn host_table(instance: &str) -> String {
    format!("nullspace_{instance}")
}

/// The line for a set's elements; none for an empty one, which has no way to be written.
fn elements(ranges: impl Iterator<Item = String>) -> String {
    let mut line = String::new();
    for range in ranges {
        let separator = if line.is_empty() { "        elements = { " } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(line, "{separator}{range}");
    }
    if !line.is_empty() {
        line.push_str(" }\n");
    }
    line
}

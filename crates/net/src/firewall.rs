//! The rules, as text for `nft`. Pure: from settings to a script; each script replaces its table
//! whole in one transaction, so there is no moment without rules.
//!
//! There are two tables. The one inside a slot decides what the machine may reach and is the
//! boundary; if all of it were gone, the one on the host would still keep slots from the host and
//! from each other.
//!
//! In a slot everything that the machine sends is judged in one place, before routing and before any
//! address is changed (`judged`), by the order of `nullspace_domain::network`. Where names decide,
//! TCP is let through that place and redirected to this process, which looks into it
//! ([`inspection`](crate::inspection)); what it sends on leaves the namespace by `output`. Later
//! chains only make sure: of the ways through, and that connections which were open before a change
//! obey it, in both directions.

use std::fmt::Write;
use std::net::Ipv4Addr;

use nullspace_domain::network::{inspects, is_closed, names_matter};
use nullspace_types::network::{DenyReason, EgressPolicy};

use crate::config::{Config, HOST_LINK_PREFIX, LinkConfig, Range, TAP, UPLINK};

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
/// What may pass at once beyond a bound on bytes: what the kernel hands on as one segment is up to
/// 64 KiB, and more than this would never pass at all.
const BURST_BYTES: u32 = 256 << 10;
/// The kernel cannot count more than some 17 GB in a second; no link that a machine has carries that.
const COUNTED_BYTES_MAX: u64 = 8 << 30;

/// Where redirected connections are taken, at the gateway's address. The machine reaches it in no
/// other way.
pub(crate) const INSPECTION_PORT: u16 = 4443;
/// The group that denials are logged to; each namespace has its own groups.
pub(crate) const LOG_GROUP: u16 = 5;
/// How much of a denied packet is logged: the longest IPv4 header, and ports.
pub(crate) const LOGGED_BYTES: u32 = 64;

/// What is denied by rules here, and the name of the chain that denies it, which is also what its
/// log entries begin with.
const DENYING: [(DenyReason, &str); 6] = [
    (DenyReason::ProtectedAddress, "protected_address"),
    (DenyReason::DeniedAddress, "denied_address"),
    (DenyReason::AddressNotAllowed, "address_not_allowed"),
    (DenyReason::NoName, "no_name"),
    (DenyReason::ForgedSource, "forged_source"),
    (DenyReason::Limit, "limit_reached"),
];

/// The reason that a log entry's prefix says.
pub(crate) fn reason(prefix: &[u8]) -> Option<DenyReason> {
    DENYING.iter().find(|(_, chain)| chain.as_bytes() == prefix).map(|&(reason, _)| reason)
}

/// The table inside a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlotTable {
    /// All of it but the ranges of the policy.
    frame: String,
    /// What puts those into their sets.
    ranges: String,
}

impl SlotTable {
    /// The table for a policy. `opened` are the protected ranges that the operator opens to all machines,
    /// `host` are the host's own addresses.
    pub(crate) fn new(link: &LinkConfig, policy: &EgressPolicy, opened: &[Range], host: &[Ipv4Addr]) -> Self {
        let ranges = added("allow", &policy.allow) + &added("deny", &policy.deny);
        Self { frame: frame(link, policy, opened, host), ranges }
    }

    /// What replaces the whole table, whatever is there.
    pub(crate) fn script(&self) -> String {
        format!("{}{}", self.frame, self.ranges)
    }

    /// What makes this table of another. To add ranges where there were none takes half the time of all
    /// else: nothing goes, and so `nft` need not wait at its end until nobody uses it any more. A new
    /// machine's policy is most often that.
    pub(crate) fn script_after(&self, before: &Self) -> String {
        if self == before {
            String::new()
        } else if self.frame == before.frame && before.ranges.is_empty() {
            self.ranges.clone()
        } else {
            self.script()
        }
    }
}

fn frame(link: &LinkConfig, policy: &EgressPolicy, opened: &[Range], host: &[Ipv4Addr]) -> String {
    let LinkConfig { guest, gateway, .. } = link;
    let protected = SPECIAL.iter().map(ToString::to_string).chain(host.iter().map(ToString::to_string));
    let sets = [
        set("protected", protected),
        set("opened", opened.iter().map(ToString::to_string)),
        set("allow", std::iter::empty()),
        set("deny", std::iter::empty()),
    ]
    .concat();
    let denying = DENYING.iter().map(|&(reason, chain)| denying(reason, chain)).collect::<String>();
    let Rules { limits, inward_limit, judged, redirected, leaving, returning, own } = Rules::of(policy);
    // `ct direction reply`: the machine answers on connections that were made to it, and this process
    // is answered on those that it made; neither begins one to the other.
    format!(
        "table inet slot
delete table inet slot
table inet slot {{
{sets}    chain refuse {{
        meta l4proto tcp reject with tcp reset
        reject with icmpx admin-prohibited
    }}
{denying}    chain allowed {{
{limits}        accept
    }}
    chain raw {{
        type filter hook prerouting priority raw; policy accept;
        iifname \"{TAP}\" meta nfproto ipv6 drop
        iifname \"{TAP}\" ip saddr != {guest} goto forged_source
        iifname \"{UPLINK}\" ip saddr {guest} drop
    }}
    chain judged {{
        type filter hook prerouting priority mangle; policy accept;
{inward_limit}        iifname != \"{TAP}\" accept
        ct state invalid drop
        ct direction reply ct state established accept
        ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept
        ip daddr {gateway} ct state related drop
        ip daddr @protected ip daddr != @opened goto protected_address
{judged}    }}
    chain redirected {{
        type nat hook prerouting priority dstnat; policy accept;
        iifname != \"{TAP}\" accept
        ip daddr {gateway} accept
{redirected}    }}
    chain input {{
        type filter hook input priority filter; policy drop;
        ct state invalid drop
        iifname \"{TAP}\" ct direction reply ct state established accept
        iifname \"{UPLINK}\" ct direction reply ct state established accept
        iifname \"{UPLINK}\" ct state related accept
        iifname \"{TAP}\" ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept
        iifname \"{TAP}\" tcp dport {INSPECTION_PORT} ct status dnat accept
    }}
    chain leaving {{
{leaving}        ct state new,established,related accept
    }}
    chain returning {{
        ip saddr @protected ip saddr != @opened drop
{returning}    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state invalid drop
        iifname \"{TAP}\" oifname \"{UPLINK}\" goto leaving
        iifname \"{UPLINK}\" oifname \"{TAP}\" ct state related accept
        iifname \"{UPLINK}\" oifname \"{TAP}\" ct state established goto returning
    }}
    chain output {{
        type filter hook output priority filter; policy drop;
        oifname != \"{UPLINK}\" accept
        ct state related accept
        meta l4proto != tcp drop
        ip daddr @protected ip daddr != @opened goto refuse
{own}    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname \"{UPLINK}\" masquerade
    }}
}}
"
    )
}

/// What of a slot's table a policy decides, as lines of its chains.
struct Rules {
    /// Bounds on what is allowed.
    limits: String,
    /// The bound on bytes towards the machine, whoever of the slot receives them.
    inward_limit: String,
    /// What becomes of what the machine sends, after what is protected.
    judged: String,
    /// Which of its connections are redirected.
    redirected: String,
    /// What may not be forwarded although it was allowed by `judged`, or by an earlier policy.
    leaving: String,
    /// What becomes of what comes back for the machine on open connections.
    returning: String,
    /// What becomes of connections that this process makes from inside the slot.
    own: String,
}

impl Rules {
    fn of(policy: &EgressPolicy) -> Self {
        let open = !is_closed(policy);
        let inspected = open && inspects(policy);
        // A host that is added to may be in a range that is allowed: TLS to it is looked into there too.
        let injected = inspected && !policy.injections.is_empty();
        let by_address = policy.internet_access && !names_matter(policy);
        let otherwise = match policy.internet_access {
            false => "address_not_allowed",
            true if names_matter(policy) => "no_name",
            true => "allowed",
        };
        let limits = policy.limits;
        let most = limits.connections_max.unwrap_or(CONNECTION_LIMIT);
        let frequency = limits.connections_per_second.map(|most| {
            format!("ct state new limit rate over {most}/second burst {most} packets goto limit_reached")
        });
        let bytes = limits.bytes_per_second.filter(|&most| most <= COUNTED_BYTES_MAX).map(|most| {
            format!("limit rate over {most} bytes/second burst {BURST_BYTES} bytes goto limit_reached")
        });
        let inward = bytes.as_ref().map(|bytes| format!("iifname \"{UPLINK}\" {bytes}"));
        Self {
            limits: lines([
                Some(format!("ct state new ct count over {most} goto limit_reached")),
                frequency,
                bytes,
            ]),
            inward_limit: lines([inward]),
            judged: lines([
                Some("ip daddr @allow goto allowed".into()),
                inspected.then(|| "meta l4proto tcp goto allowed".into()),
                Some("ip daddr @deny goto denied_address".into()),
                Some(format!("goto {otherwise}")),
            ]),
            redirected: lines([
                injected.then(|| format!("tcp dport 443 redirect to :{INSPECTION_PORT}")),
                inspected
                    .then(|| format!("ip daddr != @allow meta l4proto tcp redirect to :{INSPECTION_PORT}")),
            ]),
            leaving: lines([
                injected.then(|| "tcp dport 443 goto refuse".into()),
                inspected.then(|| "ip daddr != @allow meta l4proto tcp goto refuse".into()),
            ]),
            returning: lines([
                injected.then(|| "tcp sport 443 drop".into()),
                Some("ip saddr @allow accept".into()),
                inspected.then(|| "meta l4proto tcp drop".into()),
                Some("ip saddr @deny drop".into()),
                by_address.then(|| "accept".into()),
                (!by_address).then(|| "drop".into()),
            ]),
            own: lines([
                inspected.then(|| "accept".into()),
                Some("ip daddr @allow accept".into()),
                Some("ip daddr @deny goto refuse".into()),
                by_address.then(|| "accept".into()),
                (!by_address).then(|| "goto refuse".into()),
            ]),
        }
    }
}

/// The lines of a chain.
fn lines<const N: usize>(lines: [Option<String>; N]) -> String {
    lines.into_iter().flatten().map(|line| format!("        {line}\n")).collect()
}

/// A chain that logs what is denied for a reason, not too often, and ends it. What comes from nowhere
/// is not answered; nor is what is too much of a connection that is allowed.
fn denying(reason: DenyReason, chain: &str) -> String {
    let end = match reason {
        DenyReason::ForgedSource => "drop".into(),
        DenyReason::Limit => format!("iifname \"{TAP}\" ct state new goto refuse\n        drop"),
        _ => String::from("goto refuse"),
    };
    format!(
        "    chain {chain} {{
        limit rate 20/second burst 100 packets log prefix \"{chain}\" group {LOG_GROUP} snaplen {LOGGED_BYTES}
        {end}
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

/// The line that adds ranges to a set; none for no ranges.
fn added(set: &str, ranges: &[Range]) -> String {
    match listed(ranges.iter().map(ToString::to_string)) {
        empty if empty.is_empty() => empty,
        listed => format!("add element inet slot {set} {listed}\n"),
    }
}

/// A set of ranges.
fn set(name: &str, ranges: impl Iterator<Item = String>) -> String {
    let elements = match listed(ranges) {
        empty if empty.is_empty() => empty,
        listed => format!("        elements = {listed}\n"),
    };
    format!(
        "    set {name} {{
        type ipv4_addr
        flags interval
        auto-merge
{elements}    }}
"
    )
}

/// Ranges as the elements of a set; nothing for none, which have no way to be written.
fn listed(ranges: impl Iterator<Item = String>) -> String {
    let mut text = String::new();
    for range in ranges {
        let separator = if text.is_empty() { "{ " } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(text, "{separator}{range}");
    }
    if !text.is_empty() {
        text.push_str(" }");
    }
    text
}

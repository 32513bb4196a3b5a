//! What a sandbox may reach: the settings as callers give them, judged and made complete, and the rules that
//! a node enforces them by. Pure: the same words decide in the firewall, in DNS and on the wire.
//!
//! The order of the rules. What is protected (the host, private and special ranges) is denied before all of
//! this, by the node. `allow_out` then wins over everything. Names win over ranges: a connection is allowed
//! for an allowed name if it shows that name and goes to an address that the node's own DNS gives for it.
//! If there are allowed names, no others are allowed. `deny_out` comes next, and last whether the sandbox
//! has internet access at all.

use std::net::Ipv4Addr;

use nullspace_types::network::{
    DenialQuery, DenyReason, DomainPattern, EgressLimits, EgressPolicy, HeaderInjection, Injection,
    Ipv4Range, NetworkSettings, secret_alone,
};
use nullspace_types::{Error, Result};
use serde_json::{Map, Value};

use crate::event::{Page, page_up_to};

/// Most rules of one kind.
pub const RULES_MAX: usize = 1000;
/// Largest page of denials.
pub const DENIALS_MAX: u32 = 200;
/// Most headers to add.
pub const INJECTIONS_MAX: usize = 32;
/// Longest name of a host (RFC 1035).
pub const NAME_BYTES_MAX: usize = 253;
/// Longest value of `mask_request_host`.
pub const MASK_BYTES_MAX: usize = 255;
/// Least bandwidth that can be asked for, in bytes per second: less than a packet or two is none.
pub const BYTES_PER_SECOND_MIN: u64 = 16 << 10;
/// Headers that cannot be added, because they say where a message begins, ends or goes.
const HEADERS_RESERVED: [&str; 10] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
    "te",
    "trailer",
    "keep-alive",
    "proxy-connection",
    "expect",
];

/// What becomes of a connection, by what it shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It passes.
    Allow,
    /// It passes if the node's DNS gives this address for the name that it shows.
    AllowIfGiven,
    /// It passes if the node's DNS gave this address for any name that is not denied.
    AllowIfKnown,
    /// It does not pass.
    Deny(DenyReason),
}

/// Whether connections have to be looked into: what a firewall sees does not decide.
pub fn inspects(policy: &EgressPolicy) -> bool {
    names_matter(policy) || !policy.injections.is_empty()
}

/// Whether there are rules about names.
pub fn names_matter(policy: &EgressPolicy) -> bool {
    !policy.allow_domains.is_empty() || !policy.deny_domains.is_empty()
}

/// Whether nothing at all is allowed, DNS included: a name that is asked for carries data out as well.
pub fn is_closed(policy: &EgressPolicy) -> bool {
    let by_default = !policy.internet_access || policy.deny.contains(&Ipv4Range::ALL);
    by_default && policy.allow.is_empty() && policy.allow_domains.is_empty()
}

fn holds(ranges: &[Ipv4Range], address: Ipv4Addr) -> bool {
    ranges.iter().any(|range| range.contains(address))
}

fn matches(patterns: &[DomainPattern], name: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name))
}

/// Whether DNS answers for a name, given in lower case and without a dot at the end.
pub fn name(policy: &EgressPolicy, name: &str) -> Verdict {
    if is_closed(policy) {
        Verdict::Deny(DenyReason::NameNotAllowed)
    } else if matches(&policy.deny_domains, name) {
        Verdict::Deny(DenyReason::DeniedName)
    } else if !policy.allow_domains.is_empty() && !matches(&policy.allow_domains, name) {
        Verdict::Deny(DenyReason::NameNotAllowed)
    } else {
        Verdict::Allow
    }
}

/// What becomes of traffic to an address that shows no name because it cannot: UDP, ICMP.
pub fn datagram(policy: &EgressPolicy, address: Ipv4Addr) -> Verdict {
    if holds(&policy.allow, address) {
        Verdict::Allow
    } else if holds(&policy.deny, address) {
        Verdict::Deny(DenyReason::DeniedAddress)
    } else if !policy.internet_access {
        Verdict::Deny(DenyReason::AddressNotAllowed)
    } else if names_matter(policy) {
        Verdict::Deny(DenyReason::NoName)
    } else {
        Verdict::Allow
    }
}

/// What becomes of a TCP connection to an address that shows this name, in lower case, or none.
pub fn connection(policy: &EgressPolicy, address: Ipv4Addr, shown: Option<&str>) -> Verdict {
    if holds(&policy.allow, address) {
        return Verdict::Allow;
    }
    if let Some(shown) = shown {
        if matches(&policy.deny_domains, shown) {
            return Verdict::Deny(DenyReason::DeniedName);
        }
        if matches(&policy.allow_domains, shown) {
            return Verdict::AllowIfGiven;
        }
    }
    if holds(&policy.deny, address) {
        return Verdict::Deny(DenyReason::DeniedAddress);
    }
    if !policy.allow_domains.is_empty() {
        return Verdict::Deny(shown.map_or(DenyReason::NoName, |_| DenyReason::NameNotAllowed));
    }
    if !policy.internet_access {
        return Verdict::Deny(DenyReason::AddressNotAllowed);
    }
    match (policy.deny_domains.is_empty(), shown) {
        (true, _) => Verdict::Allow,
        (false, Some(_)) => Verdict::AllowIfGiven,
        (false, None) => Verdict::AllowIfKnown,
    }
}

/// The headers to add for a host.
pub fn injections<'a>(policy: &'a EgressPolicy, host: &'a str) -> impl Iterator<Item = &'a Injection> {
    policy.injections.iter().filter(move |injection| injection.host == host)
}

/// The policy of a sandbox with these settings; `secret` answers the value of a stored secret.
pub fn policy(
    internet_access: bool,
    settings: &NetworkSettings,
    secret: impl Fn(&str) -> Option<String>,
) -> EgressPolicy {
    let inject = |rule: &HeaderInjection| Injection {
        host: rule.host.clone(),
        header: rule.header.clone(),
        value: secret(&rule.secret).map(|value| rule.format.replace("${secret}", &value)),
    };
    EgressPolicy {
        internet_access,
        allow: settings.allow_out.clone(),
        deny: settings.deny_out.clone(),
        allow_domains: settings.allow_domains.clone(),
        deny_domains: settings.deny_domains.clone(),
        injections: settings.inject.iter().map(inject).collect(),
        limits: settings.limits,
    }
}

/// A host's name in lower case and without a dot at the end, if it is one: labels of letters, digits, `-`
/// and `_`.
pub fn normal_name(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    (name.len() <= NAME_BYTES_MAX && name.split('.').all(label) && name.parse::<Ipv4Addr>().is_err())
        .then_some(name)
}

/// Judges which denials are asked for.
pub fn denial_page(query: &DenialQuery) -> Result<Page> {
    page_up_to(DENIALS_MAX, query.offset.as_deref(), query.limit.as_deref())
}

/// What of a request's `network` is about a sandbox from a snapshot: who may reach it. What it may reach it
/// has from the snapshot, and asking for that too is refused.
pub fn from_snapshot(given: Option<&Map<String, Value>>) -> Result<Map<String, Value>> {
    settings(given)?;
    let mut kept = Map::new();
    for (key, value) in given.into_iter().flatten() {
        match key.as_str() {
            "allow_public_traffic" | "mask_request_host" => {
                kept.insert(key.clone(), value.clone());
            }
            _ if value.is_null() || value.as_array().is_some_and(Vec::is_empty) => {}
            _ => {
                return Err(Error::invalid(format!(
                    "network.{key} cannot be given together with snapshot_id: the sandbox has it from the \
                     snapshot"
                )));
            }
        }
    }
    Ok(kept)
}

/// The settings in a request's `network`, complete.
pub fn settings(given: Option<&Map<String, Value>>) -> Result<NetworkSettings> {
    let mut settings = NetworkSettings::default();
    for (key, value) in given.into_iter().flatten() {
        set(&mut settings, key, value)?;
    }
    Ok(settings)
}

/// The settings after a change: what it names is replaced whole, what it gives as null is as if it had never
/// been given, what it leaves out stays. `internet_access` may be among it.
pub fn change(
    internet_access: bool,
    before: &NetworkSettings,
    change: &Map<String, Value>,
) -> Result<(bool, NetworkSettings)> {
    let (mut internet_access, mut settings) = (internet_access, before.clone());
    for (key, value) in change {
        match key.as_str() {
            "internet_access" => internet_access = value.is_null() || boolean(key, value)?,
            _ => set(&mut settings, key, value)?,
        }
    }
    Ok((internet_access, settings))
}

fn set(settings: &mut NetworkSettings, key: &str, value: &Value) -> Result<()> {
    let default = NetworkSettings::default();
    let absent = value.is_null();
    match key {
        "allow_public_traffic" => {
            settings.allow_public_traffic =
                if absent { default.allow_public_traffic } else { boolean(key, value)? };
        }
        "mask_request_host" => {
            settings.mask_request_host = if absent { None } else { Some(mask(value)?) };
        }
        "allow_out" => settings.allow_out = ranges(key, value)?,
        "deny_out" => settings.deny_out = ranges(key, value)?,
        "allow_domains" => settings.allow_domains = patterns(key, value)?,
        "deny_domains" => settings.deny_domains = patterns(key, value)?,
        "inject" => settings.inject = headers(value)?,
        "limits" => settings.limits = limits(value)?,
        _ => {
            return Err(Error::invalid(format!(
                "network: there is no setting {key:?}; there are allow_public_traffic, mask_request_host, \
                 allow_out, deny_out, allow_domains, deny_domains, inject and limits"
            )));
        }
    }
    Ok(())
}

fn boolean(key: &str, value: &Value) -> Result<bool> {
    value.as_bool().ok_or_else(|| Error::invalid(format!("network.{key} must be true or false, got {value}")))
}

fn mask(value: &Value) -> Result<String> {
    let wrong = |why: &str| Error::invalid(format!("network.mask_request_host {why}, got {value}"));
    let text = value.as_str().ok_or_else(|| wrong("must be a text"))?;
    if text.is_empty() || text.len() > MASK_BYTES_MAX {
        return Err(wrong("must be 1 to 255 bytes long"));
    }
    // What stands in for the port has to leave a valid authority behind.
    let filled = text.replace("${PORT}", "65535");
    let (host, port) = filled.rsplit_once(':').unwrap_or((&filled, "1"));
    let is_host = normal_name(host).is_some() || host.parse::<Ipv4Addr>().is_ok();
    if !is_host || !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(wrong("must be a host with or without a port, such as localhost:${PORT}"));
    }
    Ok(text.to_owned())
}

/// A list of texts; null is an empty one.
fn texts<'a>(key: &str, value: &'a Value) -> Result<Vec<&'a str>> {
    let wrong = || Error::invalid(format!("network.{key} must be a list of texts, got {value}"));
    let items = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(items) => items,
        _ => return Err(wrong()),
    };
    if items.len() > RULES_MAX {
        let count = items.len();
        return Err(Error::invalid(format!(
            "network.{key} must have at most {RULES_MAX} entries, got {count}"
        )));
    }
    items.iter().map(|item| item.as_str().ok_or_else(wrong)).collect()
}

fn ranges(key: &str, value: &Value) -> Result<Vec<Ipv4Range>> {
    let range = |text: &str| {
        let why = match text.parse::<Ipv4Range>() {
            Ok(range) => return Ok(range),
            Err(why) if text.contains(':') => format!("{why}; IPv6 is off in every sandbox"),
            Err(why) => why,
        };
        Err(Error::invalid(format!("network.{key}: {why}")))
    };
    let mut ranges = texts(key, value)?.into_iter().map(range).collect::<Result<Vec<_>>>()?;
    ranges.sort();
    ranges.dedup();
    Ok(ranges)
}

fn patterns(key: &str, value: &Value) -> Result<Vec<DomainPattern>> {
    let pattern = |text: &str| {
        let normal = match text.strip_prefix("*.") {
            Some(rest) => normal_name(rest).map(|name| format!("*.{name}")),
            None if text == "*" => Some(text.to_owned()),
            None => normal_name(text),
        };
        normal.map(DomainPattern::from_normal).ok_or_else(|| {
            Error::invalid(format!(
                "network.{key}: {text:?} must be a name such as example.com or *.example.com; addresses go to \
                 allow_out and deny_out"
            ))
        })
    };
    let mut patterns = texts(key, value)?.into_iter().map(pattern).collect::<Result<Vec<_>>>()?;
    patterns.sort();
    patterns.dedup();
    Ok(patterns)
}

fn headers(value: &Value) -> Result<Vec<HeaderInjection>> {
    let wrong = |why: String| Error::invalid(format!("network.inject: {why}"));
    let items = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(items) if items.len() <= INJECTIONS_MAX => items,
        Value::Array(items) => {
            return Err(wrong(format!("there may be at most {INJECTIONS_MAX} rules, got {}", items.len())));
        }
        _ => return Err(wrong(format!("must be a list of rules, got {value}"))),
    };
    items
        .iter()
        .map(|item| {
            let rule = item.as_object().ok_or_else(|| wrong(format!("a rule must be an object, got {item}")))?;
            if let Some(key) = rule.keys().find(|key| !["host", "header", "secret", "format"].contains(&key.as_str())) {
                return Err(wrong(format!("a rule has host, header, secret and format, and no {key:?}")));
            }
            let text = |key: &str| match rule.get(key) {
                Some(Value::String(text)) => Ok(Some(text.as_str())),
                None | Some(Value::Null) => Ok(None),
                Some(other) => Err(wrong(format!("{key} must be a text, got {other}"))),
            };
            let needed = |key: &str| text(key)?.ok_or_else(|| wrong(format!("a rule needs {key}")));
            let host = needed("host")?;
            let host = normal_name(host).ok_or_else(|| wrong(format!("host must be one host's name, got {host:?}")))?;
            let header = needed("header")?.to_ascii_lowercase();
            let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            if header.is_empty() || header.len() > 64 || !header.bytes().all(token) {
                return Err(wrong(format!("header must be 1 to 64 characters of a header's name, got {header:?}")));
            }
            if HEADERS_RESERVED.contains(&header.as_str()) {
                return Err(wrong(format!("the header {header:?} cannot be added")));
            }
            let format = text("format")?.map_or_else(secret_alone, str::to_owned);
            let printable = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
            if format.len() > 256 || !format.contains("${secret}") || !format.bytes().all(printable) {
                return Err(wrong(format!(
                    "format must be at most 256 printable characters with ${{secret}} among them, got {format:?}"
                )));
            }
            let secret = crate::vault::name(needed("secret")?)?.to_owned();
            Ok(HeaderInjection { host, header, secret, format })
        })
        .collect()
}

fn limits(value: &Value) -> Result<EgressLimits> {
    let given = match value {
        Value::Null => return Ok(EgressLimits::default()),
        Value::Object(given) => given,
        _ => return Err(Error::invalid(format!("network.limits must be an object, got {value}"))),
    };
    let mut limits = EgressLimits::default();
    for (key, value) in given {
        if value.is_null() {
            continue;
        }
        let (low, high) = match key.as_str() {
            "connections_max" => (1, 8192),
            "connections_per_second" => (1, 10_000),
            "bytes_per_second" => (BYTES_PER_SECOND_MIN, 100 << 30),
            _ => {
                return Err(Error::invalid(format!(
                    "network.limits has connections_max, connections_per_second and bytes_per_second, and no \
                     {key:?}"
                )));
            }
        };
        let number = value.as_u64().filter(|number| (low..=high).contains(number)).ok_or_else(|| {
            Error::invalid(format!(
                "network.limits.{key} must be a number between {low} and {high}, got {value}"
            ))
        })?;
        let small = || u32::try_from(number).map_err(Error::internal);
        match key.as_str() {
            "connections_max" => limits.connections_max = Some(small()?),
            "connections_per_second" => limits.connections_per_second = Some(small()?),
            _ => limits.bytes_per_second = Some(number),
        }
    }
    Ok(limits)
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;

//! What a webhook may be, which addresses events may be sent to, and when a delivery is tried again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use jiff::Timestamp;
use nullspace_types::event::Operation;
use nullspace_types::webhook::{WebhookCreate, WebhookUpdate};
use nullspace_types::{Error, Result};
use serde::{Deserialize, Serialize};
use url::{Host, Url};

use crate::event::word;

/// `[webhooks]`: how lifecycle events are sent out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebhookConfig {
    /// Whether events may be sent into private networks, to this host itself among them.
    pub allow_private: bool,
    /// Most deliveries that are under way at once.
    pub concurrency_max: usize,
    /// How long an endpoint may take to answer, in seconds.
    pub timeout_secs: u32,
}

impl Default for WebhookConfig {
    fn default() -> Self {
        Self { allow_private: false, concurrency_max: 16, timeout_secs: 10 }
    }
}

/// Most webhooks of one tenant.
pub const WEBHOOKS_MAX: usize = 50;
/// Most bytes of a URL.
pub const URL_BYTES_MAX: usize = 2048;
/// Fewest and most characters of a secret.
pub const SECRET_CHARACTERS: (usize, usize) = (16, 256);

/// The delay before the second attempt is at most this long, and doubles from one attempt to the next.
const FIRST_DELAY: Duration = Duration::from_secs(5);
/// No delay is longer.
const LONGEST_DELAY: Duration = Duration::from_secs(60 * 60);
/// No delay is shorter, however chance will have it.
const SHORTEST_DELAY: Duration = Duration::from_secs(1);
/// For so long after its creation a delivery is tried.
pub const DELIVERY_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// A valid webhook. It holds its secret, so it cannot be printed.
#[derive(Clone, PartialEq)]
pub struct WebhookSpec {
    /// Where events are sent.
    pub url: String,
    /// Which operations, each once.
    pub operations: Vec<Operation>,
    /// What deliveries are signed with.
    pub signing_secret: String,
    /// Whether anything is sent.
    pub enabled: bool,
}

/// A valid change. What is absent stays.
#[derive(Clone, Default, PartialEq)]
pub struct WebhookUpdateSpec {
    /// See [`WebhookSpec::url`].
    pub url: Option<String>,
    /// See [`WebhookSpec::operations`].
    pub operations: Option<Vec<Operation>>,
    /// See [`WebhookSpec::signing_secret`].
    pub signing_secret: Option<String>,
    /// See [`WebhookSpec::enabled`].
    pub enabled: Option<bool>,
}

fn missing(field: &str) -> Error {
    Error::invalid(format!("{field} is missing"))
}

/// Judges a webhook to make.
pub fn validate_create(request: WebhookCreate, allow_private: bool) -> Result<WebhookSpec> {
    let url = request.url.ok_or_else(|| missing("url"))?;
    let given = request.operations.ok_or_else(|| missing("operations"))?;
    let signing_secret = request.signing_secret.ok_or_else(|| missing("signing_secret"))?;
    Ok(WebhookSpec {
        url: target(url, allow_private)?,
        operations: operations(&given)?,
        signing_secret: secret(signing_secret)?,
        enabled: request.enabled.unwrap_or(true),
    })
}

/// Judges a change.
pub fn validate_update(request: WebhookUpdate, allow_private: bool) -> Result<WebhookUpdateSpec> {
    Ok(WebhookUpdateSpec {
        url: request.url.map(|url| target(url, allow_private)).transpose()?,
        operations: request.operations.as_deref().map(operations).transpose()?,
        signing_secret: request.signing_secret.map(secret).transpose()?,
        enabled: request.enabled,
    })
}

/// Judges a URL. What it says is not repeated in the refusal: a part of it may be secret.
fn target(text: String, allow_private: bool) -> Result<String> {
    if text.len() > URL_BYTES_MAX {
        return Err(Error::invalid(format!(
            "url must have at most {URL_BYTES_MAX} bytes, got {}",
            text.len()
        )));
    }
    let refused = |why: &str| Error::invalid(format!("url must be an http or https URL with a host: {why}"));
    if text.chars().any(|character| character.is_whitespace() || character.is_control()) {
        return Err(refused("it has a space or a control character"));
    }
    let url = Url::parse(&text).map_err(|error| refused(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refused("it has another scheme"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refused("it must not have a user or password; signatures prove who sends"));
    }
    if url.fragment().is_some() {
        return Err(refused("it must not have a fragment"));
    }
    if let Some(why) = literal_refused(&url).filter(|_| !allow_private) {
        return Err(Error::invalid(format!("url must not lead to {why}"))
            .suggest("use a public address, or ask the operator to set allow_private in [webhooks]"));
    }
    Ok(text)
}

/// Why nothing is sent to the address that the URL itself has for a host; none if that is a name.
pub fn literal_refused(url: &Url) -> Option<&'static str> {
    match url.host()? {
        Host::Domain(_) => None,
        Host::Ipv4(address) => address_refused(address.into()),
        Host::Ipv6(address) => address_refused(address.into()),
    }
}

fn operations(given: &[String]) -> Result<Vec<Operation>> {
    let mut found = Vec::new();
    for text in given {
        let operation = word("operations", text, Operation::ALL, Operation::as_str)?;
        if !found.contains(&operation) {
            found.push(operation);
        }
    }
    if found.is_empty() {
        return Err(Error::invalid("operations must name at least one operation"));
    }
    Ok(found)
}

fn secret(text: String) -> Result<String> {
    let (least, most) = SECRET_CHARACTERS;
    if !(least..=most).contains(&text.len()) || !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(Error::invalid(format!(
            "signing_secret must have {least} to {most} printable ASCII characters"
        )));
    }
    Ok(text)
}

/// Why nothing is sent to an address; none if it is one of the public internet's. After IANA's registries of
/// special-purpose addresses: whatever is not plainly public is refused.
pub fn address_refused(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => v4_refused(address),
        IpAddr::V6(address) => v6_refused(address),
    }
}

fn v4_refused(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        [0, ..] => Some("an unspecified address"),
        [127, ..] => Some("this host itself"),
        [10, ..] | [192, 168, ..] => Some("a private network"),
        [172, second, ..] if second & 0xf0 == 16 => Some("a private network"),
        [100, second, ..] if second & 0xc0 == 64 => Some("a provider's shared network"),
        [169, 254, ..] => Some("a link-local address"),
        [192, 0, 0 | 2, _] | [192, 88, 99, _] | [198, 18 | 19, ..] | [198, 51, 100, _] | [203, 0, 113, _] => {
            Some("an address with a special purpose")
        }
        [224..=239, ..] => Some("a multicast address"),
        [240..=255, ..] => Some("a reserved address"),
        _ => None,
    }
}

fn v6_refused(address: Ipv6Addr) -> Option<&'static str> {
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        v4_refused(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("an unspecified address"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("this host itself"),
        // An IPv4 address in the clothes of the other family: mapped, translated, tunnelled.
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => embedded(high, low),
        [0xff00..=0xffff, ..] => Some("a multicast address"),
        [first, ..] if first & 0xffc0 == 0xfe80 => Some("a link-local address"),
        [first, ..] if first & 0xfe00 == 0xfc00 => Some("a private network"),
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => {
            Some("an address with a special purpose")
        }
        [first, ..] if first & 0xe000 == 0x2000 => None,
        _ => Some("a reserved address"),
    }
}

/// How long to wait after a failed attempt (1 for the first): by `chance`, which is in 0..1, within a delay
/// that doubles from five seconds to an hour ("full jitter"), but a second at least.
pub fn retry_delay(attempt: u32, chance: f64) -> Duration {
    let doubled =
        2_u32.checked_pow(attempt.saturating_sub(1)).map(|factor| FIRST_DELAY.saturating_mul(factor));
    let longest = doubled.unwrap_or(LONGEST_DELAY).min(LONGEST_DELAY);
    longest.mul_f64(chance.clamp(0.0, 1.0)).max(SHORTEST_DELAY)
}

/// When to try again a delivery whose attempt failed; none if it is given up. The last attempt is made when
/// its lifetime is over.
pub fn next_attempt(created_at: Timestamp, now: Timestamp, attempt: u32, chance: f64) -> Option<Timestamp> {
    let end = created_at.checked_add(DELIVERY_LIFETIME).unwrap_or(Timestamp::MAX);
    if now >= end {
        return None;
    }
    Some(now.checked_add(retry_delay(attempt, chance)).unwrap_or(end).min(end))
}

#[cfg(test)]
#[path = "webhook_tests.rs"]
mod tests;

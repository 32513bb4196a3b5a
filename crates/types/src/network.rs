//! What a sandbox may reach, and who may reach it: the settings as callers write them, the policy that a
//! node enforces, and what was denied.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::SandboxId;

/// A range of IPv4 addresses, written `192.0.2.0/24`; an address alone is a range of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Range {
    base: Ipv4Addr,
    prefix: u8,
}

impl Ipv4Range {
    /// Every address.
    pub const ALL: Self = Self { base: Ipv4Addr::UNSPECIFIED, prefix: 0 };

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

    /// Its lowest address.
    pub const fn base(self) -> Ipv4Addr {
        self.base
    }

    /// How many leading bits all its addresses share.
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// The bits that all its addresses share.
    pub const fn mask(self) -> u32 {
        if self.prefix == 0 { 0 } else { u32::MAX << (32 - self.prefix) }
    }

    /// Whether an address is in it.
    pub const fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask() == self.base.to_bits()
    }
}

impl fmt::Display for Ipv4Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for Ipv4Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (base, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let base = base.parse().map_err(|_| format!("{text:?} is not of the form 192.0.2.0/24"))?;
        let prefix = prefix.parse().map_err(|_| format!("{text:?} is not of the form 192.0.2.0/24"))?;
        Self::new(base, prefix)
    }
}

impl TryFrom<String> for Ipv4Range {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Ipv4Range> for String {
    fn from(range: Ipv4Range) -> Self {
        range.to_string()
    }
}

/// Names that a rule is about: one (`example.com`), or all below one (`*.example.com`), in lower case and
/// without a dot at the end. `*` alone is every name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DomainPattern(String);

impl DomainPattern {
    /// Takes a pattern that was judged and normalised: see `nullspace_domain::network`.
    pub fn from_normal(text: String) -> Self {
        Self(text)
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it speaks of a name in lower case without a dot at the end. `*.example.com` is about every
    /// name below `example.com`, however deep, and not about that name itself.
    pub fn matches(&self, name: &str) -> bool {
        match self.0.strip_prefix('*') {
            Some("") => true,
            Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
            None => name == self.0,
        }
    }
}

/// A header that the node adds to requests for one host, so that the sandbox need not hold the secret in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HeaderInjection {
    /// The host's exact name.
    pub host: String,
    /// The header's name, in lower case.
    pub header: String,
    /// The name of the stored secret.
    pub secret: String,
    /// The header's value, with `${secret}` where the secret comes; `${secret}` alone when absent.
    #[serde(default = "secret_alone")]
    pub format: String,
}

/// See [`HeaderInjection::format`].
pub fn secret_alone() -> String {
    "${secret}".into()
}

/// Bounds on what a sandbox sends and receives. What is absent has the node's bound, or none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct EgressLimits {
    /// Connections open at once to the outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_max: Option<u32>,
    /// New connections in a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_per_second: Option<u32>,
    /// Bytes in a second, in each direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
}

/// A sandbox's network settings, complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct NetworkSettings {
    /// Whether its preview hosts answer without a token.
    pub allow_public_traffic: bool,
    /// The `Host` that services in it see, `${PORT}` standing for the port; the caller's own when absent.
    pub mask_request_host: Option<String>,
    /// Ranges that it may reach whatever else is denied.
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>))]
    pub allow_out: Vec<Ipv4Range>,
    /// Ranges that it may not reach.
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>))]
    pub deny_out: Vec<Ipv4Range>,
    /// Names that it may reach; if there are any, no others.
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>))]
    pub allow_domains: Vec<DomainPattern>,
    /// Names that it may not reach.
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>))]
    pub deny_domains: Vec<DomainPattern>,
    /// Headers that are added on the way.
    pub inject: Vec<HeaderInjection>,
    /// Bounds.
    pub limits: EgressLimits,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self {
            allow_public_traffic: true,
            mask_request_host: None,
            allow_out: Vec::new(),
            deny_out: Vec::new(),
            allow_domains: Vec::new(),
            deny_domains: Vec::new(),
            inject: Vec::new(),
            limits: EgressLimits::default(),
        }
    }
}

/// What `GET` and `PATCH /v1/sandboxes/{sandbox_id}/network` answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SandboxNetwork {
    /// Whether it reaches anything that no rule allows.
    pub internet_access: bool,
    /// The rules.
    #[serde(flatten)]
    pub settings: NetworkSettings,
}

/// One injection as the node applies it: the secret is in it, and so it is neither printed nor written down.
#[derive(Clone, PartialEq, Eq)]
pub struct Injection {
    /// The host's exact name.
    pub host: String,
    /// The header's name, in lower case.
    pub header: String,
    /// The whole value; none if the secret does not exist (any more): requests to the host are then refused.
    pub value: Option<String>,
}

impl fmt::Debug for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, header, value } = self;
        let value = value.as_ref().map(|_| "[hidden]");
        f.debug_struct("Injection")
            .field("host", host)
            .field("header", header)
            .field("value", &value)
            .finish()
    }
}

impl Serialize for Injection {
    /// Without the value: whoever reads this back has to be told it anew.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.host, &self.header).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Injection {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (host, header) = Deserialize::deserialize(deserializer)?;
        Ok(Self { host, header, value: None })
    }
}

/// What a node enforces for one machine. The rules are in `nullspace_domain::network`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressPolicy {
    /// Whether what no rule speaks of is allowed.
    pub internet_access: bool,
    /// Ranges that are allowed whatever else is denied.
    pub allow: Vec<Ipv4Range>,
    /// Ranges that are denied.
    pub deny: Vec<Ipv4Range>,
    /// Names that are allowed; if there are any, no others.
    pub allow_domains: Vec<DomainPattern>,
    /// Names that are denied.
    pub deny_domains: Vec<DomainPattern>,
    /// Headers to add.
    pub injections: Vec<Injection>,
    /// Bounds.
    pub limits: EgressLimits,
}

impl Default for EgressPolicy {
    /// The internet, without any rule.
    fn default() -> Self {
        Self {
            internet_access: true,
            allow: Vec::new(),
            deny: Vec::new(),
            allow_domains: Vec::new(),
            deny_domains: Vec::new(),
            injections: Vec::new(),
            limits: EgressLimits::default(),
        }
    }
}

/// What kind of traffic was denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DeniedProtocol {
    /// A TCP connection.
    Tcp,
    /// A UDP datagram.
    Udp,
    /// An ICMP message.
    Icmp,
    /// A DNS query.
    Dns,
    /// Anything else.
    Other,
}

/// Why something was denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DenyReason {
    /// The host's own, private, link-local, metadata or reserved addresses.
    ProtectedAddress,
    /// The address is in `deny_out`.
    DeniedAddress,
    /// No rule allows the address, and nothing is allowed without one.
    AddressNotAllowed,
    /// The name is in `deny_domains`.
    DeniedName,
    /// No rule allows the name.
    NameNotAllowed,
    /// The node's DNS did not give this address for the name that the connection uses.
    NameMismatch,
    /// The connection shows no name: neither a TLS server name nor an HTTP host.
    NoName,
    /// Its source address was not the sandbox's own.
    ForgedSource,
    /// A bound on connections, bytes or queries was reached.
    Limit,
    /// The secret to add does not exist, or the host could not prove its name.
    InjectionFailed,
}

/// Something that a sandbox tried and may not do, and how often.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DeniedTarget {
    /// What kind of traffic.
    pub protocol: DeniedProtocol,
    /// The address that it was for, if there is one.
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub address: Option<Ipv4Addr>,
    /// The port that it was for, if there is one.
    pub port: Option<u16>,
    /// The name that was asked for or used, if there is one.
    pub name: Option<String>,
    /// Why.
    pub reason: DenyReason,
}

/// Equal denials are one, with a count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Denial {
    /// What.
    #[serde(flatten)]
    pub target: DeniedTarget,
    /// How often.
    pub count: u64,
    /// When first.
    pub first_at: Timestamp,
    /// When last.
    pub last_at: Timestamp,
}

/// A page of denials, the latest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DenialPage {
    /// Of which sandbox.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub sandbox_id: SandboxId,
    /// The denials. Of one sandbox the 1,000 latest are kept.
    pub items: Vec<Denial>,
    /// Whether there are more.
    pub has_more: bool,
}

/// Which denials.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "schema", into_params(parameter_in = Query))]
#[serde(default)]
pub struct DenialQuery {
    /// How many to leave out; 0 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<String>,
    /// At most this many, 1 to 200; 50 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
}

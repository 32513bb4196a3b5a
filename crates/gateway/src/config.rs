//! The settings of the gateway. Plain data with defaults; checked once, when it starts.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[gateway]`: how ports of sandboxes are reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The domain of preview hosts, such as `preview.example.com`: they are `PORT-LABEL.DOMAIN`, and its DNS
    /// must lead every one of them here. When absent, each port has a local address.
    pub domain: Option<String>,
    /// Address and port to listen on for preview hosts.
    pub listen: SocketAddr,
    /// The port in the URLs of preview hosts; that of `listen` when absent.
    pub public_port: Option<u16>,
    /// The certificate of all preview hosts with its chain, in PEM. Read again when it changes.
    pub tls_certificate: Option<PathBuf>,
    /// The certificate's key, in PEM.
    pub tls_key: Option<PathBuf>,
    /// An authority that gives a certificate to each preview host when it is first asked for, in place of one
    /// in files: a table with `directory` (its URL), `contact` (an e-mail address), `cache` (a directory for
    /// what it gave) and `root_certificate` (what to trust it by, in PEM; the usual roots when absent). It must
    /// reach `listen` at port 443 of the hosts.
    pub acme: Option<AcmeConfig>,
    /// The ports of local addresses, `FIRST-LAST`.
    pub ports: String,
    /// The address that local addresses are at.
    pub bind: IpAddr,
    /// Most connections at once, WebSockets among them; more wait until one closes.
    pub connections_max: usize,
    /// Most bytes of a request's or an answer's head, 8192 to 1048576.
    pub head_bytes_max: usize,
    /// Seconds that a client may take to send a request's head, or keep an unused connection.
    pub head_timeout_secs: u32,
    /// Seconds that a service may take to begin its answer once nothing more comes from the client.
    pub answer_timeout_secs: u32,
    /// Seconds after which an answer or a WebSocket in which nothing has moved is cut.
    pub idle_timeout_secs: u32,
}

/// `[gateway.acme]`: see [`Config::acme`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcmeConfig {
    /// The URL of the authority's directory (RFC 8555 §7.1.1). To set it is to agree to its terms.
    pub directory: String,
    /// An e-mail address for the authority's notices.
    pub contact: Option<String>,
    /// Where the account, keys and certificates are kept.
    pub cache: PathBuf,
    /// A certificate in PEM to trust the authority's own server by.
    pub root_certificate: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            domain: None,
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3001),
            public_port: None,
            tls_certificate: None,
            tls_key: None,
            acme: None,
            ports: "20000-29999".into(),
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            connections_max: 8192,
            head_bytes_max: 64 * 1024,
            head_timeout_secs: 30,
            answer_timeout_secs: 300,
            idle_timeout_secs: 3600,
        }
    }
}

impl Config {
    /// Says what cannot work, naming key, bound and value.
    pub fn check(&self) -> Result<(), String> {
        self.port_range()?;
        if let Some(domain) = &self.domain {
            let label = |label: &str| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            };
            // What is put before it are at most 5 digits, a dash, 26 letters and a dot.
            if domain.len() > 200 || !domain.split('.').all(label) {
                return Err(format!("gateway.domain must be a lower-case domain name, got {domain:?}"));
            }
        }
        if self.tls_certificate.is_some() != self.tls_key.is_some() {
            return Err("gateway.tls_certificate and gateway.tls_key must be set together".into());
        }
        if let Some(acme) = &self.acme {
            if self.domain.is_none() || self.tls_certificate.is_some() {
                return Err("gateway.acme needs gateway.domain, and no gateway.tls_certificate".into());
            }
            if !acme.directory.starts_with("https://") {
                let got = &acme.directory;
                return Err(format!("gateway.acme.directory must be an https URL, got {got:?}"));
            }
        }
        for (name, low, high, value) in [
            ("connections_max", 1, 1 << 20, self.connections_max),
            ("head_bytes_max", 8192, 1 << 20, self.head_bytes_max),
            ("head_timeout_secs", 1, 86_400, self.head_timeout_secs as usize),
            ("answer_timeout_secs", 1, 86_400, self.answer_timeout_secs as usize),
            ("idle_timeout_secs", 1, 604_800, self.idle_timeout_secs as usize),
        ] {
            if !(low..=high).contains(&value) {
                return Err(format!("gateway.{name} must be {low} to {high}, got {value}"));
            }
        }
        Ok(())
    }

    /// The ports of local addresses.
    pub fn port_range(&self) -> Result<RangeInclusive<u16>, String> {
        let parsed = self.ports.split_once('-').and_then(|(first, last)| {
            let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
            (1 <= first && first <= last).then_some(first..=last)
        });
        parsed.ok_or_else(|| {
            format!("gateway.ports must be FIRST-LAST within 1 and 65535, got {:?}", self.ports)
        })
    }

    /// Whether preview hosts are reached by HTTPS.
    pub fn tls(&self) -> bool {
        self.tls_certificate.is_some() || self.acme.is_some()
    }
}

//! The settings of the relay, and its keys. Plain data with defaults.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Where the relay listens unless it is told where, or that is taken.
pub const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 3022);

/// `[ssh]`: how people reach sandboxes with an SSH client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether there is a relay.
    pub enabled: bool,
    /// Address and port to listen on. When absent: `127.0.0.1:3022`, or another port where that one is taken.
    pub listen: Option<SocketAddr>,
    /// The host that clients are told to connect to; that of `listen` when absent.
    pub public_host: Option<String>,
    /// The port that clients are told to connect to; that of `listen` when absent.
    pub public_port: Option<u16>,
    /// Most connections at once; more are closed at once.
    pub connections_max: usize,
    /// Seconds until a connection that has not logged in is closed.
    pub login_secs: u32,
    /// Seconds without a byte either way until a connection is closed; 0 for never.
    pub idle_secs: u32,
    /// Most channels of a connection at once: shells, commands, forwarded connections.
    pub channels_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: None,
            public_host: None,
            public_port: None,
            connections_max: 512,
            login_secs: 20,
            idle_secs: 0,
            channels_max: 64,
        }
    }
}

/// What the relay proves itself by, and whom it believes.
#[derive(Clone)]
pub struct Keys {
    /// The host's private key, as OpenSSH writes it (PEM).
    pub host_key: String,
    /// The public key of the authority that signs certificates, one line as OpenSSH writes it.
    pub authority: String,
}

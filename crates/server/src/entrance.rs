//! The ways into sandboxes besides the API: the gateway to their ports, and the SSH relay. Puts them together
//! with what control judges by: keys, tokens, the addresses that are given out. What a token is worth is
//! control's, how a protocol is spoken theirs.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Weak};

use anyhow::Context as _;
use async_trait::async_trait;
use nullspace_auth::{Authenticator, EdgeTokens, SshAuthority, Vault};
use nullspace_control::{Access, Doors, KeyCheck, PreviewAddresses};
use nullspace_gateway::Gateway;
use nullspace_ssh::Keys;
use nullspace_store::Store;
use nullspace_store::preview::LocalPort;
use nullspace_types::Result;
use nullspace_types::key::Principal;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::App;
use crate::config::Config;
use crate::data_dir::secrets_key;
use crate::server::with_context;

/// All that is open besides the API's own listener.
pub(crate) struct Entrances {
    gateway: Arc<Gateway<App>>,
    previews: PreviewAddresses,
    relay: Option<SocketAddr>,
}

/// What both are opened with.
pub(crate) struct Opening<'a> {
    pub config: &'a Config,
    pub data_dir: &'a Path,
    pub store: &'a Arc<dyn Store>,
    pub authenticator: Arc<Authenticator>,
    /// Whom they ask. It answers that the server is starting until control is there.
    pub app: App,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
}

impl Opening<'_> {
    /// Opens both, and gives what control needs to know of them.
    pub(crate) async fn open(self) -> anyhow::Result<(Entrances, Access)> {
        let Self { config, data_dir, store, authenticator, app, stop, tasks } = self;
        let tokens = EdgeTokens::load(&**store).await.map_err(with_context)?;
        let ssh = SshAuthority::load(&**store).await.map_err(with_context)?;
        let vault = Vault::open(&secrets_key(data_dir, config.secrets.key_file.as_deref()))
            .map_err(with_context)
            .context("the key of the stored secrets could not be opened")?;
        let gateway = Gateway::start(config.gateway.clone(), app.clone(), stop.clone(), tasks.clone())
            .await
            .context("the gateway could not start: see [gateway] in the configuration")?;
        let gateway = Arc::new(gateway);
        let previews = config.preview_addresses(gateway.address())?;
        let relay = match config.ssh.enabled {
            true => {
                let listener = listen(config.ssh.listen).await?;
                let address = listener.local_addr()?;
                let keys = Keys { host_key: ssh.host_key_private(), authority: ssh.authority() };
                let serving =
                    nullspace_ssh::serve(listener, config.ssh.clone(), keys, app, stop, tasks.clone());
                tasks.spawn(serving);
                Some(address)
            }
            false => None,
        };
        let access = Access {
            tokens,
            vault,
            ssh,
            authenticator: Arc::new(KeysOf(authenticator)),
            previews: previews.clone(),
            relay: relay.map(|address| told(config, address)),
            doors: Arc::new(DoorsOf(Arc::downgrade(&gateway))),
        };
        Ok((Entrances { gateway, previews, relay }, access))
    }
}

/// For the relay. Clients are told where it is each time they ask for access, so that it need not be where it
/// usually is unless it was told to.
async fn listen(address: Option<SocketAddr>) -> anyhow::Result<TcpListener> {
    let listen = address.unwrap_or(nullspace_ssh::LISTEN);
    let bound = match TcpListener::bind(listen).await {
        Err(error) if address.is_none() && error.kind() == std::io::ErrorKind::AddrInUse => {
            tracing::info!(%listen, "taken; SSH is served at another port");
            TcpListener::bind((listen.ip(), 0)).await
        }
        bound => bound,
    };
    bound.with_context(|| {
        format!("cannot listen on {listen} for SSH; choose another with listen in [ssh], or set enabled = false there")
    })
}

/// Where clients are told that the relay is.
fn told(config: &Config, address: SocketAddr) -> (String, u16) {
    let host = match address.ip() {
        _ if config.ssh.public_host.is_some() => config.ssh.public_host.clone().unwrap_or_default(),
        // Every address of this host: the one name that is right everywhere on it.
        ip if ip.is_unspecified() => "localhost".to_owned(),
        ip => ip.to_string(),
    };
    (host, config.ssh.public_port.unwrap_or(address.port()))
}

impl Entrances {
    /// A line for each, for whoever started the server.
    pub(crate) fn lines(&self) -> Vec<String> {
        let previews = match (&self.previews, self.gateway.address()) {
            (PreviewAddresses::Domain { domain, tls, port }, Some(address)) => {
                let scheme = if *tls { "https" } else { "http" };
                format!("previews on {scheme}://*.{domain}:{port}, served at {address}")
            }
            (PreviewAddresses::Domain { domain, .. }, None) => format!("previews on *.{domain}"),
            (PreviewAddresses::Local { bind, ports }, _) => {
                format!("previews on {}", local(*bind, *ports.start(), *ports.end()))
            }
        };
        let relay = self.relay.map(|address| format!("ssh on {address}"));
        std::iter::once(previews).chain(relay).collect()
    }
}

fn local(bind: IpAddr, first: u16, last: u16) -> String {
    format!("{}-{last}", SocketAddr::new(bind, first))
}

/// Whether a key is still good, as the API judges it.
struct KeysOf(Arc<Authenticator>);

#[async_trait]
impl KeyCheck for KeysOf {
    async fn still_good(&self, principal: Principal) -> Result<()> {
        self.0.still_good(principal).await
    }
}

/// The gateway's local addresses. Weak, as the gateway itself holds what leads to control.
struct DoorsOf(Weak<Gateway<App>>);

#[async_trait]
impl Doors for DoorsOf {
    async fn open(&self, port: LocalPort) -> std::io::Result<()> {
        match self.0.upgrade() {
            Some(gateway) => gateway.open(port.local, port.sandbox_id, port.port).await,
            None => Err(std::io::Error::new(std::io::ErrorKind::NotConnected, "the server is stopping")),
        }
    }

    async fn close(&self, local: u16) {
        if let Some(gateway) = self.0.upgrade() {
            gateway.close(local).await;
        }
    }
}

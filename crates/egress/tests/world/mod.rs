//! A sandbox whose connections are inspected, and the hosts outside of it: real sockets on the loopback, reached
//! by the addresses that the sandbox believes in.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use nullspace_domain::network;
use nullspace_egress::{Authority, Enforced, Inspector, Outside, Settings};
use nullspace_types::network::{DeniedTarget, DenyReason, EgressPolicy};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

#[derive(Default)]
struct Places {
    routes: HashMap<SocketAddrV4, SocketAddr>,
    given: HashSet<(String, Ipv4Addr)>,
}

/// What is outside, as the inspector sees it.
struct Network {
    places: Mutex<Places>,
    denials: mpsc::Sender<DeniedTarget>,
}

#[async_trait]
impl Outside for Network {
    async fn connect(&self, to: SocketAddrV4) -> io::Result<TcpStream> {
        let route = self.places.lock().unwrap().routes.get(&to).copied();
        TcpStream::connect(route.ok_or(io::ErrorKind::HostUnreachable)?).await
    }

    async fn gives(&self, name: &str, address: Ipv4Addr) -> bool {
        self.places.lock().unwrap().given.contains(&(name.to_owned(), address))
    }

    fn knows(&self, address: Ipv4Addr) -> bool {
        self.places.lock().unwrap().given.iter().any(|(_, given)| *given == address)
    }

    fn denied(&self, target: DeniedTarget) {
        self.denials.try_send(target).expect("somebody looks at the denials");
    }
}

pub struct World {
    network: Arc<Network>,
    denials: mpsc::Receiver<DeniedTarget>,
    policy: watch::Sender<Arc<Enforced>>,
    inspector: Arc<Inspector>,
    authority: Arc<Authority>,
    issuer: Issuer<'static, KeyPair>,
    roots: Arc<RootCertStore>,
}

impl World {
    /// A sandbox with these settings and the internet, and no secrets.
    pub fn new(settings: Value) -> Self {
        Self::with_secrets(settings, |_| None)
    }

    pub fn with_secrets(settings: Value, secrets: impl Fn(&str) -> Option<String>) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let mut roots = RootCertStore::empty();
        roots.add(params.self_signed(&key).unwrap().der().clone()).unwrap();
        let roots = Arc::new(roots);
        let authority = Arc::new(Authority::generate("Nullspace test").unwrap());
        let (denied, denials) = mpsc::channel(64);
        let network = Arc::new(Network { places: Mutex::default(), denials: denied });
        let enforced = Enforced { policy: policy(&settings, secrets), authority: Some(authority.clone()) };
        let (policy, enforced) = watch::channel(Arc::new(enforced));
        let settings = Settings { roots: roots.clone() };
        let inspector = Arc::new(Inspector::new(network.clone(), settings, enforced));
        Self { network, denials, policy, inspector, authority, issuer: Issuer::new(params, key), roots }
    }

    pub fn change(&self, settings: Value, secrets: impl Fn(&str) -> Option<String>) {
        let enforced =
            Enforced { policy: policy(&settings, secrets), authority: Some(self.authority.clone()) };
        self.policy.send(Arc::new(enforced)).unwrap();
    }

    /// Nothing is enforced any more: the slot is gone.
    pub fn end(&mut self) {
        self.policy = watch::channel(Arc::default()).0;
    }

    /// A host at an address, which DNS gives for these names.
    pub async fn host(&self, at: &str, names: &[&str]) -> TcpListener {
        let at: SocketAddrV4 = at.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut places = self.network.places.lock().unwrap();
        places.routes.insert(at, listener.local_addr().unwrap());
        places.given.extend(names.iter().map(|name| ((*name).to_owned(), *at.ip())));
        drop(places);
        listener
    }

    /// A connection of the sandbox to an address.
    pub async fn connect(&self, to: &str) -> TcpStream {
        let to = to.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (guest, accepted) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (inspector, (accepted, _)) = (self.inspector.clone(), accepted.unwrap());
        tokio::spawn(async move { inspector.serve(accepted, to).await });
        guest.unwrap()
    }

    pub async fn denial(&mut self) -> (DenyReason, Option<String>) {
        let target = self.denials.recv().await.unwrap();
        (target.reason, target.name)
    }

    pub fn nothing_denied(&mut self) {
        assert!(self.denials.try_recv().is_err());
    }

    /// What a sandbox trusts that knows only its own authority.
    pub fn guest_roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.authority.certificate_pem().as_bytes()).unwrap())
            .unwrap();
        Arc::new(roots)
    }

    /// What everybody trusts.
    pub fn roots(&self) -> Arc<RootCertStore> {
        self.roots.clone()
    }

    /// The host's side of TLS, with a certificate for a name.
    pub async fn accept_tls(
        &self,
        host: &TcpListener,
        name: &str,
        alpn: &[&str],
    ) -> io::Result<server::TlsStream<TcpStream>> {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .unwrap();
        config.alpn_protocols = protocols(alpn);
        let (stream, _) = host.accept().await?;
        TlsAcceptor::from(Arc::new(config)).accept(stream).await
    }
}

fn protocols(alpn: &[&str]) -> Vec<Vec<u8>> {
    alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect()
}

fn policy(settings: &Value, secrets: impl Fn(&str) -> Option<String>) -> EgressPolicy {
    let settings = network::settings(settings.as_object()).unwrap();
    network::policy(true, &settings, secrets)
}

/// The guest's side of TLS to a host.
pub async fn begin_tls(
    guest: TcpStream,
    name: &str,
    roots: Arc<RootCertStore>,
    alpn: &[&str],
) -> io::Result<client::TlsStream<TcpStream>> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols(alpn);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, guest).await
}

/// Reads the head of an HTTP message, byte by byte, so that nothing beyond it is taken.
pub async fn head(from: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        match from.read_u8().await {
            Ok(byte) => read.push(byte),
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&read)),
        }
    }
    String::from_utf8(read).unwrap()
}

/// The connection was reset, and nothing came over it before.
pub async fn is_reset(mut guest: TcpStream) {
    let mut read = Vec::new();
    let outcome = guest.read_to_end(&mut read).await;
    assert_eq!(outcome.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
    assert_eq!(read, b"");
}

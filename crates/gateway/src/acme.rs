//! Certificates by ACME (RFC 8555), one for each preview host, asked for when somebody first connects to it and
//! proved by TLS-ALPN-01 (RFC 8737), which needs nothing but the gateway's own listener.
//!
//! An authority's patience is bounded, and so is what is asked of it: only for hosts of sandboxes that exist,
//! once at a time for each, a few at once, some an hour, and not again right after a failure. What was got lies
//! in a directory and is renewed after two thirds of its time.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder,
    OrderStatus, RetryPolicy,
};
use nullspace_edge_api::{Admission, Credentials, Edge};
use nullspace_types::Code;
use nullspace_types::preview::PreviewTransport;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio::sync::{OnceCell, OwnedMutexGuard, Semaphore};
use tokio::time::Instant;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use crate::config::AcmeConfig;
use crate::judge;
use crate::tls::{provider, server_config};

/// The protocol in which an authority asks for its proof.
const PROOF: &[u8] = b"acme-tls/1";
/// Most orders at once.
const ORDERS_AT_ONCE: usize = 4;
/// Most orders in an hour.
const ORDERS_AN_HOUR: usize = 50;
const HOUR: Duration = Duration::from_secs(3600);
/// How long an order may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a name is left alone after a failure.
const AGAIN: Duration = Duration::from_secs(300);
/// Most names that are held in memory; all are forgotten then, and read again when they are needed.
const NAMES_MAX: usize = 4096;

/// See the module.
pub(crate) struct Acme<E> {
    edge: E,
    domain: String,
    config: AcmeConfig,
    tasks: TaskTracker,
    account: OnceCell<Account>,
    names: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Held>>>>,
    /// What is answered to an authority that asks, by name.
    proofs: Mutex<HashMap<String, Arc<ServerConfig>>>,
    orders: Semaphore,
    /// When orders were made, for an hour.
    lately: Mutex<VecDeque<Instant>>,
}

/// What is held for a name.
#[derive(Default)]
struct Held {
    certificate: Option<Certificate>,
    not_before: Option<Instant>,
}

#[derive(Clone)]
struct Certificate {
    config: Arc<ServerConfig>,
    renew_at: SystemTime,
    ends_at: SystemTime,
}

impl<E: Edge> Acme<E> {
    pub(crate) fn new(
        edge: E,
        domain: String,
        config: AcmeConfig,
        tasks: TaskTracker,
    ) -> io::Result<Arc<Self>> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.cache)?;
        Ok(Arc::new(Self {
            edge,
            domain,
            config,
            tasks,
            account: OnceCell::new(),
            names: Mutex::default(),
            proofs: Mutex::default(),
            orders: Semaphore::new(ORDERS_AT_ONCE),
            lately: Mutex::default(),
        }))
    }

    /// Speaks TLS with a client: by the certificate of the host that it names, or with the proof if it is an
    /// authority, which then goes again.
    pub(crate) async fn accept(self: &Arc<Self>, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let begun = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        let hello = begun.client_hello();
        let name = hello.server_name().unwrap_or_default().to_ascii_lowercase();
        let asks = hello.alpn().is_some_and(|mut protocols| protocols.any(|protocol| protocol == PROOF));
        if asks {
            let proof = locked(&self.proofs).get(&name).cloned();
            let proof = proof.ok_or_else(|| failed(&name, "nobody waits for this proof"))?;
            return begun.into_stream(proof).await;
        }
        let config = self.certificate(name).await?;
        begun.into_stream(config).await
    }

    /// The certificate of a name, got if there is none.
    async fn certificate(self: &Arc<Self>, name: String) -> io::Result<Arc<ServerConfig>> {
        let Some(destination) = judge::destination(&name, &self.domain) else {
            return Err(failed(&name, "it is not a host of the domain"));
        };
        let held = {
            let mut names = locked(&self.names);
            if names.len() >= NAMES_MAX && !names.contains_key(&name) {
                names.clear();
            }
            names.get(&name).cloned()
        };
        if let Some(held) = &held
            && let Some(certificate) = held.lock().await.current()
        {
            return Ok(certificate.config);
        }
        // It may only just have been asked for: whoever is judged then is the request.
        let transport = PreviewTransport::Http;
        let admission = Admission { destination, transport, credentials: Credentials::default() };
        if let Err(refused) = self.edge.admit(admission).await
            && matches!(
                refused.error.code,
                Code::SandboxNotFound
                    | Code::PreviewSandboxDisabled
                    | Code::UnsupportedPreviewPort
                    | Code::Unavailable
            )
        {
            return Err(failed(&name, "it leads to no sandbox"));
        }
        let held = locked(&self.names).entry(name.clone()).or_default().clone();
        let held = held.lock_owned().await;
        // In a task of its own: a client that goes does not waste the order.
        let acme = self.clone();
        self.tasks.spawn(async move { acme.renewed(name, held).await }).await?
    }

    async fn renewed(&self, name: String, mut held: OwnedMutexGuard<Held>) -> io::Result<Arc<ServerConfig>> {
        if held.certificate.is_none() {
            let path = self.path(&name);
            let read = tokio::task::spawn_blocking(move || read(&path)).await?;
            held.certificate = match read {
                Ok(certificate) => Some(certificate),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => {
                    tracing::warn!(%error, name, "a kept certificate cannot be used");
                    None
                }
            };
        }
        if let Some(certificate) = held.current() {
            return Ok(certificate.config);
        }
        let old = held.certificate.clone().filter(|old| SystemTime::now() < old.ends_at);
        if held.not_before.is_some_and(|not_before| Instant::now() < not_before) {
            return old.map(|old| old.config).ok_or_else(|| failed(&name, "it could not be got just now"));
        }
        let ordered = match tokio::time::timeout(PATIENCE, self.order(&name)).await {
            Ok(ordered) => ordered,
            Err(_) => Err(failed(&name, "the authority took too long")),
        };
        locked(&self.proofs).remove(&name);
        match ordered {
            Ok(certificate) => {
                tracing::info!(name, "got a certificate");
                held.not_before = None;
                held.certificate = Some(certificate.clone());
                Ok(certificate.config)
            }
            Err(error) => {
                tracing::warn!(%error, "a certificate could not be got");
                held.not_before = Some(Instant::now() + AGAIN);
                old.map(|old| old.config).ok_or(error)
            }
        }
    }

    async fn order(&self, name: &str) -> io::Result<Certificate> {
        let wrong = |error: instant_acme::Error| failed(name, error);
        let _place = self.orders.acquire().await.map_err(|error| failed(name, error))?;
        self.count_order(name)?;
        let account = self.account.get_or_try_init(|| self.open_account()).await?;
        let identifiers = [Identifier::Dns(name.to_owned())];
        let mut order = account.new_order(&NewOrder::new(&identifiers)).await.map_err(wrong)?;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(wrong)?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let challenge = authorization.challenge(ChallengeType::TlsAlpn01);
            let mut challenge =
                challenge.ok_or_else(|| failed(name, "the authority does not offer TLS-ALPN-01"))?;
            let proof = proof(name, challenge.key_authorization().digest().as_ref())?;
            locked(&self.proofs).insert(name.to_owned(), proof);
            challenge.set_ready().await.map_err(wrong)?;
        }
        let retries = RetryPolicy::default().timeout(PATIENCE);
        match order.poll_ready(&retries).await.map_err(wrong)? {
            OrderStatus::Ready => {}
            other => return Err(failed(name, format_args!("the order is {other:?}"))),
        }
        let made = |error: rcgen::Error| failed(name, error);
        let key = KeyPair::generate().map_err(made)?;
        let mut request = CertificateParams::new([name.to_owned()]).map_err(made)?;
        request.distinguished_name = DistinguishedName::new();
        let request = request.serialize_request(&key).map_err(made)?;
        order.finalize_csr(request.der()).await.map_err(wrong)?;
        let chain = order.poll_certificate(&retries).await.map_err(wrong)?;
        let path = self.path(name);
        let text = format!("{}{chain}", key.serialize_pem());
        tokio::task::spawn_blocking(move || {
            keep(&path, text.as_bytes())?;
            read(&path)
        })
        .await?
    }

    fn count_order(&self, name: &str) -> io::Result<()> {
        let mut lately = locked(&self.lately);
        while lately.front().is_some_and(|first| first.elapsed() >= HOUR) {
            lately.pop_front();
        }
        if lately.len() >= ORDERS_AN_HOUR {
            return Err(failed(name, format_args!("{ORDERS_AN_HOUR} were asked for within an hour")));
        }
        lately.push_back(Instant::now());
        Ok(())
    }

    /// The account with the authority: the one that is kept, or a new one.
    async fn open_account(&self) -> io::Result<Account> {
        let wrong = |error: instant_acme::Error| io::Error::other(format!("the ACME account: {error}"));
        let builder = match &self.config.root_certificate {
            Some(root) => Account::builder_with_root(root),
            None => Account::builder(),
        };
        let builder = builder.map_err(wrong)?;
        let path = self.config.cache.join("account.json");
        match tokio::fs::read(&path).await {
            Ok(text) => {
                let credentials: AccountCredentials = serde_json::from_slice(&text)?;
                builder.from_credentials(credentials).await.map_err(wrong)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let contact = self.config.contact.as_ref().map(|contact| format!("mailto:{contact}"));
                let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
                let account = NewAccount {
                    contact: &contact,
                    terms_of_service_agreed: true,
                    only_return_existing: false,
                };
                let directory = self.config.directory.clone();
                let (account, credentials) =
                    builder.create(&account, directory, None).await.map_err(wrong)?;
                let text = serde_json::to_vec(&credentials)?;
                tokio::task::spawn_blocking(move || keep(&path, &text)).await??;
                Ok(account)
            }
            Err(error) => Err(error),
        }
    }

    /// Where a name's key and chain are. Names are those of preview hosts: they have no slash.
    fn path(&self, name: &str) -> PathBuf {
        self.config.cache.join(format!("{name}.pem"))
    }
}

impl Held {
    fn current(&self) -> Option<Certificate> {
        self.certificate.clone().filter(|certificate| SystemTime::now() < certificate.renew_at)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(name: &str, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("no certificate for {name:?}: {error}"))
}

/// The certificate that proves to an authority that the name leads here (RFC 8737 §3).
fn proof(name: &str, digest: &[u8]) -> io::Result<Arc<ServerConfig>> {
    let made = |error: rcgen::Error| failed(name, error);
    let key = KeyPair::generate().map_err(made)?;
    let mut certificate = CertificateParams::new([name.to_owned()]).map_err(made)?;
    certificate.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = certificate.self_signed(&key).map_err(made)?;
    let private = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| failed(name, error))?;
    // Not compared with its key: the very extension that makes it a proof is one that nobody else may accept.
    let signing = provider().key_provider.load_private_key(private);
    let certified = signing.map(|signing| CertifiedKey::new(vec![certificate.der().clone()], signing));
    let config = certified.and_then(|certified| server_config(certified, &[PROOF]));
    config.map(Arc::new).map_err(|error| failed(name, error))
}

/// Writes a file whole, for nobody else to read.
fn keep(path: &Path, content: &[u8]) -> io::Result<()> {
    let half_made = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&half_made)?;
    io::Write::write_all(&mut file, content)?;
    file.sync_all()?;
    std::fs::rename(&half_made, path)
}

/// Reads a key and the chain behind it.
fn read(path: &Path) -> io::Result<Certificate> {
    let text = std::fs::read(path)?;
    let wrong = |error: &dyn std::fmt::Display| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
    };
    let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| wrong(&error))?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| wrong(&error))?;
    let first = chain.first().ok_or_else(|| wrong(&"there is no certificate in it"))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(first).map_err(|error| wrong(&error))?;
    let at = |time: x509_parser::time::ASN1Time| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
    };
    let (begins_at, ends_at) = (at(parsed.validity().not_before), at(parsed.validity().not_after));
    let renew_at = begins_at + ends_at.duration_since(begins_at).unwrap_or_default() * 2 / 3;
    let certified = CertifiedKey::from_der(chain, key, &provider());
    let config = certified.and_then(|certified| server_config(certified, &[b"h2", b"http/1.1"]));
    let config = config.map_err(|error| wrong(&error))?;
    Ok(Certificate { config: Arc::new(config), renew_at, ends_at })
}

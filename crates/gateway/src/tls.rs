//! TLS of preview hosts, by ACME or by a certificate in files. Those are looked at every few seconds, so that one that was
//! renewed is used without a restart; one that cannot be read leaves the old in place.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use nullspace_edge_api::Edge;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acme::Acme;
use crate::config::Config;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) enum Tls<E> {
    Files(Files),
    Acme(Arc<Acme<E>>),
}

/// A certificate in files.
#[derive(Clone)]
pub(crate) struct Files {
    certificate: PathBuf,
    key: PathBuf,
    acceptor: Arc<RwLock<TlsAcceptor>>,
}

/// What tells one version of the files from another.
type Version = (Option<(SystemTime, u64)>, Option<(SystemTime, u64)>);

impl<E> Clone for Tls<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Files(files) => Self::Files(files.clone()),
            Self::Acme(acme) => Self::Acme(acme.clone()),
        }
    }
}

impl<E: Edge> Tls<E> {
    /// What the configuration says; `None` is no TLS.
    pub(crate) async fn load(config: &Config, edge: &E, tasks: &TaskTracker) -> io::Result<Option<Self>> {
        if let (Some(acme), Some(domain)) = (&config.acme, &config.domain) {
            let acme = Acme::new(edge.clone(), domain.clone(), acme.clone(), tasks.clone())?;
            return Ok(Some(Self::Acme(acme)));
        }
        let (Some(certificate), Some(key)) = (&config.tls_certificate, &config.tls_key) else {
            return Ok(None);
        };
        let (certificate, key) = (certificate.clone(), key.clone());
        let loading = tokio::task::spawn_blocking(move || {
            let acceptor = Arc::new(RwLock::new(acceptor(&certificate, &key)?));
            Ok(Some(Self::Files(Files { certificate, key, acceptor })))
        });
        loading.await?
    }

    /// Speaks TLS with a client.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        match self {
            Self::Files(files) => {
                let acceptor = files.acceptor.read().unwrap_or_else(PoisonError::into_inner).clone();
                acceptor.accept(stream).await
            }
            Self::Acme(acme) => acme.accept(stream).await,
        }
    }
}

impl Files {
    /// Reads the files again whenever they have changed.
    pub(crate) async fn watch(self, stop: CancellationToken) {
        let mut known = self.version().await;
        while tokio::time::timeout(LOOK, stop.cancelled()).await.is_err() {
            let now = self.version().await;
            if now == known {
                continue;
            }
            let (certificate, key) = (self.certificate.clone(), self.key.clone());
            let loaded = tokio::task::spawn_blocking(move || acceptor(&certificate, &key)).await;
            match loaded.map_err(io::Error::from).and_then(|loaded| loaded) {
                Ok(new) => {
                    *self.acceptor.write().unwrap_or_else(PoisonError::into_inner) = new;
                    tracing::info!(certificate = %self.certificate.display(), "read a new certificate");
                }
                // The two files may have been caught between one and the other: what comes next is another
                // version.
                Err(error) => tracing::warn!(%error, "a new certificate cannot be used; the old one stays"),
            }
            known = now;
        }
    }

    async fn version(&self) -> Version {
        let of = |path: PathBuf| async move {
            let about = tokio::fs::metadata(path).await.ok()?;
            Some((about.modified().ok()?, about.len()))
        };
        (of(self.certificate.clone()).await, of(self.key.clone()).await)
    }
}

fn acceptor(certificate: &PathBuf, key: &PathBuf) -> io::Result<TlsAcceptor> {
    let wrong = |path: &PathBuf, error: &dyn std::fmt::Display| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
    };
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| wrong(certificate, &error))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, &error))?;
    let certified = CertifiedKey::from_der(chain, private, &provider());
    let config = certified.and_then(|certified| server_config(certified, &[b"h2", b"http/1.1"]));
    config.map(|config| TlsAcceptor::from(Arc::new(config))).map_err(|error| wrong(certificate, &error))
}

pub(crate) fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

/// TLS with one certificate, for these protocols.
pub(crate) fn server_config(
    certified: CertifiedKey,
    protocols: &[&[u8]],
) -> Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(Arc::new(provider()));
    let builder = builder.with_safe_default_protocol_versions()?.with_no_client_auth();
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

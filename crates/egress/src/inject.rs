//! Adds headers to requests for one host: ends TLS with a certificate of the sandbox's authority, begins it
//! anew towards the host, and relays the requests between the two.
//!
//! A secret leaves this room only inside a connection whose other end has proved the host's name, at an address
//! that the node's DNS gives for it, in a request for exactly that host. The two ends speak the same protocol:
//! what the host chooses is what the guest is offered.

use std::io::Cursor;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::header::{HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode, Version};
use nullspace_domain::network;
use nullspace_types::network::{DenyReason, EgressPolicy};
use rustls::client::ClientConfig;
use rustls::crypto;
use rustls::pki_types::ServerName;
use rustls::server::Acceptor;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, client};

use crate::relay::{self, Refusal};
use crate::{Authority, Enforced, Outside, Settings, inspector, request};

const HTTP_2: &[u8] = b"h2";
const HTTP_1: &[u8] = b"http/1.1";
/// Within this a handshake has to be done.
const HANDSHAKE_TIME: Duration = Duration::from_secs(20);

/// What is needed to reach hosts by TLS.
pub fn client_config(settings: &Settings) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has a suite for each of rustls's default versions")
        .with_root_certificates(settings.roots.clone())
        .with_no_client_auth()
}

/// One connection to a host that headers are added for.
pub struct Injected {
    /// The network.
    pub outside: Arc<dyn Outside>,
    /// How to reach hosts by TLS.
    pub config: Arc<ClientConfig>,
    /// What is enforced, as it is at each request.
    pub policy: watch::Receiver<Arc<Enforced>>,
    /// The address that the connection is for.
    pub original: SocketAddrV4,
    /// The host.
    pub host: String,
}

impl Injected {
    /// Serves the connection to its end. `first` is what was read of it.
    pub async fn serve(
        self,
        guest: TcpStream,
        first: BytesMut,
        open: Option<TcpStream>,
        authority: Arc<Authority>,
    ) -> Result<(), relay::Error> {
        let (read, write) = guest.into_split();
        let guest = tokio::io::join(Cursor::new(first).chain(read), write);
        let begun = timeout(HANDSHAKE_TIME, LazyConfigAcceptor::new(Acceptor::default(), guest)).await??;
        let offered =
            begun.client_hello().alpn().map(|offered| offered.map(<[u8]>::to_vec).collect::<Vec<_>>());
        let offers = |protocol: &[u8]| offered.iter().flatten().any(|one| one == protocol);
        let known = [HTTP_2, HTTP_1].into_iter().filter(|protocol| offers(protocol));
        let known: Vec<Vec<u8>> = known.map(<[u8]>::to_vec).collect();

        let complete = added(&self.policy.borrow().policy, &self.host).map(drop);
        let reached = match complete {
            Ok(()) => self.reach(open, known.clone()).await,
            Err(missing) => Err(missing),
        };
        let chosen = match &reached {
            Ok(outside) => outside.get_ref().1.alpn_protocol().unwrap_or(HTTP_1).to_vec(),
            Err(_) => known.first().cloned().unwrap_or(HTTP_1.to_vec()),
        };
        let version = if chosen == HTTP_2 { Version::HTTP_2 } else { Version::HTTP_11 };
        // Without any protocol named on either side it is HTTP/1.
        let named = if offered.is_some() { vec![chosen] } else { Vec::new() };
        let config = authority.server_config(&self.host, named)?;
        let guest = timeout(HANDSHAKE_TIME, begun.into_stream(Arc::new(config))).await??;
        match reached {
            Ok(outside) => {
                let this = Arc::new(self);
                let rule = move |parts: &mut Parts| this.judge(parts);
                if version == Version::HTTP_2 {
                    relay::http2(guest, outside, rule).await
                } else {
                    relay::http1(guest, outside, rule).await
                }
            }
            Err(why) => {
                tracing::debug!(host = self.host, why, "a connection that a header is added to fails");
                self.denied(DenyReason::InjectionFailed, Some(self.host.clone()));
                let refusal = Refusal { status: StatusCode::BAD_GATEWAY, text: why };
                relay::refuse(guest, version, refusal).await
            }
        }
    }

    /// A connection to the host that has proved its name, or why there is none.
    async fn reach(
        &self,
        open: Option<TcpStream>,
        alpn: Vec<Vec<u8>>,
    ) -> Result<client::TlsStream<TcpStream>, String> {
        let Self { outside, original, host, .. } = self;
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = alpn;
        let name = ServerName::try_from(host.clone())
            .map_err(|error| format!("{host} cannot be verified: {error}"))?;
        let connected = async {
            let stream = match open {
                Some(stream) => stream,
                None => outside.connect(*original).await?,
            };
            crate::splice::keep_alive(&stream)?;
            TlsConnector::from(Arc::new(config)).connect(name, stream).await
        };
        let late = || format!("{host} did not answer within {} seconds", HANDSHAKE_TIME.as_secs());
        timeout(HANDSHAKE_TIME, connected)
            .await
            .map_err(|_| late())?
            .map_err(|error| format!("{host} could not be reached, or could not prove its name: {error}"))
    }

    /// Adds the headers to a request for the host, and refuses any other.
    fn judge(&self, parts: &mut Parts) -> Result<(), Refusal> {
        let refusal = |status, text: String| Err(Refusal { status, text });
        let host = &self.host;
        // A server would answer the first with all headers that it got, and the second leads to elsewhere.
        if matches!(parts.method, Method::TRACE | Method::CONNECT) {
            self.denied(DenyReason::InjectionFailed, Some(host.clone()));
            return refusal(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{} cannot be sent to {host}", parts.method),
            );
        }
        let shown = request::host(&parts.method, &parts.uri, parts.version, &parts.headers).unwrap_or(None);
        if shown.as_ref() != Some(host) {
            self.denied(DenyReason::NameMismatch, shown);
            let text = format!("this connection is for {host}, and so must be the host of each request");
            return refusal(StatusCode::MISDIRECTED_REQUEST, text);
        }
        match added(&self.policy.borrow().policy, host) {
            Ok(added) => {
                added.into_iter().for_each(|(name, value)| drop(parts.headers.insert(name, value)));
                Ok(())
            }
            Err(missing) => {
                self.denied(DenyReason::InjectionFailed, Some(host.clone()));
                refusal(StatusCode::BAD_GATEWAY, missing)
            }
        }
    }

    fn denied(&self, reason: DenyReason, name: Option<String>) {
        inspector::denied(&*self.outside, self.original, reason, name);
    }
}

/// The headers to add for a host, or why they cannot be; neither names the secret.
fn added(policy: &EgressPolicy, host: &str) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    network::injections(policy, host)
        .map(|injection| {
            let header = &injection.header;
            let value = injection.value.as_ref();
            let value = value
                .ok_or_else(|| format!("the secret for the header {header} of {host} does not exist"))?;
            let mut value = HeaderValue::from_str(value).map_err(|_| {
                format!("the secret for the header {header} of {host} is no text for a header")
            })?;
            // Never shown, and never put into HTTP/2's table of headers seen before.
            value.set_sensitive(true);
            let name = HeaderName::from_bytes(header.as_bytes());
            let name = name.map_err(|_| format!("{header:?} is no header's name"))?;
            Ok((name, value))
        })
        .collect()
}

//! Certificates by ACME, with Pebble as the authority.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use nullspace_gateway::AcmeConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio_rustls::TlsConnector;

use crate::world::*;

/// An authority that finds every name at 127.0.0.1, at the gateway's port.
struct Authority {
    directory: String,
    _children: [Child; 2],
}

async fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn authority(dir: &Path, gateway: u16) -> Authority {
    let (serve, manage, dns, dns_manage) = (free().await, free().await, free().await, free().await);
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(dir.join("root.pem"), made.cert.pem()).unwrap();
    let config = serde_json::json!({ "pebble": {
        "listenAddress": serve.to_string(),
        "managementListenAddress": manage.to_string(),
        "certificate": dir.join("root.pem"),
        "privateKey": dir.join("key.pem"),
        "httpPort": 1,
        "tlsPort": gateway,
    }});
    std::fs::write(dir.join("pebble.json"), config.to_string()).unwrap();
    let mut names = Command::new("pebble-challtestsrv");
    names.args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-http01", "", "-https01", ""]);
    names.args(["-tlsalpn01", "", "-dns01", &dns.to_string()]);
    names.args(["-management", &dns_manage.to_string()]);
    let mut pebble = Command::new("pebble");
    pebble.arg("-config").arg(dir.join("pebble.json")).args(["-dnsserver", &dns.to_string()]);
    pebble.env("PEBBLE_VA_NOSLEEP", "1");
    let start = |mut command: Command| {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        quiet.kill_on_drop(true).spawn().unwrap()
    };
    let children = [start(names), start(pebble)];
    for listens in [serve, dns] {
        within(async {
            while TcpStream::connect(listens).await.is_err() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    Authority { directory: format!("https://localhost:{}/dir", serve.port()), _children: children }
}

/// Takes every certificate: which it is, is what is looked at.
#[derive(Debug)]
struct Anything(rustls::crypto::CryptoProvider);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The certificate that the gateway shows for a host.
async fn shown(world: &World, host: &'static str) -> std::io::Result<CertificateDer<'static>> {
    let provider = rustls::crypto::ring::default_provider();
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(provider.clone()))
        .with_safe_default_protocol_versions()
        .unwrap();
    let verifier = Arc::new(Anything(provider));
    let config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    let stream = TcpStream::connect(world.address).await?;
    let name = ServerName::try_from(host).unwrap();
    let stream = within(TlsConnector::from(Arc::new(config)).connect(name, stream)).await?;
    Ok(stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_got_for_a_sandbox_that_exists_once_and_kept() {
    if Command::new("pebble").arg("-h").stderr(Stdio::null()).status().await.is_err() {
        eprintln!("SKIP: pebble is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let listen = free().await;
    let authority = authority(dir.path(), listen.port()).await;
    let settings = |listen| {
        let mut settings = settings();
        settings.config.listen = listen;
        settings.config.acme = Some(AcmeConfig {
            directory: authority.directory.clone(),
            contact: Some("ops@example.com".into()),
            cache: dir.path().join("cache"),
            root_certificate: Some(dir.path().join("root.pem")),
        });
        settings
    };
    let world = settings(listen).start(mirror().await).await;
    // Whoever comes while it is being got waits for the same.
    let host = "8000-abc.preview.test";
    let (first, second) = tokio::join!(shown(&world, host), shown(&world, host));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first, second);
    let (_, parsed) = x509_parser::parse_x509_certificate(&first).unwrap();
    assert!(parsed.issuer().to_string().contains("Pebble"), "{}", parsed.issuer());
    let names = parsed.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names, [x509_parser::extensions::GeneralName::DNSName(host)]);

    for nowhere in ["8000-xyz.preview.test", "preview.test", "example.com"] {
        assert!(shown(&world, nowhere).await.is_err(), "{nowhere}");
    }
    let mut kept: Vec<_> = std::fs::read_dir(dir.path().join("cache")).unwrap().map(Result::unwrap).collect();
    kept.sort_by_key(std::fs::DirEntry::file_name);
    let listed: Vec<_> = kept.iter().map(|file| file.file_name().into_string().unwrap()).collect();
    assert_eq!(listed, ["8000-abc.preview.test.pem", "account.json"]);
    for file in kept {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    // After a restart it is the same, and no authority is asked.
    let again = settings(([127, 0, 0, 1], 0).into()).start(mirror().await).await;
    drop(authority);
    assert_eq!(shown(&again, host).await.unwrap(), first);
}

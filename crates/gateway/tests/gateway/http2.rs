//! HTTP/2, in the clear and under TLS.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::world::*;

const URL: &str = "http://8000-abc.preview.test/p?edge_token=nsp_good&q";

#[tokio::test]
async fn requests_of_one_connection_are_served_at_once_and_told_as_http1() {
    let world = world(mirror().await).await;
    let stream = TcpStream::connect(world.address).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let requests = (0..20).map(|_| {
        let mut sender = sender.clone();
        async move {
            let request = Request::get(URL).header("cookie", "a=1").header("cookie", "b=2");
            let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            assert!(answer.headers().contains_key("set-cookie"));
            answer.into_body().collect().await.unwrap().to_bytes()
        }
    });
    for seen in within(futures::future::join_all(requests)).await {
        let seen = String::from_utf8_lossy(&seen);
        for line in ["GET /p?q HTTP/1.1\r\n", "host: 8000-abc.preview.test\r\n", "cookie: a=1; b=2\r\n"] {
            assert!(seen.contains(line), "{line:?} is not in {seen}");
        }
    }
}

#[tokio::test]
async fn a_websocket_over_http2_becomes_one_over_http1_and_its_stream_alone_is_cut() {
    let service = service(|mut stream| async move {
        let asked = head(&mut stream).await;
        assert!(asked.starts_with("GET /p?q HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("sec-websocket-key: ") && asked.contains("upgrade: websocket\r\n"), "{asked}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Protocol: chat\r\n\r\nhello";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let world = world(service).await;
    let stream = TcpStream::connect(world.address).await.unwrap();
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let plain = Request::builder().method(Method::CONNECT).uri("8000-abc.preview.test:80");
    let answer = sender.send_request(plain.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);

    let mut request = Request::builder().method(Method::CONNECT).uri(URL);
    request.extensions_mut().unwrap().insert(Protocol::from_static("websocket"));
    let request = request.header("sec-websocket-version", "13").body(Empty::new()).unwrap();
    let answer = within(sender.send_request(request)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["sec-websocket-protocol"], "chat");
    let mut socket = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    let mut seen = [0; 9];
    socket.write_all(b"back").await.unwrap();
    within(socket.read_exact(&mut seen)).await.unwrap();
    assert_eq!(&seen, b"helloback");
    world.edge.ended.cancel();
    let end = within(socket.read(&mut seen)).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    assert!(sender.ready().await.is_ok(), "the connection went with it");
}

struct Identity {
    certificate: CertificateDer<'static>,
}

/// Writes a new certificate for the sandbox's host.
fn identity(dir: &std::path::Path) -> Identity {
    let made = rcgen::generate_simple_self_signed(["*.preview.test".to_owned()]).unwrap();
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(dir.join("certificate.pem"), made.cert.pem()).unwrap();
    Identity { certificate: made.cert.der().clone() }
}

async fn connect(
    world: &World,
    identity: &Identity,
    protocol: &str,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(identity.certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = builder.unwrap().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = TcpStream::connect(world.address).await?;
    let name = ServerName::try_from("8000-abc.preview.test").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

#[tokio::test]
async fn tls_is_spoken_with_either_version_and_a_renewed_certificate_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let first = identity(dir.path());
    let mut settings = settings();
    settings.config.tls_certificate = Some(dir.path().join("certificate.pem"));
    settings.config.tls_key = Some(dir.path().join("key.pem"));
    let world = settings.start(mirror().await).await;

    let stream = connect(&world, &first, "h2").await.unwrap();
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(URL.replace("http:", "https:")).body(Full::<Bytes>::default()).unwrap();
    let answer = within(sender.send_request(request)).await.unwrap();
    assert!(answer.headers()["set-cookie"].to_str().unwrap().ends_with("; Secure"));
    let seen = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&seen).contains("x-forwarded-proto: https\r\n"));

    let mut stream = connect(&world, &first, "http/1.1").await.unwrap();
    stream.write_all((get("/") + "Connection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut seen = String::new();
    within(stream.read_to_string(&mut seen)).await.unwrap();
    assert!(seen.starts_with("HTTP/1.1 200 "), "{seen}");
    // In the clear there is nothing to be had here.
    assert!(!world.talk(get("/") + "\r\n").await.contains("HTTP/1.1"));

    let second = identity(dir.path());
    within(async {
        while let Err(error) = connect(&world, &second, "h2").await {
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
            tokio::task::yield_now().await;
        }
    })
    .await;
}

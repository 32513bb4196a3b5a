//! Headers that are added on the way, with a guest that trusts nobody but its own authority and hosts that have
//! real certificates.

mod world;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nullspace_types::network::DenyReason;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;
use world::{World, begin_tls, head, is_reset};

const AT: &str = "203.0.113.1:443";
const HOST: &str = "api.example";
const SECRET: &str = "sk-very-secret";
const MEBIBYTE: usize = 1 << 20;

type Body = BoxBody<Bytes, Infallible>;

fn rules() -> Value {
    json!({"inject": [{"host": HOST, "header": "authorization", "secret": "KEY", "format": "Bearer ${secret}"}]})
}

fn world() -> World {
    World::with_secrets(rules(), |name| (name == "KEY").then(|| SECRET.into()))
}

/// What a host got: the method, the header that is added, and how long the body was.
type Got = (Method, Vec<String>, usize);

/// Serves one connection of the sandbox: tells what it got, and answers with so many bytes as the query says.
fn serve(world: Arc<World>, host: TcpListener, alpn: &'static [&'static str]) -> mpsc::Receiver<Got> {
    let (told, got) = mpsc::channel(64);
    tokio::spawn(async move {
        let stream = world.accept_tls(&host, HOST, alpn).await.unwrap();
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let service = service_fn(move |mut request: Request<Incoming>| {
            let told = told.clone();
            async move {
                let mut length = 0;
                while let Some(frame) = request.body_mut().frame().await {
                    length += frame?.data_ref().map_or(0, Bytes::len);
                }
                let values = request.headers().get_all("authorization").iter();
                let values = values.map(|value| value.to_str().unwrap().to_owned()).collect();
                told.send((request.method().clone(), values, length)).await.unwrap();
                let wanted: usize = request.uri().query().map_or(0, |query| query.parse().unwrap());
                Ok::<_, hyper::Error>(Response::new(mebibytes(wanted)))
            }
        });
        let stream = TokioIo::new(stream);
        let _ended = if http2 {
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(stream, service)
                .await
        } else {
            hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await
        };
    });
    got
}

/// So many mebibytes, made while they are sent.
fn mebibytes(count: usize) -> Body {
    static MEBI: [u8; MEBIBYTE] = [b'x'; MEBIBYTE];
    let frames = (0..count).map(|_| Ok(Frame::data(Bytes::from_static(&MEBI))));
    StreamBody::new(stream::iter(frames)).boxed()
}

fn empty() -> Body {
    Empty::new().boxed()
}

async fn guest(world: &World, alpn: &[&str]) -> TlsStream<TcpStream> {
    begin_tls(world.connect(AT).await, HOST, world.guest_roots(), alpn).await.unwrap()
}

/// A client of one connection, in the protocol that was chosen.
enum Client {
    One(hyper::client::conn::http1::SendRequest<Body>),
    Two(hyper::client::conn::http2::SendRequest<Body>),
}

impl Client {
    async fn new(stream: TlsStream<TcpStream>) -> Self {
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            let (sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                    .await
                    .unwrap();
            tokio::spawn(connection);
            Self::Two(sender)
        } else {
            let (sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            Self::One(sender)
        }
    }

    async fn send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::One(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Two(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    fn request(&self, method: Method, host: &str, path: &str, body: Body) -> Request<Body> {
        let request = Request::builder().method(method).header("authorization", "placeholder");
        match self {
            Self::One(_) => request.uri(path).header("host", host).body(body).unwrap(),
            Self::Two(_) => request.uri(format!("https://{host}{path}")).body(body).unwrap(),
        }
    }
}

#[tokio::test]
async fn the_header_replaces_the_guests_own_in_each_request_in_either_protocol() {
    for (alpn, version) in
        [(&["h2", "http/1.1"], http::Version::HTTP_2), (&["http/1.1", "x"], http::Version::HTTP_11)]
    {
        let world = Arc::new(world());
        let mut got = serve(world.clone(), world.host(AT, &[HOST]).await, alpn);
        let mut client = Client::new(guest(&world, &["h2", "http/1.1"]).await).await;
        for body in ["", "hello"] {
            let full = Full::from(body).boxed();
            let request = client.request(Method::POST, HOST, "/?1", full);
            let response = client.send(request).await.unwrap();
            assert_eq!((response.status(), response.version()), (StatusCode::OK, version));
            let (parts, answer) = response.into_parts();
            let answer = answer.collect().await.unwrap().to_bytes();
            assert_eq!(answer.len(), MEBIBYTE);
            assert!(!format!("{parts:?}").contains(SECRET));
            assert!(!answer.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()));
            assert_eq!(
                got.recv().await.unwrap(),
                (Method::POST, vec![format!("Bearer {SECRET}")], body.len())
            );
        }
    }
}

#[tokio::test]
async fn a_request_for_another_host_or_one_that_would_show_the_secret_is_refused() {
    for alpn in [&["h2"], &["http/1.1"]] {
        let mut world = Arc::new(world());
        let mut got = serve(world.clone(), world.host(AT, &[HOST]).await, alpn);
        let mut client = Client::new(guest(&world, alpn).await).await;
        let request = client.request(Method::GET, HOST, "/", empty());
        assert_eq!(client.send(request).await.unwrap().status(), StatusCode::OK);
        got.recv().await.unwrap();
        let request = client.request(Method::GET, "other.example", "/", empty());
        assert_eq!(client.send(request).await.unwrap().status(), StatusCode::MISDIRECTED_REQUEST);
        drop(client);
        assert!(got.recv().await.is_none(), "the host got what was refused");
        let denial = Arc::get_mut(&mut world).unwrap().denial().await;
        assert_eq!(denial, (DenyReason::NameMismatch, Some("other.example".into())));

        let mut got = serve(world.clone(), world.host(AT, &[HOST]).await, alpn);
        let mut client = Client::new(guest(&world, alpn).await).await;
        let request = client.request(Method::TRACE, HOST, "/", empty());
        assert_eq!(client.send(request).await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
        drop(client);
        assert!(got.recv().await.is_none(), "the host got what was refused");
    }
}

#[tokio::test]
async fn without_the_secret_nothing_is_sent_and_the_guest_is_told_why() {
    let mut world = World::new(rules());
    let host = world.host(AT, &[HOST]).await;
    for alpn in [&["h2"], &["http/1.1"]] {
        let mut client = Client::new(guest(&world, alpn).await).await;
        let request = client.request(Method::GET, HOST, "/", empty());
        let response = client.send(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let told = "nullspace: the secret for the header authorization of api.example does not exist\n";
        assert_eq!(str::from_utf8(&text).unwrap(), told);
        assert_eq!(world.denial().await, (DenyReason::InjectionFailed, Some(HOST.into())));
    }
    // Nobody has connected: the first that does is this.
    let address = host.local_addr().unwrap();
    let (mine, theirs) = tokio::join!(TcpStream::connect(address), host.accept());
    assert_eq!(mine.unwrap().local_addr().unwrap(), theirs.unwrap().1);
}

#[tokio::test]
async fn a_host_that_cannot_prove_its_name_gets_nothing() {
    let mut world = world();
    let host = world.host(AT, &[HOST]).await;
    let (mut guest, outside) =
        tokio::join!(guest(&world, &[]), world.accept_tls(&host, "impostor.example", &[]));
    outside.unwrap_err();
    guest.write_all(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    let mut heard = String::new();
    let _end = guest.read_to_string(&mut heard).await;
    assert!(heard.starts_with("HTTP/1.1 502 ") && heard.contains("could not prove its name"), "{heard}");
    assert_eq!(world.denial().await, (DenyReason::InjectionFailed, Some(HOST.into())));
}

#[tokio::test]
async fn a_secret_travels_neither_in_the_clear_nor_to_an_address_that_dns_did_not_give() {
    let mut world = world();
    let _clear = world.host("203.0.113.1:80", &[HOST]).await;
    let _forged = world.host("203.0.113.7:443", &[]).await;
    let mut guest = world.connect("203.0.113.1:80").await;
    guest.write_all(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    is_reset(guest).await;
    assert_eq!(world.denial().await, (DenyReason::InjectionFailed, Some(HOST.into())));
    let guest = world.connect("203.0.113.7:443").await;
    begin_tls(guest, HOST, world.guest_roots(), &[]).await.unwrap_err();
    assert_eq!(world.denial().await, (DenyReason::NameMismatch, Some(HOST.into())));
}

#[tokio::test]
async fn other_hosts_see_the_guests_own_tls() {
    let world = world();
    let host = world.host("203.0.113.2:443", &["other.example"]).await;
    let guest = world.connect("203.0.113.2:443").await;
    let (guest, outside) = tokio::join!(
        begin_tls(guest, "other.example", world.roots(), &[]),
        world.accept_tls(&host, "other.example", &[])
    );
    guest.unwrap().write_all(b"x").await.unwrap();
    assert_eq!(outside.unwrap().read_u8().await.unwrap(), b'x');
}

/// The most memory that this process has had, in bytes.
fn most_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[tokio::test]
async fn large_bodies_pass_in_both_directions_in_little_memory() {
    const COUNT: usize = 50;
    for alpn in [&["h2"], &["http/1.1"]] {
        let world = Arc::new(world());
        let mut got = serve(world.clone(), world.host(AT, &[HOST]).await, alpn);
        let mut client = Client::new(guest(&world, alpn).await).await;
        let before = most_memory();
        let request = client.request(Method::PUT, HOST, &format!("/?{COUNT}"), mebibytes(COUNT));
        let mut body = client.send(request).await.unwrap().into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame.unwrap().data_ref().map_or(0, Bytes::len);
        }
        assert_eq!(length, COUNT * MEBIBYTE);
        assert_eq!(got.recv().await.unwrap().2, COUNT * MEBIBYTE);
        let grown = most_memory() - before;
        assert!(grown < 16 * MEBIBYTE, "{alpn:?}: {grown} bytes more");
    }
}

#[tokio::test]
async fn websockets_pass_and_get_the_header_too() {
    let world = world();
    let host = world.host(AT, &[HOST]).await;
    let asked =
        format!("GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    let (mut guest, outside) = tokio::join!(guest(&world, &["http/1.1"]), world.accept_tls(&host, HOST, &[]));
    let mut outside = outside.unwrap();
    guest.write_all(asked.as_bytes()).await.unwrap();
    let heard = head(&mut outside).await;
    assert!(heard.contains(&format!("authorization: Bearer {SECRET}\r\n")), "{heard}");
    outside
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    assert!(head(&mut guest).await.starts_with("HTTP/1.1 101 "));
    guest.write_all(b"in").await.unwrap();
    outside.write_all(b"out").await.unwrap();
    let (mut to_host, mut to_guest) = ([0; 2], [0; 3]);
    outside.read_exact(&mut to_host).await.unwrap();
    guest.read_exact(&mut to_guest).await.unwrap();
    assert_eq!((&to_host, &to_guest), (b"in", b"out"));
}

#[tokio::test]
async fn a_new_secret_counts_from_the_next_request_and_without_the_rule_the_connection_ends() {
    let world = Arc::new(world());
    let mut got = serve(world.clone(), world.host(AT, &[HOST]).await, &["http/1.1"]);
    let mut client = Client::new(guest(&world, &["http/1.1"]).await).await;
    let ask = |client: &Client| client.request(Method::GET, HOST, "/", empty());
    for secret in ["first", "second"] {
        world.change(rules(), |_| Some(secret.into()));
        let request = ask(&client);
        client.send(request).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(got.recv().await.unwrap().1, [format!("Bearer {secret}")]);
    }
    world.change(rules(), |_| None);
    let request = ask(&client);
    assert_eq!(client.send(request).await.unwrap().status(), StatusCode::BAD_GATEWAY);
    world.change(json!({}), |_| None);
    assert!(got.recv().await.is_none(), "the connection goes on");
}

//! A gateway over an edge of the test's own, with services on loopback.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use nullspace_edge_api::{Admission, Admitted, Destination, Edge, Refusal, Stream, Traffic};
use nullspace_gateway::{Config, Gateway};
use nullspace_types::id::{PreviewGrantId, SandboxId};
use nullspace_types::{Code, Error};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub const DOMAIN: &str = "preview.test";
/// The port of the sandbox that tests talk to.
pub const PORT: u16 = 8000;

/// Rules: label `abc` is the sandbox. `nsp_good` in the query and the cookie `c-good` belong to a grant,
/// `nsp_revoked` to one that was revoked; `nst_good` opens the ports if they are private.
#[derive(Clone)]
pub struct FakeEdge(Arc<State>);

pub struct State {
    pub sandbox_id: SandboxId,
    pub grant: PreviewGrantId,
    services: Mutex<HashMap<u16, SocketAddr>>,
    pub private: bool,
    pub mask: Option<String>,
    pub ended: CancellationToken,
    pub seen: Mutex<Vec<Admission>>,
    pub failed: Mutex<Vec<Code>>,
    pub passed: watch::Sender<Traffic>,
}

#[async_trait]
impl Edge for FakeEdge {
    async fn admit(&self, request: Admission) -> Result<Admitted, Refusal> {
        let state = &self.0;
        state.seen.lock().unwrap().push(request.clone());
        let port = match request.destination {
            Destination::Host { port, label } if label == "abc" => port,
            Destination::Local { port, sandbox_id } if sandbox_id == state.sandbox_id => port,
            _ => return Err(Error::new(Code::SandboxNotFound, "no such sandbox").into()),
        };
        if port == 7 {
            return Err(
                Error::new(Code::SandboxPausedAutoResumeDisabled, "sandbox <b>7</b> is paused").into()
            );
        }
        let shown = request.credentials;
        let (mut grant, mut cookie) = (None, None);
        match (shown.edge_token.as_deref(), shown.cookie.as_deref()) {
            (Some("nsp_good"), _) => {
                grant = Some(state.grant);
                cookie = Some(("c-good".into(), Duration::from_secs(60)));
            }
            (Some("nsp_revoked"), _) => {
                return Err(Error::new(Code::PreviewGrantRevoked, "the preview was revoked").into());
            }
            (Some(_), _) => return Err(Error::new(Code::EdgeTokenInvalid, "the token is wrong").into()),
            (None, Some("c-good")) => grant = Some(state.grant),
            (None, _) => {}
        }
        if state.private && grant.is_none() && shown.traffic_token.as_deref() != Some("nst_good") {
            return Err(Error::new(Code::EdgeTokenMissing, "the port is private").into());
        }
        let (host, ended) = (state.mask.clone(), state.ended.clone());
        Ok(Admitted { sandbox_id: state.sandbox_id, port, host, grant, cookie, ended })
    }

    async fn connect(&self, _: SandboxId, port: u16) -> Result<Stream, Refusal> {
        let at = self.0.services.lock().unwrap().get(&port).copied();
        let refused = || Error::new(Code::PreviewServiceNotReady, format!("nothing listens on port {port}"));
        let stream = TcpStream::connect(at.ok_or_else(refused)?).await.map_err(|_| refused())?;
        stream.set_nodelay(true).unwrap();
        Ok(Box::new(stream))
    }

    fn passed(&self, grant: PreviewGrantId, traffic: Traffic) {
        assert_eq!(grant, self.0.grant);
        self.0.passed.send_modify(|sum| {
            sum.bytes_in += traffic.bytes_in;
            sum.bytes_out += traffic.bytes_out;
        });
    }

    fn failed(&self, grant: PreviewGrantId, code: Code) {
        assert_eq!(grant, self.0.grant);
        self.0.failed.lock().unwrap().push(code);
    }
}

pub struct World {
    pub gateway: Gateway<FakeEdge>,
    pub edge: Arc<State>,
    /// The domain's listener.
    pub address: SocketAddr,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

pub struct Settings {
    pub config: Config,
    pub private: bool,
    pub mask: Option<String>,
}

pub fn settings() -> Settings {
    let config =
        Config { domain: Some(DOMAIN.into()), listen: ([127, 0, 0, 1], 0).into(), ..Config::default() };
    Settings { config, private: false, mask: None }
}

/// With the service at [`PORT`].
pub async fn world(service: SocketAddr) -> World {
    settings().start(service).await
}

impl Settings {
    pub async fn start(self, service: SocketAddr) -> World {
        let state = Arc::new(State {
            sandbox_id: SandboxId::new(),
            grant: PreviewGrantId::new(),
            services: Mutex::new([(PORT, service)].into()),
            private: self.private,
            mask: self.mask,
            ended: CancellationToken::new(),
            seen: Mutex::default(),
            failed: Mutex::default(),
            passed: watch::Sender::default(),
        });
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let edge = FakeEdge(state.clone());
        let gateway = Gateway::start(self.config, edge, stop.clone(), tasks.clone()).await.unwrap();
        World { address: gateway.address().unwrap(), gateway, edge: state, tasks, stop }
    }
}

impl World {
    /// Opens a local address for [`PORT`].
    pub async fn local(&self) -> SocketAddr {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let local = free.local_addr().unwrap();
        drop(free);
        self.gateway.open(local.port(), self.edge.sandbox_id, PORT).await.unwrap();
        local
    }

    /// Sends bytes to the domain's listener and reads until it closes.
    pub async fn talk(&self, bytes: impl AsRef<[u8]>) -> String {
        talk(self.address, bytes).await
    }

    /// Waits until this much has been counted in all.
    pub async fn counted(&self, bytes_in: u64, bytes_out: u64) {
        let mut passed = self.edge.passed.subscribe();
        let wanted = Traffic { bytes_in, bytes_out };
        within(passed.wait_for(|sum| *sum == wanted)).await.unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The head of a request to the sandbox's host, without its end.
pub fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: {PORT}-abc.{DOMAIN}\r\n")
}

/// What must happen, with a bound for a test that fails.
pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it never happened")
}

pub async fn talk(address: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // It may be refused before all of it was sent.
    let _ = stream.write_all(bytes.as_ref()).await;
    rest(&mut stream).await
}

/// Reads to the end; a reset is an end too.
pub async fn rest(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let _ = within(stream.read_to_end(&mut read)).await;
    plain(&String::from_utf8_lossy(&read))
}

/// A text with the names of headers in lower case: they pass as they were written, and mean the same.
fn plain(text: &str) -> String {
    let line = |line: &str| match line.split_once(": ") {
        Some((name, value)) if !name.contains(' ') => format!("{}: {value}", name.to_ascii_lowercase()),
        _ => line.to_owned(),
    };
    text.split("\r\n").map(line).collect::<Vec<_>>().join("\r\n")
}

/// Reads up to and with an empty line; what is behind it stays.
pub async fn head(stream: &mut TcpStream) -> String {
    plain(&until(stream, "\r\n\r\n").await)
}

/// Reads up to and with some text.
pub async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        let byte = within(stream.read_u8()).await;
        read.push(byte.unwrap_or_else(|_| panic!("ended early: {:?}", String::from_utf8_lossy(&read))));
    }
    String::from_utf8(read).unwrap()
}

/// A service: what each connection to it is served by.
pub async fn service<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// A service that answers every request with the head that it got.
pub async fn mirror() -> SocketAddr {
    service(|mut stream| async move {
        loop {
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { return };
                seen.push(byte);
            }
            let length = seen.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nServer: guest\r\n\r\n");
            stream.write_all(&[answer.as_bytes(), &seen].concat()).await.unwrap();
        }
    })
    .await
}

/// A service that reads one head and answers with these bytes, then closes.
pub async fn scripted(answer: impl Into<Vec<u8>>) -> SocketAddr {
    let answer: Vec<u8> = answer.into();
    service(move |mut stream| {
        let answer = answer.clone();
        async move {
            head(&mut stream).await;
            // Whoever refuses it does not read it all.
            let _ = stream.write_all(&answer).await;
        }
    })
    .await
}

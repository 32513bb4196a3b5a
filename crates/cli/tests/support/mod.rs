//! A server of canned answers and scripted sockets, and the program run against it in a world of its own: an empty home,
//! an empty directory, no variables but what the test gives.

#![allow(dead_code, reason = "every test file takes what it needs")]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::Value;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket};
use tokio_tungstenite::tungstenite::{Error as WireError, Message};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// Method, path and query.
    pub line: String,
    /// With names in lower case.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

/// An answer: a status, headers, a body. A `content-length` among the headers is taken as it is, true or
/// not.
pub struct Answer(pub u16, pub Vec<(&'static str, String)>, pub Vec<u8>);

impl Answer {
    pub fn json(status: u16, body: &str) -> Self {
        Self(status, vec![("content-type", "application/json".to_owned())], body.as_bytes().to_vec())
    }
}

type Route = dyn Fn(&Request) -> Answer + Send + Sync;
type Talk = dyn Fn(&mut Socket<'_>) + Send + Sync;

/// The server's end of a socket.
pub struct Socket<'a> {
    wire: WebSocket<&'a TcpStream>,
    /// How many sockets there were before this one.
    pub number: usize,
    id: Value,
}

impl Socket<'_> {
    /// The next frame; `None` when the program has closed the socket.
    pub fn next(&mut self) -> Option<Value> {
        loop {
            match self.wire.read() {
                Ok(Message::Text(text)) => {
                    let frame: Value = serde_json::from_str(&text).unwrap();
                    self.id = frame["id"].clone();
                    return Some(frame);
                }
                Ok(Message::Close(_)) | Err(WireError::ConnectionClosed) => return None,
                Ok(_) => {}
                Err(error) => panic!("the program broke the socket: {error}"),
            }
        }
    }

    /// Says something in answer to the last frame.
    pub fn send(&mut self, mut frame: Value) {
        frame["id"] = self.id.clone();
        self.wire.send(Message::text(frame.to_string())).unwrap();
    }
}

/// Answers until the test ends. Every connection carries one request.
pub struct Server {
    pub url: String,
    seen: Arc<Mutex<Vec<Request>>>,
    home: tempfile::TempDir,
}

impl Server {
    pub fn start(route: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_with_sockets(route, |_| panic!("nobody expected a socket"))
    }

    /// A server that only talks over sockets.
    pub fn talking(talk: impl Fn(&mut Socket<'_>) + Send + Sync + 'static) -> Self {
        Self::start_with_sockets(|request| panic!("nobody expected {}", request.line), talk)
    }

    pub fn start_with_sockets(
        route: impl Fn(&Request) -> Answer + Send + Sync + 'static,
        talk: impl Fn(&mut Socket<'_>) + Send + Sync + 'static,
    ) -> Self {
        // Before what is done in a sandbox the program asks whether it is paused. Most tests are about what
        // comes then.
        let route = move |request: &Request| match asks_status(request) {
            true => Answer::json(200, r#"{"status":"running"}"#),
            false => route(request),
        };
        Self::serving(route, talk, |request| !asks_status(request))
    }

    /// A server that also has to say whether a sandbox is paused.
    pub fn start_asked(route: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::serving(route, |_| panic!("nobody expected a socket"), |_| true)
    }

    fn serving(
        route: impl Fn(&Request) -> Answer + Send + Sync + 'static,
        talk: impl Fn(&mut Socket<'_>) + Send + Sync + 'static,
        recorded: fn(&Request) -> bool,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let route: Arc<Route> = Arc::new(route);
        let talk: Arc<Talk> = Arc::new(talk);
        let record = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (route, talk, record) = (route.clone(), talk.clone(), record.clone());
                std::thread::spawn(move || serve(&stream, &*route, &*talk, &record, recorded));
            }
        });
        Self { url, seen, home: tempfile::tempdir().unwrap() }
    }

    /// What was asked for, one line per request.
    pub fn lines(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|request| request.line.clone()).collect()
    }

    pub fn last(&self) -> Request {
        self.seen.lock().unwrap().last().cloned().expect("a request")
    }

    /// What the last request with this line carried.
    pub fn body_of(&self, line: &str) -> Vec<u8> {
        let seen = self.seen.lock().unwrap();
        seen.iter().rev().find(|request| request.line == line).expect("a request").body.clone()
    }

    /// The directory in which the program runs.
    pub fn dir(&self) -> &std::path::Path {
        self.home.path()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nullspace"));
        command
            .args(args)
            .env_clear()
            .env("HOME", self.home.path())
            .env("NULLSPACE_API_URL", &self.url)
            .env("NULLSPACE_API_KEY", "ns_live_test")
            .current_dir(self.home.path());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::of(&self.command(args).stdin(Stdio::null()).output().unwrap())
    }

    pub fn run_with(&self, args: &[&str], stdin: &[u8]) -> Ran {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin).unwrap();
        Ran::of(&child.wait_with_output().unwrap())
    }
}

fn asks_status(request: &Request) -> bool {
    request.line.starts_with("GET /v1/sandboxes/") && request.line.ends_with("?fields=status")
}

fn serve(
    stream: &TcpStream,
    route: &Route,
    talk: &Talk,
    record: &Mutex<Vec<Request>>,
    recorded: fn(&Request) -> bool,
) {
    let mut reader = BufReader::new(stream);
    let Some(request) = read(&mut reader) else { return };
    let is_socket = |request: &&Request| request.headers.contains_key("sec-websocket-key");
    let number = {
        let mut record = record.lock().unwrap();
        if recorded(&request) {
            record.push(request.clone());
        }
        record.iter().filter(is_socket).count()
    };
    if let Some(key) = request.headers.get("sec-websocket-key") {
        let proof = derive_accept_key(key.as_bytes());
        let head = format!(
            "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {proof}\r\n\r\n"
        );
        let mut stream = stream;
        stream.write_all(head.as_bytes()).unwrap();
        let wire = WebSocket::from_raw_socket(stream, Role::Server, None);
        talk(&mut Socket { wire, number: number - 1, id: Value::Null });
        return;
    }
    let Answer(status, headers, body) = route(&request);
    let mut head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "content-length") {
        write!(head, "content-length: {}\r\n", body.len()).unwrap();
    }
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    let mut stream = stream;
    // A program that stopped reading is part of some tests.
    let _ = stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| stream.write_all(&body));
}

fn read(reader: &mut BufReader<&TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let line = line.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut body = Vec::new();
    if let Some(length) = headers.get("content-length") {
        body.resize(length.parse().ok()?, 0);
        reader.read_exact(&mut body).ok()?;
    } else if headers.contains_key("transfer-encoding") {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).ok()?;
            let size = usize::from_str_radix(size.trim_end(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).ok()?;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    }
    Some(Request { line, headers, body })
}

/// Sends a signal.
pub fn signal(name: &str, pid: u32) {
    assert!(std::process::Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

/// A terminal of the test's own: the far side, and the near one for the program.
pub fn terminal() -> (OwnedFd, File) {
    let far = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&far).unwrap();
    unlockpt(&far).unwrap();
    let path = ptsname(&far, Vec::new()).unwrap();
    let near = File::options().read(true).write(true).open(path.to_str().unwrap()).unwrap();
    let size = Winsize { ws_col: 101, ws_row: 31, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&near, size).unwrap();
    (far, near)
}

/// What a run left behind.
pub struct Ran {
    pub status: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Ran {
    pub fn of(output: &Output) -> Self {
        Self { status: output.status.code(), stdout: output.stdout.clone(), stderr: output.stderr.clone() }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap()
    }
}

/// As a person sees it, for snapshots.
impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let status = self.status.map_or_else(|| "killed".to_owned(), |status| status.to_string());
        write!(f, "exit: {status}")?;
        for (name, bytes) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !bytes.is_empty() {
                let text = String::from_utf8_lossy(bytes);
                assert!(!text.contains('\u{1b}'), "colours in a pipe: {text:?}");
                write!(f, "\n---- {name}\n{}", text.trim_end())?;
            }
        }
        Ok(())
    }
}

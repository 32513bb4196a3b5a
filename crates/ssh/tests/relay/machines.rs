//! Machines whose programs are processes of this host in a directory, whose ports are this host's, and whose
//! terminals are scripts: they show their size and `TERM`, echo what is typed, and end at `exit N` or Control-D.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Pair;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use nullspace_edge_api::{Claims, Incoming, Listening, Machines, PipedProcess, Program, Stream, Terminal};
use nullspace_types::id::{SandboxId, SessionId};
use nullspace_types::sandbox::Envs;
use nullspace_types::terminal::{TerminalEvent, TerminalInfo};
use nullspace_types::{Code, Error, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

#[derive(Clone)]
pub struct Fake(pub Arc<State>);

pub struct State {
    pub home: PathBuf,
    /// Which sandboxes there are, and what ends when they are paused.
    pub sandboxes: Mutex<HashMap<SandboxId, CancellationToken>>,
    /// Who came in.
    pub entered: Mutex<Vec<Claims>>,
    /// Programs that run, and those that were hung up.
    pub programs: watch::Sender<(usize, usize)>,
    /// Bytes of programs' output that the relay has taken.
    pub taken: Arc<AtomicUsize>,
    terminals: Mutex<HashMap<SessionId, mpsc::Sender<Typed>>>,
    pub terminals_ended: watch::Sender<usize>,
}

enum Typed {
    Keys(Bytes),
    Size(u32, u32),
    End,
}

impl Fake {
    pub fn new(home: PathBuf) -> Self {
        Self(Arc::new(State {
            home,
            sandboxes: Mutex::default(),
            entered: Mutex::default(),
            programs: watch::Sender::default(),
            taken: Arc::default(),
            terminals: Mutex::default(),
            terminals_ended: watch::Sender::default(),
        }))
    }

    async fn typed(&self, session: SessionId, typed: Typed) -> Result<()> {
        let terminal = self.0.terminals.lock().unwrap().get(&session).cloned();
        let terminal = terminal.ok_or_else(|| Error::new(Code::TerminalNotFound, "no such terminal"))?;
        terminal.send(typed).await.map_err(|_| Error::new(Code::TerminalNotFound, "it has ended"))
    }
}

/// Counts what is read.
struct Counted(UnixStream, Arc<AtomicUsize>);

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.0).poll_read(context, buffer);
        self.1.fetch_add(buffer.filled().len() - before, Ordering::SeqCst);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// Hangs a program up unless it has ended.
struct HangUp(u32, Option<watch::Sender<(usize, usize)>>);

impl HangUp {
    fn ended(&mut self) {
        if let Some(programs) = self.1.take() {
            programs.send_modify(|(running, _)| *running -= 1);
        }
    }
}

impl Drop for HangUp {
    fn drop(&mut self) {
        if let Some(programs) = self.1.take() {
            killpg(Pid::from_raw(self.0 as i32), Signal::SIGHUP).expect("it runs");
            programs.send_modify(|(running, hung_up)| (*running, *hung_up) = (*running - 1, *hung_up + 1));
        }
    }
}

fn pair() -> (UnixStream, OwnedFd) {
    let (ours, theirs) = Pair::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (UnixStream::from_std(ours).unwrap(), theirs.into())
}

fn failed(error: std::io::Error) -> Error {
    Error::new(Code::PreviewServiceNotReady, format!("nothing listens there: {error}"))
}

#[async_trait]
impl Machines for Fake {
    async fn enter(&self, claims: &Claims) -> Result<CancellationToken> {
        let ended = self.0.sandboxes.lock().unwrap().get(&claims.sandbox_id).cloned();
        let ended = ended.ok_or_else(|| Error::sandbox_not_found(claims.sandbox_id))?;
        self.0.entered.lock().unwrap().push(claims.clone());
        Ok(ended)
    }

    async fn process(&self, _: &Claims, program: Program, envs: Envs) -> Result<PipedProcess> {
        let line = match program {
            Program::Shell => "exec sh".to_owned(),
            Program::Line(line) => line,
            Program::Sftp => "echo this is sftp; exec cat".to_owned(),
        };
        let ((stdio, inner), (stderr, inner_stderr)) = (pair(), pair());
        let mut command = tokio::process::Command::new("/bin/sh");
        command.args(["-c", &line]).current_dir(&self.0.home).env_clear().envs(envs).process_group(0);
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", &self.0.home);
        command.stdin(Stdio::from(inner.try_clone().unwrap())).stdout(Stdio::from(inner));
        command.stderr(Stdio::from(inner_stderr));
        let mut child = command.spawn().map_err(Error::internal)?;
        drop(command);
        let pid = child.id().unwrap();
        self.0.programs.send_modify(|(running, _)| *running += 1);
        let mut hang_up = HangUp(pid, Some(self.0.programs.clone()));
        let exit = async move {
            use std::os::unix::process::ExitStatusExt as _;
            let status = child.wait().await.map_err(Error::internal)?;
            hang_up.ended();
            Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap()))
        };
        let stdio = Counted(stdio, self.0.taken.clone());
        Ok(PipedProcess { pid, stdio: Box::new(stdio), stderr: Box::new(stderr), exit: Box::pin(exit) })
    }

    async fn signal(&self, _: &Claims, pid: u32, signal: i32) -> Result<()> {
        let signal = Signal::try_from(signal).map_err(Error::internal)?;
        killpg(Pid::from_raw(pid as i32), signal).map_err(Error::internal)
    }

    async fn terminal(
        &self,
        _: &Claims,
        line: Option<String>,
        envs: Envs,
        cols: u32,
        rows: u32,
    ) -> Result<Terminal> {
        let (session_id, (to_terminal, mut typed)) = (SessionId::new(), mpsc::channel(8));
        self.0.terminals.lock().unwrap().insert(session_id, to_terminal);
        let (to_viewer, events) = mpsc::channel(8);
        let term = envs.get("TERM").cloned().unwrap_or_default();
        let ended = self.0.clone();
        tokio::spawn(async move {
            let show = |event| {
                let to_viewer = to_viewer.clone();
                async move { to_viewer.send(Ok(event)).await.is_ok() }
            };
            let output = |text: String| TerminalEvent::Output(text.into());
            show(TerminalEvent::Attached(TerminalInfo { session_id, pid: 1, cols, rows })).await;
            show(output(format!("{} on {term} {cols}x{rows}\r\n", line.as_deref().unwrap_or("a shell"))))
                .await;
            while let Some(typed) = typed.recv().await {
                let text = match typed {
                    Typed::Keys(keys) => String::from_utf8_lossy(&keys).into_owned(),
                    Typed::Size(cols, rows) => format!("now {cols}x{rows}\r\n"),
                    Typed::End => break,
                };
                if let Some(status) = text.strip_prefix("exit ") {
                    show(TerminalEvent::Exited { exit_code: status.trim().parse().unwrap() }).await;
                    break;
                }
                if text.contains('\u{4}') {
                    show(TerminalEvent::Exited { exit_code: 0 }).await;
                    break;
                }
                show(output(text)).await;
            }
            ended.terminals.lock().unwrap().remove(&session_id);
            ended.terminals_ended.send_modify(|ended| *ended += 1);
        });
        let events = futures::stream::unfold(events, |mut events| async move {
            events.recv().await.map(|event| (event, events))
        });
        Ok(Terminal { session_id, events: events.boxed() })
    }

    async fn terminal_write(&self, _: &Claims, session: SessionId, data: Bytes) -> Result<()> {
        self.typed(session, Typed::Keys(data)).await
    }

    async fn terminal_resize(&self, _: &Claims, session: SessionId, cols: u32, rows: u32) -> Result<()> {
        self.typed(session, Typed::Size(cols, rows)).await
    }

    async fn terminal_end(&self, _: &Claims, session: SessionId) -> Result<()> {
        self.typed(session, Typed::End).await
    }

    async fn connect(&self, _: &Claims, host: String, port: u16) -> Result<Stream> {
        let stream = TcpStream::connect((host, port)).await.map_err(failed)?;
        Ok(Box::new(stream))
    }

    async fn connect_socket(&self, _: &Claims, path: String) -> Result<Stream> {
        let stream = UnixStream::connect(path).await.map_err(failed)?;
        Ok(Box::new(stream))
    }

    async fn listen(&self, _: &Claims, host: String, port: u16) -> Result<Listening> {
        let listener = TcpListener::bind((host, port)).await.map_err(failed)?;
        let port = listener.local_addr().unwrap().port();
        let connections = futures::stream::unfold(listener, |listener| async move {
            let accepted = listener.accept().await.map_err(failed);
            let incoming = accepted.map(|(stream, peer)| Incoming {
                host: peer.ip().to_string(),
                port: peer.port(),
                stream: Box::new(stream),
            });
            Some((incoming, listener))
        });
        Ok(Listening { port, connections: connections.boxed() })
    }
}

//! Terminal sessions. A session belongs to the sandbox and goes on whoever watches it; one that is
//! connected to again is shown the screen as it is.
//!
//! That a connection broke is told and not mended here: what comes after [`Terminal::reconnect`] is a
//! screen drawn anew, which a person wants and a program that reads every byte does not.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nullspace_types::sandbox::Envs;
use nullspace_types::socket::{ClientFrame, ServerFrame};
use nullspace_types::terminal::{TerminalEvent, TerminalInfo, TerminalResize};
use reqwest::Method;

use crate::error::{Error, Result};
use crate::sandbox::path;
use crate::socket::{Line, PIECE, Socket, conversation};
use crate::transport::{Call, Client, segment};

/// A session to start.
#[derive(Debug, Clone, Default)]
pub struct TerminalStart {
    /// The caller's name for the conversation; one is made up when absent.
    pub id: Option<String>,
    /// Columns, 1 to 1,000; 120 when absent.
    pub cols: Option<u32>,
    /// Rows, 1 to 1,000; 30 when absent.
    pub rows: Option<u32>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Over the sandbox's environment.
    pub envs: Option<Envs>,
    /// Whose; root's when absent.
    pub user: Option<String>,
}

/// A session that was started before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TerminalTarget {
    /// By its ID.
    Session(String),
    /// By the process ID of its program.
    Pid(u32),
}

/// A session that is watched. Dropping it leaves the session alone.
pub struct Terminal {
    client: Client,
    sandbox: String,
    id: String,
    info: TerminalInfo,
    socket: Socket,
    line: Line,
    ended: bool,
}

/// The way to what a session reads. Cheap to clone, and independent of whether the output is being read.
#[derive(Clone)]
pub struct TerminalInput {
    id: String,
    session_id: String,
    line: Line,
}

impl Client {
    /// Starts a session and watches it.
    ///
    /// # Errors
    /// See [`crate::Error`]. After a transport error it may have been started: see the list.
    pub async fn terminal_start(&self, sandbox: &str, start: &TerminalStart) -> Result<Terminal> {
        let TerminalStart { id, cols, rows, cwd, envs, user } = start.clone();
        let id = id.unwrap_or_else(|| conversation("pty"));
        let frame = ClientFrame::PtyStart { id: id.clone(), cols, rows, cwd, envs, user };
        self.watch_terminal(sandbox, id, frame).await
    }

    /// Watches a session. Its screen as it is comes first. `id` is the caller's name for the
    /// conversation; one is made up when absent.
    ///
    /// # Errors
    /// `pty_not_found`; see [`crate::Error`].
    pub async fn terminal_connect(
        &self,
        sandbox: &str,
        target: &TerminalTarget,
        id: Option<String>,
    ) -> Result<Terminal> {
        let id = id.unwrap_or_else(|| conversation("pty"));
        self.watch_terminal(sandbox, id.clone(), connect(id, target)).await
    }

    async fn watch_terminal(&self, sandbox: &str, id: String, frame: ClientFrame) -> Result<Terminal> {
        let mut socket = self.socket(sandbox, Some("pty")).await?;
        let info = started(&mut socket, &frame).await?;
        let line = Line::default();
        line.connect(socket.writer());
        let sandbox = sandbox.to_owned();
        Ok(Terminal { client: self.clone(), sandbox, id, info, socket, line, ended: false })
    }

    /// The sessions that run.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn terminal_list(&self, sandbox: &str) -> Result<Vec<TerminalInfo>> {
        self.json(Call::new(Method::GET, path(sandbox, "/pty")?)).await
    }

    /// One session.
    ///
    /// # Errors
    /// `pty_not_found`; see [`crate::Error`].
    pub async fn terminal_get(&self, sandbox: &str, session: &str) -> Result<TerminalInfo> {
        self.json(Call::new(Method::GET, below(sandbox, session, "")?)).await
    }

    /// Ends a session with all its processes.
    ///
    /// # Errors
    /// `pty_not_found`; see [`crate::Error`].
    pub async fn terminal_kill(&self, sandbox: &str, session: &str) -> Result<()> {
        self.empty(Call::new(Method::DELETE, below(sandbox, session, "")?)).await
    }

    /// Sets a session's size, for its program and all who watch it.
    ///
    /// # Errors
    /// `pty_not_found`; see [`crate::Error`].
    pub async fn terminal_resize(&self, sandbox: &str, session: &str, size: &TerminalResize) -> Result<()> {
        self.empty(Call::new(Method::POST, below(sandbox, session, "/resize")?).body(size)?).await
    }
}

fn below(sandbox: &str, session: &str, rest: &str) -> Result<String> {
    path(sandbox, &format!("/pty/{}{rest}", segment("terminal session ID", session)?))
}

fn connect(id: String, target: &TerminalTarget) -> ClientFrame {
    let (session_id, pid) = match target {
        TerminalTarget::Session(session) => (Some(session.clone()), None),
        TerminalTarget::Pid(pid) => (None, Some(*pid)),
    };
    ClientFrame::PtyConnect { id, session_id, pid }
}

async fn started(socket: &mut Socket, start: &ClientFrame) -> Result<TerminalInfo> {
    socket.writer().send(start).await?;
    match socket.first().await? {
        ServerFrame::PtyStarted { session_id, pid, cols, rows, .. } => {
            Ok(TerminalInfo { session_id, pid, cols, rows })
        }
        other => Err(socket.unexpected(&other)),
    }
}

impl Terminal {
    /// The session as it was when it was connected to.
    pub fn info(&self) -> &TerminalInfo {
        &self.info
    }

    /// The way to what it reads.
    pub fn input(&self) -> TerminalInput {
        let session_id = self.info.session_id.to_string();
        TerminalInput { id: self.id.clone(), session_id, line: self.line.clone() }
    }

    /// What comes next, output or the end; `None` after that. May be dropped and called again without
    /// losing anything.
    ///
    /// # Errors
    /// A transport error when the connection broke: the session may still run. What the server says of a
    /// session that it can no longer show. See [`crate::Error`].
    pub async fn next(&mut self) -> Result<Option<TerminalEvent>> {
        while !self.ended {
            match self.socket.next().await {
                Ok(ServerFrame::PtyOutput { data_base64, .. }) => {
                    let data = BASE64_STANDARD.decode(data_base64).map_err(|error| {
                        Error::invalid_response(format!("a piece of the terminal's output: {error}"))
                    })?;
                    return Ok(Some(TerminalEvent::Output(data.into())));
                }
                Ok(ServerFrame::PtyExited { exit_code, .. } | ServerFrame::ExecExit { exit_code, .. }) => {
                    self.ended = true;
                    self.line.cut();
                    return Ok(Some(TerminalEvent::Exited { exit_code }));
                }
                Ok(ServerFrame::Error { code, message, .. }) => {
                    let error = Error::from_frame(&code, message);
                    self.ended = !error.is_passing();
                    self.line.cut();
                    return Err(error);
                }
                Ok(_) => {}
                Err(error) => {
                    self.line.cut();
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    /// Connects again to the same session, as often as the policy says. Its screen is drawn anew.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn reconnect(&mut self) -> Result<()> {
        let policy = self.client.retry_policy();
        let target = TerminalTarget::Session(self.info.session_id.to_string());
        let mut failures = 0;
        loop {
            tokio::time::sleep(policy.resume_delay(failures)).await;
            let attempt = async {
                let mut socket = self.client.socket(&self.sandbox, Some("pty")).await?;
                let info = started(&mut socket, &connect(self.id.clone(), &target)).await?;
                Ok::<_, Error>((socket, info))
            };
            match attempt.await {
                Ok((socket, info)) => {
                    self.line.connect(socket.writer());
                    (self.socket, self.info) = (socket, info);
                    return Ok(());
                }
                Err(error) if error.is_passing() && failures < policy.resume_retries => failures += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Stops watching. The session goes on.
    pub fn close(self) {
        self.line.cut();
        self.socket.close();
    }
}

impl TerminalInput {
    /// Types these bytes. Waits while the session does not read.
    ///
    /// # Errors
    /// A transport error while the connection is broken; see [`crate::Error`].
    pub async fn write(&self, data: &[u8]) -> Result<()> {
        for piece in data.chunks(PIECE) {
            let frame = ClientFrame::PtyInput {
                id: self.id.clone(),
                session_id: self.session_id.clone(),
                data: None,
                data_base64: Some(BASE64_STANDARD.encode(piece)),
            };
            self.line.send(&frame).await?;
        }
        Ok(())
    }

    /// Sets the session's size.
    ///
    /// # Errors
    /// A transport error while the connection is broken; see [`crate::Error`].
    pub async fn resize(&self, size: TerminalResize) -> Result<()> {
        let TerminalResize { cols, rows } = size;
        let (id, session_id) = (self.id.clone(), self.session_id.clone());
        self.line.send(&ClientFrame::PtyResize { id, session_id, cols, rows }).await
    }

    /// Ends the session; that it has ended is told where its output is read.
    ///
    /// # Errors
    /// A transport error while the connection is broken; see [`crate::Error`].
    pub async fn kill(&self) -> Result<()> {
        let (id, session_id) = (self.id.clone(), self.session_id.clone());
        self.line.send(&ClientFrame::PtyKill { id, session_id }).await
    }
}

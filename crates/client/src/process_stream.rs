//! Following a process over the sandbox's socket. The process belongs to the sandbox, not to the
//! connection: when that breaks it is made again and goes on where it broke, without a byte twice or
//! missing.
//!
//! The server counts output in bytes of the sandbox, and frames carry text in which what is not UTF-8 is
//! replaced. As long as no U+FFFD has come, the length of the text is the number of bytes. Once one has
//! come, the number is unknown; the output is then asked for again from where this stream began, and
//! what has been given out before is passed over.
//!
//! What is written to standard input is not repeated: whether the last of it arrived before a connection
//! broke cannot be known.

use nullspace_types::process::ExecRequest;
use nullspace_types::socket::{ClientFrame, ServerFrame};

use crate::error::{Error, Result};
use crate::reconnect::Attempts;
use crate::socket::{Line, PIECE, Socket, conversation};
use crate::transport::Client;

/// What comes from a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessOutput {
    /// It wrote to standard output. What is not UTF-8 is replaced by U+FFFD.
    Stdout(String),
    /// It wrote to standard error.
    Stderr(String),
    /// It has ended, and this is the last that comes. 124 if its time ran out.
    Exited {
        /// The exit status.
        exit_code: i32,
    },
}

/// How many bytes of a process's output are known already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessOffsets {
    /// Of standard output.
    pub stdout: u64,
    /// Of standard error.
    pub stderr: u64,
}

/// A process that is followed. Dropping it leaves the process alone.
pub struct ProcessStream {
    client: Client,
    sandbox: String,
    id: String,
    pid: u32,
    socket: Option<Socket>,
    line: Line,
    stdout: Cursor,
    stderr: Cursor,
    attempts: Attempts,
    ended: bool,
}

/// The way to a process's standard input, and its end. Cheap to clone, and independent of whether the
/// output is being read.
#[derive(Clone)]
pub struct ProcessInput {
    id: String,
    pid: u32,
    line: Line,
}

impl Client {
    /// Starts a command and follows it. Its time, if it has one, is the server's to keep.
    ///
    /// # Errors
    /// `exec_failed` when it could not be started; see [`crate::Error`]. After a transport error it may
    /// have been.
    pub async fn process_stream(&self, sandbox: &str, request: &ExecRequest) -> Result<ProcessStream> {
        let id = conversation("exec");
        let start = ClientFrame::ExecStart { id: id.clone(), request: request.clone() };
        let socket = self.socket(sandbox, Some("exec")).await?;
        self.follow(sandbox, id, start, socket, ProcessOffsets::default()).await
    }

    /// Follows a process that was started before, ended ones too: first what it has written behind
    /// `from`, then what it writes.
    ///
    /// # Errors
    /// `process_not_found`; see [`crate::Error`].
    pub async fn process_attach(
        &self,
        sandbox: &str,
        pid: u32,
        from: ProcessOffsets,
    ) -> Result<ProcessStream> {
        let id = conversation("exec");
        let socket = self.socket(sandbox, Some("exec")).await?;
        self.follow(sandbox, id.clone(), connect(id, pid, from), socket, from).await
    }

    async fn follow(
        &self,
        sandbox: &str,
        id: String,
        start: ClientFrame,
        mut socket: Socket,
        from: ProcessOffsets,
    ) -> Result<ProcessStream> {
        let pid = started(&mut socket, &start).await?;
        let line = Line::default();
        line.connect(socket.writer());
        let mut attempts = Attempts::default();
        attempts.connected();
        Ok(ProcessStream {
            client: self.clone(),
            sandbox: sandbox.to_owned(),
            id,
            pid,
            socket: Some(socket),
            line,
            stdout: Cursor::at(from.stdout),
            stderr: Cursor::at(from.stderr),
            attempts,
            ended: false,
        })
    }
}

fn connect(id: String, pid: u32, from: ProcessOffsets) -> ClientFrame {
    let offset = |bytes: u64| Some(bytes).filter(|bytes| *bytes > 0);
    ClientFrame::ExecConnect {
        id,
        pid,
        stdout_offset: offset(from.stdout),
        stderr_offset: offset(from.stderr),
    }
}

async fn started(socket: &mut Socket, start: &ClientFrame) -> Result<u32> {
    socket.writer().send(start).await?;
    match socket.first().await? {
        ServerFrame::ExecStarted { pid, .. } => Ok(pid),
        other => Err(socket.unexpected(&other)),
    }
}

impl ProcessStream {
    /// The process's ID in the sandbox.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The way to its standard input.
    pub fn input(&self) -> ProcessInput {
        ProcessInput { id: self.id.clone(), pid: self.pid, line: self.line.clone() }
    }

    /// What comes next; `None` after the end. May be dropped and called again without losing anything.
    ///
    /// # Errors
    /// A transport error once the connection could not be made again; the process may still run. See
    /// [`crate::Error`]. Calling again tries again.
    pub async fn next(&mut self) -> Result<Option<ProcessOutput>> {
        while !self.ended {
            let Some(socket) = &mut self.socket else {
                self.reconnect().await?;
                continue;
            };
            let frame = match socket.next().await {
                Ok(ServerFrame::Error { code, message, .. }) => Err(Error::from_frame(&code, message)),
                frame => frame,
            };
            match frame {
                Ok(ServerFrame::ExecStdout { data, .. }) => {
                    if let Some(text) = self.stdout.take(data)? {
                        self.attempts.succeeded();
                        return Ok(Some(ProcessOutput::Stdout(text)));
                    }
                }
                Ok(ServerFrame::ExecStderr { data, .. }) => {
                    if let Some(text) = self.stderr.take(data)? {
                        self.attempts.succeeded();
                        return Ok(Some(ProcessOutput::Stderr(text)));
                    }
                }
                Ok(ServerFrame::ExecExit { exit_code, .. }) => {
                    self.ended = true;
                    self.line.cut();
                    if let Some(socket) = self.socket.take() {
                        socket.close();
                    }
                    return Ok(Some(ProcessOutput::Exited { exit_code }));
                }
                Ok(_) => {}
                Err(error) => {
                    if error.is_passing() {
                        self.line.cut();
                        self.socket = None;
                    }
                    self.attempts.failed(error, &self.client.retry_policy())?;
                }
            }
        }
        Ok(None)
    }

    /// One attempt to connect again.
    async fn reconnect(&mut self) -> Result<()> {
        self.attempts.wait().await;
        match self.try_reconnect().await {
            Ok(socket) => {
                self.line.connect(socket.writer());
                self.socket = Some(socket);
                self.attempts.connected();
                Ok(())
            }
            Err(error) => self.attempts.failed(error, &self.client.retry_policy()),
        }
    }

    async fn try_reconnect(&mut self) -> Result<Socket> {
        let from = ProcessOffsets { stdout: self.stdout.resume(), stderr: self.stderr.resume() };
        let mut socket = self.client.socket(&self.sandbox, Some("exec")).await?;
        let start = connect(self.id.clone(), self.pid, from);
        let pid = started(&mut socket, &start).await?;
        if pid == self.pid {
            return Ok(socket);
        }
        Err(Error::invalid_response(format!("asked for process {} and got {pid}", self.pid)))
    }
}

impl ProcessInput {
    /// Writes to standard input. Waits while the process does not read.
    ///
    /// # Errors
    /// A transport error while the connection is broken; see [`crate::Error`].
    pub async fn write(&self, mut text: &str) -> Result<()> {
        while !text.is_empty() {
            let (piece, rest) = text.split_at(text.floor_char_boundary(PIECE));
            let (id, pid, data) = (self.id.clone(), self.pid, piece.to_owned());
            self.line.send(&ClientFrame::ExecStdin { id, pid, data }).await?;
            text = rest;
        }
        Ok(())
    }

    /// Ends standard input.
    ///
    /// # Errors
    /// A transport error while the connection is broken; see [`crate::Error`].
    pub async fn close(&self) -> Result<()> {
        self.line.send(&ClientFrame::ExecStdinClose { id: self.id.clone(), pid: self.pid }).await
    }

    /// Kills the process and its group; its end is told by the stream.
    ///
    /// # Errors
    /// A transport error while the connection is broken; see [`crate::Error`].
    pub async fn kill(&self) -> Result<()> {
        self.line.send(&ClientFrame::ExecKill { id: self.id.clone(), pid: self.pid }).await
    }
}

/// How far one stream of output is.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    /// Where this began, in bytes of the sandbox.
    origin: u64,
    /// Bytes of text that were given out since.
    given: u64,
    /// Whether these are as many bytes in the sandbox.
    exact: bool,
    /// Bytes of text that will come again.
    again: u64,
}

impl Cursor {
    fn at(origin: u64) -> Self {
        Self { origin, given: 0, exact: true, again: 0 }
    }

    /// From where on to ask again.
    fn resume(&mut self) -> u64 {
        let (from, again) =
            if self.exact { (self.origin + self.given, 0) } else { (self.origin, self.given) };
        self.again = again;
        from
    }

    /// The part of a text that is new.
    fn take(&mut self, mut text: String) -> Result<Option<String>> {
        let known = usize::try_from(self.again).unwrap_or(usize::MAX).min(text.len());
        if known > 0 {
            let Some(new) = text.get(known..) else {
                return Err(Error::invalid_response("the output of the process is not what it was before"));
            };
            text = new.to_owned();
            self.again -= known as u64;
        }
        self.given += text.len() as u64;
        self.exact &= !text.contains(char::REPLACEMENT_CHARACTER);
        Ok(Some(text).filter(|text| !text.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The output as a server sends it: from a byte on, decoded, in pieces.
    fn frames(output: &[u8], from: u64, size: usize) -> Vec<String> {
        let text = String::from_utf8_lossy(&output[usize::try_from(from).unwrap()..]).into_owned();
        let characters: Vec<char> = text.chars().collect();
        characters.chunks(size).map(|piece| piece.iter().collect()).collect()
    }

    proptest! {
        #[test]
        fn output_is_given_out_once_however_often_the_connection_breaks(
            output in proptest::collection::vec(prop_oneof![Just(b'a'), Just(0xc3), Just(0xa4), any::<u8>()], 0..60),
            breaks in proptest::collection::vec((1_usize..5, 0_usize..9), 0..6),
        ) {
            let mut cursor = Cursor::at(0);
            let mut seen = String::new();
            for (size, count) in breaks {
                for frame in frames(&output, cursor.resume(), size).into_iter().take(count) {
                    seen.extend(cursor.take(frame).unwrap());
                }
            }
            for frame in frames(&output, cursor.resume(), 3) {
                seen.extend(cursor.take(frame).unwrap());
            }
            prop_assert_eq!(seen, String::from_utf8_lossy(&output));
        }
    }
}

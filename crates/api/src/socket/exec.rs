//! Following a command: its output in the order in which it came, its end last; and meanwhile its standard
//! input, and its kill.

use axum::extract::ws::Utf8Bytes;
use bytes::Bytes;
use futures::StreamExt;
use nullspace_types::process::{ProcessEvent, ProcessStdin};
use nullspace_types::socket::{ClientFrame, ServerFrame};
use nullspace_types::{Error, Result};

use super::request::Request;
use super::{Connection, Ending, Incoming, Outgoing, Session};
use crate::Api;
use crate::process::ProcessEvents;
use crate::text::TextWriter;

/// Bytes of output in a frame. Escaping makes at most six times of it, which is still less than the
/// mebibyte that clients take.
const PIECE: usize = 64 << 10;

/// Serves the socket to its end.
pub(super) async fn follow<A: Api>(
    session: Session<A>,
    id: String,
    events: Result<ProcessEvents>,
    connection: &mut Connection,
) -> Ending {
    let events = match events {
        Ok(events) => events,
        Err(error) => return Ending::refused(Some(id), error),
    };
    let (outgoing, incoming) = connection.sides();
    tokio::select! {
        ending = tell(&id, events, outgoing) => ending,
        ending = listen(&session, incoming) => ending,
    }
}

async fn tell(id: &str, mut events: ProcessEvents, outgoing: &mut Outgoing) -> Ending {
    let (mut stdout, mut stderr) = (Text::new("exec_stdout", id), Text::new("exec_stderr", id));
    let mut pid = 0;
    loop {
        let Ok(event) = outgoing.until(events.next()).await else { return Ending::Gone };
        let sent = match event {
            Some(Ok(ProcessEvent::Started { pid: started })) => {
                pid = started;
                outgoing.send(&ServerFrame::ExecStarted { id: id.to_owned(), pid }).await
            }
            Some(Ok(ProcessEvent::Output { stderr: of_stderr, data })) => {
                let text = if of_stderr { &mut stderr } else { &mut stdout };
                text.send(pid, data, outgoing).await
            }
            Some(Ok(ProcessEvent::Exited { exit_code, .. })) => {
                for text in [&mut stdout, &mut stderr] {
                    if text.end(pid, outgoing).await.is_err() {
                        return Ending::Gone;
                    }
                }
                let exit = ServerFrame::ExecExit { id: id.to_owned(), pid, exit_code };
                return Ending::Close(axum::extract::ws::close_code::NORMAL, Some(exit));
            }
            Some(Err(error)) => return Ending::refused(Some(id.to_owned()), error),
            None => {
                let error = Error::internal("the events of a command ended before it did");
                return Ending::refused(Some(id.to_owned()), error);
            }
        };
        if sent.is_err() {
            return Ending::Gone;
        }
    }
}

/// One stream of output as text frames.
struct Text {
    /// The frame up to the PID.
    head: String,
    writer: TextWriter,
}

impl Text {
    fn new(kind: &str, id: &str) -> Self {
        let id = serde_json::Value::from(id);
        Self { head: format!("{{\"type\":\"{kind}\",\"id\":{id},\"pid\":"), writer: TextWriter::default() }
    }

    async fn send(
        &mut self,
        pid: u32,
        mut data: Bytes,
        outgoing: &mut Outgoing,
    ) -> Result<(), super::connection::Gone> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE));
            self.frame(pid, outgoing, |writer, out| writer.write(&piece, out)).await?;
        }
        Ok(())
    }

    /// What waited for the rest of a character that does not come.
    async fn end(&mut self, pid: u32, outgoing: &mut Outgoing) -> Result<(), super::connection::Gone> {
        self.frame(pid, outgoing, TextWriter::finish).await
    }

    /// Sends what is written, if anything is.
    async fn frame(
        &mut self,
        pid: u32,
        outgoing: &mut Outgoing,
        write: impl FnOnce(&mut TextWriter, &mut Vec<u8>),
    ) -> Result<(), super::connection::Gone> {
        let mut frame = format!("{}{pid},\"data\":\"", self.head).into_bytes();
        let empty = frame.len();
        write(&mut self.writer, &mut frame);
        if frame.len() == empty {
            return Ok(());
        }
        frame.extend_from_slice(b"\"}");
        outgoing.text(Utf8Bytes::try_from(Bytes::from(frame)).expect("text between text is text")).await
    }
}

/// Hears the client to its end. A kill does not wait for what is being written.
async fn listen<A: Api>(session: &Session<A>, incoming: &mut Incoming) -> Ending {
    let urgent = |frame: &ClientFrame| matches!(frame, ClientFrame::ExecKill { .. });
    incoming.serve(urgent, |frame| act(session, frame)).await
}

/// Does what a frame asks for.
async fn act<A: Api>(session: &Session<A>, frame: ClientFrame) -> Result<(), ServerFrame> {
    let Session { api, caller, sandbox } = session;
    let (id, done) = match frame {
        ClientFrame::ExecStdin { id, pid, data } => {
            (id, api.process_stdin(*caller, *sandbox, pid, ProcessStdin { data }).await)
        }
        ClientFrame::ExecStdinClose { id, pid } => {
            (id, api.process_stdin_close(*caller, *sandbox, pid).await)
        }
        ClientFrame::ExecKill { id, pid } => (id, api.process_kill(*caller, *sandbox, pid).await),
        ClientFrame::ExecStart { id, .. } | ClientFrame::ExecConnect { id, .. } => {
            (id, Err(Error::invalid("this socket follows a command already: open another one")))
        }
        ClientFrame::PtyStart { id, .. }
        | ClientFrame::PtyConnect { id, .. }
        | ClientFrame::PtyInput { id, .. }
        | ClientFrame::PtyResize { id, .. }
        | ClientFrame::PtyKill { id, .. }
        | ClientFrame::FileWatch { id, .. } => {
            (id, Err(Error::invalid("this socket follows a command: open another one for that")))
        }
    };
    done.map_err(|error| ClientFrame::told(Some(id), error))
}

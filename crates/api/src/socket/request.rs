//! What clients say on each kind of socket, and how a frame that makes no sense is answered.

use axum::extract::ws::close_code;
use nullspace_types::monitor::{LifecycleFrame, LifecycleRequest, MonitorFrame, MonitorRequest};
use nullspace_types::socket::{ClientFrame, ServerFrame};
use nullspace_types::{Code, Error};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::connection::{Ending, FRAME};
use crate::error::record;

/// Most bytes of a client's ID: it stands in every frame of the answer.
const ID: usize = 256;
/// Most bytes of a message: it may quote what the client sent, and escaping makes seven times of it.
const MESSAGE: usize = 4096;

/// What the clients of a kind of socket say.
pub(super) trait Request: DeserializeOwned + Send + 'static {
    /// What the server says to them.
    type Frame: Serialize + Send + Sync;

    /// The ID that a client gave it, on sockets where it gives one.
    fn id(&self) -> Option<&str>;

    /// Bytes that it holds beside its names and numbers.
    fn data_bytes(&self) -> usize;

    /// An error as a frame.
    fn error(id: Option<String>, message: String, code: Code) -> Self::Frame;

    /// What a client is told of an error.
    fn told(id: Option<String>, error: Error) -> Self::Frame {
        record(&error);
        let mut message = error.message;
        if message.len() > MESSAGE {
            message.truncate(message.floor_char_boundary(MESSAGE));
            message.push('…');
        }
        Self::error(id, message, error.code)
    }
}

impl Request for ClientFrame {
    type Frame = ServerFrame;

    fn id(&self) -> Option<&str> {
        match self {
            Self::ExecStart { id, .. }
            | Self::ExecConnect { id, .. }
            | Self::ExecStdin { id, .. }
            | Self::ExecStdinClose { id, .. }
            | Self::ExecKill { id, .. }
            | Self::PtyStart { id, .. }
            | Self::PtyConnect { id, .. }
            | Self::PtyInput { id, .. }
            | Self::PtyResize { id, .. }
            | Self::PtyKill { id, .. }
            | Self::FileWatch { id, .. } => Some(id),
        }
    }

    fn data_bytes(&self) -> usize {
        match self {
            Self::ExecStdin { data, .. } => data.len(),
            Self::PtyInput { data, data_base64, .. } => {
                [data, data_base64].into_iter().flatten().map(String::len).sum()
            }
            Self::ExecStdinClose { .. }
            | Self::ExecKill { .. }
            | Self::PtyResize { .. }
            | Self::PtyKill { .. } => 0,
            // They are refused, and may be as large as a frame.
            Self::ExecStart { .. }
            | Self::ExecConnect { .. }
            | Self::PtyStart { .. }
            | Self::PtyConnect { .. }
            | Self::FileWatch { .. } => FRAME,
        }
    }

    fn error(id: Option<String>, message: String, code: Code) -> ServerFrame {
        ServerFrame::Error { id, message, code: code.as_str().to_owned() }
    }
}

impl Request for LifecycleRequest {
    type Frame = LifecycleFrame;

    fn id(&self) -> Option<&str> {
        None
    }

    fn data_bytes(&self) -> usize {
        FRAME
    }

    fn error(_: Option<String>, message: String, code: Code) -> LifecycleFrame {
        LifecycleFrame::Error { message, code: code.as_str().to_owned() }
    }
}

impl Request for MonitorRequest {
    type Frame = MonitorFrame;

    fn id(&self) -> Option<&str> {
        match self {
            Self::MonitorSubscribe { id, .. } | Self::MonitorUnsubscribe { id } => Some(id),
        }
    }

    fn data_bytes(&self) -> usize {
        0
    }

    fn error(id: Option<String>, message: String, _: Code) -> MonitorFrame {
        MonitorFrame::MonitorError { id: id.unwrap_or_default(), message }
    }
}

/// What names the frame in an answer, if anything does.
#[derive(Deserialize)]
struct Named {
    id: Option<String>,
}

/// Reads a frame. One that makes no sense is given back as what is to be told about it.
pub(super) fn parse<R: Request>(text: &[u8]) -> Result<Result<R, R::Frame>, Ending<R>> {
    if text.len() > FRAME {
        let message = format!("a frame has at most {FRAME} bytes, this one has {}", text.len());
        return Err(Ending::Close(close_code::SIZE, Some(R::told(None, Error::invalid(message)))));
    }
    Ok(match serde_json::from_slice::<R>(text) {
        Ok(frame) => match frame.id().map_or(0, str::len) {
            0..=ID => Ok(frame),
            length => {
                let message = format!("invalid message: id has at most {ID} bytes, this one has {length}");
                Err(R::told(None, Error::invalid(message)))
            }
        },
        Err(error) => {
            let named = serde_json::from_slice::<Named>(text).ok().and_then(|named| named.id);
            let id = named.filter(|id| id.len() <= ID);
            Err(R::told(id, Error::invalid(format!("invalid message: {error}"))))
        }
    })
}

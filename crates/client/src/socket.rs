//! A socket: opening it, and one JSON text per frame in both directions (RFC 6455). It begins
//! as a request like any other, so it takes the same way: the same certificates, the same proxy, the
//! same key, and a server that refuses says why.
//!
//! What the frames mean is not known here. A peer is alive as long as anything comes; when nothing has
//! come for a while it is asked, and given up when it stays silent. Frames of a type that this crate
//! does not know are passed over, as the protocol allows.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{SplitSink, SplitStream};
use futures::{FutureExt, SinkExt, StreamExt};
use nullspace_types::socket::{ClientFrame, ServerFrame};
use reqwest::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use reqwest::{Method, StatusCode, Upgraded};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WireError, Message};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::sandbox::path;
use crate::transport::{Call, Client, accept, transport};

/// How long the opening of a socket, and the first frame on it, may take.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// How often the opening is repeated. Nothing is said before it is open, so it may be.
const OPEN_RETRIES: u32 = 2;
/// After so much silence the peer is asked whether it is there, and after as much again it is not.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// A frame is shorter than this, by the protocol.
const FRAME_MAX: usize = 1 << 20;
/// What is sent goes in pieces of this size; JSON makes up to six bytes of one.
pub(crate) const PIECE: usize = 32 << 10;

type Wire = WebSocketStream<Upgraded>;

/// The receiving half, and the one way to a sending half.
pub(crate) struct Socket {
    frames: SplitStream<Wire>,
    writer: Writer,
    url: String,
    silent_at: Instant,
    asked: bool,
}

/// The sending half.
#[derive(Clone)]
pub(crate) struct Writer {
    sink: Arc<tokio::sync::Mutex<SplitSink<Wire, Message>>>,
    url: String,
}

/// Where frames are sent while connections come and go.
#[derive(Clone, Default)]
pub(crate) struct Line(Arc<Mutex<Option<Writer>>>);

/// An identifier of one conversation: `exec_1a2b3c4d`.
pub(crate) fn conversation(kind: &str) -> String {
    let random = Uuid::new_v4().simple().to_string();
    format!("{kind}_{}", &random[..8])
}

impl Client {
    /// Opens the socket of a sandbox. `channel` tells the server early what it will be about.
    pub(crate) async fn socket(&self, sandbox: &str, channel: Option<&str>) -> Result<Socket> {
        let call = Call::new(Method::GET, path(sandbox, "/ws")?);
        self.open_socket(&call.query(&serde_json::json!({ "channel": channel }))?).await
    }

    /// Opens the socket that the call asks for.
    pub(crate) async fn open_socket(&self, call: &Call) -> Result<Socket> {
        let policy = self.retry_policy();
        let mut retries = 0;
        loop {
            let error = match self.try_upgrade(call).await {
                Ok((upgraded, url)) => return Ok(Socket::new(upgraded, url).await),
                Err(error) => error,
            };
            let again = error.is_passing() || matches!(error.status(), Some(500 | 502..=599));
            if !again || retries == OPEN_RETRIES.min(policy.resume_retries) {
                return Err(error);
            }
            tokio::time::sleep(policy.resume_delay(retries)).await;
            retries += 1;
        }
    }

    async fn try_upgrade(&self, call: &Call) -> Result<(Upgraded, String)> {
        let url = self.url(call);
        let key = generate_key();
        let request = self
            .request(call, &url)?
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key);
        let opening = async {
            let response = request.send().await.map_err(|error| transport(&url, &error))?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                accept(response, &url, OPEN_TIMEOUT).await?;
                return Err(Error::invalid_response(format!("{url} does not become a socket")));
            }
            let proof = response.headers().get(SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
            if proof != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
                return Err(Error::invalid_response(format!("{url} answers with the socket of another")));
            }
            response.upgrade().await.map_err(|error| transport(&url, &error))
        };
        let opened = tokio::time::timeout(OPEN_TIMEOUT, opening).await;
        Ok((opened.map_err(|_| Error::timed_out(&url, OPEN_TIMEOUT))??, url))
    }
}

impl Socket {
    async fn new(upgraded: Upgraded, url: String) -> Self {
        let config = WebSocketConfig::default()
            .max_message_size(Some(FRAME_MAX))
            .max_frame_size(Some(FRAME_MAX))
            .max_write_buffer_size(2 * FRAME_MAX);
        let wire = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await;
        let (sink, frames) = wire.split();
        let writer = Writer { sink: Arc::new(tokio::sync::Mutex::new(sink)), url: url.clone() };
        Self { frames, writer, url, silent_at: Instant::now() + SILENCE_MAX, asked: false }
    }

    pub(crate) fn writer(&self) -> Writer {
        self.writer.clone()
    }

    /// The next frame. That there is none is always an error: every conversation that ends does so with a
    /// frame that says so. May be dropped and called again without losing anything.
    pub(crate) async fn next<F: DeserializeOwned>(&mut self) -> Result<F> {
        loop {
            let message = match tokio::time::timeout_at(self.silent_at, self.frames.next()).await {
                Ok(message) => message,
                Err(_) if self.asked => return Err(Error::silent(&self.url, 2 * SILENCE_MAX)),
                Err(_) => {
                    self.asked = self.writer.ask();
                    self.silent_at = Instant::now() + SILENCE_MAX;
                    continue;
                }
            };
            self.silent_at = Instant::now() + SILENCE_MAX;
            self.asked = false;
            match message {
                Some(Ok(Message::Text(text))) => {
                    if let Some(frame) = parse(&self.url, &text)? {
                        return Ok(frame);
                    }
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Binary(_))) => {
                    return Err(Error::invalid_response(format!(
                        "{} sent a frame that is no text",
                        self.url
                    )));
                }
                Some(Ok(Message::Close(close))) => {
                    let reason = close.map(|close| close.reason.to_string()).filter(|text| !text.is_empty());
                    let reason = reason.unwrap_or_else(|| "the server closed it".to_owned());
                    return Err(Error::cut(&self.url, reason));
                }
                Some(Err(WireError::Capacity(error))) => {
                    return Err(Error::invalid_response(format!("{}: {error}", self.url)));
                }
                Some(Err(error)) => return Err(Error::cut(&self.url, error)),
                None => return Err(Error::cut(&self.url, "the server closed it")),
            }
        }
    }

    /// The first frame after a question, which is not waited for for ever.
    pub(crate) async fn first<F: DeserializeOwned>(&mut self) -> Result<F> {
        let url = self.url.clone();
        let first = tokio::time::timeout(OPEN_TIMEOUT, self.next()).await;
        first.map_err(|_| Error::timed_out(&url, OPEN_TIMEOUT))?
    }

    /// Says goodbye, if the connection takes it at once; otherwise its end says the same. What was asked
    /// for goes on in the sandbox.
    pub(crate) fn close(self) {
        if let Ok(mut sink) = self.writer.sink.try_lock() {
            drop(sink.send(Message::Close(None)).now_or_never());
        }
    }

    /// A frame that the conversation has no place for.
    pub(crate) fn unexpected(&self, frame: &ServerFrame) -> Error {
        match frame {
            ServerFrame::Error { code, message, .. } => Error::from_frame(code, message.clone()),
            _ => self.out_of_turn(),
        }
    }

    /// As [`Socket::unexpected`], for a frame that is no error.
    pub(crate) fn out_of_turn(&self) -> Error {
        Error::invalid_response(format!("{} sent a frame out of turn", self.url))
    }
}

/// A frame; `None` for one of a type that is not known here.
fn parse<F: DeserializeOwned>(url: &str, text: &str) -> Result<Option<F>> {
    #[derive(Deserialize)]
    struct Tag {
        r#type: String,
    }
    // A known frame may have a word inside that is not known; that one is not passed over.
    let unknown = |error: &serde_json::Error| {
        serde_json::from_str(text).is_ok_and(|Tag { r#type }| {
            error.to_string().starts_with(&format!("unknown variant `{}`", r#type))
        })
    };
    match serde_json::from_str(text) {
        Ok(frame) => Ok(Some(frame)),
        Err(error) if unknown(&error) => Ok(None),
        Err(error) => Err(Error::invalid_response(format!("{url} sent a frame that is none: {error}"))),
    }
}

impl Writer {
    pub(crate) async fn send(&self, frame: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(frame)
            .map_err(|error| Error::invalid_request(format!("the frame is no JSON: {error}")))?;
        let mut sink = self.sink.lock().await;
        sink.send(Message::text(text)).await.map_err(|error| Error::cut(&self.url, error))
    }

    /// Asks the peer for a sign of life. `false` while something else is being sent: then the peer is
    /// slow to take it, which is its right.
    fn ask(&self) -> bool {
        let Ok(mut sink) = self.sink.try_lock() else { return false };
        // The next poll of the receiving half sends it on its way.
        sink.send(Message::Ping(Vec::new().into())).now_or_never().is_some()
    }
}

impl Line {
    pub(crate) fn connect(&self, writer: Writer) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
    }

    pub(crate) fn cut(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) async fn send(&self, frame: &ClientFrame) -> Result<()> {
        let writer = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match writer {
            Some(writer) => writer.send(frame).await,
            None => Err(Error::cut("the sandbox's socket", "it is not connected")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_of_an_unknown_type_is_passed_over_and_a_malformed_one_is_not() {
        let parse = |text: &str| parse::<ServerFrame>("ws", text);
        assert!(matches!(parse(r#"{"type":"exec_started","id":"a","pid":1}"#), Ok(Some(_))));
        assert!(matches!(parse(r#"{"type":"weather","id":"a"}"#), Ok(None)));
        for text in [r#"{"type":"exec_started","id":"a"}"#, "[]", "", r#"{"id":"a"}"#] {
            assert_eq!(parse(text).unwrap_err().code(), "invalid_response", "{text}");
        }
        let event = r#"{"type":"file_event","id":"a","event":"weather","name":"n","path":"p"}"#;
        assert_eq!(parse(event).unwrap_err().code(), "invalid_response");
    }
}

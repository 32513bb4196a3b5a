//! A client of the sockets.

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{WebSocketStream, client_async};

/// How long a frame may take that a test waits for.
const PATIENCE: Duration = Duration::from_secs(20);

/// An open socket.
pub struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    pub(crate) async fn open(base: &str, path: &str, key: &str) -> Self {
        let authority = base.strip_prefix("http://").expect("tests speak HTTP");
        let mut request = format!("ws://{authority}{path}").into_client_request().expect("a request");
        let bearer = format!("Bearer {key}").parse().expect("a header");
        request.headers_mut().insert("authorization", bearer);
        let stream = TcpStream::connect(authority).await.expect("the server listens");
        Self(client_async(request, stream).await.expect("the socket opens").0)
    }

    /// Says something.
    pub async fn send(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.expect("the server takes it");
    }

    /// The next frame; none once the socket is at its end, however it came to it.
    pub async fn next(&mut self) -> Option<Value> {
        let frame = async {
            loop {
                match self.0.next().await? {
                    Ok(Message::Text(text)) => {
                        return Some(serde_json::from_str(&text).expect("frames are JSON"));
                    }
                    Ok(Message::Close(_)) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, frame).await.expect("a frame comes")
    }

    /// How the server closes it, after whatever it still says; none if it breaks off.
    pub async fn closed(&mut self) -> Option<u16> {
        let end = async {
            loop {
                match self.0.next().await? {
                    Ok(Message::Close(frame)) => return frame.map(|frame| frame.code.into()),
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        };
        tokio::time::timeout(PATIENCE, end).await.expect("an end comes")
    }

    /// The next frame, which is of this type.
    #[track_caller]
    pub fn expect(&mut self, kind: &'static str) -> impl Future<Output = Value> {
        let at = std::panic::Location::caller();
        async move {
            let frame = self.next().await;
            match frame {
                Some(frame) if frame["type"] == kind => frame,
                other => panic!("{kind} was expected at {at}, not {other:?}"),
            }
        }
    }
}

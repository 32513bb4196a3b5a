//! A client's connection: its stream, what was read of it to learn what it speaks, and its place among those
//! that may be open. Freed with it, wherever it goes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

/// See the module.
pub(crate) struct Wire<S> {
    stream: S,
    /// Read already, and to be read first.
    ahead: BytesMut,
    _place: OwnedSemaphorePermit,
}

/// What a client's first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speech {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Something else.
    Other,
}

/// What HTTP/2 begins with (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The methods of HTTP that are in use (RFC 9110, 5789, 4918, 3253, 5323, 4791): a connection that does not
/// begin with one of them is not HTTP.
const METHODS: [&str; 26] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "CONNECT",
    "OPTIONS",
    "TRACE",
    "PATCH",
    "QUERY",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
    "REPORT",
    "SEARCH",
    "MKCALENDAR",
    "CHECKOUT",
    "CHECKIN",
    "MERGE",
    "ACL",
    "BIND",
    "PURGE",
];

/// Judges a beginning; `None` if it is too short.
pub(crate) fn speech(beginning: &[u8]) -> Option<Speech> {
    if beginning.starts_with(PREFACE) {
        return Some(Speech::Http2);
    }
    if PREFACE.starts_with(beginning) {
        return None;
    }
    let is_method = |method: &&str| {
        let (method, rest) = (method.as_bytes(), beginning);
        rest.strip_prefix(method).map_or(method.starts_with(rest), |rest| rest.is_empty() || rest[0] == b' ')
    };
    let fits = METHODS.iter().filter(|method| is_method(method));
    match fits.map(|method| beginning.len() > method.len()).max() {
        None => Some(Speech::Other),
        Some(true) => Some(Speech::Http1),
        Some(false) => None,
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn new(stream: S, place: OwnedSemaphorePermit) -> Self {
        Self { stream, ahead: BytesMut::new(), _place: place }
    }

    /// Reads until it is clear what the client speaks; `None` if `patience` ends before. A stream that ends
    /// before a single byte is an error. Nothing is lost if this is dropped.
    pub(crate) async fn listen(&mut self, patience: Duration) -> io::Result<Option<Speech>> {
        let judged = tokio::time::timeout(patience, async {
            loop {
                if let Some(speech) = speech(&self.ahead) {
                    return Ok(Some(speech));
                }
                if self.stream.read_buf(&mut self.ahead).await? == 0 {
                    // A few bytes that could have become a method, and then the end, are another protocol's.
                    return match self.ahead.is_empty() {
                        true => Err(io::ErrorKind::UnexpectedEof.into()),
                        false => Ok(Some(Speech::Other)),
                    };
                }
            }
        });
        judged.await.unwrap_or(Ok(None))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let taken = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..taken]);
        self.ahead.advance(taken);
        if self.ahead.is_empty() {
            self.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_is_known_by_its_method_as_soon_as_it_is_whole() {
        for text in ["GET / HTTP/1.1\r\n", "PROPFIND /", "POST ", "GET "] {
            assert_eq!(speech(text.as_bytes()), Some(Speech::Http1), "{text}");
        }
        for text in ["", "G", "GET", "PRO", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r"] {
            assert_eq!(speech(text.as_bytes()), None, "{text}");
        }
        assert_eq!(speech(PREFACE), Some(Speech::Http2));
        for text in
            ["get /", "GETX", "SSH-2.0-x y", "\u{16}\u{3}\u{1}", "*1\r\n$4\r\nPING", "GET\r\n", "PRI "]
        {
            let other = speech(text.as_bytes());
            assert_eq!(other, if text == "PRI " { None } else { Some(Speech::Other) }, "{text}");
        }
    }
}

//! What the first bytes of a connection are: TLS, HTTP, or something that shows no name.
//!
//! Where in doubt it is [`First::Unreadable`], which passes only where names do not matter: a server may be
//! less strict than this room and find a name where none was seen.

use std::net::IpAddr;

use bytes::BytesMut;
use nullspace_domain::network;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{hello, request};

/// Bytes that are no valid beginning of what they seem to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable;

/// How a connection begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum First {
    /// With a TLS hello.
    Tls(hello::Hello),
    /// With a request of HTTP/1.
    Http(request::Head),
    /// With something that has no name for its host, or with nothing at all.
    Other,
    /// With something that may have one.
    Unreadable,
}

impl First {
    /// The name that it shows, in lower case.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Tls(hello) => hello.name.as_deref(),
            Self::Http(head) => head.host.as_deref(),
            Self::Other | Self::Unreadable => None,
        }
    }
}

/// Reads until it is known how a connection begins. What was read is in `bytes`.
pub async fn read(from: &mut (impl AsyncRead + Unpin), bytes: &mut BytesMut) -> std::io::Result<First> {
    loop {
        if let Some(first) = classify(bytes) {
            return Ok(first);
        }
        bytes.reserve(4096);
        if from.read_buf(bytes).await? == 0 {
            return Ok(if bytes.is_empty() { First::Other } else { First::Unreadable });
        }
    }
}

/// What these first bytes are; none if more of them are needed.
fn classify(bytes: &[u8]) -> Option<First> {
    // Servers of HTTP skip empty lines.
    let begin = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
    let Some(begin) = begin else {
        return (bytes.len() >= request::HEAD_BYTES_MAX).then_some(First::Unreadable);
    };
    let outcome = if bytes[0] == hello::HANDSHAKE {
        hello::read(bytes).map(|hello| hello.map(First::Tls))
    } else {
        match is_request(&bytes[begin..]) {
            None if bytes.len() < request::HEAD_BYTES_MAX => return None,
            None => Err(Unreadable),
            Some(false) => Ok(Some(First::Other)),
            Some(true) => request::read(&bytes[begin..]).map(|head| head.map(First::Http)),
        }
    };
    outcome.unwrap_or(Some(First::Unreadable))
}

/// Whether the first line is that of an HTTP request, in whatever version; none if it is not known yet.
fn is_request(bytes: &[u8]) -> Option<bool> {
    const METHOD_BYTES_MAX: usize = 64;
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let method = bytes.iter().take(METHOD_BYTES_MAX + 1).take_while(|byte| token(byte)).count();
    match bytes.get(method) {
        _ if method > METHOD_BYTES_MAX => Some(false),
        None => None,
        Some(b' ' | b'\t') if method > 0 => {
            let line = &bytes[..memchr::memchr(b'\n', bytes)?];
            Some(line.windows(5).any(|part| part.eq_ignore_ascii_case(b"HTTP/")))
        }
        Some(_) => Some(false),
    }
}

/// A name as a hello or a request shows it, in lower case; an address is none.
pub fn shown_name(text: &str) -> Result<Option<String>, Unreadable> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if bare.parse::<IpAddr>().is_ok() {
        return Ok(None);
    }
    network::normal_name(text).map(Some).ok_or(Unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_still_become_a_request_is_waited_for_and_what_cannot_is_none() {
        for waiting in [
            "",
            "\r\n",
            "G",
            "GET",
            "GET /",
            "GET / HTTP/1.1",
            "GET / HTTP/1.1\r\nHost: a.example\r\n",
            "M-SEARCH * ",
        ] {
            assert_eq!(classify(waiting.as_bytes()), None, "{waiting:?}");
        }
        for other in [
            "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
            "EHLO me\r\n",
            "GET /\r\n",
            "*1\r\n$4\r\nPING\r\n",
            "\0\0\0\x08\x04\x53\x16\x2f",
        ] {
            assert_eq!(classify(other.as_bytes()), Some(First::Other), "{other:?}");
        }
        for doubtful in [
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "GET / HTTP/1.1\nHost: a.example\r\n\r\n",
            "GET\t/\tHTTP/1.1\r\nHost: a.example\r\n\r\n",
            "get / http/1.1\r\nHost: a.example\r\n\r\n",
            "GET /\x01 HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "\x16\x02\x00",
        ] {
            assert_eq!(classify(doubtful.as_bytes()), Some(First::Unreadable), "{doubtful:?}");
        }
        let first = classify(b"\r\nGET / HTTP/1.1\r\nHost: A.Example.:80\r\n\r\n").unwrap();
        assert_eq!(first.name(), Some("a.example"));
    }

    #[test]
    fn an_address_is_no_name_and_what_is_neither_is_doubtful() {
        for address in ["192.0.2.1", "2001:db8::1", "[2001:db8::1]"] {
            assert_eq!(shown_name(address), Ok(None), "{address}");
        }
        assert_eq!(shown_name("A.example."), Ok(Some("a.example".into())));
        for wrong in ["", ".", "a..example", "192.0.2.1.", "a.example\0", "a.example/", "*.example"] {
            assert_eq!(shown_name(wrong), Err(Unreadable), "{wrong:?}");
        }
    }
}

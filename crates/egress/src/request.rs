//! The host that an HTTP request is for, and the strictness that makes it the only one: what two servers could
//! read in two ways is refused (RFC 9112, 3.2, 3.3 and 6.3).
//!
//! A connection's first request is read here before anything is passed on; it, and those that follow, are then
//! taken apart and written anew by hyper, so that no byte of a request reaches the host as it was framed by the
//! guest. Open to others so that it can be driven with arbitrary bytes (`fuzz/`).

use http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::uri::Authority;
use http::{Method, Uri, Version};

use crate::first::{Unreadable, shown_name};

/// Most bytes of a request before its body.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// Most headers of a request; hyper's bound.
const HEADERS_MAX: usize = 100;

/// What the first request of a connection shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The host's name, in lower case.
    pub host: Option<String>,
}

/// Reads the head of an HTTP/1 request that begins these bytes; none if more of them are needed.
pub fn read(bytes: &[u8]) -> Result<Option<Head>, Unreadable> {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
        return if bytes.len() >= HEAD_BYTES_MAX { Err(Unreadable) } else { Ok(None) };
    };
    let bytes = &bytes[..end + 4];
    // A line feed alone ends a line for some servers and not for others.
    let lone = memchr::memchr_iter(b'\n', bytes).any(|at| at == 0 || bytes[at - 1] != b'\r');
    if bytes.len() > HEAD_BYTES_MAX || lone {
        return Err(Unreadable);
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(bytes).map_err(|_| Unreadable)?;
    if parsed != httparse::Status::Complete(bytes.len()) {
        return Err(Unreadable);
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(Unreadable);
    };
    let mut map = HeaderMap::new();
    for header in request.headers {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| Unreadable)?;
        map.append(name, HeaderValue::from_bytes(header.value).map_err(|_| Unreadable)?);
    }
    let method = method.parse().map_err(|_| Unreadable)?;
    let target = target.parse().map_err(|_| Unreadable)?;
    let version = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    Ok(Some(Head { host: host(&method, &target, version, &map)? }))
}

/// The name of the host that a request is for, in lower case; none if it has none or is an address.
pub fn host(
    method: &Method,
    target: &Uri,
    version: Version,
    headers: &HeaderMap,
) -> Result<Option<String>, Unreadable> {
    if headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH) {
        return Err(Unreadable);
    }
    let mut hosts = headers.get_all(HOST).iter();
    let header = hosts.next();
    if hosts.next().is_some() {
        return Err(Unreadable);
    }
    let header = match header.map(HeaderValue::to_str).transpose().map_err(|_| Unreadable)? {
        // A request whose target has no authority says so by an empty host.
        Some("") => None,
        Some(text) => Some(authority_name(&text.parse().map_err(|_| Unreadable)?)?),
        None if version == Version::HTTP_11 => return Err(Unreadable),
        None => None,
    };
    match (target.authority(), header) {
        // The target counts (RFC 9112, 3.2.2), and whoever means well sends the same host beside it.
        (Some(authority), header) => {
            let name = authority_name(authority)?;
            if header.is_some_and(|header| header != name) { Err(Unreadable) } else { Ok(name) }
        }
        (None, _) if method == Method::CONNECT => Err(Unreadable),
        (None, header) => Ok(header.flatten()),
    }
}

fn authority_name(authority: &Authority) -> Result<Option<String>, Unreadable> {
    if authority.as_str().contains('@') {
        return Err(Unreadable);
    }
    shown_name(authority.host())
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;

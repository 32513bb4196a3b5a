//! Heads on their way through: what belongs to one connection is taken off, and the service is told who
//! asks, by which name and over which protocol.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue, request, response};

use crate::judge::tokens;

const FORWARDED: HeaderName = http::header::FORWARDED;
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// What the service is told of the client.
pub(crate) struct Client<'a> {
    pub(crate) address: IpAddr,
    pub(crate) tls: bool,
    /// The host that it asked.
    pub(crate) host: &'a HeaderValue,
    /// Whether it is a proxy that is believed when it says whom it speaks for: one on this host, or one
    /// that has shown its token. What others say of it is replaced.
    pub(crate) trusted: bool,
}

/// Makes a request ready for the service. `host` is what it shall see as its own.
pub(crate) fn request(
    parts: &mut request::Parts,
    client: &Client<'_>,
    host: Option<HeaderValue>,
    upgrade: Option<&HeaderValue>,
    body_without_length: bool,
) {
    let headers = &mut parts.headers;
    let trailers =
        headers.get_all(TE).iter().flat_map(tokens).any(|token| token.eq_ignore_ascii_case("trailers"));
    drop_hops(headers);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade.clone());
    }
    if body_without_length {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if parts.version != http::Version::HTTP_11 {
        headers.remove(EXPECT);
    }
    forwarded(headers, client);
    headers.insert(HOST, host.unwrap_or_else(|| client.host.clone()));
    // The target becomes the origin's form, with its bytes as they are.
    let target = parts.uri.path_and_query().cloned();
    parts.uri = target.map_or_else(|| http::Uri::from_static("/"), http::Uri::from);
    parts.version = http::Version::HTTP_11;
}

fn forwarded(headers: &mut HeaderMap, client: &Client<'_>) {
    let address = client.address.to_canonical().to_string();
    let mut chain = Vec::new();
    if client.trusted {
        chain.extend(headers.get_all(FORWARDED_FOR).iter().map(|value| value.as_bytes().to_vec()));
    } else {
        headers.remove(FORWARDED);
        headers.remove(FORWARDED_HOST);
        headers.remove(FORWARDED_PROTO);
    }
    chain.push(address.into_bytes());
    let chain = HeaderValue::from_bytes(&chain.join(&b", "[..])).expect("parts of valid values are valid");
    headers.insert(FORWARDED_FOR, chain);
    headers.entry(FORWARDED_HOST).or_insert_with(|| client.host.clone());
    let protocol = HeaderValue::from_static(if client.tls { "https" } else { "http" });
    headers.entry(FORWARDED_PROTO).or_insert(protocol);
}

/// Makes an answer ready for the client, or says what is wrong with it. Two lengths, or a coding that is not
/// understood here, would be read differently by whoever comes next.
pub(crate) fn answer(parts: &mut response::Parts) -> Result<(), &'static str> {
    let headers = &mut parts.headers;
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err("its transfer coding is not understood");
        }
        if headers.contains_key(CONTENT_LENGTH) {
            return Err("it has two lengths");
        }
    }
    drop_hops(headers);
    // Whatever the service speaks, the client is spoken to in its own version.
    parts.version = http::Version::HTTP_11;
    Ok(())
}

/// Whether a request's coding is one that can be taken off and put on again.
pub(crate) fn coding_is_known(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        && codings.next().is_none()
}

/// Takes off what belongs to one connection alone (RFC 9110 §7.6.1).
fn drop_hops(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(tokens)
        .filter_map(|token| token.parse().ok())
        // What frames or routes the message is not the sender's to take away.
        .filter(|name| !matches!(*name, HOST | CONTENT_LENGTH | http::header::COOKIE))
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
        HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
}

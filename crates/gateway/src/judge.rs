//! What a request shows of itself, read out of it: the kind it is of, its tokens from the places where they
//! belong, and nothing else. What was meant for the gateway is taken out, so that the service never sees it;
//! all the rest stays byte for byte.

use std::borrow::Cow;

use http::header::{CONNECTION, COOKIE, HOST, REFERER, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Version};
use nullspace_edge_api::{Credentials, Destination};
use nullspace_types::preview::{
    EDGE_TOKEN_PARAMETER, PROXY_TOKEN_HEADER, PreviewTransport, TRAFFIC_TOKEN_HEADER, TRANSPORT_PARAMETER,
};
use nullspace_types::{Code, Error};

/// The cookie of preview hosts; on local addresses it is followed by `_` and the address's port, because
/// browsers show the cookies of one port at all others.
pub(crate) const COOKIE_NAME: &str = "__ns_preview";

/// What was read.
pub(crate) struct Shown {
    pub(crate) transport: PreviewTransport,
    pub(crate) credentials: Credentials,
    /// What the connection is to become, if the service agrees: the value of `Upgrade`.
    pub(crate) upgrade: Option<HeaderValue>,
}

/// The one host that a request names (RFC 9112 §3.2): that of its target before that of its header.
pub(crate) fn host(parts: &Parts) -> Result<HeaderValue, Error> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let (first, more) = (hosts.next(), hosts.next().is_some());
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    if more {
        return Err(Error::invalid("a request must have one Host"));
    }
    let host = match (authority, first) {
        (Some(authority), _) => HeaderValue::from_str(authority).ok(),
        (None, host) => host.cloned(),
    };
    let well_formed = |host: &HeaderValue| {
        host.to_str().is_ok_and(|host| !host.is_empty() && host.parse::<http::uri::Authority>().is_ok())
            && !host.as_bytes().contains(&b'@')
    };
    host.filter(well_formed).ok_or_else(|| Error::invalid("a request must name its host in Host"))
}

/// Which port of which sandbox a preview host stands for.
pub(crate) fn destination(host: &str, domain: &str) -> Option<Destination> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let (port, label) = name.strip_suffix(domain)?.strip_suffix('.')?.split_once('-')?;
    let number: u16 = port.parse().ok()?;
    // One port has one spelling.
    let right = number.to_string() == port && !label.is_empty() && !label.contains('.');
    right.then(|| Destination::Host { port: number, label: label.to_owned() })
}

/// Reads what a request shows and takes it out. `cookie` is the name of the one that counts here.
pub(crate) fn read(parts: &mut Parts, extended: bool, cookie: &str) -> Result<Shown, Error> {
    let upgrade = if extended { None } else { upgrade(parts) };
    let websocket = extended
        || upgrade
            .as_ref()
            .is_some_and(|upgrade| tokens(upgrade).any(|token| token.eq_ignore_ascii_case("websocket")));
    if websocket && !extended {
        check_websocket(parts)?;
    }
    let transport = if websocket { PreviewTransport::Websocket } else { PreviewTransport::Http };
    let mut credentials = Credentials {
        proxy_token: take_header(&mut parts.headers, PROXY_TOKEN_HEADER)?,
        traffic_token: take_header(&mut parts.headers, TRAFFIC_TOKEN_HEADER)?,
        // Every one of ours is taken out: those of other ports are other sandboxes'.
        cookie: take_cookies(&mut parts.headers, cookie).filter(|_| !websocket),
        ..Credentials::default()
    };
    let shown = strip_query(parts.uri.query().unwrap_or_default());
    credentials.edge_token = once(EDGE_TOKEN_PARAMETER, shown.edge_tokens)?;
    credentials.proxy_transport = match once(TRANSPORT_PARAMETER, shown.transports)?.as_deref() {
        None => false,
        Some("header") => true,
        Some(_) => return Err(Error::invalid(format!("{TRANSPORT_PARAMETER} must be header"))),
    };
    if let Some(rest) = shown.rest {
        let path = parts.uri.path();
        let target = rest.map_or_else(|| path.to_owned(), |rest| format!("{path}?{rest}"));
        set_target(parts, &target)?;
    }
    strip_referer(&mut parts.headers);
    Ok(Shown { transport, credentials, upgrade })
}

fn set_target(parts: &mut Parts, target: &str) -> Result<(), Error> {
    let target = PathAndQuery::try_from(target)
        .map_err(|error| Error::invalid("the request's target is malformed").context(error))?;
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.path_and_query = Some(target);
    parts.uri = http::Uri::from_parts(uri)
        .map_err(|error| Error::invalid("the request's target is malformed").context(error))?;
    Ok(())
}

/// What the connection is asked to become. HTTP/2 in the clear is no such thing here: what came over it would
/// be requests that nobody judged; to ignore an upgrade is always allowed (RFC 9110 §7.8).
fn upgrade(parts: &Parts) -> Option<HeaderValue> {
    if parts.version != Version::HTTP_11 {
        return None;
    }
    let asked = parts.headers.get_all(CONNECTION).iter().flat_map(tokens);
    if !asked.into_iter().any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return None;
    }
    let wanted = parts.headers.get_all(UPGRADE).iter().flat_map(tokens);
    let wanted: Vec<_> = wanted.filter(|token| !token.to_ascii_lowercase().starts_with("h2")).collect();
    if wanted.is_empty() {
        return None;
    }
    HeaderValue::from_str(&wanted.join(", ")).ok()
}

/// The parts of a list in a header.
pub(crate) fn tokens(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|token| !token.is_empty())
}

/// What a WebSocket's handshake needs (RFC 6455 §4.2.1).
fn check_websocket(parts: &Parts) -> Result<(), Error> {
    let only = |name| {
        let mut values = parts.headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none()).map(HeaderValue::as_bytes)
    };
    let key = only(SEC_WEBSOCKET_KEY).is_some_and(|key| {
        let (digits, end) = key.split_at_checked(22).unwrap_or((&[], &[]));
        let digit = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
        !digits.is_empty() && digits.iter().all(digit) && end == b"=="
    });
    if parts.method != Method::GET {
        return Err(Error::invalid("a WebSocket must be asked for with GET"));
    }
    if !key {
        return Err(Error::invalid("a WebSocket needs one Sec-WebSocket-Key of 16 bytes in base64"));
    }
    if only(SEC_WEBSOCKET_VERSION) != Some(b"13") {
        return Err(Error::invalid("a WebSocket needs Sec-WebSocket-Version: 13"));
    }
    Ok(())
}

fn take_header(headers: &mut HeaderMap, name: &'static str) -> Result<Option<String>, Error> {
    let shown = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default().to_owned());
    let shown = once(name, shown.collect())?;
    headers.remove(name);
    Ok(shown)
}

/// Two tokens in one place: nobody could say which of them was judged.
fn once(place: &str, mut shown: Vec<String>) -> Result<Option<String>, Error> {
    if shown.len() > 1 {
        return Err(Error::new(Code::EdgeTokenInvalid, format!("{place} is shown more than once")));
    }
    Ok(shown.pop())
}

fn is_ours(name: &str) -> bool {
    name.strip_prefix(COOKIE_NAME).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

/// Takes our cookies out and answers the value of one. HTTP/2 may send each in a line of its own; here they
/// become one again (RFC 9113 §8.2.3).
fn take_cookies(headers: &mut HeaderMap, wanted: &str) -> Option<String> {
    let lines = headers.get_all(COOKIE);
    let several = lines.iter().nth(1).is_some();
    let ours = |line: &HeaderValue| {
        let line = line.as_bytes();
        line.windows(COOKIE_NAME.len()).any(|window| window == COOKIE_NAME.as_bytes())
    };
    if !several && !lines.iter().any(ours) {
        return None;
    }
    let mut found = None;
    let mut kept: Vec<u8> = Vec::new();
    for line in lines {
        for pair in line.as_bytes().split(|&b| b == b';') {
            let pair = pair.trim_ascii();
            let (name, value) = pair.iter().position(|&b| b == b'=').map_or((pair, &b""[..]), |at| {
                (pair[..at].trim_ascii_end(), pair[at + 1..].trim_ascii_start())
            });
            let name = String::from_utf8_lossy(name);
            if !is_ours(&name) {
                if !kept.is_empty() {
                    kept.extend_from_slice(b"; ");
                }
                kept.extend_from_slice(pair);
            } else if name == wanted && found.is_none() {
                found = Some(String::from_utf8_lossy(value).into_owned());
            }
        }
    }
    headers.remove(COOKIE);
    if !kept.is_empty() {
        headers.insert(COOKIE, HeaderValue::from_bytes(&kept).expect("parts of valid values are valid"));
    }
    found
}

/// A service must not set ours: on local addresses it would be seen at the ports of others.
pub(crate) fn drop_set_cookies(headers: &mut HeaderMap) {
    let ours = |value: &HeaderValue| {
        let value = value.as_bytes();
        let name = value.split(|&b| b == b'=' || b == b';').next().unwrap_or_default();
        is_ours(&String::from_utf8_lossy(name.trim_ascii()))
    };
    if headers.get_all(http::header::SET_COOKIE).iter().any(ours) {
        let kept: Vec<_> =
            headers.get_all(http::header::SET_COOKIE).iter().filter(|v| !ours(v)).cloned().collect();
        headers.remove(http::header::SET_COOKIE);
        for value in kept {
            headers.append(http::header::SET_COOKIE, value);
        }
    }
}

struct Query<'a> {
    edge_tokens: Vec<String>,
    transports: Vec<String>,
    /// What is left, if anything was taken out: and `None` then, if that was all.
    rest: Option<Option<Cow<'a, str>>>,
}

fn strip_query(query: &str) -> Query<'_> {
    let mut stripped = Query { edge_tokens: Vec::new(), transports: Vec::new(), rest: None };
    let mut kept = Vec::new();
    let mut taken = false;
    for piece in query.split('&') {
        let pair = form_urlencoded::parse(piece.as_bytes()).next();
        match pair {
            Some((name, value)) if name == EDGE_TOKEN_PARAMETER => {
                stripped.edge_tokens.push(value.into_owned());
                taken = true;
            }
            Some((name, value)) if name == TRANSPORT_PARAMETER => {
                stripped.transports.push(value.into_owned());
                taken = true;
            }
            _ => kept.push(piece),
        }
    }
    if taken {
        stripped.rest = Some((!kept.is_empty()).then(|| Cow::Owned(kept.join("&"))));
    }
    stripped
}

/// A browser tells what a page loads the page's whole URL, and with it the token.
fn strip_referer(headers: &mut HeaderMap) {
    let Some(referer) = headers.get(REFERER).and_then(|value| value.to_str().ok()) else { return };
    let Some((page, query)) = referer.split_once('?') else { return };
    if let Some(rest) = strip_query(query).rest {
        let stripped = rest.map_or_else(|| page.to_owned(), |rest| format!("{page}?{rest}"));
        let value = HeaderValue::from_str(&stripped).expect("parts of a valid value are valid");
        headers.insert(REFERER, value);
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;

    fn parts(request: http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn tokens_are_taken_from_their_places_and_the_rest_stays_as_it_was() {
        let mut head = parts(
            Request::get("/a/../b%2f?x=%41&edge_token=nsp_1&y&&z=+")
                .header("cookie", "a=1; __ns_preview_20000=c; __ns_preview_20001=d")
                .header("cookie", "b=\"2\"")
                .header("x-nullspace-traffic-access-token", "nst_2")
                .header("referer", "http://h/p?edge_token=nsp_1&q=1"),
        );
        let shown = read(&mut head, false, "__ns_preview_20000").unwrap();
        assert_eq!(head.uri, "/a/../b%2f?x=%41&y&&z=+");
        assert_eq!(head.headers[COOKIE], "a=1; b=\"2\"");
        assert_eq!(head.headers[REFERER], "http://h/p?q=1");
        assert!(!head.headers.contains_key("x-nullspace-traffic-access-token"));
        let credentials = shown.credentials;
        assert_eq!(credentials.edge_token.as_deref(), Some("nsp_1"));
        assert_eq!(credentials.cookie.as_deref(), Some("c"));
        assert_eq!(credentials.traffic_token.as_deref(), Some("nst_2"));
        assert_eq!((credentials.proxy_token, credentials.proxy_transport), (None, false));
    }

    #[test]
    fn two_tokens_in_one_place_and_an_unknown_transport_are_refused() {
        let wrong = |request| read(&mut parts(request), false, COOKIE_NAME).err().map(|error| error.code);
        let twice = Request::get("/?edge_token=a&edge%5Ftoken=b");
        assert_eq!(wrong(twice), Some(Code::EdgeTokenInvalid));
        let twice = Request::get("/").header(PROXY_TOKEN_HEADER, "a").header(PROXY_TOKEN_HEADER, "b");
        assert_eq!(wrong(twice), Some(Code::EdgeTokenInvalid));
        assert_eq!(wrong(Request::get("/?__ns_preview_transport=query")), Some(Code::InvalidRequest));
    }

    #[test]
    fn a_websocket_needs_its_key_and_version_and_never_shows_a_cookie() {
        let websocket =
            || Request::get("/").header("connection", "keep-alive, Upgrade").header("upgrade", "WebSocket");
        let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let good = websocket().header(key.0, key.1).header("sec-websocket-version", "13");
        let shown = read(&mut parts(good.header("cookie", "__ns_preview=c")), false, COOKIE_NAME).unwrap();
        assert_eq!((shown.transport, shown.credentials.cookie), (PreviewTransport::Websocket, None));
        for bad in [
            websocket().header("sec-websocket-version", "13"),
            websocket().header(key.0, "short").header("sec-websocket-version", "13"),
            websocket().header(key.0, key.1).header("sec-websocket-version", "8"),
            websocket().header(key.0, key.1).header("sec-websocket-version", "13").method("POST"),
        ] {
            assert!(read(&mut parts(bad), false, COOKIE_NAME).is_err());
        }
        let h2c = Request::get("/").header("connection", "upgrade").header("upgrade", "h2c");
        assert_eq!(read(&mut parts(h2c), false, COOKIE_NAME).unwrap().upgrade, None);
    }

    #[test]
    fn a_preview_host_has_one_spelling_of_its_port_and_one_label() {
        let at = |host: &str| destination(host, "d.example");
        let there = Some(Destination::Host { port: 8080, label: "abc".into() });
        assert_eq!(at("8080-abc.d.example"), there);
        assert_eq!(at("8080-ABC.D.example.:3001"), there);
        for wrong in [
            "08080-abc.d.example",
            "8080-a.b.d.example",
            "8080-.d.example",
            "8080-abcd.example",
            "70000-abc.d.example",
            "8080-abc.other",
            "d.example",
            "+80-abc.d.example",
        ] {
            assert_eq!(at(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_query_without_our_parameters_is_not_touched(query in "[a-z0-9=&%+._~-]{0,40}") {
            let target = format!("/?{query}");
            if let Ok(uri) = target.parse::<http::Uri>() {
                let mut head = parts(Request::get(uri.clone()));
                read(&mut head, false, COOKIE_NAME).unwrap();
                prop_assert_eq!(head.uri, uri);
            }
        }
    }
}

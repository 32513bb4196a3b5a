//! What may be asked about the ports of a sandbox: which there are, how long a grant is good, and what a wait
//! for a service may say.

use std::time::Duration;

use nullspace_types::preview::{ReadinessRequest, TokenKind};
use nullspace_types::{Code, Error, Result};

use crate::limits::Limits;

/// Shortest and longest time of a grant, in seconds: what is beyond counts as these.
pub const GRANT_SECS: (u32, u32) = (60, 86_400);
/// Most ports of one sandbox that have an address on the host.
pub const LOCAL_PORTS_MAX: usize = 100;
/// Longest wait for a service, in seconds.
pub const READINESS_SECS_MAX: u32 = 300;
const READINESS_SECS_DEFAULT: i64 = 30;
/// Least and most milliseconds between two attempts.
pub const INTERVAL_MS: (u32, u32) = (10, 60_000);
const INTERVAL_MS_DEFAULT: i64 = 500;
/// Longest path that is asked for.
pub const PATH_BYTES_MAX: usize = 2048;

/// Whether a port is one that previews do not reach: SSH, screens, the guest's agent; and none at all.
pub const fn is_reserved(port: u16) -> bool {
    matches!(port, 0 | 22 | 5900..=5999 | 7000 | 7001)
}

/// The refusal of such a port.
pub fn unsupported(port: u16) -> Error {
    Error::new(Code::UnsupportedPreviewPort, format!("port {port} is reserved and cannot be reached"))
        .suggest("let the service listen on another port; 22, 5900 to 5999, 7000 and 7001 are reserved")
}

/// Judges a port.
pub fn port(value: Option<i64>) -> Result<u16> {
    let value = value.ok_or_else(|| Error::invalid("port is missing"))?;
    let port = u16::try_from(value)
        .map_err(|_| Error::invalid(format!("port must be between 1 and 65535, got {value}")))?;
    if is_reserved(port) { Err(unsupported(port)) } else { Ok(port) }
}

/// Judges a port as a path or a query has it.
pub fn port_text(text: &str) -> Result<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    let number = number
        .ok_or_else(|| Error::invalid(format!("port must be a number between 1 and 65535, got {text:?}")))?;
    port(Some(number))
}

/// How long a grant is good.
pub fn grant_time(seconds: Option<i64>, limits: &Limits) -> Duration {
    let (low, high) = GRANT_SECS;
    let seconds = seconds.unwrap_or_else(|| i64::from(limits.preview_secs_default));
    let seconds = seconds.clamp(i64::from(low), i64::from(high));
    Duration::from_secs(u64::try_from(seconds).unwrap_or_else(|_| u64::from(low)))
}

/// What the tokens of a grant for these transports are good for.
pub fn token_kinds(transports: Option<&[String]>) -> Result<Vec<TokenKind>> {
    let Some(transports) = transports else { return Ok(vec![TokenKind::HttpPort, TokenKind::WebsocketPort]) };
    let mut kinds = Vec::new();
    for transport in transports {
        let kind = match transport.as_str() {
            "http" => TokenKind::HttpPort,
            "websocket" => TokenKind::WebsocketPort,
            _ => {
                return Err(Error::invalid(format!(
                    "transports must consist of \"http\" and \"websocket\", got {transport:?}"
                )));
            }
        };
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    if kinds.is_empty() {
        return Err(Error::invalid("transports must name at least one of \"http\" and \"websocket\""));
    }
    Ok(kinds)
}

/// What makes a service ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// It takes connections.
    Tcp,
    /// It answers a request for this path with a status below 500.
    Http(String),
}

impl Probe {
    /// The word on the wire.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http(_) => "http",
        }
    }
}

/// A valid wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadinessSpec {
    /// For what.
    pub probe: Probe,
    /// How long.
    pub timeout: Duration,
    /// The longest pause between two attempts.
    pub interval: Duration,
}

fn within(field: &str, value: i64, low: u32, high: u32) -> Result<u64> {
    u64::try_from(value)
        .ok()
        .filter(|value| (u64::from(low)..=u64::from(high)).contains(value))
        .ok_or_else(|| Error::invalid(format!("{field} must be between {low} and {high}, got {value}")))
}

fn path(given: Option<String>) -> Result<String> {
    let path = given.unwrap_or_else(|| "/".to_owned());
    if path.len() > PATH_BYTES_MAX {
        let got = path.len();
        return Err(Error::invalid(format!("path must be at most {PATH_BYTES_MAX} bytes long, got {got}")));
    }
    if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) || path.contains('#') {
        return Err(Error::invalid(format!(
            "path must begin with / and be as in a URL, without spaces and #, got {path:?}"
        )));
    }
    Ok(path)
}

/// Judges a wait.
pub fn readiness(request: ReadinessRequest) -> Result<ReadinessSpec> {
    let probe = match request.kind.as_deref() {
        None | Some("tcp") if request.path.is_some() => {
            return Err(Error::invalid("path needs kind \"http\""));
        }
        None | Some("tcp") => Probe::Tcp,
        Some("http") => Probe::Http(path(request.path)?),
        Some(other) => {
            return Err(Error::invalid(format!("kind must be \"tcp\" or \"http\", got {other:?}")));
        }
    };
    let timeout = request.timeout_secs.unwrap_or(READINESS_SECS_DEFAULT);
    let interval = request.interval_ms.unwrap_or(INTERVAL_MS_DEFAULT);
    Ok(ReadinessSpec {
        probe,
        timeout: Duration::from_secs(within("timeout_secs", timeout, 0, READINESS_SECS_MAX)?),
        interval: Duration::from_millis(within("interval_ms", interval, INTERVAL_MS.0, INTERVAL_MS.1)?),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ports_are_numbers_in_bounds_that_are_not_reserved() {
        for (text, code) in [
            ("0", Code::UnsupportedPreviewPort),
            ("22", Code::UnsupportedPreviewPort),
            ("5900", Code::UnsupportedPreviewPort),
            ("5999", Code::UnsupportedPreviewPort),
            ("7001", Code::UnsupportedPreviewPort),
            ("65536", Code::InvalidRequest),
            ("-1", Code::InvalidRequest),
            ("+80", Code::InvalidRequest),
            ("http", Code::InvalidRequest),
            ("", Code::InvalidRequest),
        ] {
            assert_eq!(port_text(text).unwrap_err().code, code, "{text:?}");
        }
        assert_eq!((port_text("8000"), port(Some(65_535))), (Ok(8000), Ok(65_535)));
        assert_eq!(port(None).unwrap_err().message, "port is missing");
    }

    #[test]
    fn a_wait_for_a_service_is_judged_field_by_field() {
        let judge = |body| readiness(serde_json::from_value(body).expect("the body has the right types"));
        let spec = judge(serde_json::json!({})).unwrap();
        assert_eq!((spec.probe, spec.timeout.as_secs(), spec.interval.as_millis()), (Probe::Tcp, 30, 500));
        let spec = judge(serde_json::json!({"kind": "http", "timeout_secs": 0, "path": null})).unwrap();
        assert_eq!((spec.probe, spec.timeout.as_secs()), (Probe::Http("/".into()), 0));
        for (body, says) in [
            (serde_json::json!({"kind": "udp"}), "kind must be"),
            (serde_json::json!({"timeout_secs": 301}), "timeout_secs must be between 0 and 300, got 301"),
            (serde_json::json!({"timeout_secs": -1}), "timeout_secs must be"),
            (serde_json::json!({"interval_ms": 9}), "interval_ms must be between 10 and 60000, got 9"),
            (serde_json::json!({"path": "/"}), "path needs kind"),
            (serde_json::json!({"kind": "http", "path": "x"}), "path must begin with /"),
            (serde_json::json!({"kind": "http", "path": "/a b"}), "path must begin with /"),
            (serde_json::json!({"kind": "http", "path": "/\r\nX: y"}), "path must begin with /"),
        ] {
            let error = judge(body).unwrap_err();
            assert!(error.message.contains(says), "{error}");
        }
        let kinds =
            |words: &[&str]| token_kinds(Some(&words.iter().map(|w| (*w).into()).collect::<Vec<_>>()));
        assert_eq!(kinds(&["http", "http"]), Ok(vec![TokenKind::HttpPort]));
        assert!(kinds(&[]).is_err() && kinds(&["ws"]).is_err());
    }

    proptest! {
        #[test]
        fn a_grant_is_never_shorter_or_longer_than_the_bounds(seconds: Option<i64>) {
            let time = grant_time(seconds, &Limits::default()).as_secs();
            prop_assert!((60..=86_400).contains(&time));
            prop_assert!(seconds.is_some() || time == 900);
        }
    }
}

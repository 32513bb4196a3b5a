//! What may be asked of access by SSH.

use nullspace_types::ssh::{SshAccessRequest, USER_DEFAULT};
use nullspace_types::{Error, Result};

use crate::process::USER_BYTES_MAX;

/// Longest public key.
pub const PUBLIC_KEY_BYTES_MAX: usize = 16 << 10;
/// Most minutes that a certificate is good for.
pub const MINUTES_MAX: i64 = 60;
/// Most seconds that a certificate is good for.
pub const SECONDS_MAX: i64 = 3600;
const SECONDS_DEFAULT: i64 = 600;

/// A valid request. Whether the key is one is for who certifies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshSpec {
    /// One line.
    pub public_key: String,
    /// How long, in seconds.
    pub seconds: i64,
    /// Whom to log in as.
    pub user: String,
}

/// The user is the certificate's principal and part of a command that people paste into a shell, so it is
/// held to what user names consist of.
fn user(given: Option<&str>) -> Result<String> {
    let name = given.map(str::trim).filter(|name| !name.is_empty()).unwrap_or(USER_DEFAULT);
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.len() > USER_BYTES_MAX || name.starts_with(['-', '.']) || !name.bytes().all(valid) {
        return Err(Error::invalid(format!(
            "user must be at most {USER_BYTES_MAX} of a-z, A-Z, 0-9, ., _ and -, got {name:?}"
        )));
    }
    Ok(name.to_owned())
}

fn seconds(request: &SshAccessRequest) -> Result<i64> {
    let within = |field: &str, value: i64, high: i64| {
        if (1..=high).contains(&value) {
            return Ok(value);
        }
        Err(Error::invalid(format!("{field} must be between 1 and {high}, got {value}")))
    };
    match (request.expires_in_minutes, request.ttl_seconds) {
        (Some(_), Some(_)) => {
            Err(Error::invalid("expires_in_minutes and ttl_seconds say the same; send one of them"))
        }
        (Some(minutes), None) => Ok(within("expires_in_minutes", minutes, MINUTES_MAX)? * 60),
        (None, Some(seconds)) => within("ttl_seconds", seconds, SECONDS_MAX),
        (None, None) => Ok(SECONDS_DEFAULT),
    }
}

/// Judges a request.
pub fn validate(request: &SshAccessRequest) -> Result<SshSpec> {
    let key = request.public_key.as_deref().unwrap_or_default().trim();
    if key.is_empty() {
        return Err(Error::invalid("public_key is missing"));
    }
    if key.len() > PUBLIC_KEY_BYTES_MAX {
        let got = key.len();
        return Err(Error::invalid(format!(
            "public_key must be at most {PUBLIC_KEY_BYTES_MAX} bytes long, got {got}"
        )));
    }
    if key.chars().any(char::is_control) {
        return Err(Error::invalid("public_key must be one line, as in a .pub file of OpenSSH"));
    }
    Ok(SshSpec {
        public_key: key.to_owned(),
        seconds: seconds(request)?,
        user: user(request.user.as_deref())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_a_key_a_time_and_a_user_in_bounds() {
        let judge = |body| {
            let request: SshAccessRequest = serde_json::from_value(body).expect("the right types");
            validate(&request)
        };
        let spec = judge(serde_json::json!({"public_key": "ssh-ed25519 AAAA me\n"})).unwrap();
        assert_eq!((spec.public_key.as_str(), spec.seconds), ("ssh-ed25519 AAAA me", 600));
        assert_eq!(spec.user, "root");
        let spec = judge(serde_json::json!({"public_key": "k", "expires_in_minutes": 60, "user": "user"}));
        assert_eq!(spec.unwrap(), SshSpec { public_key: "k".into(), seconds: 3600, user: "user".into() });
        for (body, says) in [
            (serde_json::json!({}), "public_key is missing"),
            (serde_json::json!({"public_key": "a\nb"}), "public_key must be one line"),
            (serde_json::json!({"public_key": "a".repeat(16_385)}), "at most 16384 bytes long, got 16385"),
            (
                serde_json::json!({"public_key": "k", "expires_in_minutes": 61}),
                "expires_in_minutes must be between 1 and 60, got 61",
            ),
            (serde_json::json!({"public_key": "k", "expires_in_minutes": i64::MAX}), "expires_in_minutes"),
            (serde_json::json!({"public_key": "k", "ttl_seconds": 0}), "between 1 and 3600, got 0"),
            (
                serde_json::json!({"public_key": "k", "ttl_seconds": 1, "expires_in_minutes": 1}),
                "send one of them",
            ),
            (serde_json::json!({"public_key": "k", "user": "a b"}), "user must be"),
            (serde_json::json!({"public_key": "k", "user": "$(id)"}), "user must be"),
            (serde_json::json!({"public_key": "k", "user": "-oProxyCommand"}), "user must be"),
        ] {
            let error = judge(body).unwrap_err();
            assert!(error.message.contains(says), "{error}");
        }
    }
}

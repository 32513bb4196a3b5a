//! What opens the ports of a sandbox: tokens of preview grants, traffic tokens, and the labels of preview
//! hosts. All are computed from IDs under one secret of the server's, so that none has to be stored.
//!
//! A preview token is `nsp_` and the base64url of 51 bytes: a version, its kind, its place, its grant's ID, and
//! an HMAC-SHA256 (RFC 2104) over what it is good for: kind, place, grant, sandbox, port and end. 51 bytes
//! leave no bits to spare, so that one token has one spelling. What a grant is worth now is in its row. Nothing
//! here reads the clock.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use data_encoding::{BASE32_NOPAD, HEXLOWER};
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use nullspace_store::Store;
use nullspace_types::Result;
use nullspace_types::id::{PreviewGrantId, SandboxId};
use nullspace_types::preview::TokenTransport;
use serde_json::json;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use crate::secret::server_secret;

/// What every preview token begins with.
pub const EDGE_TOKEN_PREFIX: &str = "nsp_";
/// What every traffic token begins with.
pub const TRAFFIC_TOKEN_PREFIX: &str = "nst_";

/// Its name in the store.
const SECRET: &str = "edge";
/// What is signed begins with that: another form of it has another name.
const FORM: &str = "nullspace-edge-1";
/// The first byte of a token.
const VERSION: u8 = 1;
/// Bytes of a label before it is written: 128 bits are 26 characters.
const LABEL_BYTES: usize = 16;
const ID_BYTES: usize = 16;
const MAC_BYTES: usize = 32;
const TOKEN_BYTES: usize = 3 + ID_BYTES + MAC_BYTES;

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EdgeKind {
    /// HTTP requests.
    Http,
    /// WebSockets.
    Websocket,
    /// HTTP requests of the browser that came with a token.
    Cookie,
}

impl EdgeKind {
    const ALL: [Self; 3] = [Self::Http, Self::Websocket, Self::Cookie];

    const fn byte(self) -> u8 {
        match self {
            Self::Http => b'h',
            Self::Websocket => b'w',
            Self::Cookie => b'c',
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Websocket => "websocket",
            Self::Cookie => "cookie",
        }
    }
}

const fn transport_byte(transport: TokenTransport) -> u8 {
    match transport {
        TokenTransport::Query => b'q',
        TokenTransport::Header => b'h',
    }
}

/// What a token is bound to, besides its kind and place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenSubject {
    /// The grant.
    pub grant: PreviewGrantId,
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// The port.
    pub port: u16,
    /// The grant's end; counts to the second.
    pub expires_at: Timestamp,
}

/// A token as somebody shows it: it proves nothing until it is verified.
#[derive(Clone, PartialEq, Eq)]
pub struct EdgeToken {
    /// The grant that it speaks of.
    pub grant: PreviewGrantId,
    kind: EdgeKind,
    transport: TokenTransport,
    mac: [u8; MAC_BYTES],
}

impl fmt::Debug for EdgeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EdgeToken({})", self.grant)
    }
}

/// A text that is no preview token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no preview token")]
pub struct NoToken;

impl FromStr for EdgeToken {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let body = text.strip_prefix(EDGE_TOKEN_PREFIX).ok_or(NoToken)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| NoToken)?;
        let bytes: [u8; TOKEN_BYTES] = bytes.try_into().map_err(|_| NoToken)?;
        let [VERSION, kind, transport, rest @ ..] = bytes else { return Err(NoToken) };
        let (id, mac) = rest.split_at(ID_BYTES);
        let known = [TokenTransport::Query, TokenTransport::Header];
        Ok(Self {
            grant: format!("{}{}", PreviewGrantId::PREFIX, HEXLOWER.encode(id))
                .parse()
                .map_err(|_| NoToken)?,
            kind: EdgeKind::ALL.into_iter().find(|known| known.byte() == kind).ok_or(NoToken)?,
            transport: known.into_iter().find(|known| transport_byte(*known) == transport).ok_or(NoToken)?,
            mac: mac.try_into().map_err(|_| NoToken)?,
        })
    }
}

/// What makes and judges all of these.
#[derive(Clone)]
pub struct EdgeTokens(Hmac<Sha256>);

impl EdgeTokens {
    /// With the store's secret, which the first server on it makes.
    pub async fn load(store: &dyn Store) -> Result<Self> {
        Ok(Self::new(&server_secret(store, SECRET).await?))
    }

    fn new(secret: &[u8; 32]) -> Self {
        Self(Hmac::new_from_slice(secret).expect("HMAC takes a key of any length"))
    }

    fn over(&self, what: &serde_json::Value) -> [u8; MAC_BYTES] {
        let mut mac = self.0.clone();
        // JSON, so that no two things have one text.
        mac.update(what.to_string().as_bytes());
        mac.finalize().into_bytes().into()
    }

    /// The part of a preview host that stands for a sandbox: 26 characters of `a-z` and `2-7`.
    pub fn label(&self, id: SandboxId) -> String {
        let mac = self.over(&json!([FORM, "label", id]));
        BASE32_NOPAD.encode(&mac[..LABEL_BYTES]).to_ascii_lowercase()
    }

    /// What opens the ports of a private sandbox.
    pub fn traffic_token(&self, id: SandboxId) -> String {
        let mac = self.over(&json!([FORM, "traffic", id]));
        format!("{TRAFFIC_TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(mac))
    }

    /// Whether that is what somebody shows. Takes no time that depends on where the two differ.
    pub fn is_traffic_token(&self, id: SandboxId, shown: &str) -> bool {
        self.traffic_token(id).as_bytes().ct_eq(shown.as_bytes()).into()
    }

    /// A token.
    pub fn issue(&self, subject: &TokenSubject, kind: EdgeKind, transport: TokenTransport) -> String {
        let grant = subject.grant.to_string();
        let id = HEXLOWER
            .decode(&grant.as_bytes()[PreviewGrantId::PREFIX.len()..])
            .expect("an ID is its prefix and hexadecimal digits");
        let head = [VERSION, kind.byte(), transport_byte(transport)];
        let mac = self.mac(subject, kind, transport);
        format!("{EDGE_TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode([&head[..], &id, &mac].concat()))
    }

    /// Whether a token was issued for just this. Takes no time that depends on where the two differ.
    pub fn verify(
        &self,
        shown: &EdgeToken,
        subject: &TokenSubject,
        kind: EdgeKind,
        transport: TokenTransport,
    ) -> bool {
        let good: bool = self.mac(subject, kind, transport).ct_eq(&shown.mac).into();
        // The MAC is over what was asked about; what the text says of itself has to be the same.
        good && (shown.grant, shown.kind, shown.transport) == (subject.grant, kind, transport)
    }

    fn mac(&self, subject: &TokenSubject, kind: EdgeKind, transport: TokenTransport) -> [u8; MAC_BYTES] {
        let TokenSubject { grant, sandbox_id, port, expires_at } = subject;
        let end = expires_at.as_second();
        self.over(&json!([FORM, kind.as_str(), transport, grant, sandbox_id, port, end]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KINDS: [EdgeKind; 3] = EdgeKind::ALL;
    const TRANSPORTS: [TokenTransport; 2] = [TokenTransport::Query, TokenTransport::Header];

    fn subject() -> TokenSubject {
        TokenSubject {
            grant: PreviewGrantId::new(),
            sandbox_id: SandboxId::new(),
            port: 8080,
            expires_at: Timestamp::from_second(2_000_000_000).unwrap(),
        }
    }

    #[test]
    fn a_token_is_good_for_what_it_was_issued_for_and_nothing_else() {
        let (tokens, subject) = (EdgeTokens::new(&[7; 32]), subject());
        for kind in KINDS {
            for transport in TRANSPORTS {
                let text = tokens.issue(&subject, kind, transport);
                let shown: EdgeToken = text.parse().unwrap();
                assert_eq!(shown.grant, subject.grant);
                for other in KINDS {
                    for place in TRANSPORTS {
                        let same = (other, place) == (kind, transport);
                        assert_eq!(tokens.verify(&shown, &subject, other, place), same);
                    }
                }
                for other in [
                    TokenSubject { port: 8081, ..subject },
                    TokenSubject { sandbox_id: SandboxId::new(), ..subject },
                    TokenSubject { grant: PreviewGrantId::new(), ..subject },
                    TokenSubject { expires_at: Timestamp::from_second(2_000_000_001).unwrap(), ..subject },
                ] {
                    assert!(!tokens.verify(&shown, &other, kind, transport));
                }
                assert!(!EdgeTokens::new(&[8; 32]).verify(&shown, &subject, kind, transport));
            }
        }
        // The end counts to the second, as the store may keep it finer or coarser.
        let finer =
            TokenSubject { expires_at: Timestamp::new(2_000_000_000, 999_999_999).unwrap(), ..subject };
        let text = tokens.issue(&finer, EdgeKind::Http, TokenTransport::Query);
        assert!(tokens.verify(&text.parse().unwrap(), &subject, EdgeKind::Http, TokenTransport::Query));
    }

    #[test]
    fn labels_and_traffic_tokens_are_each_sandboxs_own() {
        let (tokens, one, two) = (EdgeTokens::new(&[7; 32]), SandboxId::new(), SandboxId::new());
        let label = tokens.label(one);
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'2'..=b'7');
        assert!(label.len() == 26 && label.bytes().all(allowed), "{label}");
        assert_ne!(label, tokens.label(two));
        assert_ne!(label, EdgeTokens::new(&[8; 32]).label(one));
        let token = tokens.traffic_token(one);
        assert!(token.starts_with("nst_") && tokens.is_traffic_token(one, &token));
        assert!(!tokens.is_traffic_token(two, &token));
        for shown in ["", "nst_", &token[..token.len() - 1], &format!("{token}A"), &token.to_uppercase()] {
            assert!(!tokens.is_traffic_token(one, shown), "{shown}");
        }
    }

    #[tokio::test]
    async fn every_server_on_a_store_makes_the_same_tokens() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/store.db", directory.path().display());
        let store = nullspace_store::open(&url).await.unwrap();
        let (one, two) = (EdgeTokens::load(&*store).await.unwrap(), EdgeTokens::load(&*store).await.unwrap());
        let id = SandboxId::new();
        assert_eq!((one.label(id), one.traffic_token(id)), (two.label(id), two.traffic_token(id)));
    }

    proptest! {
        #[test]
        fn no_changed_text_is_the_token(at in 0_usize..72, to in 0_u8..128) {
            let (tokens, subject) = (EdgeTokens::new(&[7; 32]), subject());
            let text = tokens.issue(&subject, EdgeKind::Http, TokenTransport::Query);
            prop_assert_eq!(text.len(), 72);
            let mut bytes = text.into_bytes();
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            let changed = String::from_utf8(bytes).unwrap();
            let good = changed.parse::<EdgeToken>().is_ok_and(|shown| {
                tokens.verify(&shown, &subject, EdgeKind::Http, TokenTransport::Query)
            });
            prop_assert!(!good, "{}", changed);
        }

        #[test]
        fn a_text_that_is_read_is_the_only_one_of_its_token(text in "nsp_AWhx[A-Za-z0-9_-]{63,65}=?|nsp_[A-Za-z0-9_-]{68}|.{0,80}") {
            if let Ok(token) = text.parse::<EdgeToken>() {
                let id = token.grant.to_string();
                let id = HEXLOWER.decode(&id.as_bytes()[PreviewGrantId::PREFIX.len()..]).unwrap();
                let head = [VERSION, token.kind.byte(), transport_byte(token.transport)];
                let bytes = [&head[..], &id, &token.mac].concat();
                prop_assert_eq!(format!("nsp_{}", URL_SAFE_NO_PAD.encode(bytes)), text);
            }
        }
    }
}

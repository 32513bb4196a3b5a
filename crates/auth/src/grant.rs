//! Grants: what makes a URL work without a key, for one file of one sandbox, one direction and a while.
//!
//! A grant is an HMAC-SHA256 (RFC 2104) over everything that it allows, under a secret of the server's own. It
//! stands in the URL's query beside what it signs, so nothing is stored for it: changing the path, the
//! user, the expiry, the sandbox or the direction makes it another text, which nobody signed. It speaks for
//! the key that asked for it, and ends with that too.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use form_urlencoded::{Serializer, parse};
use hmac::{Hmac, KeyInit as _, Mac as _};
use nullspace_store::Store;
use nullspace_types::id::{KeyId, SandboxId, TenantId};
use nullspace_types::key::Principal;
use nullspace_types::{Code, Error, Result};
use serde_json::json;
use sha2::Sha256;

use crate::secret::server_secret;

/// The parameter of a URL's query that holds the grant.
pub const PARAMETER: &str = "grant";

/// Its name in the store.
const SECRET: &str = "grants";
/// What is signed begins with that: another form of it has another name.
const FORM: &str = "nullspace-grant-1";

/// In which direction a grant lets content pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Out of the sandbox.
    Download,
    /// Into it.
    Upload,
}

/// What a grant allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Of which sandbox.
    pub sandbox_id: SandboxId,
    /// Which way.
    pub direction: Direction,
    /// Which file, as it was named.
    pub path: String,
    /// On whose behalf.
    pub user: Option<String>,
    /// Until when, in seconds since the epoch; that second is the first in which it no longer works.
    pub expires: i64,
}

/// A URL's query, and the grant in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The query, without `?`.
    pub query: String,
    /// What authorises.
    pub token: String,
}

/// What signs grants and judges them.
#[derive(Clone)]
pub struct Signer(Hmac<Sha256>);

impl Signer {
    /// With the store's secret, which the first server on it makes.
    pub async fn load(store: &dyn Store) -> Result<Self> {
        Ok(Self::new(&server_secret(store, SECRET).await?))
    }

    fn new(secret: &[u8; 32]) -> Self {
        Self(Hmac::new_from_slice(secret).expect("HMAC takes a key of any length"))
    }

    fn over(&self, principal: Principal, grant: &Grant) -> Hmac<Sha256> {
        let Grant { sandbox_id, direction, path, user, expires } = grant;
        let direction = match direction {
            Direction::Download => "GET",
            Direction::Upload => "PUT",
        };
        let Principal { tenant_id, key_id } = principal;
        // JSON, so that no two grants have one text, whatever stands in a path.
        let text = json!([FORM, tenant_id, key_id, sandbox_id, direction, path, user, expires]);
        let mut mac = self.0.clone();
        mac.update(text.to_string().as_bytes());
        mac
    }

    /// Signs a grant in somebody's name.
    pub fn sign(&self, principal: Principal, grant: &Grant) -> Signed {
        let mac = URL_SAFE_NO_PAD.encode(self.over(principal, grant).finalize().into_bytes());
        let token = format!("{}.{}.{mac}", principal.tenant_id, principal.key_id);
        let mut query = Serializer::new(String::new());
        query.append_pair("path", &grant.path);
        if let Some(user) = &grant.user {
            query.append_pair("user", user);
        }
        query.append_pair("expires", &grant.expires.to_string());
        query.append_pair(PARAMETER, &token);
        Signed { query: query.finish(), token }
    }

    /// Who signed the query of a URL, if it was signed for this sandbox and direction and its time is not
    /// over. Whether the signer's key still is good, only the store knows.
    pub fn verify(&self, sandbox: &str, direction: Direction, query: &str, now: i64) -> Result<Principal> {
        let (principal, grant, mac) = presented(sandbox, direction, query).ok_or_else(invalid)?;
        // Takes no time that depends on where the two differ.
        self.over(principal, &grant).verify_slice(&mac).map_err(|_| invalid())?;
        if grant.expires <= now {
            return Err(Error::new(Code::EdgeTokenExpired, "the time of this signed URL is over")
                .suggest("ask for a new one"));
        }
        Ok(principal)
    }
}

/// The refusal of whatever proves nothing; why, it does not say.
fn invalid() -> Error {
    Error::new(
        Code::EdgeTokenInvalid,
        "the grant of this signed URL is not one for this sandbox, path, user, expiry and method",
    )
    .suggest("use the URL exactly as it was given out, or ask for a new one")
}

/// What a query says, and the signature on it.
fn presented(sandbox: &str, direction: Direction, query: &str) -> Option<(Principal, Grant, Vec<u8>)> {
    let (mut path, mut user, mut expires, mut token) = (None, None, None, None);
    for (name, value) in parse(query.as_bytes()) {
        let known = match &*name {
            "path" => &mut path,
            "user" => &mut user,
            "expires" => &mut expires,
            PARAMETER => &mut token,
            _ => continue,
        };
        // Of two, one could be signed and the other heeded.
        if known.replace(value.into_owned()).is_some() {
            return None;
        }
    }
    let token = token?;
    let mut parts = token.split('.');
    let (tenant_id, key_id) = (parts.next()?.parse::<TenantId>().ok()?, parts.next()?.parse::<KeyId>().ok()?);
    let mac = URL_SAFE_NO_PAD.decode(parts.next()?).ok()?;
    let expires = expires?;
    let grant = Grant {
        sandbox_id: sandbox.parse().ok()?,
        direction,
        path: path?,
        user,
        // One number has one spelling.
        expires: expires.parse().ok().filter(|number: &i64| number.to_string() == expires)?,
    };
    parts.next().is_none().then_some((Principal { tenant_id, key_id }, grant, mac))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn principal() -> Principal {
        Principal { tenant_id: TenantId::new(), key_id: KeyId::new() }
    }

    fn grant(path: &str, user: Option<&str>, expires: i64) -> Grant {
        Grant {
            sandbox_id: SandboxId::new(),
            direction: Direction::Download,
            path: path.into(),
            user: user.map(str::to_owned),
            expires,
        }
    }

    fn code(result: Result<Principal>) -> Code {
        result.unwrap_err().code
    }

    #[test]
    fn a_grant_is_good_for_what_it_was_signed_for_and_until_its_time_is_over() {
        let (signer, signed_by, grant) = (Signer::new(&[1; 32]), principal(), grant("/tmp/a", None, 100));
        let Signed { query, token } = signer.sign(signed_by, &grant);
        assert!(query.ends_with(&token), "{query}");
        let sandbox = grant.sandbox_id.to_string();
        let judge =
            |signer: &Signer, sandbox: &str, direction, now| signer.verify(sandbox, direction, &query, now);
        assert_eq!(judge(&signer, &sandbox, Direction::Download, 99), Ok(signed_by));
        assert_eq!(code(judge(&signer, &sandbox, Direction::Download, 100)), Code::EdgeTokenExpired);
        assert_eq!(code(judge(&signer, &sandbox, Direction::Upload, 99)), Code::EdgeTokenInvalid);
        let other = SandboxId::new().to_string();
        assert_eq!(code(judge(&signer, &other, Direction::Download, 99)), Code::EdgeTokenInvalid);
        assert_eq!(code(judge(&signer, "sb_x", Direction::Download, 99)), Code::EdgeTokenInvalid);
        let foreign = Signer::new(&[2; 32]);
        assert_eq!(code(judge(&foreign, &sandbox, Direction::Download, 99)), Code::EdgeTokenInvalid);
    }

    #[test]
    fn a_query_that_says_something_twice_or_in_another_spelling_proves_nothing() {
        let (signer, signed_by, grant) = (Signer::new(&[1; 32]), principal(), grant("/a", Some("u"), 100));
        let Signed { query, .. } = signer.sign(signed_by, &grant);
        let sandbox = grant.sandbox_id.to_string();
        for changed in [
            format!("{query}&path=/b"),
            format!("path=/b&{query}"),
            format!("{query}&user=root"),
            query.replace("user=u&", ""),
            query.replace("expires=100", "expires=%2B100"),
            query.replace("expires=100", "expires=0100"),
            query.replace("expires=100", "expires=101"),
            format!("{query}.x"),
            query[..query.len() - 1].to_owned(),
            String::new(),
        ] {
            let judged = signer.verify(&sandbox, Direction::Download, &changed, 0);
            assert_eq!(code(judged), Code::EdgeTokenInvalid, "{changed}");
        }
        assert_eq!(signer.verify(&sandbox, Direction::Download, &format!("{query}&x=1"), 0), Ok(signed_by));
    }

    proptest! {
        #[test]
        fn whatever_the_path_it_is_signed_and_read_back(path in ".{1,40}", user in proptest::option::of("[a-z]{1,8}")) {
            let (signer, signed_by) = (Signer::new(&[3; 32]), principal());
            let grant = grant(&path, user.as_deref(), 100);
            let Signed { query, .. } = signer.sign(signed_by, &grant);
            let sandbox = grant.sandbox_id.to_string();
            prop_assert_eq!(signer.verify(&sandbox, Direction::Download, &query, 0), Ok(signed_by));
            prop_assert_eq!(presented(&sandbox, Direction::Download, &query).unwrap().1, grant);
        }

        #[test]
        fn a_grant_for_one_thing_is_none_for_another(
            one in ("[/a-c\"\\\\]{1,6}", proptest::option::of("[a-c]{0,3}"), 0_i64..1000),
            other in ("[/a-c\"\\\\]{1,6}", proptest::option::of("[a-c]{0,3}"), 0_i64..1000),
        ) {
            prop_assume!(one != other);
            let (signer, signed_by) = (Signer::new(&[4; 32]), principal());
            let of = |(path, user, expires): &(String, Option<String>, i64)| grant(path, user.as_deref(), *expires);
            let one = of(&one);
            let other = Grant { sandbox_id: one.sandbox_id, ..of(&other) };
            let (signed, unsigned) = (signer.sign(signed_by, &one), signer.sign(signed_by, &other));
            let forged = unsigned.query.replace(&unsigned.token, &signed.token);
            let judged = signer.verify(&one.sandbox_id.to_string(), Direction::Download, &forged, -1);
            prop_assert_eq!(code(judged), Code::EdgeTokenInvalid);
        }
    }
}

//! The secret of an API key: `ns_live_` and 256 random bits in base64url; and the server's own secrets.
//!
//! Only its SHA-256 is stored. A slow hash protects secrets that people think up; nobody guesses 256 random
//! bits, so a fast one loses nothing and every request is spared the wait.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nullspace_store::Store;
use nullspace_types::{Error, Result};
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use sha2::{Digest as _, Sha256};

/// What every key begins with.
pub const KEY_PREFIX: &str = "ns_live_";

/// Random bytes in a key.
const BYTES: usize = 32;
/// Characters that they make.
const CHARACTERS: usize = 43;
/// Characters of a key that are shown for recognising it, beyond the prefix: too few to help in guessing
/// the rest.
const HINT: usize = 4;

/// A key in the clear. It has no `Display`, and its `Debug` does not show it: it is read only where
/// [`Secret::expose`] is written.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// A new key, from the operating system's random source.
    pub fn generate() -> Result<Self> {
        Ok(Self(format!("{KEY_PREFIX}{}", URL_SAFE_NO_PAD.encode(random::<BYTES>()?))))
    }

    /// The text as a key, if it has the form of one.
    pub fn parse(text: &str) -> Option<Self> {
        let characters = text.strip_prefix(KEY_PREFIX)?;
        // The decoder refuses a last character with bits to spare, so that one key has one spelling.
        (characters.len() == CHARACTERS
            && URL_SAFE_NO_PAD.decode(characters).is_ok_and(|bytes| bytes.len() == BYTES))
        .then(|| Self(text.to_owned()))
    }

    /// The key itself, for the one who shall hold it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is stored of it.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }

    /// What is shown of it.
    pub fn hint(&self) -> String {
        self.0.chars().take(KEY_PREFIX.len() + HINT).collect()
    }
}

/// Bytes from the operating system's random source.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    OsRng.try_fill_bytes(&mut bytes).map_err(|error| {
        Error::internal(format_args!("the operating system gave no random bytes: {error}"))
    })?;
    Ok(bytes)
}

/// A secret of the server's own, by its name in the store: the first server on it makes it.
pub(crate) async fn server_secret(store: &dyn Store, name: &str) -> Result<[u8; 32]> {
    Ok(store.secret_ensure(name, &random()?).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_its_form_and_is_read_back() {
        let secret = Secret::generate().unwrap();
        assert_eq!(secret.expose().len(), KEY_PREFIX.len() + 43);
        assert_eq!(Secret::parse(secret.expose()), Some(secret.clone()));
        assert!(secret.expose().starts_with(&secret.hint()) && secret.hint().len() == 12);
        assert_ne!(secret.hash(), Secret::generate().unwrap().hash());
    }

    #[test]
    fn other_forms_are_refused() {
        let good = format!("{KEY_PREFIX}{}", "A".repeat(43));
        assert!(Secret::parse(&good).is_some());
        for text in [
            String::new(),
            "A".repeat(51),
            good[..50].to_owned(),
            format!("{good}A"),
            format!("{good}="),
            // Bits to spare in the last character.
            format!("{}B", &good[..50]),
            format!("{}+", &good[..50]),
            format!("ns_test_{}", "A".repeat(43)),
        ] {
            assert!(Secret::parse(&text).is_none(), "{text}");
        }
    }

    #[test]
    fn debug_output_does_not_show_the_key() {
        assert_eq!(format!("{:?}", Secret::generate().unwrap()), "Secret(…)");
    }
}

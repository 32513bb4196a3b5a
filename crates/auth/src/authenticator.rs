//! From an `Authorization` header to a principal. A key found good is remembered for a moment, so that a
//! request normally costs no read of the store.
//!
//! The cache is keyed by the secret's SHA-256, never the secret. Only good keys are remembered: remembering
//! bad ones would let anybody fill the cache.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nullspace_store::Store;
use nullspace_types::id::KeyId;
use nullspace_types::key::{Key, Principal};
use nullspace_types::{Code, Error, Result};
use subtle::ConstantTimeEq as _;

use crate::grant::{Direction, Grant, Signed, Signer};
use crate::keys::{self, NewlyMade};
use crate::secret::{KEY_PREFIX, Secret};

/// How long a key found good stays good without another look: so long may a key live on that another
/// process revoked, such as the command line. One read per key and second is nothing to any store.
pub const CACHE_TTL: Duration = Duration::from_secs(1);

/// Keys remembered at most.
const CACHE_MAX: usize = 4096;

#[derive(Default)]
struct Cache {
    good: HashMap<[u8; 32], (Principal, Instant)>,
    /// Grows with every revocation: what was read before one is not remembered after it.
    epoch: u64,
}

/// Proves keys and grants against the store. One per server; shared by reference.
pub struct Authenticator {
    store: Arc<dyn Store>,
    signer: Signer,
    ttl: Duration,
    cache: Mutex<Cache>,
}

impl Authenticator {
    /// An authenticator over the keys and the secret of a store.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self> {
        let signer = Signer::load(&*store).await?;
        Ok(Self { store, signer, ttl: CACHE_TTL, cache: Mutex::default() })
    }

    /// The principal that the header's key proves. Every refusal is [`Code::Unauthorized`].
    pub async fn authenticate(&self, authorization: Option<&str>) -> Result<Principal> {
        let secret = presented(authorization)?;
        let hash = secret.hash();
        let epoch = {
            let cache = self.cache();
            match cache.good.get(&hash) {
                Some((principal, until)) if Instant::now() < *until => return Ok(*principal),
                Some(_) | None => cache.epoch,
            }
        };
        let asked = Instant::now();
        let found = self.store.key_find(&hash).await?;
        // Found by its hash already; what is compared again is what decides, and takes no time that
        // depends on where it differs.
        let row = found.filter(|row| row.secret_hash.ct_eq(&hash).into()).ok_or_else(|| {
            refused("this server does not know this API key")
                .suggest("check that the key belongs to this server, or make one with `nullspace key create`")
        })?;
        if row.key.revoked_at.is_some() {
            // Only whoever holds the whole secret learns this.
            return Err(refused("this API key was revoked").suggest("use another key"));
        }
        let principal = Principal { tenant_id: row.key.tenant_id, key_id: row.key.id };
        self.remember(hash, principal, epoch, asked);
        Ok(principal)
    }

    /// Signs a grant in the name of whoever asks for it.
    pub fn grant(&self, principal: Principal, grant: &Grant) -> Signed {
        self.signer.sign(principal, grant)
    }

    /// The principal in whose name the query of a URL was signed, for this sandbox and direction. Every
    /// refusal is [`Code::EdgeTokenInvalid`] or [`Code::EdgeTokenExpired`].
    pub async fn authenticate_grant(
        &self,
        sandbox: &str,
        direction: Direction,
        query: &str,
    ) -> Result<Principal> {
        let now = Timestamp::now().as_second();
        let principal = self.signer.verify(sandbox, direction, query, now)?;
        if !self.is_good(principal).await? {
            return Err(Error::new(Code::EdgeTokenInvalid, "the API key that signed this URL was revoked")
                .suggest("ask for a new URL with another key"));
        }
        Ok(principal)
    }

    /// Ok if the key that something was asked for with has not been revoked since;
    /// [`Code::Unauthorized`] otherwise. Asks the store each time.
    pub async fn still_good(&self, principal: Principal) -> Result<()> {
        if !self.is_good(principal).await? {
            return Err(refused("the API key that this was asked for with was revoked")
                .suggest("ask with another key"));
        }
        Ok(())
    }

    async fn is_good(&self, principal: Principal) -> Result<bool> {
        let key = self.store.key_get(principal.key_id).await?;
        Ok(key.is_some_and(|key| key.revoked_at.is_none() && key.tenant_id == principal.tenant_id))
    }

    /// See [`keys::create`].
    pub async fn key_create(&self, tenant: &str, label: &str) -> Result<NewlyMade> {
        keys::create(&*self.store, tenant, label).await
    }

    /// See [`keys::list`].
    pub async fn key_list(&self, tenant: Option<&str>) -> Result<Vec<Key>> {
        keys::list(&*self.store, tenant).await
    }

    /// See [`keys::revoke`]. Once this answers, this server takes the key no more.
    pub async fn key_revoke(&self, id: KeyId) -> Result<Key> {
        let revoked = keys::revoke(&*self.store, id).await;
        // Even if it failed: it may have failed after the database did it.
        let mut cache = self.cache();
        cache.epoch += 1;
        cache.good.retain(|_, (principal, _)| principal.key_id != id);
        revoked
    }

    fn remember(&self, hash: [u8; 32], principal: Principal, epoch: u64, asked: Instant) {
        let mut cache = self.cache();
        if cache.epoch != epoch {
            return;
        }
        if cache.good.len() >= CACHE_MAX {
            let now = Instant::now();
            cache.good.retain(|_, (_, until)| now < *until);
            // More keys in use within a second than fit: begin anew rather than track who was used last.
            if cache.good.len() >= CACHE_MAX {
                cache.good.clear();
            }
        }
        // Counted from before the read: what was read is no older than that.
        cache.good.insert(hash, (principal, asked + self.ttl));
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        // Whoever panicked with it left a map that is whole.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(message: &str) -> Error {
    Error::new(Code::Unauthorized, message)
}

/// The key that a header presents.
fn presented(authorization: Option<&str>) -> Result<Secret> {
    let header = authorization.map(str::trim).filter(|header| !header.is_empty()).ok_or_else(|| {
        refused("no API key was sent").suggest("send the header `Authorization: Bearer <API key>`")
    })?;
    let (scheme, key) = header.split_once(' ').unwrap_or((header, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(refused("the Authorization header is not of the scheme Bearer")
            .suggest("send the header `Authorization: Bearer <API key>`"));
    }
    Secret::parse(key.trim()).ok_or_else(|| {
        refused("the API key is malformed")
            .suggest(format!("a key is {KEY_PREFIX} and 43 more characters; check that it was copied whole"))
    })
}

#[cfg(test)]
#[path = "authenticator_tests.rs"]
mod tests;

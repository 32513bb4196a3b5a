//! Making, listing and revoking keys, for the operator. Whatever process does it, a server that is running
//! heeds a revocation within [`CACHE_TTL`](crate::CACHE_TTL).

use nullspace_store::key::NewKey;
use nullspace_store::{Error as StoreError, Store, now};
use nullspace_types::id::KeyId;
use nullspace_types::key::Key;
use nullspace_types::{Code, Error, Result};

use crate::secret::Secret;

/// The tenant of whoever names none.
pub const DEFAULT_TENANT: &str = "default";

/// Longest name of a tenant.
pub const TENANT_NAME_MAX: usize = 64;
/// Longest label of a key, in characters.
pub const LABEL_MAX: usize = 128;

/// A key just made: the only moment its secret is there to be read.
#[derive(Debug)]
pub struct NewlyMade {
    /// What is listed of it.
    pub key: Key,
    /// For its holder.
    pub secret: Secret,
}

fn check_tenant(name: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > TENANT_NAME_MAX || !name.bytes().all(allowed) {
        return Err(Error::invalid(format!(
            "tenant must be 1 to {TENANT_NAME_MAX} letters, digits, '-', '_' or '.', got {name:?}"
        )));
    }
    Ok(())
}

/// Makes a key for a tenant, and the tenant too if there is none of that name.
pub async fn create(store: &dyn Store, tenant: &str, label: &str) -> Result<NewlyMade> {
    let secret = Secret::generate()?;
    let key = register(store, tenant, label, &secret).await?;
    Ok(NewlyMade { key, secret })
}

/// Stores a key that has been generated already.
pub(crate) async fn register(store: &dyn Store, tenant: &str, label: &str, secret: &Secret) -> Result<Key> {
    check_tenant(tenant)?;
    if label.chars().count() > LABEL_MAX || label.chars().any(char::is_control) {
        return Err(Error::invalid(format!(
            "label must be at most {LABEL_MAX} characters without control characters"
        )));
    }
    let tenant = store.tenant_ensure(tenant, now()).await?;
    let new = NewKey {
        id: KeyId::new(),
        tenant_id: tenant.id,
        label: label.to_owned(),
        hint: secret.hint(),
        secret_hash: secret.hash(),
        created_at: now(),
    };
    Ok(store.key_insert(&new).await?)
}

/// Every key, revoked ones too, oldest first; of one tenant if named.
pub async fn list(store: &dyn Store, tenant: Option<&str>) -> Result<Vec<Key>> {
    let tenant = match tenant {
        None => None,
        Some(name) => {
            check_tenant(name)?;
            let missing = || Error::new(Code::NotFound, format!("there is no tenant {name:?}"));
            Some(store.tenant_find(name).await?.ok_or_else(missing)?.id)
        }
    };
    Ok(store.key_list(tenant).await?)
}

/// Revokes a key. Doing so again is no error.
pub async fn revoke(store: &dyn Store, id: KeyId) -> Result<Key> {
    store.key_revoke(id, now()).await.map_err(|error| match error {
        StoreError::NotFound(_) => Error::new(Code::NotFound, format!("there is no API key {id}"))
            .suggest("list the keys with `nullspace key list`"),
        other => other.into(),
    })
}

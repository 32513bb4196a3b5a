//! Who is asking: API keys, and the principal that a good one proves; grants, which let whoever holds a signed
//! URL do one thing in the name of whoever signed it; what opens ports ([`edge`]); certificates for SSH
//! ([`ssh`]); and the sealing of stored secrets ([`vault`]). Owns the cache of keys seen lately; the keys
//! themselves, and the secrets that all of this is signed with, are rows of the store. What stored secrets are
//! sealed with is in a file.
//!
//! Every key may do every operation of its own tenant, so there is no table of permissions here yet; that
//! the tenant is its own is the store's business, whose every query carries it. Deliberately absent: HTTP
//! (the caller hands in a header's text) and the secret of any key after it was given out.

mod admin;
mod authenticator;
pub mod edge;
pub mod grant;
pub mod keys;
mod secret;
pub mod ssh;
pub mod vault;

pub use admin::{Admin, ensure_admin};
pub use authenticator::{Authenticator, CACHE_TTL};
pub use edge::{EdgeKind, EdgeToken, EdgeTokens, TokenSubject};
pub use secret::{KEY_PREFIX, Secret};
pub use ssh::SshAuthority;
pub use vault::Vault;

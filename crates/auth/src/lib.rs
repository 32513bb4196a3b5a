//! Who is asking: API keys, and the principal that a good one proves; and grants, which let whoever holds a
//! signed URL do one thing in the name of whoever signed it. Owns the cache of keys seen lately; the keys
//! themselves, and the secret that grants are signed with, are rows of the store.
//!
//! Every key may do every operation of its own tenant, so there is no table of permissions here yet; that
//! the tenant is its own is the store's business, whose every query carries it. Deliberately absent: HTTP
//! (the caller hands in a header's text) and the secret of any key after it was given out.

mod admin;
mod authenticator;
pub mod grant;
pub mod keys;
mod secret;

pub use admin::{Admin, ensure_admin};
pub use authenticator::{Authenticator, CACHE_TTL};
pub use secret::{KEY_PREFIX, Secret};

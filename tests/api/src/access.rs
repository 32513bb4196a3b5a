//! What control is given to judge by where there is no server around it: keys and secrets of its own, and no
//! listener.

use std::io::{Error as IoError, Result as IoResult};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use nullspace_auth::{EdgeTokens, SshAuthority, Vault};
use nullspace_control::{Access, Doors, KeyCheck, PreviewAddresses};
use nullspace_store::Store;
use nullspace_store::preview::LocalPort;
use nullspace_types::Result;
use nullspace_types::key::Principal;

/// For a control over this store, with the key of its secrets in this directory.
pub async fn access(store: &dyn Store, directory: &Path) -> Access {
    Access {
        tokens: EdgeTokens::load(store).await.expect("the store has room"),
        vault: Vault::open(&directory.join("secrets.key")).expect("the directory has room"),
        ssh: SshAuthority::load(store).await.expect("the store has room"),
        authenticator: Arc::new(EveryKey),
        previews: PreviewAddresses::Local { bind: IpAddr::V4(Ipv4Addr::LOCALHOST), ports: 20_000..=29_999 },
        relay: None,
        doors: Arc::new(NoDoors),
    }
}

struct EveryKey;

#[async_trait]
impl KeyCheck for EveryKey {
    async fn still_good(&self, _: Principal) -> Result<()> {
        Ok(())
    }
}

struct NoDoors;

#[async_trait]
impl Doors for NoDoors {
    async fn open(&self, _: LocalPort) -> IoResult<()> {
        Err(IoError::other("nothing listens in this test"))
    }

    async fn close(&self, _: u16) {}
}

//! Local addresses in memory, and what control is given for the ways into sandboxes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use nullspace_auth::{EdgeTokens, SshAuthority, Vault};
use nullspace_control::{Access, Doors, KeyCheck, PreviewAddresses};
use nullspace_store::Store;
use nullspace_store::preview::LocalPort;
use nullspace_types::id::KeyId;
use nullspace_types::key::Principal;
use nullspace_types::{Code, Error, Result};

#[derive(Debug, Default)]
pub struct Host {
    pub open: BTreeMap<u16, LocalPort>,
    /// Ports that others listen on.
    pub foreign: BTreeSet<u16>,
    /// Keys that are revoked.
    pub revoked: Vec<KeyId>,
}

/// The host's ports; clones are the same ones.
#[derive(Debug, Clone, Default)]
pub struct TestDoors(Arc<Mutex<Host>>);

impl TestDoors {
    pub fn with<T>(&self, change: impl FnOnce(&mut Host) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }
}

#[async_trait]
impl Doors for TestDoors {
    async fn open(&self, port: LocalPort) -> io::Result<()> {
        self.with(|host| {
            if host.foreign.contains(&port.local)
                || host.open.get(&port.local).is_some_and(|other| *other != port)
            {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            host.open.insert(port.local, port);
            Ok(())
        })
    }

    async fn close(&self, local: u16) {
        self.with(|host| host.open.remove(&local));
    }
}

#[async_trait]
impl KeyCheck for TestDoors {
    async fn still_good(&self, principal: Principal) -> Result<()> {
        let revoked = self.with(|host| host.revoked.contains(&principal.key_id));
        if revoked { Err(Error::new(Code::Unauthorized, "the key was revoked")) } else { Ok(()) }
    }
}

pub async fn access(store: &dyn Store, directory: &Path, doors: &TestDoors) -> Access {
    Access {
        tokens: EdgeTokens::load(store).await.unwrap(),
        vault: Vault::open(&directory.join("secrets.key")).unwrap(),
        ssh: SshAuthority::load(store).await.unwrap(),
        authenticator: Arc::new(doors.clone()),
        previews: PreviewAddresses::Local { bind: Ipv4Addr::LOCALHOST.into(), ports: 20_000..=20_009 },
        relay: Some(("127.0.0.1".to_owned(), 3022)),
        doors: Arc::new(doors.clone()),
    }
}

//! Network slots as the node uses them: real ones from the network room, or none behind fake machines.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use nullspace_guest_proto as proto;
use nullspace_net::Enforced;
use nullspace_node_api::Stream;
use nullspace_types::Error;
use nullspace_types::network::Denial;
use nullspace_vmm::{GuestLink, LinkStream, Placement};

use crate::door::dial_error;

/// The link that every machine has.
pub fn link() -> nullspace_net::LinkConfig {
    nullspace_net::LinkConfig {
        guest: proto::GUEST_ADDRESS,
        gateway: proto::GATEWAY_ADDRESS,
        prefix: proto::LINK_PREFIX,
        guest_mac: nullspace_net::MacAddress(proto::GUEST_MAC),
        gateway_mac: nullspace_net::MacAddress(proto::GATEWAY_MAC),
    }
}

/// Where slots come from.
pub enum Slots {
    /// Namespaces, taps and firewalls of this host.
    Real {
        /// The pool.
        pool: nullspace_net::SlotPool,
        /// Tells this server's things from another's on the same host.
        instance: String,
    },
    /// Numbers only.
    Fake(AtomicU32),
}

/// One machine's place on the network. All clones are the same.
#[derive(Clone)]
pub enum Slot {
    /// See [`Slots::Real`].
    Real {
        /// The slot.
        slot: nullspace_net::Slot,
        /// See [`Slots::Real`].
        instance: String,
    },
    /// See [`Slots::Fake`].
    Fake(u32),
}

impl Slots {
    /// A slot for one machine, made ahead where possible.
    pub async fn take(&self) -> Result<Slot, Error> {
        match self {
            Self::Real { pool, instance } => {
                let slot = pool.take().await.map_err(net_error)?;
                Ok(Slot::Real { slot, instance: instance.clone() })
            }
            Self::Fake(next) => Ok(Slot::Fake(next.fetch_add(1, Ordering::Relaxed))),
        }
    }

    /// How many are made ahead.
    pub fn ready(&self) -> usize {
        match self {
            Self::Real { pool, .. } => pool.status().ready,
            Self::Fake(_) => 0,
        }
    }

    /// Removes the slots that nobody uses.
    pub async fn shutdown(&self) -> Result<(), Error> {
        match self {
            Self::Real { pool, .. } => pool.shutdown().await.map_err(net_error),
            Self::Fake(_) => Ok(()),
        }
    }

    /// What machines were denied since the last look, by their slots' numbers. Resolves when there is some.
    pub async fn denials(&self) -> Vec<(u32, Denial)> {
        match self {
            Self::Real { pool, .. } => pool.denials().await,
            Self::Fake(_) => std::future::pending().await,
        }
    }

    /// Whether making slots has to wait for more urgent work.
    pub fn set_busy(&self, busy: bool) {
        if let Self::Real { pool, .. } = self {
            pool.set_busy(busy);
        }
    }
}

impl Slot {
    /// Removes it with all it holds. Nothing of it may be in use any more.
    pub async fn release(self) -> Result<(), Error> {
        match self {
            Self::Real { slot, .. } => slot.release().await.map_err(net_error),
            Self::Fake(_) => Ok(()),
        }
    }

    /// Unique among the slots of this host.
    pub fn index(&self) -> u32 {
        match self {
            Self::Real { slot, .. } => slot.index(),
            Self::Fake(index) => *index,
        }
    }

    /// Closes the machine's way out, until a policy is put in force.
    pub fn close(&self) -> Result<(), Error> {
        match self {
            Self::Real { slot, .. } => slot.close().map_err(net_error),
            Self::Fake(_) => Ok(()),
        }
    }

    /// Puts a policy in force, all at once. If this fails the way out is closed.
    pub async fn set_egress(&self, enforced: Arc<Enforced>) -> Result<(), Error> {
        match self {
            Self::Real { slot, .. } => slot.set_egress(enforced).await.map_err(net_error),
            Self::Fake(_) => Ok(()),
        }
    }

    /// What the machine was denied and nobody has been told of.
    pub fn take_denials(&self) -> Result<Vec<Denial>, Error> {
        match self {
            Self::Real { slot, .. } => slot.take_denials().map_err(net_error),
            Self::Fake(_) => Ok(Vec::new()),
        }
    }

    /// Connects to a port of the machine.
    pub async fn dial(&self, port: u16, patience: Duration) -> Result<Stream, Error> {
        match self {
            Self::Real { slot, .. } => match slot.dial(port, patience).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(nullspace_net::Error::Io { source, .. }) => Err(dial_error(port, &source)),
                Err(error) => Err(dial_error(port, &std::io::Error::other(crate::chain(&error)))),
            },
            Self::Fake(_) => Err(dial_error(port, &std::io::ErrorKind::Unsupported.into())),
        }
    }

    /// The way to the guest's agent.
    pub fn link(&self) -> Arc<dyn GuestLink> {
        match self {
            Self::Real { slot, .. } => Arc::new(TapLink(slot.clone())),
            Self::Fake(_) => Arc::new(NoLink),
        }
    }

    /// A place in this slot for a machine with this directory.
    pub fn placement(&self, directory: &Path) -> Result<Placement, Error> {
        let (tap, network_namespace, uid, instance): (OwnedFd, PathBuf, u32, &str) = match self {
            Self::Real { slot, instance } => {
                (slot.open_tap().map_err(net_error)?, slot.netns_path(), slot.uid(), instance)
            }
            Self::Fake(_) => (
                std::fs::File::open("/dev/null").map_err(Error::internal)?.into(),
                "/dev/null".into(),
                0,
                "fake",
            ),
        };
        Ok(Placement {
            name: format!("{instance}-{}", self.index()),
            directory: directory.to_owned(),
            uid,
            network_namespace,
            tap,
            link: self.link(),
        })
    }
}

/// TCP over the sandbox's own tap, on sockets made in its namespace.
struct TapLink(nullspace_net::Slot);

#[async_trait]
impl GuestLink for TapLink {
    async fn dial(&self, deadline: Duration) -> std::io::Result<Box<dyn LinkStream>> {
        self.connect(proto::AGENT_PORT, deadline).await
    }

    fn has_bulk(&self) -> bool {
        true
    }

    async fn dial_bulk(&self, deadline: Duration) -> std::io::Result<Box<dyn LinkStream>> {
        self.connect(proto::BULK_PORT, deadline).await
    }
}

impl TapLink {
    async fn connect(&self, port: u16, deadline: Duration) -> std::io::Result<Box<dyn LinkStream>> {
        match self.0.dial(port, deadline).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(nullspace_net::Error::Io { source, .. }) => Err(source),
            Err(error) => Err(std::io::Error::other(error)),
        }
    }
}

/// A fake driver brings a link of its own.
struct NoLink;

#[async_trait]
impl GuestLink for NoLink {
    async fn dial(&self, _: Duration) -> std::io::Result<Box<dyn LinkStream>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn has_bulk(&self) -> bool {
        false
    }

    async fn dial_bulk(&self, _: Duration) -> std::io::Result<Box<dyn LinkStream>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

/// What a caller is told when a slot cannot be had.
pub fn net_error(error: nullspace_net::Error) -> Error {
    let text = crate::chain(&error);
    if matches!(error, nullspace_net::Error::Exhausted { .. }) {
        return crate::capacity::refused(text);
    }
    Error::internal(text)
}

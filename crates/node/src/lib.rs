//! The host daemon: every machine of this host, from a template's checkpoint to its end.
//!
//! The node owns the truth about its machines and keeps it beside them on disk ([`machine`]); it
//! never sees the database. Control calls it through [`node_api::Node`](nullspace_node_api::Node),
//! news goes up as reports.
//!
//! A running machine can be captured ([`capture`]), and others go on from what was captured
//! ([`checkpoint`]); what they share of their disks is counted by reference ([`layer`]).
//!
//! One task owns each machine ([`running`]), one keeps spare machines ([`spare`]); creates run as
//! tasks of their own, so that a caller who goes away leaves nothing half-made.

mod assemble;
mod bulk;
mod capacity;
mod capture;
mod checkpoint;
mod config;
mod crash;
mod create;
mod diff;
mod door;
mod egress;
mod feed;
mod file;
mod follow;
mod garbage;
mod guest;
mod host_key;
mod layer;
mod local;
mod machine;
mod process;
mod recover;
mod running;
mod sample;
mod search;
mod slot;
mod spare;
mod stall;
mod start;
mod template;
mod terminal;
mod upload;
mod warm;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use nullspace_node_api::{MachineSpec, Report, no_such_machine};
use nullspace_types::id::{SandboxId, SnapshotId};
use nullspace_types::{Code, Error};
use nullspace_vmm::Vmm;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{AccelerationChoice, Config, Driver, NetworkConfig};
pub use local::LocalNode;

use running::{Parts, Running};

type Making = Shared<BoxFuture<'static, Result<Arc<Running>, Error>>>;

enum Entry {
    Making { made: Making, cancel: CancellationToken },
    Running(Arc<Running>),
}

/// The state that all parts of the node share.
pub struct Node {
    vmm: Arc<dyn Vmm>,
    slots: Arc<slot::Slots>,
    templates: Arc<template::Templates>,
    layers: layer::Layers,
    checkpoints: checkpoint::Checkpoints,
    capturing: Mutex<HashMap<SnapshotId, capture::Capturing>>,
    captures: Semaphore,
    directories: machine::Directories,
    capacity: Arc<capacity::Capacity>,
    turns: Semaphore,
    spares: spare::Spares,
    reports: mpsc::Sender<Report>,
    /// What has to come to its end before the node has stopped.
    tasks: TaskTracker,
    stopping: CancellationToken,
    /// Whose a slot is, from before its machine begins until it is released.
    owners: Mutex<HashMap<u32, SandboxId>>,
    /// Why no machine can be made yet, as long as the first checkpoint is not there.
    unprepared: watch::Sender<Option<String>>,
    entries: Mutex<HashMap<SandboxId, Entry>>,
}

impl Node {
    /// The machine of a sandbox that runs.
    fn running(&self, id: SandboxId) -> Result<Arc<Running>, Error> {
        match self.entries.lock().expect("no panic under it").get(&id) {
            Some(Entry::Running(running)) => Ok(Arc::clone(running)),
            Some(Entry::Making { .. }) => {
                Err(Error::new(Code::SandboxNotReady, format!("sandbox {id} is still being made")))
            }
            None => Err(no_such_machine(id)),
        }
    }

    /// Makes a machine, or joins its making, or finds it made.
    async fn create(self: &Arc<Self>, spec: MachineSpec) -> Result<Arc<Running>, Error> {
        let id = spec.sandbox_id;
        let made = {
            let mut entries = self.entries.lock().expect("no panic under it");
            match entries.get(&id) {
                Some(Entry::Running(running)) if running.record.spec.incarnation == spec.incarnation => {
                    return Ok(Arc::clone(running));
                }
                Some(Entry::Running(_)) => {
                    return Err(Error::internal(format!("sandbox {id} has a machine of another life")));
                }
                Some(Entry::Making { made, .. }) => made.clone(),
                None => {
                    let cancel = CancellationToken::new();
                    let making = tokio::spawn(Arc::clone(self).make(spec, cancel.clone()));
                    let made: Making = async move { making.await.map_err(Error::internal)? }.boxed().shared();
                    entries.insert(id, Entry::Making { made: made.clone(), cancel });
                    made
                }
            }
        };
        made.await
    }

    async fn make(
        self: Arc<Self>,
        spec: MachineSpec,
        cancel: CancellationToken,
    ) -> Result<Arc<Running>, Error> {
        let id = spec.sandbox_id;
        let created = create::create(Arc::clone(&self), spec, cancel).await;
        let mut entries = self.entries.lock().expect("no panic under it");
        match &created {
            // A machine that ended between its start and this line has been forgotten already.
            Ok(running) if running.is_gone() => drop(entries.remove(&id)),
            Ok(running) => drop(entries.insert(id, Entry::Running(Arc::clone(running)))),
            Err(_) => drop(entries.remove(&id)),
        }
        created
    }

    /// Ends a machine, in whatever state it is.
    async fn destroy(&self, id: SandboxId) -> Result<(), Error> {
        let making = match self.entries.lock().expect("no panic under it").get(&id) {
            Some(Entry::Making { made, cancel }) => {
                cancel.cancel();
                Ok(made.clone())
            }
            Some(Entry::Running(running)) => Err(Arc::clone(running)),
            None => return Ok(()),
        };
        match making {
            Ok(made) => match made.await {
                Ok(running) => running.end().await,
                Err(_) => Ok(()),
            },
            Err(running) => running.end().await,
        }
    }

    /// Takes a machine in that was found running.
    fn insert(self: &Arc<Self>, record: machine::Record, guest: guest::Guest, parts: Parts) -> Arc<Running> {
        let id = record.spec.sandbox_id;
        let mut entries = self.entries.lock().expect("no panic under it");
        let running = running::drive(Arc::clone(self), record, guest, parts);
        entries.insert(id, Entry::Running(Arc::clone(&running)));
        running
    }

    /// Strikes a machine that is gone off the list.
    fn forget(&self, gone: &Arc<Running>) {
        let id = gone.record.spec.sandbox_id;
        let mut entries = self.entries.lock().expect("no panic under it");
        if matches!(entries.get(&id), Some(Entry::Running(running)) if Arc::ptr_eq(running, gone)) {
            entries.remove(&id);
        }
    }
}

/// An error and its causes, for the log.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Bytes from the operating system's generator.
fn random_bytes(count: usize) -> Vec<u8> {
    use rand::TryRngCore;
    let mut bytes = vec![0; count];
    rand::rngs::OsRng
        .try_fill_bytes(&mut bytes)
        .expect("the kernel's generator never fails once it is seeded");
    bytes
}

/// The same, twice as many hexadecimal digits.
fn random_hex(bytes: usize) -> String {
    hex(&random_bytes(bytes))
}

/// Bytes as hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

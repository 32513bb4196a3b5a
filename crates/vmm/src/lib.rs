//! Virtual machine monitors behind two small traits: a [`Vmm`] starts machines, a [`Monitor`] is one
//! running machine. Two drivers: [`qemu`], and [`fake`] for tests of everything above.
//!
//! A machine is booted only to make a checkpoint. Every other one is restored copy-on-write from a
//! checkpoint: private pages over its immutable memory, an empty disk layer over its frozen ones. A
//! restored machine can be captured in its turn, in one short pause, and goes on: the pages it has
//! changed (a [`Delta`]), its devices, and its disk layer, which freezes under a new one.
//!
//! This crate knows nothing of sandboxes, templates or the agent's protocol, and keeps no files: it
//! is told where everything stands.

mod delta;
pub mod fake;
mod memory;
pub mod qemu;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use delta::{Buffer, Delta};
pub use memory::Memory;

/// Why a machine could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The monitor's program is not there or too old.
    #[error("{0}")]
    Unusable(String),
    /// The jail could not be built around it.
    #[error("the monitor could not be jailed")]
    Jail(#[from] nullspace_jail::Error),
    /// The monitor ended or does not answer; the text says when and what its log has.
    #[error("the monitor failed: {0}")]
    Monitor(String),
    /// The monitor refused a command.
    #[error("the monitor refused {command}: {reason}")]
    Refused {
        /// Which.
        command: &'static str,
        /// In the monitor's words.
        reason: String,
    },
    /// A checkpoint that this monitor cannot restore, naming the difference.
    #[error("the checkpoint does not fit: {0}")]
    Incompatible(String),
    /// A file is not what was once written to it.
    #[error("{} is damaged: {reason}", path.display())]
    Corrupted {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of the machine's could not be used.
    #[error("{what}")]
    File {
        /// Which and for what.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A byte stream to the guest's agent.
pub trait LinkStream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> LinkStream for T {}

/// The way to a guest's agent: TCP on the sandbox's own tap today, vsock where a host has it.
#[async_trait]
pub trait GuestLink: Send + Sync {
    /// Opens a new stream. The guest may still be waking: this waits for at most `deadline`.
    async fn dial(&self, deadline: Duration) -> std::io::Result<Box<dyn LinkStream>>;

    /// Whether the agent has a lane for bulk data.
    fn has_bulk(&self) -> bool;

    /// Opens a connection of that lane.
    async fn dial_bulk(&self, deadline: Duration) -> std::io::Result<Box<dyn LinkStream>>;
}

/// What a driver is, for the record of a checkpoint and for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// `qemu` or `fake`.
    pub driver: String,
    /// The monitor's version.
    pub version: String,
    /// The machine type, such as `pc`.
    pub machine: String,
    /// The processor model.
    pub cpu: String,
    /// `kvm`, `tcg` or `none`.
    pub acceleration: String,
}

impl Description {
    /// Refuses to restore what another driver, monitor or processor captured, naming the difference.
    pub fn accept(&self, captured: &Self) -> Result<(), Error> {
        let parts = [
            ("driver", &captured.driver, &self.driver),
            ("version of its monitor", &captured.version, &self.version),
            ("machine type", &captured.machine, &self.machine),
            ("processor model", &captured.cpu, &self.cpu),
            ("acceleration", &captured.acceleration, &self.acceleration),
        ];
        match parts.into_iter().find(|(_, then, now)| then != now) {
            None => Ok(()),
            Some((what, then, now)) => {
                Err(Error::Incompatible(format!("the {what} was {then} and is {now} here")))
            }
        }
    }
}

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct Hardware {
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// Its first root file system, with the agent.
    pub initrd: PathBuf,
    /// Its parameters.
    pub kernel_parameters: String,
    /// The base image, raw, never written to.
    pub base: PathBuf,
    /// Frozen qcow2 layers over it, lowest first.
    pub layers: Vec<PathBuf>,
    /// The machine's own qcow2 layer, on top.
    pub top: PathBuf,
    /// The hardware address of its network device.
    pub mac: [u8; 6],
}

/// Where a machine lives on the host.
pub struct Placement {
    /// A short name, unique on this host, for control groups.
    pub name: String,
    /// An existing directory that is the machine's alone, for sockets and logs; not visible to it.
    pub directory: PathBuf,
    /// User and group of the monitor.
    pub uid: u32,
    /// The network namespace of the monitor.
    pub network_namespace: PathBuf,
    /// The tap device, open.
    pub tap: OwnedFd,
    /// The way to its agent.
    pub link: Arc<dyn GuestLink>,
}

/// Enough to find a machine again after the server has been restarted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handle {
    /// The monitor's process.
    pub pid: u32,
    /// Its start time, in clock ticks since the host's boot.
    pub start_time: u64,
    /// Its control group's name.
    pub control_group: String,
    /// See [`Placement::directory`].
    pub directory: PathBuf,
}

/// A disk layer that a machine has open, to become its top: see [`Monitor::add_layer`].
#[derive(Debug, PartialEq, Eq)]
pub struct Layer {
    /// What the driver calls it.
    pub(crate) name: String,
    /// Its size.
    pub(crate) bytes: u64,
    /// Held as long as it is neither on top nor closed.
    pub(crate) open: Arc<()>,
}

/// Something a machine did by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// It stands still because the host's disk is full; [`Monitor::resume`] lets it try again.
    DiskFull,
    /// The guest shut down, or crashed, which is the same here: a crashed kernel restarts and a
    /// restart is an end.
    GuestEnded,
}

/// Starts machines.
#[async_trait]
pub trait Vmm: Send + Sync {
    /// What this driver is.
    fn description(&self) -> &Description;

    /// Boots a machine from nothing, its memory shared so that it can be captured.
    async fn boot(
        &self,
        hardware: &Hardware,
        placement: Placement,
        memory: &Memory,
    ) -> Result<Arc<dyn Monitor>, Error>;

    /// Restores a machine over a sealed memory and a device state; with a delta, over that memory with
    /// the delta's pages in place of its own. It stands still until [`Monitor::resume`].
    async fn restore(
        &self,
        hardware: &Hardware,
        placement: Placement,
        memory: &Memory,
        delta: Option<Arc<Delta>>,
        devices: std::fs::File,
    ) -> Result<Arc<dyn Monitor>, Error>;

    /// Finds a running machine again.
    async fn reattach(&self, handle: &Handle, link: Arc<dyn GuestLink>) -> Result<Arc<dyn Monitor>, Error>;

    /// Makes an empty layer over a base of `bytes`.
    async fn make_layer(&self, path: &Path, bytes: u64) -> Result<(), Error>;

    /// Ends a machine that nobody holds, as far as it still is there, and its control group.
    async fn remove(&self, handle: &Handle) -> Result<(), Error>;

    /// Ends every machine in this driver's control groups but those named: what a server that was
    /// killed had begun and not yet written down.
    async fn sweep(&self, keep: &[String]) -> Result<(), Error>;

    /// Removes what the driver holds beside its machines, if it has no machine left.
    async fn close(&self) -> Result<(), Error>;
}

/// One machine.
#[async_trait]
pub trait Monitor: Send + Sync {
    /// What to write down in order to find it again.
    fn handle(&self) -> &Handle;

    /// The way to its agent.
    fn link(&self) -> Arc<dyn GuestLink>;

    /// Lets it run.
    async fn resume(&self) -> Result<(), Error>;

    /// Stops it, its disk writes completed and on the host's disk; whoever wants it to stand still for a
    /// short time only syncs the file of its top layer before.
    async fn pause(&self) -> Result<(), Error>;

    /// Writes the state of a paused machine's devices, all but memory, to a file.
    async fn save_devices(&self, to: std::fs::File) -> Result<(), Error>;

    /// Room for what a machine with `memory_mb` MiB has changed of its memory by now, to be made while it
    /// still runs: memory that nobody has touched yet costs more than copying into it.
    async fn make_buffer(&self, memory_mb: u32) -> Result<Buffer, Error>;

    /// Copies out of a paused machine what it has changed since the sealed memory that it was once restored
    /// over; more than it has memory is never taken. One that was booted has its memory shared, and is
    /// refused.
    async fn changed_memory(&self, buffer: Buffer) -> Result<Delta, Error>;

    /// Opens an empty layer, made by [`Vmm::make_layer`], that is to become the top of its disk, and gives
    /// it the disk's size. It may run meanwhile. The layer goes to [`Monitor::freeze_disk`] or to
    /// [`Monitor::drop_layer`].
    async fn add_layer(&self, path: &Path) -> Result<Layer, Error>;

    /// Puts the layer on top of a paused machine's disk. What was the top is complete then, and this
    /// machine never writes to it again, so that others may be restored over it. If it is refused, the
    /// layer is closed and the disk is as it was.
    async fn freeze_disk(&self, layer: Layer) -> Result<(), Error>;

    /// Closes a layer that does not become the top after all.
    async fn drop_layer(&self, layer: Layer) -> Result<(), Error>;

    /// How many layers its disk has, its top included, what lies under all layers not.
    async fn disk_layers(&self) -> Result<usize, Error>;

    /// Copies into its top what lies in the frozen layers between that and the lowest `below` ones, behind
    /// the guest's back, and takes them out of the disk, which then has `below` and the top. They are closed
    /// and not removed: others may stand on them. With so few already, nothing happens. It takes as long as
    /// copying takes, and is given up for anything else that changes the disk or stops the machine, which
    /// waits for none of it; then, as after any other failure, the disk is as it was.
    async fn merge_layers(&self, below: usize) -> Result<(), Error>;

    /// Grows its disk to `bytes`.
    async fn resize_disk(&self, bytes: u64) -> Result<(), Error>;

    /// The next thing it does by itself; none once it has ended.
    async fn next_event(&self) -> Option<MachineEvent>;

    /// Resolves once the process has ended.
    async fn ended(&self);

    /// Ends it at once and waits until it has; then removes its control group. Idempotent.
    async fn end(&self) -> Result<(), Error>;

    /// The last it wrote to its console, for finding out why it did not start.
    async fn console(&self) -> String;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_monitor_captured_is_refused_by_the_name_of_the_difference() {
        let words = ["qemu", "7.2.22", "pc", "max", "tcg"].map(str::to_owned);
        let [driver, version, machine, cpu, acceleration] = words;
        let here = Description { driver, version, machine, cpu, acceleration };
        here.accept(&here.clone()).unwrap();
        let refused = here.accept(&Description { version: "7.2.19".into(), ..here.clone() }).unwrap_err();
        let text = "the checkpoint does not fit: the version of its monitor was 7.2.19 and is 7.2.22 here";
        assert_eq!(refused.to_string(), text);
        assert!(here.accept(&Description { acceleration: "kvm".into(), ..here.clone() }).is_err());
    }
}

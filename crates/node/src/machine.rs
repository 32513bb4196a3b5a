//! One machine's record on disk and its directory.
//!
//! `machines/SANDBOX/` holds the machine's own disk layer, its monitor's socket and log, and
//! `machine.json`, written once the machine is adopted: a directory without one is half-made and is
//! removed at the next start with all it held. `spares/N/` is the same before anybody has asked. Frozen
//! layers are in `layers/`, checkpoints in `checkpoints/SNAPSHOT/`.

use std::path::{Path, PathBuf};

use nullspace_node_api::{Machine, MachineSpec};
use nullspace_types::Error;
use nullspace_vmm::Handle;
use serde::{Deserialize, Serialize};

use crate::layer::LayerId;
use crate::template::TemplateRef;

/// The record's name in a machine's directory.
pub const RECORD: &str = "machine.json";
/// The disk layer's name there.
pub const TOP: &str = "top.qcow2";
/// Written as soon as there is a process, so that one that was never adopted can be ended.
pub const PROCESS: &str = "process.json";

/// What is written down of a running machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The monitor's process, for people and measurements.
    pub pid: u32,
    /// What was asked for.
    pub spec: MachineSpec,
    /// What came of it.
    pub machine: Machine,
    /// How to find the monitor.
    pub handle: Handle,
    /// Its network slot.
    pub slot: u32,
    /// The agent's token.
    pub token: String,
    /// The template whose memory lies under its own.
    pub template: TemplateRef,
    /// The frozen layers of its disk above the template's, lowest first.
    pub layers: Vec<LayerId>,
    /// The file of the layer that it writes to, in its directory.
    pub top: String,
    /// Key and certificate of the authority that its guest trusts, as PEM, if it ever needed one.
    #[serde(default)]
    pub authority: Option<String>,
    /// What is happening to its disk: written before it begins, so that after a crash the monitor can be
    /// asked how far it came.
    pub freezing: Option<Freezing>,
}

/// The top of a machine's disk becomes a layer, under another top.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freezing {
    /// What the top of now becomes.
    pub layer: LayerId,
    /// The file of the next.
    pub top: String,
}

/// The directories under a node's own.
#[derive(Debug, Clone)]
pub struct Directories {
    /// `machines/`
    pub machines: PathBuf,
    /// `spares/`
    pub spares: PathBuf,
    /// `layers/`
    pub layers: PathBuf,
    /// `checkpoints/`
    pub checkpoints: PathBuf,
}

impl Directories {
    /// Makes them, readable by nobody else.
    pub fn make(node: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let made = Self {
            machines: node.join("machines"),
            spares: node.join("spares"),
            layers: node.join("layers"),
            checkpoints: node.join("checkpoints"),
        };
        for directory in [&made.machines, &made.spares, &made.layers, &made.checkpoints] {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        Ok(made)
    }
}

/// Writes the record, whole or not at all.
pub async fn write(directory: &Path, record: &Record) -> Result<(), Error> {
    write_json(directory, RECORD, record).await
}

/// Reads it. `None` when the machine was never finished.
pub fn read(directory: &Path) -> Option<Record> {
    read_json(directory, RECORD)
}

/// Notes the process of a machine that is still being made.
pub async fn note_process(directory: &Path, handle: &Handle) -> Result<(), Error> {
    write_json(directory, PROCESS, handle).await
}

/// The process of a machine that was never finished.
pub fn noted_process(directory: &Path) -> Option<Handle> {
    read_json(directory, PROCESS)
}

/// Writes a file of JSON, whole or not at all.
pub async fn write_json(directory: &Path, name: &str, value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_vec_pretty(value).map_err(Error::internal)?;
    let (new, target) = (directory.join(format!("{name}.new")), directory.join(name));
    fs_err::tokio::write(&new, text).await.map_err(disk_error)?;
    fs_err::tokio::rename(&new, &target).await.map_err(disk_error)
}

/// Reads one. `None` if it is not there, or is of another version.
pub fn read_json<T: serde::de::DeserializeOwned>(directory: &Path, name: &str) -> Option<T> {
    let text = fs_err::read(directory.join(name)).ok()?;
    match serde_json::from_slice(&text) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!(%error, directory = %directory.display(), "{name} cannot be read");
            None
        }
    }
}

/// A full disk is the host's limit; anything else is a fault.
pub fn disk_error(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            crate::capacity::disk_full(error)
        }
        _ => Error::internal(error),
    }
}

/// Removes a directory and all in it. One that is not there is no error.
pub async fn remove_directory(directory: &Path) -> std::io::Result<()> {
    unless_absent(fs_err::tokio::remove_dir_all(directory).await)
}

/// Removes a file. One that is not there is no error.
pub async fn remove_file(path: &Path) -> std::io::Result<()> {
    unless_absent(fs_err::tokio::remove_file(path).await)
}

fn unless_absent(removed: std::io::Result<()>) -> std::io::Result<()> {
    match removed {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

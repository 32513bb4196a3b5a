//! The node's settings.

use std::net::IpAddr;
use std::path::PathBuf;

use nullspace_node_api::Shape;
use serde::{Deserialize, Serialize};

/// Which acceleration machines run with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccelerationChoice {
    /// KVM if a probe by booting passes, else TCG.
    #[default]
    Auto,
    /// KVM, unprobed.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// Which driver makes machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// Real machines.
    #[default]
    Qemu,
    /// Machines in memory only, for trying the API and for tests.
    Fake,
}

/// `[node]`: how machines are made on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `qemu`, or `fake` for machines in memory only.
    pub driver: Driver,
    /// `auto`, `kvm` or `tcg`.
    pub acceleration: AccelerationChoice,
    /// Where checkpoints of templates are kept; `checkpoints` in the data directory when absent.
    /// Several servers may share one.
    pub checkpoint_dir: Option<PathBuf>,
    /// Sizes, as `VCPUSxMIB`, whose checkpoint is made at start. Others are made when first asked for.
    pub shapes: Vec<String>,
    /// Machines kept restored and standing still for the next create of the size asked for last.
    pub spare_machines: usize,
    /// Network slots kept ready.
    pub ready_slots: usize,
    /// Creates that are worked on at once; others wait their turn. 0: twice the processors, at least 4.
    pub concurrent_creates: usize,
    /// The most machines.
    pub max_machines: usize,
    /// How much memory machines may have in all, as a multiple of the host's.
    pub memory_overcommit: f64,
    /// MiB of the host's memory that must stay available; a create that would take from it is refused.
    pub memory_reserve_mb: u64,
    /// MiB of the data directory's file system that must stay free; likewise.
    pub disk_reserve_mb: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            driver: Driver::Qemu,
            acceleration: AccelerationChoice::Auto,
            checkpoint_dir: None,
            shapes: vec!["1x256".into(), "2x512".into()],
            spare_machines: 2,
            ready_slots: 24,
            concurrent_creates: 0,
            max_machines: 512,
            memory_overcommit: 2.0,
            memory_reserve_mb: 512,
            disk_reserve_mb: 1024,
        }
    }
}

impl Config {
    /// [`Config::shapes`], parsed.
    pub fn parsed_shapes(&self) -> Result<Vec<Shape>, String> {
        self.shapes
            .iter()
            .map(|text| {
                let (vcpus, memory) = text.split_once('x').ok_or(text)?;
                let vcpus = vcpus.parse().map_err(|_| text)?;
                let memory_mb = memory.parse().map_err(|_| text)?;
                Ok(Shape { vcpus, memory_mb })
            })
            .collect::<Result<_, &String>>()
            .map_err(|text| format!("[node] shapes: {text:?} is not of the form VCPUSxMIB, such as 2x512"))
    }
}

/// `[network]`: what machines may reach, and the addresses between them and the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// Addresses of the pairs between host and machines; must not overlap a network in use here.
    pub addresses: nullspace_net::Range,
    /// Private or special ranges that machines may reach all the same.
    pub allow: Vec<nullspace_net::Range>,
    /// Files of certificates (PEM) of authorities that are believed besides the host's own where a header is
    /// added on the way: for hosts with certificates of the operator's.
    pub authorities: Vec<PathBuf>,
    /// Resolvers that machines' DNS queries are relayed to; those of `/etc/resolv.conf` when empty.
    pub resolvers: Vec<IpAddr>,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        let link = crate::slot::link();
        let nullspace_net::Config { addresses, allow, resolvers, .. } =
            nullspace_net::Config::new("default", link);
        Self { addresses, allow, authorities: Vec::new(), resolvers }
    }
}

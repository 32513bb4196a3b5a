//! Whether there is room for another machine: in number, in memory, on the disk.
//!
//! Memory is promised beyond what the host has (`memory_overcommit`), since clones of a template
//! share its pages; so what the host really has left is looked at too. Both must hold.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use nullspace_node_api::Shape;
use nullspace_types::{Code, Error};

use crate::Config;

/// MiB that a machine takes from the host soon after its start, whatever its size.
const FIRST_MEMORY_MB: u64 = 64;
/// MiB that a monitor may take besides the guest's memory.
const OVERHEAD_MB: u64 = 64;

/// The host's room, as far as this node may use it.
pub struct Capacity {
    max_machines: usize,
    promised_limit_mb: u64,
    memory_reserve_mb: u64,
    disk_reserve_mb: u64,
    directory: PathBuf,
    machines: AtomicUsize,
    promised_mb: AtomicU64,
}

/// Room that is taken; dropping it gives it back.
pub struct Room {
    capacity: std::sync::Arc<Capacity>,
    memory_mb: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.capacity.machines.fetch_sub(1, Ordering::Relaxed);
        self.capacity.promised_mb.fetch_sub(self.memory_mb, Ordering::Relaxed);
    }
}

impl Capacity {
    /// Room for machines whose files stand in `directory`.
    pub fn new(config: &Config, directory: PathBuf) -> Self {
        let total_mb = memory_mb("MemTotal:").unwrap_or(0);
        Self {
            max_machines: config.max_machines,
            promised_limit_mb: (total_mb as f64 * config.memory_overcommit) as u64,
            memory_reserve_mb: config.memory_reserve_mb,
            disk_reserve_mb: config.disk_reserve_mb,
            directory,
            machines: AtomicUsize::new(0),
            promised_mb: AtomicU64::new(0),
        }
    }

    /// Takes room for a machine, or says what there is none of.
    pub fn take(self: &std::sync::Arc<Self>, shape: Shape) -> Result<Room, Error> {
        self.check(shape)?;
        Ok(self.hold(shape))
    }

    /// Counts a machine that is there already.
    pub fn hold(self: &std::sync::Arc<Self>, shape: Shape) -> Room {
        let memory_mb = u64::from(shape.memory_mb) + OVERHEAD_MB;
        self.machines.fetch_add(1, Ordering::Relaxed);
        self.promised_mb.fetch_add(memory_mb, Ordering::Relaxed);
        Room { capacity: std::sync::Arc::clone(self), memory_mb }
    }

    /// Whether there is room for a machine of this shape now.
    pub fn check(&self, shape: Shape) -> Result<(), Error> {
        if self.machines.load(Ordering::Relaxed) >= self.max_machines {
            return Err(refused(format!("this node has its {} machines", self.max_machines)));
        }
        let promised = self.promised_mb.load(Ordering::Relaxed) + u64::from(shape.memory_mb) + OVERHEAD_MB;
        if promised > self.promised_limit_mb {
            return Err(refused(format!(
                "no memory is left for a machine of {} MiB: this node promises at most {} MiB in all",
                shape.memory_mb, self.promised_limit_mb
            )));
        }
        let available = memory_mb("MemAvailable:")?;
        if available < self.memory_reserve_mb + FIRST_MEMORY_MB {
            return Err(refused(format!("the host has only {available} MiB of memory left")));
        }
        self.check_disk()
    }

    /// Whether the disk has room for new work.
    pub fn check_disk(&self) -> Result<(), Error> {
        let free = self.free_disk_mb()?;
        if free < self.disk_reserve_mb {
            let reserve = self.disk_reserve_mb;
            return Err(refused(format!(
                "the node's disk has only {free} MiB free, less than its reserve of {reserve} MiB"
            )));
        }
        Ok(())
    }

    /// MiB free on the data directory's disk.
    pub fn free_disk_mb(&self) -> Result<u64, Error> {
        let disk = nix::sys::statvfs::statvfs(&self.directory).map_err(Error::internal)?;
        #[allow(clippy::unnecessary_cast, reason = "the field's width differs between platforms")]
        Ok((disk.blocks_available() as u64 * disk.fragment_size() as u64) >> 20)
    }
}

/// The answer where there is no room.
pub fn refused(why: String) -> Error {
    Error::new(Code::CapacityExceeded, why).suggest("destroy a sandbox, or try again later")
}

/// The answer where a write failed because the disk is full.
pub fn disk_full(error: impl std::fmt::Display) -> Error {
    refused("the node's disk is full".into()).context(error)
}

/// A line of `/proc/meminfo`, in MiB.
fn memory_mb(name: &str) -> Result<u64, Error> {
    let text = fs_err::read_to_string("/proc/meminfo").map_err(Error::internal)?;
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok())
        .map(|kib| kib >> 10)
        .ok_or_else(|| Error::internal(format!("/proc/meminfo has no {name}")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const SHAPE: Shape = Shape { vcpus: 1, memory_mb: 256 };

    fn capacity(config: &Config) -> Arc<Capacity> {
        Arc::new(Capacity::new(config, "/".into()))
    }

    #[test]
    fn room_is_refused_beyond_the_number_and_given_back() {
        let one = capacity(&Config { max_machines: 1, disk_reserve_mb: 0, ..Config::default() });
        let room = one.take(SHAPE).unwrap();
        assert_eq!(one.take(SHAPE).err().unwrap().code, Code::CapacityExceeded);
        drop(room);
        assert!(one.take(SHAPE).is_ok());
    }

    #[test]
    fn memory_and_disk_are_refused_by_their_names() {
        let none = capacity(&Config { memory_overcommit: 0.0, ..Config::default() });
        assert!(none.take(SHAPE).err().unwrap().message.contains("no memory"));
        let full = capacity(&Config { disk_reserve_mb: u64::MAX >> 21, ..Config::default() });
        assert!(full.take(SHAPE).err().unwrap().message.contains("disk"));
    }
}

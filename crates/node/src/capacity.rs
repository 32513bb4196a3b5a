//! Whether there is room for another machine: in number, in memory, on the disk.
//!
//! Memory is promised beyond what the host has (`memory_overcommit`), since clones of a template
//! share its pages; so what the host really has left is looked at too. Both must hold.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

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
    taken: Mutex<Taken>,
}

/// What is taken of it.
#[derive(Default)]
struct Taken {
    machines: usize,
    promised_mb: u64,
}

/// Room that is taken; dropping it gives it back.
pub struct Room {
    capacity: Arc<Capacity>,
    memory_mb: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut taken = self.capacity.taken.lock().expect("no panic under it");
        taken.machines -= 1;
        taken.promised_mb -= self.memory_mb;
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
            taken: Mutex::default(),
        }
    }

    /// Takes room for a machine, or says what there is none of. What is looked at and what is taken are one
    /// step: of two who come for the last room, one gets it.
    pub fn take(self: &Arc<Self>, shape: Shape) -> Result<Room, Error> {
        self.check_host()?;
        let mut taken = self.taken.lock().expect("no panic under it");
        self.check_taken(&taken, shape)?;
        Ok(self.add(&mut taken, shape))
    }

    /// Counts a machine that is there already.
    pub fn hold(self: &Arc<Self>, shape: Shape) -> Room {
        self.add(&mut self.taken.lock().expect("no panic under it"), shape)
    }

    /// Whether there is room for a machine of this shape now.
    pub fn check(&self, shape: Shape) -> Result<(), Error> {
        self.check_host()?;
        self.check_taken(&self.taken.lock().expect("no panic under it"), shape)
    }

    fn add(self: &Arc<Self>, taken: &mut Taken, shape: Shape) -> Room {
        let memory_mb = u64::from(shape.memory_mb) + OVERHEAD_MB;
        taken.machines += 1;
        taken.promised_mb += memory_mb;
        Room { capacity: Arc::clone(self), memory_mb }
    }

    fn check_taken(&self, taken: &Taken, shape: Shape) -> Result<(), Error> {
        if taken.machines >= self.max_machines {
            return Err(refused(format!("this node has its {} machines", self.max_machines)));
        }
        if taken.promised_mb + u64::from(shape.memory_mb) + OVERHEAD_MB > self.promised_limit_mb {
            return Err(refused(format!(
                "no memory is left for a machine of {} MiB: this node promises at most {} MiB in all",
                shape.memory_mb, self.promised_limit_mb
            )));
        }
        Ok(())
    }

    /// Whether the host itself has memory and disk left.
    fn check_host(&self) -> Result<(), Error> {
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
    use super::*;

    const SHAPE: Shape = Shape { vcpus: 1, memory_mb: 256 };

    fn capacity(config: &Config) -> Arc<Capacity> {
        Arc::new(Capacity::new(config, "/".into()))
    }

    #[test]
    fn of_many_who_come_at_once_for_the_last_room_one_gets_it() {
        let one = capacity(&Config { max_machines: 1, disk_reserve_mb: 0, ..Config::default() });
        let rooms: Vec<Room> = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..16).map(|_| scope.spawn(|| one.take(SHAPE).ok())).collect();
            takers.into_iter().filter_map(|taker| taker.join().unwrap()).collect()
        });
        assert_eq!(rooms.len(), 1);
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

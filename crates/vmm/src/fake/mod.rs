//! A driver without machines: each is an agent in memory. What stands above runs as it does over
//! real ones, in milliseconds. Machines outlive the driver, as real ones outlive the server: they
//! stand in a list of the whole process, where a new driver finds them by their handle.
//!
//! What is captured of a machine is its agent as it is then, in a list of the whole process too; the device
//! state names its place there. That list only grows, with what tests capture. A device state of another
//! process says as whom the agent was adopted, and that is all that is restored then.

mod agent;
mod captured;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

pub use agent::{FakeAgent, Fault};

use crate::{
    Buffer, Delta, Description, Error, GuestLink, Handle, Hardware, Layer, LinkStream, MachineEvent, Memory,
    Monitor, Placement, Vmm,
};

/// Bytes that a link holds before its writer waits.
const LINK_BYTES: usize = 64 << 10;

static MACHINES: LazyLock<Mutex<HashMap<String, Arc<FakeMonitor>>>> = LazyLock::new(Mutex::default);
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The driver.
pub struct FakeVmm {
    description: Description,
}

impl Default for FakeVmm {
    fn default() -> Self {
        let words = ["fake", "2", "none", "none", "none"].map(str::to_owned);
        let [driver, version, machine, cpu, acceleration] = words;
        Self { description: Description { driver, version, machine, cpu, acceleration } }
    }
}

/// A machine in memory.
pub struct FakeMonitor {
    handle: Handle,
    agent: FakeAgent,
    /// Of its disk.
    layers: AtomicUsize,
    ended: watch::Sender<bool>,
}

struct FakeLink(Arc<FakeMonitor>);

#[async_trait]
impl GuestLink for FakeLink {
    async fn dial(&self, _: Duration) -> std::io::Result<Box<dyn LinkStream>> {
        if *self.0.ended.borrow() {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        }
        let (near, far) = tokio::io::duplex(LINK_BYTES);
        let (agent, mut ended) = (self.0.agent.clone(), self.0.ended.subscribe());
        tokio::spawn(async move {
            tokio::select! {
                () = agent.serve(far) => {}
                _ = ended.wait_for(|ended| *ended) => {}
            }
        });
        Ok(Box::new(near))
    }

    fn has_bulk(&self) -> bool {
        false
    }

    async fn dial_bulk(&self, _: Duration) -> std::io::Result<Box<dyn LinkStream>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

/// The agent of a machine that has just booted.
fn booted(hardware: &Hardware) -> FakeAgent {
    let parameters = hardware.kernel_parameters.split_ascii_whitespace();
    let token =
        parameters.filter_map(|word| word.strip_prefix("nullspace.token=")).next().unwrap_or_default();
    FakeAgent::new(token.to_owned())
}

fn start(hardware: &Hardware, placement: &Placement, agent: FakeAgent) -> Arc<FakeMonitor> {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let control_group = format!("fake-{}-{number}", std::process::id());
    let handle = Handle { pid: 0, start_time: number, control_group, directory: placement.directory.clone() };
    let monitor = Arc::new(FakeMonitor {
        handle,
        agent,
        layers: AtomicUsize::new(hardware.layers.len() + 1),
        ended: watch::channel(false).0,
    });
    let mut machines = MACHINES.lock().expect("no panic under it");
    machines.insert(monitor.handle.control_group.clone(), Arc::clone(&monitor));
    monitor
}

fn find(handle: &Handle) -> Option<Arc<FakeMonitor>> {
    MACHINES.lock().expect("no panic under it").get(&handle.control_group).cloned()
}

/// Ends the machine with this handle as a killed monitor would end; for tests.
pub fn kill(handle: &Handle) {
    if let Some(machine) = find(handle) {
        machine.end_now();
    }
}

/// The agent of the machine with this handle; for tests that have it fail.
pub fn agent(handle: &Handle) -> Option<FakeAgent> {
    find(handle).map(|machine| machine.agent.clone())
}

#[async_trait]
impl Vmm for FakeVmm {
    fn description(&self) -> &Description {
        &self.description
    }

    async fn boot(
        &self,
        hardware: &Hardware,
        placement: Placement,
        _: &Memory,
    ) -> Result<Arc<dyn Monitor>, Error> {
        Ok(Arc::new(FakeHandle(start(hardware, &placement, booted(hardware)))))
    }

    async fn restore(
        &self,
        hardware: &Hardware,
        placement: Placement,
        _: &Memory,
        _: Option<Arc<Delta>>,
        devices: File,
    ) -> Result<Arc<dyn Monitor>, Error> {
        let agent = captured::restore(devices)?.unwrap_or_else(|| booted(hardware));
        agent.go_on();
        Ok(Arc::new(FakeHandle(start(hardware, &placement, agent))))
    }

    async fn reattach(&self, handle: &Handle, _: Arc<dyn GuestLink>) -> Result<Arc<dyn Monitor>, Error> {
        match find(handle) {
            Some(machine) => Ok(Arc::new(FakeHandle(machine))),
            None => Err(nullspace_jail::Error::Gone(handle.pid).into()),
        }
    }

    async fn make_layer(&self, path: &Path, _: u64) -> Result<(), Error> {
        let file = |source| Error::File { what: format!("{} cannot be made", path.display()), source };
        fs_err::write(path, b"fake").map_err(file)
    }

    async fn remove(&self, handle: &Handle) -> Result<(), Error> {
        kill(handle);
        Ok(())
    }

    async fn sweep(&self, _: &[String]) -> Result<(), Error> {
        Ok(())
    }

    async fn close(&self) -> Result<(), Error> {
        Ok(())
    }
}

impl FakeMonitor {
    fn end_now(&self) {
        self.ended.send_replace(true);
        MACHINES.lock().expect("no panic under it").remove(&self.handle.control_group);
    }
}

struct FakeHandle(Arc<FakeMonitor>);

#[async_trait]
impl Monitor for FakeHandle {
    fn handle(&self) -> &Handle {
        &self.0.handle
    }

    fn link(&self) -> Arc<dyn GuestLink> {
        Arc::new(FakeLink(Arc::clone(&self.0)))
    }

    async fn resume(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn pause(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn save_devices(&self, to: File) -> Result<(), Error> {
        captured::save(&self.0.agent, to)
    }

    async fn make_buffer(&self, memory_mb: u32) -> Result<Buffer, Error> {
        Ok(Buffer::new(memory_mb, 0))
    }

    async fn changed_memory(&self, buffer: Buffer) -> Result<Delta, Error> {
        Ok(Delta::new(buffer.memory_mb, Vec::new(), Vec::new()))
    }

    async fn add_layer(&self, path: &Path) -> Result<Layer, Error> {
        Ok(Layer { name: path.display().to_string(), bytes: 0, open: Arc::default() })
    }

    async fn freeze_disk(&self, _: Layer) -> Result<(), Error> {
        self.0.layers.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn drop_layer(&self, _: Layer) -> Result<(), Error> {
        Ok(())
    }

    async fn disk_layers(&self) -> Result<usize, Error> {
        Ok(self.0.layers.load(Ordering::Relaxed))
    }

    async fn merge_layers(&self, below: usize) -> Result<(), Error> {
        self.0.layers.fetch_min(below + 1, Ordering::Relaxed);
        Ok(())
    }

    async fn resize_disk(&self, _: u64) -> Result<(), Error> {
        Ok(())
    }

    async fn next_event(&self) -> Option<MachineEvent> {
        self.ended().await;
        None
    }

    async fn ended(&self) {
        // The sender lives in the machine that `self` holds.
        drop(self.0.ended.subscribe().wait_for(|ended| *ended).await);
    }

    async fn end(&self) -> Result<(), Error> {
        self.0.end_now();
        Ok(())
    }

    async fn console(&self) -> String {
        String::new()
    }
}

//! One running QEMU. Its disk's layers are in [`super::disk`], its memory in [`super::private_memory`].

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nullspace_jail::Process;
use nullspace_jail::cgroup::Hierarchy;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, mpsc};

use super::command_line::{CONSOLE, DEVICES};
use super::disk::Disk;
use super::private_memory;
use super::qmp::{self, Dialogue, Event};
use crate::{Buffer, Delta, Error, GuestLink, Handle, Layer, MachineEvent, Monitor};

/// How long QEMU may take from its start to its greeting.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// How long it may take to read a device state.
const RESTORE_PATIENCE: Duration = Duration::from_secs(60);

pub struct QemuMonitor {
    handle: Handle,
    process: Arc<Process>,
    link: Arc<dyn GuestLink>,
    groups: Arc<Hierarchy>,
    dialogue: Dialogue,
    disk: Disk,
    events: Mutex<mpsc::Receiver<Event>>,
}

impl QemuMonitor {
    /// Begins the dialogue with a process that was started or found. If there is none to be had,
    /// the process is ended.
    pub async fn connect(
        handle: Handle,
        process: Process,
        link: Arc<dyn GuestLink>,
        groups: Arc<Hierarchy>,
        socket: &Path,
        disk: Disk,
    ) -> Result<Arc<Self>, Error> {
        let (send, events) = mpsc::channel(64);
        let opened = tokio::select! {
            opened = Dialogue::open(socket, send) => opened,
            () = ended(&process) => Err(Error::Monitor("it ended at its start".into())),
            () = tokio::time::sleep(START_PATIENCE) => Err(Error::Monitor("it did not greet".into())),
        };
        match opened {
            Ok(dialogue) => {
                let (process, events) = (Arc::new(process), Mutex::new(events));
                Ok(Arc::new(Self { handle, process, link, groups, dialogue, disk, events }))
            }
            Err(error) => {
                process.kill();
                ended(&process).await;
                remove_group(&groups, &handle.control_group).await?;
                Err(Error::Monitor(format!("{error}{}", last_words(&handle.directory).await)))
            }
        }
    }

    /// Puts a delta's pages into the memory of a machine that has not read its device state yet: its
    /// devices look into memory while they read theirs.
    pub async fn write_memory(&self, delta: Arc<Delta>) -> Result<(), Error> {
        let process = Arc::clone(&self.process);
        off_thread(move || private_memory::write(&process, &delta)).await
    }

    /// Begins to read the device state of a machine that was started to wait for that.
    pub async fn read_devices(&self) -> Result<(), Error> {
        self.dialogue.run(&qmp::ReadDevices { uri: DEVICES.into() }).await.map(drop)
    }

    /// Waits until the device state has been read.
    pub async fn wait_restored(&self) -> Result<(), Error> {
        let mut events = self.events.lock().await;
        let restored = async {
            loop {
                // An incoming restore ends in `prelaunch` or `paused`, without an event for it in
                // every version; RESUME and MIGRATION come in some. The query is cheap, and QEMU
                // answers it only between two steps of the restore.
                match self.dialogue.run(&qmp::QueryStatus {}).await?.status.as_str() {
                    "inmigrate" => {}
                    "paused" | "prelaunch" | "postmigrate" => return Ok(()),
                    other => return Err(Error::Incompatible(format!("the restore ended as {other}"))),
                }
                if let Ok(None) = tokio::time::timeout(Duration::from_millis(1), events.recv()).await {
                    return Err(Error::Monitor("it ended in the restore".into()));
                }
            }
        };
        let outcome = tokio::select! {
            outcome = restored => outcome,
            () = self.ended() => Err(Error::Monitor("it ended in the restore".into())),
            () = tokio::time::sleep(RESTORE_PATIENCE) => Err(Error::Monitor("the restore does not end".into())),
        };
        match outcome {
            Err(Error::Monitor(text)) => {
                Err(Error::Monitor(format!("{text}{}", last_words(&self.handle.directory).await)))
            }
            other => other,
        }
    }
}

#[async_trait]
impl Monitor for QemuMonitor {
    fn handle(&self) -> &Handle {
        &self.handle
    }

    fn link(&self) -> Arc<dyn GuestLink> {
        Arc::clone(&self.link)
    }

    async fn resume(&self) -> Result<(), Error> {
        self.dialogue.run(&qmp::Continue {}).await?;
        // It runs, whatever becomes of this.
        if let Err(error) = self.dialogue.close_passed().await {
            tracing::warn!(pid = self.handle.pid, %error, "a monitor keeps a file open that it was passed");
        }
        Ok(())
    }

    async fn pause(&self) -> Result<(), Error> {
        self.disk.stop_merge(&self.dialogue).await?;
        self.dialogue.run(&qmp::Stop {}).await.map(drop)
    }

    async fn save_devices(&self, to: File) -> Result<(), Error> {
        let filename = qmp::passed_name(self.dialogue.pass(to).await?);
        self.dialogue.run(&qmp::SaveDevices { filename, live: false }).await.map(drop)
    }

    async fn make_buffer(&self, memory_mb: u32) -> Result<Buffer, Error> {
        let process = Arc::clone(&self.process);
        off_thread(move || private_memory::make_buffer(&process, memory_mb)).await
    }

    async fn changed_memory(&self, buffer: Buffer) -> Result<Delta, Error> {
        let process = Arc::clone(&self.process);
        off_thread(move || private_memory::changed(&process, buffer)).await
    }

    async fn add_layer(&self, path: &Path) -> Result<Layer, Error> {
        self.disk.add(&self.dialogue, path).await
    }

    async fn freeze_disk(&self, layer: Layer) -> Result<(), Error> {
        self.disk.freeze(&self.dialogue, layer).await
    }

    async fn drop_layer(&self, layer: Layer) -> Result<(), Error> {
        self.disk.close(&self.dialogue, layer).await
    }

    async fn disk_layers(&self) -> Result<usize, Error> {
        self.disk.layers(&self.dialogue).await
    }

    async fn merge_layers(&self, below: usize) -> Result<(), Error> {
        self.disk.merge(&self.dialogue, below).await
    }

    async fn resize_disk(&self, bytes: u64) -> Result<(), Error> {
        self.disk.resize(&self.dialogue, bytes).await
    }

    async fn next_event(&self) -> Option<MachineEvent> {
        let mut events = self.events.lock().await;
        loop {
            let Event { event, data } = events.recv().await?;
            match event.as_str() {
                "BLOCK_IO_ERROR" if data["nospace"] == true && data["action"] == "stop" => {
                    return Some(MachineEvent::DiskFull);
                }
                "SHUTDOWN" => return Some(MachineEvent::GuestEnded),
                _ => {}
            }
        }
    }

    async fn ended(&self) {
        ended(&self.process).await;
    }

    async fn end(&self) -> Result<(), Error> {
        self.process.kill();
        self.ended().await;
        remove_group(&self.groups, &self.handle.control_group).await
    }

    async fn console(&self) -> String {
        let read = qmp::ReadRing { device: CONSOLE.into(), size: 32768, format: "utf8".into() };
        match self.dialogue.run(&read).await {
            Ok(text) => text,
            Err(error) => format!("(the console cannot be read: {error})"),
        }
    }
}

/// Does what blocks where nobody waits behind it.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Monitor(error.to_string()))?
}

/// Resolves once a process has ended.
pub async fn ended(process: &Process) {
    // A descriptor of its own: several may wait for the same process at once.
    match process.as_fd().try_clone_to_owned().and_then(watch) {
        // A process descriptor is readable from its end on, never before.
        Ok(fd) => drop(fd.readable().await),
        Err(error) => tracing::error!(%error, pid = process.pid(), "a monitor cannot be watched"),
    }
}

#[allow(unsafe_code, reason = "registering has no safe form")]
fn watch(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned, and is neither closed nor replaced while it is registered.
    Ok(unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) }?)
}

/// Removes a group whose process has just ended. The kernel takes the last thread out of it a
/// moment after the process has been seen to end, so that a busy group is tried again, bounded.
pub async fn remove_group(groups: &Hierarchy, name: &str) -> Result<(), Error> {
    let mut tries = 0;
    loop {
        match groups.remove(name) {
            Err(nullspace_jail::Error::ControlGroup { source, .. })
                if source.kind() == std::io::ErrorKind::ResourceBusy && tries < 200 =>
            {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            done => return Ok(done?),
        }
    }
}

/// The end of the monitor's log, for an error's text.
async fn last_words(directory: &Path) -> String {
    match fs_err::tokio::read_to_string(directory.join("monitor.log")).await {
        Ok(text) if !text.trim().is_empty() => {
            let text = text.trim();
            let mut from = text.len().saturating_sub(2000);
            while !text.is_char_boundary(from) {
                from += 1;
            }
            format!(": {}", &text[from..])
        }
        _ => String::new(),
    }
}

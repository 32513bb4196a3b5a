//! One running QEMU.

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

use super::command_line::{CONSOLE, TOP_NODE};
use super::qmp::{self, Dialogue, Event};
use crate::{Error, GuestLink, Handle, MachineEvent, Monitor};

/// How long QEMU may take from its start to its greeting.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// How long it may take to read a device state.
const RESTORE_PATIENCE: Duration = Duration::from_secs(60);

/// The descriptor set that a device state is written through.
const DEVICES_SET: u32 = 1;

pub struct QemuMonitor {
    handle: Handle,
    process: Process,
    link: Arc<dyn GuestLink>,
    groups: Arc<Hierarchy>,
    dialogue: Dialogue,
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
    ) -> Result<Arc<Self>, Error> {
        let (send, events) = mpsc::channel(64);
        let opened = tokio::select! {
            opened = Dialogue::open(socket, send) => opened,
            () = ended(&process) => Err(Error::Monitor("it ended at its start".into())),
            () = tokio::time::sleep(START_PATIENCE) => Err(Error::Monitor("it did not greet".into())),
        };
        match opened {
            Ok(dialogue) => {
                Ok(Arc::new(Self { handle, process, link, groups, dialogue, events: Mutex::new(events) }))
            }
            Err(error) => {
                process.kill();
                ended(&process).await;
                remove_group(&groups, &handle.control_group).await?;
                Err(Error::Monitor(format!("{error}{}", last_words(&handle.directory).await)))
            }
        }
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
        self.dialogue.run(&qmp::Continue {}).await.map(drop)
    }

    async fn pause(&self) -> Result<(), Error> {
        self.dialogue.run(&qmp::Stop {}).await.map(drop)
    }

    async fn save_devices(&self, to: File) -> Result<(), Error> {
        self.dialogue
            .run_with(&qmp::AddDescriptor { fdset_id: DEVICES_SET }, Some(OwnedFd::from(to)))
            .await?;
        let filename = format!("/dev/fdset/{DEVICES_SET}");
        self.dialogue.run(&qmp::SaveDevices { filename }).await?;
        self.dialogue.run(&qmp::RemoveDescriptor { fdset_id: DEVICES_SET }).await.map(drop)
    }

    async fn resize_disk(&self, bytes: u64) -> Result<(), Error> {
        self.dialogue.run(&qmp::ResizeBlock { node_name: TOP_NODE.into(), size: bytes }).await.map(drop)
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

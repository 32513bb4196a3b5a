//! Templates of templates: a captured, running machine for each size.
//!
//! A checkpoint is a directory, published by rename: one whose making was interrupted does not
//! exist. Its name is a digest of all that must be the same for a restore to fit (image, machine
//! type, monitor, processor, size), so that one that does not fit is never found, and several
//! servers can share a directory of them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use jiff::Timestamp;
use nullspace_guest_proto as proto;
use nullspace_image::Image;
use nullspace_node_api::Shape;
use nullspace_types::{Code, Error};
use nullspace_vmm::{Description, Hardware, Memory, Monitor, Vmm};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::guest::{Guest, answered, failed, greet};
use crate::machine::{self, disk_error, remove_directory};
use crate::slot::Slots;

/// Grows when the layout of a checkpoint changes, or how its machine is booted.
const FORMAT: u32 = 3;
/// How long a cold boot may take.
const BOOT_PATIENCE: Duration = Duration::from_secs(180);

const RECORD: &str = "checkpoint.json";
const MEMORY: &str = "memory";
const DEVICES: &str = "devices";
const DISK: &str = "disk.qcow2";
const EMPTY: &str = "empty.qcow2";

/// What is written down of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// See [`FORMAT`].
    pub format: u32,
    /// The image's hash.
    pub image: String,
    /// Processors and memory.
    pub shape: Shape,
    /// What captured it, and so what can restore it.
    pub monitor: Description,
    /// The token that the agent in it takes until it is adopted.
    pub token: String,
    /// The kernel's parameters, which a restore repeats.
    pub kernel_parameters: String,
    /// From the monitor's start to the agent's first answer.
    pub boot_ms: u64,
    /// When it was captured.
    pub created_at: Timestamp,
}

/// A checkpoint that is ready to be restored.
#[derive(Debug)]
pub struct Template {
    /// Its digest.
    pub key: String,
    /// What is known of it.
    pub record: Record,
    /// Its memory, sealed.
    pub memory: Memory,
    directory: PathBuf,
    image: Image,
}

impl Template {
    /// The device state, open.
    pub fn devices(&self) -> std::io::Result<std::fs::File> {
        Ok(fs_err::File::open(self.directory.join(DEVICES))?.into_parts().0)
    }

    /// A file that is copied to begin a machine's own layer.
    pub fn empty_layer(&self) -> PathBuf {
        self.directory.join(EMPTY)
    }

    /// A machine over this checkpoint whose own layer is `top`.
    pub fn hardware(&self, top: PathBuf) -> Hardware {
        let mut hardware = hardware(&self.image, self.record.shape, &self.record.kernel_parameters, top);
        hardware.layers = vec![self.disk()];
        hardware
    }

    /// Bytes of the root disk.
    pub fn disk_bytes(&self) -> u64 {
        u64::from(self.image.root_size_mb) << 20
    }

    /// The raw image under the disks of its machines.
    pub fn base(&self) -> &Path {
        &self.image.base
    }

    /// The layer of its own boot, above the image.
    pub fn disk(&self) -> PathBuf {
        self.directory.join(DISK)
    }

    /// What a checkpoint over it has to remember.
    pub fn reference(&self) -> TemplateRef {
        TemplateRef {
            key: self.key.clone(),
            token: self.record.token.clone(),
            shape: self.record.shape,
            directory: self.directory.clone(),
            image: self.image.clone(),
        }
    }
}

/// A template as its machines and their checkpoints remember it. They need this very one: another that was
/// captured under the same name has other memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateRef {
    /// Its digest.
    pub key: String,
    /// Its agent's first token, which no other template has.
    pub token: String,
    /// Processors and memory.
    pub shape: Shape,
    /// Where it was.
    pub directory: PathBuf,
    /// The image that it was booted from.
    pub image: Image,
}

/// A checkpoint that is there, or being loaded or made.
type Coming = Shared<BoxFuture<'static, Result<Arc<Template>, Error>>>;

/// The checkpoints of one image on this host.
pub struct Templates {
    directory: PathBuf,
    image: Image,
    vmm: Arc<dyn Vmm>,
    slots: Arc<Slots>,
    coming: Mutex<HashMap<String, Coming>>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl Templates {
    /// Removes what an interrupted making has left, a booting machine included.
    pub async fn open(
        directory: PathBuf,
        image: Image,
        vmm: Arc<dyn Vmm>,
        slots: Arc<Slots>,
        tasks: TaskTracker,
        stopping: CancellationToken,
    ) -> Result<Self, Error> {
        for entry in fs_err::read_dir(&directory).map_err(Error::internal)? {
            let entry = entry.map_err(Error::internal)?;
            if let Some(maker) = entry.file_name().to_str().and_then(|name| name.strip_prefix("making-"))
                && !maker.split('-').next().is_some_and(|pid| Path::new("/proc").join(pid).exists())
            {
                crate::recover::remove(vmm.as_ref(), None, &entry.path()).await?;
            }
        }
        Ok(Self { directory, image, vmm, slots, coming: Mutex::default(), tasks, stopping })
    }

    /// The image that checkpoints are made of.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The checkpoint of a shape: loaded, read from the disk, or made by a cold boot, once however
    /// many ask together. If that fails, all of them learn why, and the next one tries again.
    pub async fn get(self: &Arc<Self>, shape: Shape) -> Result<Arc<Template>, Error> {
        let (this, key) = (Arc::clone(self), self.key(shape));
        self.once(key.clone(), async move { this.find_or_make(&key, shape).await }).await
    }

    /// The very template that a checkpoint remembers, which need not be of the image of now; never made
    /// anew.
    pub async fn find(self: &Arc<Self>, wanted: &TemplateRef) -> Result<Arc<Template>, Error> {
        let TemplateRef { key, token, shape, directory, image } = wanted.clone();
        let incompatible = |reason: &dyn std::fmt::Display| {
            let message = format!("the template that it was captured over cannot be used: {reason}");
            Error::new(Code::IncompatibleSnapshot, message)
        };
        let read = {
            let key = key.clone();
            async move {
                tokio::task::spawn_blocking(move || load(key, directory, image, shape))
                    .await
                    .map_err(Error::internal)?
                    .map(Arc::new)
            }
        };
        let found = self.once(key, read).await;
        let found = found.map_err(|error| {
            incompatible(&error.context.as_deref().unwrap_or(&error.message)).context(&error.message)
        })?;
        if found.record.token != token {
            return Err(incompatible(&"it has been captured anew since then"));
        }
        Ok(found)
    }

    /// What a name stands for, read or made by `work` if nobody is at it already.
    async fn once(
        self: &Arc<Self>,
        key: String,
        work: impl Future<Output = Result<Arc<Template>, Error>> + Send + 'static,
    ) -> Result<Arc<Template>, Error> {
        let coming = {
            let mut coming = self.coming.lock().expect("no panic under it");
            match coming.get(&key) {
                Some(coming) => coming.clone(),
                None => {
                    let (this, own) = (Arc::clone(self), key.clone());
                    // A task of its own: a caller who goes away does not end it for the others.
                    let task = self.tasks.spawn(async move {
                        let outcome = work.await;
                        if outcome.is_err() {
                            this.coming.lock().expect("no panic under it").remove(&own);
                        }
                        outcome
                    });
                    let new: Coming = async move { task.await.map_err(Error::internal)? }.boxed().shared();
                    coming.insert(key, new.clone());
                    new
                }
            }
        };
        coming.await
    }

    fn key(&self, shape: Shape) -> String {
        let Description { driver, version, machine, cpu, acceleration } = self.vmm.description();
        let Shape { vcpus, memory_mb } = shape;
        format!(
            "{}-{vcpus}x{memory_mb}-{driver}-{version}-{machine}-{}-{acceleration}-v{FORMAT}",
            self.image.hash,
            cpu.replace([',', '/'], "_"),
        )
    }

    async fn find_or_make(&self, key: &str, shape: Shape) -> Result<Arc<Template>, Error> {
        let directory = self.directory.join(key);
        if !directory.join(RECORD).exists() {
            let making = self.directory.join(format!("making-{}-{key}", std::process::id()));
            let made = self.make(&making, &directory, shape).await;
            if made.is_err() {
                remove_directory(&making).await.map_err(Error::internal)?;
            }
            made?;
        }
        let (key, image) = (key.to_owned(), self.image.clone());
        tokio::task::spawn_blocking(move || load(key, directory, image, shape))
            .await
            .map_err(Error::internal)?
            .map(Arc::new)
    }

    async fn make(&self, making: &Path, target: &Path, shape: Shape) -> Result<(), Error> {
        tracing::info!(
            vcpus = shape.vcpus,
            memory_mb = shape.memory_mb,
            "booting the template, once for this size"
        );
        remove_directory(making).await.map_err(disk_error)?;
        fs_err::tokio::create_dir_all(making).await.map_err(disk_error)?;
        let bytes = u64::from(self.image.root_size_mb) << 20;
        for layer in [DISK, EMPTY] {
            self.vmm.make_layer(&making.join(layer), bytes).await.map_err(vmm_error)?;
        }
        let token = crate::random_hex(32);
        let kernel_parameters =
            format!("console=ttyS0 quiet reboot=t panic=-1 {}={token}", proto::TOKEN_PARAMETER);
        let hardware = hardware(&self.image, shape, &kernel_parameters, making.join(DISK));
        let memory = Memory::new(shape.memory_mb).map_err(Error::internal)?;
        let slot = self.slots.take().await?;
        let captured = async {
            let placement = slot.placement(making)?;
            let begun = Instant::now();
            let monitor = self.vmm.boot(&hardware, placement, &memory).await.map_err(vmm_error)?;
            let captured = match machine::note_process(making, monitor.handle()).await {
                Ok(()) => self.capture(monitor.as_ref(), &token, making, begun).await,
                Err(error) => Err(error),
            };
            monitor.end().await.map_err(vmm_error)?;
            captured
        }
        .await;
        slot.release().await?;
        let boot_ms = captured?;
        memory.seal().map_err(Error::internal)?;
        let record = Record {
            format: FORMAT,
            image: self.image.hash.clone(),
            shape,
            monitor: self.vmm.description().clone(),
            token,
            kernel_parameters,
            boot_ms,
            created_at: Timestamp::now(),
        };
        let (making, target) = (making.to_owned(), target.to_owned());
        tokio::task::spawn_blocking(move || publish(&making, &target, &memory, &record))
            .await
            .map_err(Error::internal)??;
        tracing::info!(boot_ms, "the template is captured");
        Ok(())
    }

    /// Waits for the agent, lets it run what every sandbox runs first, and freezes the machine.
    async fn capture(
        &self,
        monitor: &dyn Monitor,
        token: &str,
        making: &Path,
        begun: Instant,
    ) -> Result<u64, Error> {
        let booted = tokio::select! {
            booted = wait_for_agent(monitor, token) => booted,
            () = monitor.ended() => Err(Error::internal("the guest ended in its boot")),
            () = self.stopping.cancelled() => return Err(stopping()),
            () = tokio::time::sleep(BOOT_PATIENCE) => Err(Error::internal("the guest does not boot")),
        };
        let (guest, mut client) = match booted {
            Ok(found) => found,
            Err(error) => {
                let console = monitor.console().await;
                return Err(error.context(format!("the template did not boot; its console ends: {console}")));
            }
        };
        let boot_ms = begun.elapsed().as_millis() as u64;
        crate::warm::run_first_commands(&mut client).await?;
        answered(client.sync(proto::SyncRequest {})).await.map_err(|status| failed("sync", &status))?;
        // No connection of ours is frozen into what every clone begins as.
        drop((client, guest));
        monitor.pause().await.map_err(vmm_error)?;
        // QEMU takes a descriptor only with the very access it asks for, which is to write.
        let devices = fs_err::File::options().write(true).create_new(true).open(making.join(DEVICES));
        let devices = devices.map_err(disk_error)?;
        monitor.save_devices(devices.into_parts().0).await.map_err(vmm_error)?;
        Ok(boot_ms)
    }
}

fn stopping() -> Error {
    Error::new(Code::Unavailable, "the server is stopping")
}

/// The agent is there when it answers. A booting guest answers nothing at all, not even a refusal,
/// so that each try has a short time.
async fn wait_for_agent(monitor: &dyn Monitor, token: &str) -> Result<(Guest, crate::guest::Client), Error> {
    loop {
        match monitor.link().dial(Duration::from_millis(250)).await {
            Ok(_) => break,
            // A refusal comes at once: the kernel is up and the agent is not.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(_) => tokio::task::yield_now().await,
        }
    }
    let guest = Guest::new(monitor.link());
    let mut client = guest.with_token(token)?;
    let hello = greet(&mut client).await?;
    tracing::info!(agent_start_us = hello.agent_start_us, kernel = hello.kernel_release, "the agent answers");
    Ok((guest, client))
}

fn hardware(image: &Image, shape: Shape, kernel_parameters: &str, top: PathBuf) -> Hardware {
    Hardware {
        vcpus: shape.vcpus,
        memory_mb: shape.memory_mb,
        kernel: image.kernel.clone(),
        initrd: image.initrd.clone(),
        kernel_parameters: kernel_parameters.to_owned(),
        base: image.base.clone(),
        layers: Vec::new(),
        top,
        mac: proto::GUEST_MAC,
    }
}

/// Completes the files and gives them their final name. Another server may have been first.
fn publish(making: &Path, target: &Path, memory: &Memory, record: &Record) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    memory.save(&making.join(MEMORY)).map_err(disk_error)?;
    for name in [DISK, DEVICES, EMPTY] {
        let path = making.join(name);
        // The frozen layer was the booting monitor's own; from here on it is nobody's to write.
        nix::unistd::chown(&path, Some(0.into()), Some(0.into())).map_err(Error::internal)?;
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).map_err(disk_error)?;
        fs_err::File::open(&path).and_then(|file| file.sync_all()).map_err(disk_error)?;
    }
    for name in ["qmp.sock", "monitor.log", machine::PROCESS] {
        fs_err::remove_file(making.join(name)).or_else(absent).map_err(disk_error)?;
    }
    fs_err::remove_dir_all(making.join("root")).or_else(absent).map_err(disk_error)?;
    let text = serde_json::to_vec_pretty(record).map_err(Error::internal)?;
    fs_err::write(making.join(RECORD), text).map_err(disk_error)?;
    fs_err::File::open(making).and_then(|directory| directory.sync_all()).map_err(disk_error)?;
    match fs_err::rename(making, target) {
        Err(_) if target.join(RECORD).exists() => fs_err::remove_dir_all(making).map_err(disk_error),
        renamed => renamed.map_err(disk_error),
    }
}

fn absent(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn load(key: String, directory: PathBuf, image: Image, shape: Shape) -> Result<Template, Error> {
    let broken = |error: &dyn std::fmt::Display| {
        let directory = directory.display();
        Error::internal(format!(
            "the checkpoint in {directory} cannot be read: {error}; remove it to have it made again"
        ))
    };
    let text = fs_err::read(directory.join(RECORD)).map_err(|error| broken(&error))?;
    let record: Record = serde_json::from_slice(&text).map_err(|error| broken(&error))?;
    if record.format != FORMAT || record.shape != shape {
        return Err(broken(&"its record is of another kind"));
    }
    let memory = Memory::load(&directory.join(MEMORY), shape.memory_mb).map_err(|error| broken(&error))?;
    Ok(Template { key, record, memory, directory, image })
}

/// What a caller is told when the monitor fails.
pub fn vmm_error(error: nullspace_vmm::Error) -> Error {
    let text = crate::chain(&error);
    if text.contains("No space left on device") {
        crate::capacity::disk_full(text)
    } else {
        Error::internal(text)
    }
}

impl std::fmt::Debug for Templates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Templates").field("directory", &self.directory).finish_non_exhaustive()
    }
}

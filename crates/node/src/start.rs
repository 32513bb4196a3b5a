//! Starting the node: the driver, the network, what the last server left, and the first checkpoints.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nullspace_image::Image;
use nullspace_node_api::{Report, Shape};
use nullspace_types::{Code, Error};
use nullspace_vmm::{Vmm, fake, qemu};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::capacity::Capacity;
use crate::checkpoint::Checkpoints;
use crate::layer::Layers;
use crate::machine::Directories;
use crate::slot::{Slot, Slots, net_error};
use crate::spare::Spares;
use crate::template::{Templates, vmm_error};
use crate::{AccelerationChoice, Config, Driver, NetworkConfig, Node, recover};

/// Captures at once: each holds a copy of what its machine has changed in memory until that is on the disk.
const CAPTURES: usize = 4;
/// How long after a failure a checkpoint is tried again.
const PREPARE_AGAIN: Duration = Duration::from_secs(15);

/// Everything a node is made of.
pub struct Settings {
    /// `[node]`
    pub node: Config,
    /// `[network]`
    pub network: NetworkConfig,
    /// The server's data directory.
    pub data_dir: PathBuf,
    /// Where the guest image stands.
    pub image_dir: PathBuf,
}

/// Starts a node; `reports` takes its news.
pub async fn start(settings: Settings, reports: mpsc::Sender<Report>) -> Result<Arc<Node>, Error> {
    let Settings { node: config, network, data_dir, image_dir } = settings;
    let unusable = |error: &dyn std::fmt::Display| Error::new(Code::Unavailable, error.to_string());
    crate::crash::check()?;
    raise_descriptor_limit()?;
    let shapes = config.parsed_shapes().map_err(|error| unusable(&error))?;
    let directories = Directories::make(&data_dir.join("node")).map_err(Error::internal)?;
    let checkpoint_dir = config.checkpoint_dir.clone().unwrap_or_else(|| data_dir.join("checkpoints"));
    fs_err::create_dir_all(&checkpoint_dir).map_err(Error::internal)?;
    let instance = instance(&data_dir)?;
    let image = match config.driver {
        Driver::Qemu => Image::open(&image_dir).map_err(|error| unusable(&error))?,
        Driver::Fake => fake_image(&checkpoint_dir)?,
    };
    let vmm: Arc<dyn Vmm> = match config.driver {
        Driver::Qemu => Arc::new(qemu(&config, &image, &checkpoint_dir, &instance).await?),
        Driver::Fake => Arc::new(fake::FakeVmm::default()),
    };
    let layers = Layers::new(directories.layers.clone());
    let checkpoints = Checkpoints::open(directories.checkpoints.clone(), &layers).await?;
    let survivors = recover::survivors(&directories, &checkpoints, vmm.as_ref()).await?;
    let keep: Vec<u32> = survivors.iter().map(|survivor| survivor.record.slot).collect();
    let (slots, kept) = match config.driver {
        Driver::Qemu => real_slots(&config, network, instance, &keep).await?,
        Driver::Fake => (Slots::Fake(AtomicU32::new(0)), HashMap::new()),
    };
    let slots = Arc::new(slots);
    let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
    let templates = Templates::open(
        checkpoint_dir,
        image,
        Arc::clone(&vmm),
        Arc::clone(&slots),
        tasks.clone(),
        stopping.clone(),
    )
    .await?;
    let turns = match config.concurrent_creates {
        0 => std::thread::available_parallelism().map_or(4, |cores| (cores.get() * 2).max(4)),
        set => set,
    };
    let node = Arc::new(Node {
        capacity: Arc::new(Capacity::new(&config, data_dir)),
        spares: Spares::new(directories.spares.clone(), config.spare_machines),
        templates: Arc::new(templates),
        layers,
        checkpoints,
        capturing: Mutex::default(),
        captures: Semaphore::new(CAPTURES),
        vmm,
        slots,
        directories,
        turns: Semaphore::new(turns),
        reports,
        tasks,
        stopping,
        owners: Mutex::default(),
        unprepared: watch::channel(Some("the template is being booted and captured".into())).0,
        entries: Mutex::default(),
    });
    recover::take_up(&node, survivors, kept).await?;
    for garbage in crate::garbage::collect(&node, true).await? {
        tracing::info!(
            kind = garbage.kind,
            name = garbage.name,
            bytes = garbage.bytes,
            "removed: {}",
            garbage.reason
        );
    }
    node.tasks.spawn(crate::garbage::keep(Arc::clone(&node)));
    node.tasks.spawn(crate::egress::report_denials(Arc::clone(&node)));
    node.tasks.spawn(prepare(Arc::clone(&node), shapes));
    node.tasks.spawn(crate::spare::keep(Arc::clone(&node)));
    Ok(node)
}

/// Every machine holds some descriptors here, of its slot, its monitor and its link.
fn raise_descriptor_limit() -> Result<(), Error> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(Error::internal)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(Error::internal)
}

/// Tells this server's machines, namespaces and groups from another's on the same host.
fn instance(data_dir: &Path) -> Result<String, Error> {
    use sha2::Digest;
    let path = fs_err::canonicalize(data_dir).map_err(Error::internal)?;
    let digest = sha2::Sha256::digest(path.as_os_str().as_encoded_bytes());
    Ok(crate::hex(&digest[..4]))
}

async fn qemu(config: &Config, image: &Image, cache: &Path, instance: &str) -> Result<qemu::Qemu, Error> {
    let unusable = |error| Error::new(Code::Unavailable, vmm_error(error).context.unwrap_or_default());
    let program = qemu::probe::program().await.map_err(unusable)?;
    let acceleration = match config.acceleration {
        AccelerationChoice::Kvm => qemu::Acceleration::Kvm,
        AccelerationChoice::Tcg => qemu::Acceleration::Tcg,
        AccelerationChoice::Auto => {
            let cache = cache.join("acceleration.json");
            let found = qemu::probe::acceleration(&program, &image.kernel, &image.initrd, &cache).await;
            let found = found.map_err(unusable)?;
            tracing::info!(acceleration = found.acceleration.as_str(), reason = found.reason, "acceleration");
            found.acceleration
        }
    };
    tracing::info!(version = program.version, acceleration = acceleration.as_str(), "QEMU");
    Ok(qemu::Qemu::new(&program, acceleration, &format!("nullspace-{instance}")))
}

/// What the fake driver boots: files that are only ever named.
fn fake_image(directory: &Path) -> Result<Image, Error> {
    let file = |name: &str| {
        let path = directory.join(name);
        fs_err::write(&path, b"fake").map_err(Error::internal).map(|()| path)
    };
    Ok(Image {
        hash: "fake".into(),
        kernel_release: "none".into(),
        kernel: file("fake-kernel")?,
        initrd: file("fake-initrd")?,
        base: file("fake-base")?,
        root_size_mb: 2048,
        created_at: None,
    })
}

async fn real_slots(
    config: &Config,
    network: NetworkConfig,
    instance: String,
    keep: &[u32],
) -> Result<(Slots, HashMap<u32, Slot>), Error> {
    let NetworkConfig { addresses, allow, authorities, resolvers } = network;
    let roots = crate::egress::roots(&authorities)?;
    let settings = nullspace_net::Config {
        addresses,
        allow,
        resolvers,
        roots,
        ready: config.ready_slots,
        // Spares and a template's boot need slots too.
        max: config.max_machines + config.spare_machines + 8,
        ..nullspace_net::Config::new(instance.clone(), crate::slot::link())
    };
    let (pool, kept) =
        nullspace_net::SlotPool::start(settings, keep.iter().copied().collect()).await.map_err(net_error)?;
    let kept = kept.into_iter().map(|slot| {
        let index = slot.index();
        (index, Slot::Real { slot, instance: instance.clone() })
    });
    let kept = kept.collect();
    Ok((Slots::Real { pool, instance }, kept))
}

/// Makes the configured checkpoints, one after the other, and then spares of the first. One that
/// cannot be made is tried again: the disk may have been full.
async fn prepare(node: Arc<Node>, shapes: Vec<Shape>) {
    let Some(&first) = shapes.first() else {
        node.unprepared.send_replace(None);
        return;
    };
    for shape in shapes {
        while let Err(error) = node.templates.get(shape).await {
            if node.stopping.is_cancelled() {
                return;
            }
            let Shape { vcpus, memory_mb } = shape;
            tracing::error!(%error, context = error.context, vcpus, memory_mb, "the template cannot be captured");
            if shape == first {
                node.unprepared.send_replace(Some(format!("the template cannot be captured: {error}")));
            }
            tokio::select! {
                () = tokio::time::sleep(PREPARE_AGAIN) => {}
                () = node.stopping.cancelled() => return,
            }
        }
        if shape == first {
            node.unprepared.send_replace(None);
            node.spares.want(shape);
        }
    }
}

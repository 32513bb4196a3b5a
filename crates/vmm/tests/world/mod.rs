//! The test's own world: network slots, control groups and a directory, all gone at the end, however the
//! test ends. It knows of the agent what it needs to run a command.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use nullspace_guest_proto as proto;
use nullspace_guest_proto::agent_client::AgentClient;
use nullspace_guest_proto::run_event::Event;
use nullspace_net::{LinkConfig, MacAddress, SlotPool};
use nullspace_vmm::qemu::{Acceleration, Qemu, probe};
use nullspace_vmm::{Delta, Error, GuestLink, Hardware, LinkStream, Memory, Monitor, Placement, Vmm};
use tonic::transport::{Channel, Endpoint};

/// Memory of every machine.
pub const MEMORY_MB: u32 = 512;
/// The token that the agent takes before it is adopted.
const TOKEN: &str = "0123456789abcdef";
/// How long the guest may take for anything.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct World {
    vmm: Qemu,
    pool: SlotPool,
    image: PathBuf,
    directory: tempfile::TempDir,
    next: AtomicU32,
    /// All that was ever started, to be ended.
    started: Mutex<Vec<(Arc<dyn Monitor>, nullspace_net::Slot)>>,
    pub disk_bytes: u64,
}

/// A captured template.
#[derive(Clone)]
pub struct Template {
    pub memory: Arc<Memory>,
    pub memory_mb: u32,
    pub devices: PathBuf,
    pub layer: PathBuf,
}

pub struct Machine {
    pub monitor: Arc<dyn Monitor>,
    /// Its frozen layers over the template's.
    pub layers: Vec<PathBuf>,
    pub top: PathBuf,
    channel: Channel,
}

type Body = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs a test in a world of its own.
pub fn run(body: fn(Arc<World>) -> Body) -> Result<(), String> {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let world = match World::new().await {
            Ok(world) => Arc::new(world),
            Err(reason) => {
                eprintln!("SKIP: {reason}");
                return Ok(());
            }
        };
        let outcome = tokio::spawn(body(Arc::clone(&world))).await;
        world.end().await;
        outcome.map_err(|error| error.to_string())
    })
}

/// Prints how long something takes.
pub async fn measured<T>(what: &str, work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let done = work.await;
    eprintln!("    {what}: {:.2} ms", begun.elapsed().as_secs_f64() * 1e3);
    done
}

/// Takes a layer out of its machine's hands, as whoever keeps checkpoints does.
pub fn make_read_only(layer: &Path) {
    std::os::unix::fs::chown(layer, Some(0), Some(0)).unwrap();
    std::fs::set_permissions(layer, std::fs::Permissions::from_mode(0o444)).unwrap();
}

/// The files that a machine's monitor has open.
pub fn open_files(machine: &Machine) -> Vec<PathBuf> {
    let list = std::fs::read_dir(format!("/proc/{}/fd", machine.monitor.handle().pid)).unwrap();
    list.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok()).collect()
}

impl World {
    async fn new() -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("only root can make network namespaces and jails".into());
        }
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/nullspace"));
        let cache = std::env::var_os("NULLSPACE_CACHE").map(PathBuf::from).or(home).ok_or("no HOME")?;
        let image = std::fs::canonicalize(cache.join("image/current"))
            .map_err(|_| format!("no guest image in {}: `make image` makes it", cache.display()))?;
        let program = probe::program().await.map_err(|error| error.to_string())?;
        let pid = std::process::id();
        let vmm = Qemu::new(&program, Acceleration::Tcg, &format!("nullspace-test-{pid}"));
        let link = LinkConfig {
            guest: proto::GUEST_ADDRESS,
            gateway: proto::GATEWAY_ADDRESS,
            prefix: proto::LINK_PREFIX,
            guest_mac: MacAddress(proto::GUEST_MAC),
            gateway_mac: MacAddress(proto::GATEWAY_MAC),
        };
        let config =
            nullspace_net::Config { ready: 1, ..nullspace_net::Config::new(format!("vmm{pid}"), link) };
        let (pool, _) = SlotPool::start(config, BTreeSet::new()).await.map_err(|error| error.to_string())?;
        let disk_bytes = std::fs::metadata(image.join("base.raw")).map_err(|error| error.to_string())?.len();
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (next, started) = (AtomicU32::new(0), Mutex::default());
        Ok(Self { vmm, pool, image, directory, next, started, disk_bytes })
    }

    async fn end(&self) {
        let started = std::mem::take(&mut *self.started.lock().unwrap());
        for (monitor, slot) in started {
            monitor.end().await.unwrap();
            slot.release().await.unwrap();
        }
        self.pool.shutdown().await.unwrap();
        self.vmm.close().await.unwrap();
    }

    /// A new name in the world's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}-{}", self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// An empty layer.
    pub async fn layer(&self, bytes: u64) -> PathBuf {
        let path = self.path("layer");
        self.vmm.make_layer(&path, bytes).await.unwrap();
        path
    }

    /// Boots a machine and captures it when its agent answers.
    pub async fn template(&self) -> Template {
        let memory = Arc::new(Memory::new(MEMORY_MB).unwrap());
        let (top, devices) = (self.layer(self.disk_bytes).await, self.path("devices"));
        let (placement, slot) = self.place().await;
        let hardware = self.hardware(MEMORY_MB, Vec::new(), top.clone());
        let begun = Instant::now();
        let monitor = self.vmm.boot(&hardware, placement, &memory).await.unwrap();
        self.started.lock().unwrap().push((Arc::clone(&monitor), slot));
        let machine = Machine::new(monitor, Vec::new(), top.clone());
        tokio::time::timeout(PATIENCE, machine.wait_for_agent()).await.expect("the guest does not boot");
        machine.run("true; sync").await;
        eprintln!("    boot: {:?}", begun.elapsed());
        let Machine { monitor, channel, .. } = machine;
        drop(channel);
        monitor.pause().await.unwrap();
        let file = std::fs::File::options().write(true).create_new(true).open(&devices).unwrap();
        monitor.save_devices(file).await.unwrap();
        let refused = monitor.make_buffer(MEMORY_MB).await.unwrap_err();
        assert!(refused.to_string().contains("only a restored machine"), "{refused}");
        monitor.end().await.unwrap();
        memory.seal().unwrap();
        make_read_only(&top);
        Template { memory, memory_mb: MEMORY_MB, devices, layer: top }
    }

    /// Restores a machine over a template, and over what was captured of another one. It stands still.
    pub async fn restore(
        &self,
        template: &Template,
        layers: Vec<PathBuf>,
        disk_bytes: u64,
        delta: Option<Arc<Delta>>,
        devices: &Path,
    ) -> Result<Machine, Error> {
        let top = self.layer(disk_bytes).await;
        let below = [vec![template.layer.clone()], layers.clone()].concat();
        let hardware = self.hardware(template.memory_mb, below, top.clone());
        let (placement, slot) = self.place().await;
        let devices = std::fs::File::open(devices).unwrap();
        let what = if delta.is_some() { "restore with a delta" } else { "restore without a delta" };
        let restored = self.vmm.restore(&hardware, placement, &template.memory, delta, devices);
        match measured(what, restored).await {
            Ok(monitor) => {
                self.started.lock().unwrap().push((Arc::clone(&monitor), slot));
                Ok(Machine::new(monitor, layers, top))
            }
            Err(error) => {
                slot.release().await.unwrap();
                Err(error)
            }
        }
    }

    /// Lets go of a machine and finds it again, as a server does that was started anew.
    pub async fn reattach(&self, machine: Machine) -> Machine {
        let (handle, link) = (machine.monitor.handle().clone(), machine.monitor.link());
        let slot = {
            let mut started = self.started.lock().unwrap();
            let index = started.iter().position(|(monitor, _)| *monitor.handle() == handle).unwrap();
            started.swap_remove(index).1
        };
        drop(machine.monitor);
        let monitor = self.vmm.reattach(&handle, link).await.unwrap();
        self.started.lock().unwrap().push((Arc::clone(&monitor), slot));
        Machine { monitor, ..machine }
    }

    async fn place(&self) -> (Placement, nullspace_net::Slot) {
        let slot = self.pool.take().await.unwrap();
        let directory = self.path("machine");
        std::fs::create_dir(&directory).unwrap();
        let placement = Placement {
            name: slot.index().to_string(),
            directory,
            uid: slot.uid(),
            network_namespace: slot.netns_path(),
            tap: slot.open_tap().unwrap(),
            link: Arc::new(Link(slot.clone())),
        };
        (placement, slot)
    }

    fn hardware(&self, memory_mb: u32, layers: Vec<PathBuf>, top: PathBuf) -> Hardware {
        Hardware {
            vcpus: 1,
            memory_mb,
            kernel: self.image.join("vmlinuz"),
            initrd: self.image.join("initrd.img"),
            kernel_parameters: format!(
                "console=ttyS0 quiet reboot=t panic=-1 {}={TOKEN}",
                proto::TOKEN_PARAMETER
            ),
            base: self.image.join("base.raw"),
            layers,
            top,
            mac: proto::GUEST_MAC,
        }
    }
}

/// TCP over the slot's tap.
struct Link(nullspace_net::Slot);

#[async_trait::async_trait]
impl GuestLink for Link {
    async fn dial(&self, deadline: Duration) -> std::io::Result<Box<dyn LinkStream>> {
        match self.0.dial(proto::AGENT_PORT, deadline).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(std::io::Error::other(error)),
        }
    }

    fn has_bulk(&self) -> bool {
        false
    }

    async fn dial_bulk(&self, _: Duration) -> std::io::Result<Box<dyn LinkStream>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

impl Machine {
    fn new(monitor: Arc<dyn Monitor>, layers: Vec<PathBuf>, top: PathBuf) -> Self {
        let link = monitor.link();
        let connect = tower::service_fn(move |_| {
            let link = Arc::clone(&link);
            async move { link.dial(PATIENCE).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://guest").connect_with_connector_lazy(connect);
        Self { monitor, layers, top, channel }
    }

    /// A guest that boots answers nothing, or refuses at once; nothing tells when it is there.
    async fn wait_for_agent(&self) {
        while self.monitor.link().dial(Duration::from_millis(250)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs a shell line to its end, which has to be a good one; answers what it wrote.
    pub async fn run(&self, line: &str) -> String {
        self.follow(line, false).await
    }

    /// Starts a shell line that goes on by itself.
    pub async fn start(&self, line: &str) {
        self.follow(line, true).await;
    }

    async fn follow(&self, line: &str, background: bool) -> String {
        let mut request = tonic::Request::new(proto::RunRequest {
            command: line.into(),
            shell: true,
            inline_limit: 1 << 16,
            background,
            ..Default::default()
        });
        request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
        let mut client = AgentClient::new(self.channel.clone());
        let followed = async {
            let mut events = client.run(request).await.unwrap().into_inner();
            let mut output = Vec::new();
            while let Some(event) = events.message().await.unwrap() {
                match event.event.unwrap() {
                    Event::Output(some) => output.extend(some.data),
                    Event::Exited(exited) => {
                        let output = String::from_utf8(output).unwrap();
                        assert_eq!(exited.exit_code, 0, "{line}: {output}");
                        return output;
                    }
                    Event::Started(_) => {}
                    other => panic!("{line}: {other:?}"),
                }
            }
            assert!(background, "{line} has no end");
            String::new()
        };
        tokio::time::timeout(PATIENCE, followed).await.unwrap_or_else(|_| panic!("{line} does not end"))
    }
}

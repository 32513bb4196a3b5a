//! QEMU, from 7.2 on: the command line, the QMP dialogue, the running process, and the probe that
//! finds out whether this host's KVM can really run the guest's kernel.

mod command_line;
mod disk;
mod merge;
mod monitor;
mod private_memory;
pub mod probe;
mod qmp;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use nullspace_jail::cgroup::{Hierarchy, Limits};
use nullspace_jail::{Bind, Process, Spec};

use crate::{Delta, Description, Error, GuestLink, Handle, Hardware, Memory, Monitor, Placement, Vmm};
use command_line::{Paths, Start};
use disk::Disk;
use monitor::QemuMonitor;

/// Memory of a monitor besides the guest's own: QEMU itself, and under TCG the translated code.
const OVERHEAD_MB: u64 = 320;

/// How KVM or TCG is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Acceleration {
    /// Hardware virtualisation.
    Kvm,
    /// Software emulation.
    Tcg,
}

impl Acceleration {
    /// As QEMU calls it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// The QEMU driver.
pub struct Qemu {
    description: Description,
    acceleration: Acceleration,
    groups: Arc<Hierarchy>,
    program: PathBuf,
}

impl Qemu {
    /// A driver with what [`probe`] found. Machines get control groups below `group`.
    pub fn new(found: &probe::Program, acceleration: Acceleration, group: &str) -> Self {
        let groups = Hierarchy::find(group);
        if let Hierarchy::Absent(reason) = &groups {
            tracing::warn!(reason, "machines run without control groups: limits hold by shape alone");
        }
        let description = Description {
            driver: "qemu".into(),
            version: found.version.clone(),
            machine: command_line::MACHINE.into(),
            cpu: command_line::cpu_model(acceleration).into(),
            acceleration: acceleration.as_str().into(),
        };
        Self { description, acceleration, groups: Arc::new(groups), program: found.path.clone() }
    }

    async fn start(
        &self,
        hardware: &Hardware,
        placement: Placement,
        memory: &Memory,
        start: Start,
        devices: Option<File>,
    ) -> Result<Arc<QemuMonitor>, Error> {
        let (listener, socket) = qmp::listen(&placement.directory)?;
        let file = |what: &str| {
            let what = what.to_owned();
            move |source| Error::File { what, source }
        };
        let memory = memory.descriptor().map_err(file("the guest's memory cannot be passed on"))?;
        let log_path = placement.directory.join("monitor.log");
        let log =
            fs_err::File::create(&log_path).map_err(file("the monitor's log cannot be made"))?.into_parts().0;
        // Descriptors 3, 4, 5 and, for a restore, 6; the command line names them by these numbers.
        let mut fds: Vec<OwnedFd> = vec![listener, memory, placement.tap];
        fds.extend(devices.map(OwnedFd::from));
        let paths = Paths::of(hardware);
        let limits = Limits {
            // One processor a virtual one, and some for the devices.
            cpu_percent: hardware.vcpus * 100 + 20,
            // Twice the guest's own: the first machine that touches a page which is a hole in the
            // template's memory is charged for that page too, besides its private copy of it.
            memory_bytes: (2 * u64::from(hardware.memory_mb) + OVERHEAD_MB) << 20,
            tasks: 64 + hardware.vcpus,
        };
        let root = placement.directory.join("root");
        fs_err::create_dir_all(&root).map_err(file("the jail's root cannot be made"))?;
        let spec = Spec {
            root,
            uid: placement.uid,
            gid: placement.uid,
            network_namespace: Some(placement.network_namespace),
            control_groups: Vec::new(),
            binds: self.binds(hardware, &paths),
            devices: if self.acceleration == Acceleration::Kvm {
                vec!["/dev/kvm".into()]
            } else {
                Vec::new()
            },
            program: self.program.clone(),
            arguments: command_line::arguments(hardware, &paths, self.acceleration, start),
            file_size_limit: u64::MAX,
        };
        let (groups, name) = (Arc::clone(&self.groups), placement.name.clone());
        let uid = placement.uid;
        let top = hardware.top.clone();
        let process = tokio::task::spawn_blocking(move || {
            nix::unistd::chown(&top, Some(uid.into()), Some(uid.into())).map_err(|error| Error::File {
                what: format!("{} cannot be given away", top.display()),
                source: error.into(),
            })?;
            let control_groups = groups.make(&name, limits)?;
            let started = nullspace_jail::launch(&Spec { control_groups, ..spec }, &fds, &log);
            if started.is_err() {
                groups.remove(&name)?;
            }
            Ok::<Process, Error>(started?)
        })
        .await
        .map_err(|error| Error::Monitor(error.to_string()))??;
        let handle = Handle {
            pid: process.pid(),
            start_time: process.start_time(),
            control_group: placement.name,
            directory: placement.directory,
        };
        let (groups, disk) = (Arc::clone(&self.groups), Disk::started(hardware.layers.len()));
        QemuMonitor::connect(handle, process, placement.link, groups, &socket, disk).await
    }

    fn binds(&self, hardware: &Hardware, paths: &Paths) -> Vec<Bind> {
        let mut binds = vec![
            Bind::read_only(&hardware.kernel, paths::KERNEL),
            Bind::read_only(&hardware.initrd, paths::INITRD),
            Bind::read_only(&hardware.base, paths::BASE),
            Bind::writable(&hardware.top, paths::TOP),
        ];
        binds.extend(hardware.layers.iter().zip(&paths.layers).map(|(from, to)| Bind::read_only(from, to)));
        binds
    }
}

use command_line::paths;

#[async_trait]
impl Vmm for Qemu {
    fn description(&self) -> &Description {
        &self.description
    }

    async fn boot(
        &self,
        hardware: &Hardware,
        placement: Placement,
        memory: &Memory,
    ) -> Result<Arc<dyn Monitor>, Error> {
        Ok(self.start(hardware, placement, memory, Start::Boot, None).await?)
    }

    async fn restore(
        &self,
        hardware: &Hardware,
        placement: Placement,
        memory: &Memory,
        delta: Option<Arc<Delta>>,
        devices: File,
    ) -> Result<Arc<dyn Monitor>, Error> {
        if let Some(delta) = &delta {
            delta.check_size(hardware.memory_mb)?;
        }
        let start = if delta.is_some() { Start::RestoreLater } else { Start::Restore };
        let monitor = self.start(hardware, placement, memory, start, Some(devices)).await?;
        let restored = async {
            if let Some(delta) = delta {
                monitor.write_memory(delta).await?;
                monitor.read_devices().await?;
            }
            monitor.wait_restored().await
        };
        match restored.await {
            Ok(()) => Ok(monitor),
            Err(error) => {
                monitor.end().await?;
                Err(error)
            }
        }
    }

    async fn reattach(&self, handle: &Handle, link: Arc<dyn GuestLink>) -> Result<Arc<dyn Monitor>, Error> {
        let process = Process::find_again(handle.pid, handle.start_time)?;
        let socket = qmp::socket_path(&handle.directory);
        let (handle, groups) = (handle.clone(), Arc::clone(&self.groups));
        Ok(QemuMonitor::connect(handle, process, link, groups, &socket, Disk::found()).await?)
    }

    async fn make_layer(&self, path: &Path, bytes: u64) -> Result<(), Error> {
        let output = tokio::process::Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-o", "cluster_size=64k,lazy_refcounts=off"])
            .arg(path)
            .arg(bytes.to_string())
            .output()
            .await
            .map_err(|source| Error::File {
                what: "qemu-img cannot be run: install qemu-utils".into(),
                source,
            })?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::Unusable(format!("qemu-img: {}", String::from_utf8_lossy(&output.stderr).trim())))
    }

    async fn remove(&self, handle: &Handle) -> Result<(), Error> {
        if let Ok(process) = Process::find_again(handle.pid, handle.start_time) {
            process.kill();
            monitor::ended(&process).await;
        }
        monitor::remove_group(&self.groups, &handle.control_group).await
    }

    async fn sweep(&self, keep: &[String]) -> Result<(), Error> {
        for name in self.groups.list().into_iter().filter(|name| !keep.contains(name)) {
            for pid in self.groups.processes(&name) {
                if let Ok(process) = Process::find(pid) {
                    tracing::info!(pid, group = name, "ending a machine that was never written down");
                    process.kill();
                    monitor::ended(&process).await;
                }
            }
            monitor::remove_group(&self.groups, &name).await?;
        }
        Ok(())
    }

    async fn close(&self) -> Result<(), Error> {
        if self.groups.list().is_empty() {
            self.groups.remove_parent()?;
        }
        Ok(())
    }
}

//! What machines are made with: rights, QEMU, acceleration, the image, control groups.

use std::path::{Path, PathBuf};

use nullspace_image::Image;
use nullspace_node::{AccelerationChoice, Driver};
use nullspace_vmm::qemu::{Acceleration, probe};

use super::{Check, apart};
use crate::config::{Config, image_dir};

/// Whether this runs as root, as the server must.
pub(super) fn rights() -> Check {
    const NAME: &str = "rights";
    let user = nix::unistd::geteuid();
    if user.is_root() {
        Check::pass(NAME, "root")
    } else {
        let message = format!("user {user}, not root: namespaces, taps and jails cannot be made");
        Check::fail(
            NAME,
            message,
            "run the server as root: each machine then gets an unprivileged user of its own",
        )
    }
}

/// QEMU, the image, and the acceleration that both together give.
pub(super) async fn engine(config: &Config, data_dir: &Path) -> Vec<Check> {
    if config.node.driver == Driver::Fake {
        let message = "the fake driver is configured: machines are in memory only";
        return vec![Check::warn("qemu", message, "set driver = \"qemu\" in [node] for real machines")];
    }
    let program = probe::program().await;
    let qemu = match &program {
        Ok(found) => Check::pass("qemu", format!("{} at {}", found.version, found.path.display())),
        Err(error) => {
            let (major, minor) = probe::OLDEST;
            let fix = format!("install qemu-system-x86, version {major}.{minor} or newer");
            Check::fail("qemu", chain(error), fix)
        }
    };
    let configured = config.image.clone();
    let image = apart(move || {
        let dir = image_dir(&configured).map_err(|error| format!("{error:#}"))?;
        Image::open(&dir).map_err(|error| chain(&error))
    })
    .await;
    let image_check = match &image {
        Ok(found) => Check::pass("image", format!("{}, kernel {}", found.hash, found.kernel_release)),
        Err(error) => {
            Check::fail("image", error, "run `make image` in the repository, or set dir in [image]")
        }
    };
    let acceleration = match (config.node.acceleration, program, image) {
        (AccelerationChoice::Tcg, _, _) => {
            let fix = "set acceleration = \"auto\" in [node] to use KVM where it works";
            Check::warn("acceleration", "tcg, as configured", fix)
        }
        (_, Err(_), _) | (_, _, Err(_)) => {
            let message = "cannot be probed: that takes a boot, with QEMU and the image";
            Check::warn("acceleration", message, "mend those first")
        }
        (_, Ok(program), Ok(image)) => probed(config, data_dir, &program, &image).await,
    };
    vec![qemu, image_check, acceleration]
}

async fn probed(config: &Config, data_dir: &Path, program: &probe::Program, image: &Image) -> Check {
    const NAME: &str = "acceleration";
    // The server's own answer, if it has one; else one of ours, which is not kept for it.
    let kept = config.node.checkpoint_dir.clone().unwrap_or_else(|| data_dir.join("checkpoints"));
    let kept = kept.join("acceleration.json");
    let own = std::env::temp_dir().join(format!("nullspace-doctor-{}.json", std::process::id()));
    let cache: &PathBuf = if kept.exists() { &kept } else { &own };
    let found = probe::acceleration(program, &image.kernel, &image.initrd, cache).await;
    if let Err(error) = fs_err::remove_file(&own)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::debug!(%error, "the probe's result stays behind");
    }
    match found {
        Ok(found) if found.acceleration == Acceleration::Kvm => {
            Check::pass(NAME, format!("kvm: {}", found.reason))
        }
        Ok(found) if config.node.acceleration == AccelerationChoice::Kvm => Check::fail(
            NAME,
            format!("kvm is configured, but {}", found.reason),
            "set acceleration = \"auto\" in [node]",
        ),
        Ok(found) => Check::warn(
            NAME,
            format!("tcg, software emulation: {}", found.reason),
            "machines work, several times slower; for speed use a host with KVM, or nested virtualisation turned on",
        ),
        Err(error) => Check::warn(NAME, chain(&error), "see the reason; the server falls back to tcg"),
    }
}

/// Which controllers there are to limit monitors with.
pub(super) fn control_groups() -> Check {
    const NAME: &str = "control groups";
    let found = fs_err::read_to_string("/proc/self/mountinfo").map(|mounts| {
        let unified = unified_mount(&mounts).map(|point| {
            fs_err::read_to_string(Path::new(point).join("cgroup.controllers")).unwrap_or_default()
        });
        judge(&legacy_controllers(&mounts), unified.as_deref())
    });
    match found {
        Ok(Ok(message)) => Check::pass(NAME, message),
        Ok(Err(message)) => Check::warn(
            NAME,
            format!("{message}: machines are limited by the monitor and its own limits alone"),
            "mount a cgroup2 file system with the cpu, memory and pids controllers on /sys/fs/cgroup",
        ),
        Err(error) => Check::warn(NAME, error.to_string(), "mount /proc"),
    }
}

const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

fn judge(legacy: &[&str], unified: Option<&str>) -> Result<String, String> {
    let unified: Vec<&str> = unified.unwrap_or_default().split_ascii_whitespace().collect();
    for (version, offered) in [(2, &unified[..]), (1, legacy)] {
        if CONTROLLERS.iter().all(|controller| offered.contains(controller)) {
            return Ok(format!("version {version} with {}", CONTROLLERS.join(", ")));
        }
    }
    Err(format!(
        "not all of {} (version 2 has {unified:?}, version 1 has {legacy:?})",
        CONTROLLERS.join(", ")
    ))
}

/// The fields of a mount after the dash: kind, source, options; and where it is.
fn mounts(text: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    text.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        Some((before.split(' ').nth(4)?, after.next()?, after.nth(1)?))
    })
}

fn unified_mount(text: &str) -> Option<&str> {
    mounts(text).find(|(_, kind, _)| *kind == "cgroup2").map(|(point, _, _)| point)
}

fn legacy_controllers(text: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    for (_, _, options) in mounts(text).filter(|(_, kind, _)| *kind == "cgroup") {
        found.extend(
            CONTROLLERS.iter().filter(|controller| options.split(',').any(|option| option == **controller)),
        );
    }
    found
}

/// An error with its causes on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_groups_of_either_version_are_read_from_the_mounts() {
        let text = "\
30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
        assert_eq!(unified_mount(text), Some("/sys/fs/cgroup/unified"));
        assert_eq!(legacy_controllers(text), ["cpu", "memory"]);
        assert!(judge(&legacy_controllers(text), Some("")).unwrap_err().contains("cpu, memory, pids"));
        assert_eq!(judge(&["pids", "cpu", "memory"], None).unwrap(), "version 1 with cpu, memory, pids");
        assert_eq!(
            judge(&[], Some("cpuset cpu io memory pids\n")).unwrap(),
            "version 2 with cpu, memory, pids"
        );
    }
}

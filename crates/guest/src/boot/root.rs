//! The root file system as programs expect it: mounts, links, limits.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;

use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};

use super::{disk, identity, step};
use crate::console::say;
use crate::hooks;

/// Where control groups are, as everywhere.
pub const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// Open files of a process: what most get, and what those may have that ask.
const OPEN_FILES: (u64, u64) = (65_536, 1 << 20);

/// Prepares everything that is neither network nor identity.
pub fn prepare() -> io::Result<()> {
    umask(Mode::from_bits_truncate(0o022));
    let secure = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let mounts = [
        ("/dev/pts", "devpts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"),
        ("/dev/shm", "tmpfs", secure, "mode=1777"),
        ("/run", "tmpfs", secure, "mode=0755,size=20%"),
        (CONTROL_GROUPS, "cgroup2", secure | MsFlags::MS_NOEXEC, "nsdelegate"),
    ];
    for (target, kind, flags, options) in mounts {
        // The directory for control groups is the kernel's, and there.
        if !target.starts_with("/sys") {
            step(target, fs::create_dir_all(target))?;
        }
        step(target, mount(Some(kind), target, Some(kind), flags, Some(options)))?;
    }
    step("/run/lock", fs::create_dir_all("/run/lock"))?;
    step(
        "/run/lock",
        fs::set_permissions("/run/lock", std::os::unix::fs::PermissionsExt::from_mode(0o1777)),
    )?;
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        match symlink(target, link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => step(link, other)?,
        }
    }
    step(hooks::DIRECTORY, fs::create_dir_all(hooks::DIRECTORY))?;
    step("open files", setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.0, OPEN_FILES.1))?;
    // Numbers of processes that come again only after a long time: the API names processes by them.
    set("/proc/sys/kernel/pid_max", "4194304");
    // The link has no IPv6; its announcements would only wake the machine.
    set("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1");
    step("ctrl-alt-del", nix::sys::reboot::set_cad_enabled(false))?;
    step("identity", identity::prepare())?;
    step("disk", disk::prepare())
}

/// A setting without which the machine works as well.
fn set(path: &str, value: &str) {
    if let Err(error) = fs::write(path, value) {
        say!("{path}: {error}");
    }
}

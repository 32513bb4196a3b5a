//! The files that say which machine this is.
//!
//! They change at every adoption, on the hot path of a create. So at boot they become links into a
//! memory file system, where a write is a copy; and the kernel's own boot ID, which cannot be set, is
//! covered by such a file.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::{MsFlags, mount};

pub const HOSTNAME: &str = "/etc/hostname";
pub const HOSTS: &str = "/etc/hosts";
pub const MACHINE_ID: &str = "/etc/machine-id";
pub const BOOT_ID: &str = "/run/nullspace/boot_id";
/// Where the guest's SSH server is configured to find its key; the public one beside it.
pub const SSH_HOST_KEY: &str = "/run/nullspace/ssh_host_ed25519_key";
pub const SSH_HOST_KEY_PUBLIC: &str = "/run/nullspace/ssh_host_ed25519_key.pub";
pub const BOOT_ID_SHOWN: &str = "/proc/sys/kernel/random/boot_id";

/// The kernel calls itself that until it is told better, if nothing else is said.
const UNNAMED: &str = "nullspace";
const MEMORY: &str = "/run/nullspace";
/// What a disk's own `/etc/hosts` said: kept beside the link, since a link's target is gone at the next
/// boot.
const HOSTS_OWN: &str = "/etc/hosts.own";

/// Makes the links, and covers the boot ID.
pub fn prepare() -> io::Result<()> {
    fs::create_dir_all(MEMORY)?;
    let name = match fs::read_to_string(HOSTNAME) {
        Ok(name) if !name.trim().is_empty() => name.trim().to_string(),
        _ => UNNAMED.into(),
    };
    nix::unistd::sethostname(&name)?;
    let own_hosts = match fs::symlink_metadata(HOSTS) {
        Ok(metadata) if metadata.is_file() => {
            fs::rename(HOSTS, HOSTS_OWN)?;
            fs::read(HOSTS_OWN)?
        }
        _ => fs::read(HOSTS_OWN).unwrap_or_else(|_| b"127.0.0.1 localhost\n::1 localhost\n".to_vec()),
    };
    link(HOSTS, "hosts", &own_hosts)?;
    link(HOSTNAME, "hostname", format!("{name}\n").as_bytes())?;
    link(MACHINE_ID, "machine-id", b"")?;
    if Path::new("/var/lib/dbus").is_dir() {
        replace_by_link("/var/lib/dbus/machine-id", MACHINE_ID)?;
    }
    fs::copy(BOOT_ID_SHOWN, BOOT_ID)?;
    let none: Option<&str> = None;
    mount(Some(BOOT_ID), BOOT_ID_SHOWN, none, MsFlags::MS_BIND, none)?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(none, BOOT_ID_SHOWN, none, read_only, none)?;
    Ok(())
}

/// Puts `content` into memory and a link to it at `path`.
fn link(path: &str, name: &str, content: &[u8]) -> io::Result<()> {
    let target = Path::new(MEMORY).join(name);
    io::Write::write_all(&mut File::create(&target)?, content)?;
    replace_by_link(path, &target)
}

fn replace_by_link(path: &str, target: impl AsRef<Path>) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(target, path)
}

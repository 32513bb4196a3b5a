//! Room: on the disk and in memory.

use std::path::Path;

use nullspace_node::Config;

use super::Check;
use super::machine::chain;

/// A template's checkpoint and a first few machines.
const DISK_NEEDED_MB: u64 = 2 << 10;
/// Comfortable for a host that is used.
const DISK_GOOD_MB: u64 = 20 << 10;
/// A machine of the smallest size while it is booted for its checkpoint.
const MEMORY_NEEDED_MB: u64 = 512;
/// Comfortable likewise.
const MEMORY_GOOD_MB: u64 = 2 << 10;

/// Room and kind of the file system that the data directory is, or will be, in.
pub(super) fn disk(data_dir: &Path, config: &Config) -> Check {
    const NAME: &str = "disk";
    let found = data_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat = nix::sys::statfs::statfs(found);
    let space = nix::sys::statvfs::statvfs(found);
    let (stat, space) = match (stat, space) {
        (Ok(stat), Ok(space)) => (stat, space),
        (Err(error), _) | (_, Err(error)) => {
            return Check::fail(
                NAME,
                format!("{}: {}", found.display(), chain(&error)),
                "choose another --data-dir",
            );
        }
    };
    let free_mb = (space.blocks_available() * space.fragment_size()) >> 20;
    let kind = kind(stat.filesystem_type().0.cast_unsigned());
    let message =
        format!("{free_mb} MiB free for {} ({})", data_dir.display(), kind.unwrap_or("another file system"));
    if space.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY) {
        return Check::fail(NAME, format!("{message}, read-only"), "choose another --data-dir");
    }
    let needed = config.disk_reserve_mb + DISK_NEEDED_MB;
    match kind {
        _ if free_mb < needed => {
            let fix = format!(
                "free some, or choose another --data-dir: {needed} MiB are needed, the reserve included"
            );
            Check::fail(NAME, message, fix)
        }
        Some("tmpfs") => {
            Check::warn(NAME, message, "what is kept there takes memory and is gone after a reboot")
        }
        Some("nfs" | "overlayfs" | "fuse") => Check::warn(
            NAME,
            message,
            "put the data directory on a local file system: disks and SQLite need its locks and speed",
        ),
        _ if free_mb < DISK_GOOD_MB => Check::warn(
            NAME,
            message,
            format!("{DISK_GOOD_MB} MiB or more make room for machines that write"),
        ),
        _ => Check::pass(NAME, message),
    }
}

/// The kinds that matter, by the numbers of linux/magic.h.
fn kind(magic: u64) -> Option<&'static str> {
    Some(match magic {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0xf2f5_2010 => "f2fs",
        0x2fc1_2fc1 => "zfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlayfs",
        0x6969 => "nfs",
        0x6573_5546 => "fuse",
        _ => return None,
    })
}

/// Memory that can be had now.
pub(super) fn memory(config: &Config) -> Check {
    const NAME: &str = "memory";
    let text = match fs_err::read_to_string("/proc/meminfo") {
        Ok(text) => text,
        Err(error) => return Check::warn(NAME, error.to_string(), "mount /proc"),
    };
    let (Some(total), Some(available)) = (mebibytes(&text, "MemTotal:"), mebibytes(&text, "MemAvailable:"))
    else {
        return Check::warn(NAME, "/proc/meminfo does not tell it", "use Linux 3.14 or newer");
    };
    let message = format!("{available} of {total} MiB available");
    let needed = config.memory_reserve_mb + MEMORY_NEEDED_MB;
    if available < needed {
        let fix = format!("end other programs: {needed} MiB are needed, the reserve included");
        Check::fail(NAME, message, fix)
    } else if available < MEMORY_GOOD_MB {
        Check::warn(NAME, message, format!("{MEMORY_GOOD_MB} MiB or more make room for several machines"))
    } else {
        Check::pass(NAME, message)
    }
}

fn mebibytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? >> 10)
}

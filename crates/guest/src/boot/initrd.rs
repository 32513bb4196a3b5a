//! The initial memory file system: load modules, find the disk, make it the root.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{device_event, step};
use crate::console::say;

const DISK: &str = "/dev/vda";
const NEW_ROOT: &str = "/newroot";
/// How long the disk may take to appear once its driver is loaded.
const DISK_WAIT: Duration = Duration::from_secs(10);

const NONE: Option<&str> = None;

/// Ends in the disk's root directory, with `/proc`, `/sys` and `/dev` there, and nothing left behind.
pub fn enter_root() -> io::Result<()> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    for directory in ["/proc", "/sys", "/dev", NEW_ROOT] {
        step(directory, fs::create_dir_all(directory))?;
    }
    step("/dev", mount(Some("dev"), "/dev", Some("devtmpfs"), MsFlags::MS_NOSUID, Some("mode=0755")))?;
    step("console", open_console())?;
    step("/proc", mount(Some("proc"), "/proc", Some("proc"), quiet, NONE))?;
    step("/sys", mount(Some("sys"), "/sys", Some("sysfs"), quiet, NONE))?;

    // Before the modules, so that no event is missed.
    let events = step("device events", device_event::listen())?;
    load_modules()?;
    step(DISK, wait_for_disk(&events))?;

    // Times of reading are nobody's need here, and would make every first read a write.
    step("root file system", mount(Some(DISK), NEW_ROOT, Some("ext4"), MsFlags::MS_NOATIME, NONE))?;
    for directory in ["/dev", "/proc", "/sys"] {
        let target = format!("{NEW_ROOT}{directory}");
        step(&target, fs::create_dir_all(&target))?;
        step(&target, mount(Some(directory), target.as_str(), NONE, MsFlags::MS_MOVE, NONE))?;
    }
    free_memory()?;
    step(NEW_ROOT, nix::unistd::chdir(NEW_ROOT))?;
    step("move the root", mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE))?;
    step("chroot", nix::unistd::chroot("."))?;
    step("chdir", nix::unistd::chdir("/"))
}

/// The kernel gives PID 1 a console only if the initial file system has the device.
fn open_console() -> io::Result<()> {
    let console = File::options().read(true).write(true).open("/dev/console")?;
    nix::unistd::dup2_stdin(&console)?;
    nix::unistd::dup2_stdout(&console)?;
    nix::unistd::dup2_stderr(&console)?;
    Ok(())
}

fn load_modules() -> io::Result<()> {
    let order = match fs::read_to_string("/modules/order") {
        Ok(order) => order,
        // A kernel with everything built in.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return step("/modules/order", Err(error)),
    };
    for name in order.lines().map(str::trim).filter(|name| !name.is_empty()) {
        let path = Path::new("/modules").join(name);
        let module = step(name, File::open(&path))?;
        match finit_module(&module, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            // Not fatal by itself: the disk or the link will be missed if it mattered.
            Err(error) => say!("module {name}: {error}"),
        }
    }
    Ok(())
}

fn wait_for_disk(events: &OwnedFd) -> io::Result<()> {
    let deadline = Instant::now() + DISK_WAIT;
    while !Path::new(DISK).exists() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::other(format!("did not appear in {} s", DISK_WAIT.as_secs())));
        }
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))?;
        device_event::discard(events);
    }
    Ok(())
}

/// The initial file system is memory; its files would stay for the life of the machine. The agent's
/// own file lives on while it runs.
fn free_memory() -> io::Result<()> {
    step("/modules", fs::remove_dir_all("/modules").or_else(none_is_fine))?;
    step("/init", fs::remove_file("/init").or_else(none_is_fine))
}

fn none_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

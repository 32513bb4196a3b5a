//! Control groups, version 2, as far as they make programs stand still: the kernel's
//! `Documentation/admin-guide/cgroup-v2.rst`, `cgroup.freeze` and `cgroup.events`.
//!
//! The agent has two: what it starts is born in one, and hooks in another, since they run while the others
//! stand still. What programs make beside (container runtimes put theirs at the top) is frozen with them.
//! A group that stood still before is none of ours, and stays as it is.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{OFlag, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use tokio::io::Interest;

use crate::console::say;
use crate::watch::watch;

const PROGRAMS: &str = "programs";
const HOOKS: &str = "hooks";
/// Groups at the top that are frozen. With more of them programs would stand still too long.
const MOST: usize = 64;

/// The groups of one hierarchy.
pub struct Groups {
    root: PathBuf,
    programs: Arc<OwnedFd>,
    hooks: Arc<OwnedFd>,
}

/// A group that was told to stand still. It goes on when this is dropped.
pub struct Still {
    pub name: String,
    directory: Arc<OwnedFd>,
    switch: File,
}

impl Groups {
    /// See [`super::Freezer::with_groups`].
    pub fn make(root: &Path, own: bool) -> io::Result<Self> {
        let make = |name| -> io::Result<Arc<OwnedFd>> {
            let path = root.join(name);
            fs::create_dir_all(&path)?;
            let directory = File::open(&path)?;
            if own {
                protect(&path)?;
            }
            Ok(Arc::new(directory.into()))
        };
        Ok(Self { programs: make(PROGRAMS)?, hooks: make(HOOKS)?, root: root.into() })
    }

    /// That of what the agent starts.
    pub fn programs(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.programs)
    }

    /// That of hooks.
    pub fn hooks(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.hooks)
    }

    /// Tells every group to stand still, and adds it to those that were told.
    pub fn tell(&self, told: &mut Vec<Still>) -> io::Result<()> {
        let mut add = |name: &str, directory| {
            if let Some(still) = gone_is_none(Still::tell(name, directory))?.flatten() {
                told.push(still);
            }
            io::Result::Ok(())
        };
        add(PROGRAMS, self.programs())?;
        add(HOOKS, self.hooks())?;
        let mut count = 0;
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let name = entry.file_name();
            if !entry.file_type()?.is_dir() || name == PROGRAMS || name == HOOKS {
                continue;
            }
            count += 1;
            if count > MOST {
                return Err(io::Error::other(format!("there are more than {MOST}")));
            }
            if let Some(directory) = gone_is_none(File::open(entry.path()))? {
                add(&name.to_string_lossy(), Arc::new(directory.into()))?;
            }
        }
        Ok(())
    }
}

impl Still {
    /// None: it stood still already.
    fn tell(name: &str, directory: Arc<OwnedFd>) -> io::Result<Option<Self>> {
        let switch = open_in(&directory, c"cgroup.freeze", OFlag::O_RDWR)?;
        let mut now = [0; 1];
        switch.read_at(&mut now, 0)?;
        if now == *b"1" {
            return Ok(None);
        }
        switch.write_all_at(b"1", 0)?;
        Ok(Some(Self { name: name.into(), directory, switch }))
    }

    /// Waits until all in it stand still.
    pub async fn wait(&self) -> io::Result<()> {
        let Some(events) = gone_is_none(open_in(&self.directory, c"cgroup.events", OFlag::O_RDONLY))? else {
            return Ok(());
        };
        if stands_still(&events)? {
            return Ok(());
        }
        // A change since that look makes it ready.
        let events = watch(events.into(), Interest::PRIORITY)?;
        loop {
            events.ready(Interest::PRIORITY).await?.clear_ready();
            if stands_still(events.get_ref())? {
                return Ok(());
            }
        }
    }

    pub fn is_of_hooks(&self) -> bool {
        self.name == HOOKS
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        if let Err(error) = gone_is_none(self.switch.write_all_at(b"0", 0)) {
            say!("the control group {} does not go on: {error}", self.name);
        }
    }
}

fn open_in(directory: &OwnedFd, name: &std::ffi::CStr, access: OFlag) -> io::Result<File> {
    Ok(openat(directory, name, access | OFlag::O_CLOEXEC, Mode::empty())?.into())
}

/// What `cgroup.events` says now. A group that is no more has nothing that runs.
fn stands_still(events: &impl AsFd) -> io::Result<bool> {
    let mut text = [0; 256];
    let read = nix::sys::uio::pread(events, &mut text, 0).map_err(io::Error::from);
    let len = gone_is_none(read)?;
    Ok(len.is_none_or(|len| text[..len].split(|byte| *byte == b'\n').any(|line| line == b"frozen 1")))
}

/// A group may be removed at any moment.
fn gone_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a group read-only by its name. One that programs froze would hold up the agent at the next start,
/// and one that they removed would leave those that come later running.
fn protect(path: &Path) -> io::Result<()> {
    let none: Option<&str> = None;
    mount(Some(path), path, none, MsFlags::MS_BIND, none)?;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(none, path, none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | quiet, none)?;
    Ok(())
}

//! Network namespaces with names under `/run/netns`, where `ip netns` finds them and where they
//! outlive the process that made them.
//!
//! A thread that enters a namespace is made for it and ends afterwards: no runtime thread ever
//! changes its namespace, so nothing else can end up in the wrong one by accident.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use fs_err as fs;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use nix::sys::statfs::FsType;
use tokio::net::TcpSocket;

use crate::error::{Doing, Error, Result};
use crate::slot::blocking;

/// Where names of network namespaces live on Linux.
const DIRECTORY: &str = "/run/netns";
/// What the calling thread's own namespace is.
const OWN: &str = "/proc/thread-self/ns/net";

/// A namespace held open. It lives as long as its name, this, or a socket in it.
#[derive(Debug)]
pub(crate) struct Namespace {
    file: fs::File,
}

impl Namespace {
    /// Where `name` stands.
    pub(crate) fn path(name: &str) -> PathBuf {
        Path::new(DIRECTORY).join(name)
    }

    /// Makes a namespace with a name.
    pub(crate) fn create(name: &str) -> Result<Self> {
        prepare_directory()?;
        let path = Self::path(name);
        fs::File::create_new(&path).doing(|| "cannot name a network namespace".into())?;
        let bound = on_own_thread(|| {
            unshare()?;
            nix::mount::mount(Some(OWN), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .doing(|| format!("cannot bind a network namespace to {}", path.display()))
        });
        if let Err(error) = bound {
            if let Err(second) = fs::remove_file(&path) {
                tracing::warn!(error = %second, "the name of a network namespace stays behind");
            }
            return Err(error);
        }
        match Self::open(name)? {
            Some(namespace) => Ok(namespace),
            None => {
                Err(Error::io("a new network namespace is gone", io::Error::from(io::ErrorKind::NotFound)))
            }
        }
    }

    /// The namespace of that name; `None` when there is none, or only a file left by a reboot.
    pub(crate) fn open(name: &str) -> Result<Option<Self>> {
        let path = Self::path(name);
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("cannot open a network namespace", error)),
        };
        let kind = nix::sys::statfs::fstatfs(file.as_fd())
            .doing(|| format!("cannot tell what {} is", path.display()))?
            .filesystem_type();
        Ok((kind == FsType(libc::NSFS_MAGIC)).then_some(Self { file }))
    }

    /// The names that begin with `prefix`, left-over files included.
    pub(crate) fn names(prefix: &str) -> Result<Vec<String>> {
        let entries = match fs::read_dir(DIRECTORY) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("cannot list network namespaces", error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.doing(|| "cannot list network namespaces".into())?.file_name();
            names.extend(name.into_string().ok().filter(|name| name.starts_with(prefix)));
        }
        Ok(names)
    }

    /// Takes the name away, and with it the namespace unless something still runs in it.
    pub(crate) fn remove(name: &str) -> Result<()> {
        let path = Self::path(name);
        match nix::mount::umount2(&path, MntFlags::MNT_DETACH) {
            // EINVAL: a file without a namespace on it.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => return Err(Error::io(format!("cannot unmount {}", path.display()), error)),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("cannot remove a network namespace", error))
            }
            _ => Ok(()),
        }
    }

    /// The file that `ip … netns PATH` can be given while this is held.
    pub(crate) fn file(&self) -> &fs::File {
        &self.file
    }

    /// A TCP socket inside, for IPv4. It stays there.
    pub(crate) async fn tcp_socket(self: &Arc<Self>) -> Result<TcpSocket> {
        let namespace = self.clone();
        blocking(move || namespace.enter(|| TcpSocket::new_v4().doing(|| "cannot make a socket".into())))
            .await
    }

    /// Runs `work` on a thread of its own inside.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_own_thread(|| {
            nix::sched::setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
                .doing(|| "cannot enter a network namespace".into())?;
            work()
        })
    }
}

/// Runs `work` in a nameless namespace that ends with it.
pub(crate) fn scratch<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_own_thread(|| {
        unshare()?;
        work()
    })
}

fn unshare() -> Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNET).doing(|| "cannot make a network namespace".into())
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("nullspace-netns".into())
            .stack_size(256 << 10)
            .spawn_scoped(scope, work)
            .doing(|| "cannot start a thread".into())?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes the directory of names a shared mount, as `ip netns` does: a name that is removed here is
/// then removed in other mount namespaces too, which would otherwise keep the namespace alive.
fn prepare_directory() -> Result<()> {
    let what = || format!("cannot prepare {DIRECTORY}");
    fs::create_dir_all(DIRECTORY).doing(what)?;
    let directory = fs::File::open(DIRECTORY).doing(what)?;
    // `ip netns` takes the same lock for the same purpose.
    directory.lock().doing(what)?;
    let none = None::<&str>;
    let share = || nix::mount::mount(none, DIRECTORY, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    match share() {
        Err(Errno::EINVAL) => {
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            nix::mount::mount(Some(DIRECTORY), DIRECTORY, none, bind, none).doing(what)?;
            share().doing(what)
        }
        other => other.doing(what),
    }
}

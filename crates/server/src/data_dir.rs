//! The data directory: its layout, and the lock that keeps a second server out of it.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// An open data directory. While it lives, no other server can open it.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// The kernel frees the lock with the process, however that ends.
    _lock: File,
}

/// The database in a data directory, unless the configuration names another.
pub fn store_url(data_dir: &Path, configured: Option<&str>) -> String {
    configured.map_or_else(|| format!("sqlite://{}", data_dir.join("state.db").display()), str::to_owned)
}

/// The file with the key of the stored secrets, unless the configuration names another.
pub fn secrets_key(data_dir: &Path, configured: Option<&Path>) -> PathBuf {
    configured.map_or_else(|| data_dir.join("secrets.key"), Path::to_owned)
}

/// How long the lock of a server that was killed may outlive it: a child that it was starting holds it too,
/// until it has become another program.
const ORPHANED: Duration = Duration::from_secs(2);

/// Locks the file. One whose holder is no more is waited for.
#[allow(
    clippy::disallowed_methods,
    reason = "nothing signals that a lock is free without taking it for good"
)]
fn lock_patiently(lock: &File) -> Result<(), TryLockError> {
    let begun = Instant::now();
    loop {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) if begun.elapsed() < ORPHANED && !holder_lives(lock) => {
                std::thread::sleep(Duration::from_millis(20));
            }
            done => return done,
        }
    }
}

/// Whether the process that the file names is there.
fn holder_lives(mut lock: &File) -> bool {
    let mut holder = String::new();
    let read = lock.rewind().and_then(|()| lock.read_to_string(&mut holder));
    read.is_err() || holder.trim().is_empty() || Path::new("/proc").join(holder.trim()).exists()
}

impl DataDir {
    /// Makes the directory if it is missing, for its owner's eyes only, and locks it.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        if !path.exists() {
            fs_err::create_dir_all(path)?;
            fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o711))?;
        }
        // Paths below go into other processes with other working directories.
        let path = fs_err::canonicalize(path)?;
        let lock_path = path.join("server.lock");
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .with_context(|| format!("cannot open {}", lock_path.display()))?;
        match lock_patiently(&lock) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = lock.rewind().and_then(|()| lock.read_to_string(&mut holder));
                anyhow::bail!(
                    "the data directory {} is in use by the server with PID {}; stop that one or choose another directory",
                    path.display(),
                    holder.trim()
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", lock_path.display()));
            }
        }
        // The PID is there for the message above. That it cannot be written, on a full disk, is no
        // reason not to start.
        let written = lock
            .set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
        if let Err(error) = written {
            tracing::warn!(%error, "could not write the PID to {}", lock_path.display());
        }
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the first key is kept.
    pub fn admin_key_path(&self) -> PathBuf {
        self.path.join("admin.key")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_server_on_the_same_directory_is_refused_with_the_first_ones_pid() {
        let dir = std::env::temp_dir().join(format!("nullspace-lock-{}", std::process::id()));
        let first = DataDir::open(&dir).unwrap();
        let error = DataDir::open(&dir).unwrap_err().to_string();
        assert!(error.contains(&format!("PID {}", std::process::id())), "{error}");
        drop(first);
        drop(DataDir::open(&dir).unwrap());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

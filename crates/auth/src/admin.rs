//! The first key, in a file for whoever set the server up.
//!
//! The file comes first and whole, then the row: a crash in between leaves a file whose key no row knows,
//! and the next start stores it. Whoever can write this file can write the database beside it, so that takes
//! nobody further than they were.

use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nullspace_store::Store;
use nullspace_types::{Error, Result};

use crate::keys::{DEFAULT_TENANT, register};
use crate::secret::Secret;

/// What was found or done about the file.
#[derive(Debug, PartialEq, Eq)]
pub enum Admin {
    /// There was none; now there is, with a key that works.
    Created,
    /// There was one, and its key works.
    Kept,
    /// There is one, but its key does not work: why, and what to do, for the operator. It was left alone.
    Unusable(String),
}

/// Sees to it that the file holds a key of the default tenant that works.
pub async fn ensure_admin(store: &dyn Store, path: &Path) -> Result<Admin> {
    let owned = path.to_owned();
    let (created, text) = tokio::task::spawn_blocking(move || read_or_create(&owned))
        .await
        .map_err(Error::internal)?
        .map_err(|error| Error::internal(format_args!("{}: {error}", path.display())))?;
    let remedy = "move the file away and start again to get a new one";
    let Some(secret) = Secret::parse(text.trim()) else {
        return Ok(Admin::Unusable(format!("{} does not hold an API key; {remedy}", path.display())));
    };
    match store.key_find(&secret.hash()).await? {
        Some(row) if row.key.revoked_at.is_some() => Ok(Admin::Unusable(format!(
            "the API key in {} ({}) was revoked; {remedy}",
            path.display(),
            row.key.id
        ))),
        Some(_) => Ok(Admin::Kept),
        None => match register(store, DEFAULT_TENANT, "admin", &secret).await {
            Ok(_) if created => Ok(Admin::Created),
            Ok(key) => {
                tracing::warn!(key = %key.id, "the store did not know the key in the admin's file; stored it");
                Ok(Admin::Kept)
            }
            // Another server on the same directory was as far at the same moment.
            Err(_) if store.key_find(&secret.hash()).await?.is_some() => Ok(Admin::Kept),
            Err(error) => Err(error),
        },
    }
}

/// The text of the file, which is made if there is none, and whether it was.
fn read_or_create(path: &Path) -> io::Result<(bool, String)> {
    match read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result.map(|text| (false, text)),
    }
    let secret = Secret::generate().map_err(io::Error::other)?;
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    // Mode 0600 from the first moment, and under its name only when whole and on the disk.
    let mut file = tempfile::Builder::new()
        .prefix(".admin.key.")
        .permissions(std::fs::Permissions::from_mode(0o600))
        .tempfile_in(&directory)?;
    writeln!(file, "{}", secret.expose())?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => {
            std::fs::File::open(&directory)?.sync_all()?;
            Ok((true, secret.expose().to_owned()))
        }
        // Another server was first.
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok((false, read(path)?)),
        Err(error) => Err(error.error),
    }
}

/// The text of the file, which is closed to other users if it was open to them.
fn read(path: &Path) -> io::Result<String> {
    // A key is 51 characters: whatever is larger by far is not read whole.
    const MOST: u64 = 4096;
    let file = std::fs::File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the admin's key was open to other users; closed it to them, but consider it known");
        file.set_permissions(std::fs::Permissions::from_mode(mode & 0o700))?;
    }
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MOST), &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Authenticator, keys};

    async fn store(directory: &tempfile::TempDir, name: &str) -> Arc<dyn Store> {
        nullspace_store::open(&format!("sqlite://{}/{name}", directory.path().display())).await.unwrap()
    }

    async fn works(store: &Arc<dyn Store>, path: &Path) -> bool {
        let header = format!("Bearer {}", std::fs::read_to_string(path).unwrap().trim());
        Authenticator::open(store.clone()).await.unwrap().authenticate(Some(&header)).await.is_ok()
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn the_first_start_writes_a_key_for_its_owner_only_and_later_ones_keep_it() {
        let directory = tempfile::tempdir().unwrap();
        let (store, path) = (store(&directory, "db").await, directory.path().join("admin.key"));
        assert_eq!(ensure_admin(&*store, &path).await, Ok(Admin::Created));
        assert_eq!(mode(&path), 0o600);
        assert!(works(&store, &path).await);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(ensure_admin(&*store, &path).await, Ok(Admin::Kept));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        let listed = keys::list(&*store, Some(DEFAULT_TENANT)).await.unwrap();
        assert!(listed.len() == 1 && listed[0].label == "admin");
    }

    #[tokio::test]
    async fn a_crash_between_file_and_row_ends_with_a_file_whose_key_works() {
        let directory = tempfile::tempdir().unwrap();
        let (store, path) = (store(&directory, "db").await, directory.path().join("admin.key"));
        // The moment of the crash: the file is there, the row is not.
        read_or_create(&path).unwrap();
        assert!(!works(&store, &path).await);
        assert_eq!(ensure_admin(&*store, &path).await, Ok(Admin::Kept));
        assert!(works(&store, &path).await);
    }

    #[tokio::test]
    async fn a_key_that_does_not_work_is_reported_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (store, path) = (store(&directory, "db").await, directory.path().join("admin.key"));
        ensure_admin(&*store, &path).await.unwrap();
        let id = keys::list(&*store, None).await.unwrap()[0].id;
        keys::revoke(&*store, id).await.unwrap();
        let before = std::fs::read_to_string(&path).unwrap();
        let Admin::Unusable(why) = ensure_admin(&*store, &path).await.unwrap() else {
            panic!("it is revoked")
        };
        assert!(why.contains("revoked") && why.contains("move the file away"), "{why}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);

        std::fs::write(&path, "not a key\n").unwrap();
        let Admin::Unusable(why) = ensure_admin(&*store, &path).await.unwrap() else {
            panic!("it is no key")
        };
        assert!(why.contains("does not hold an API key"), "{why}");
    }

    #[tokio::test]
    async fn servers_that_start_at_once_end_with_one_key_that_works() {
        let directory = tempfile::tempdir().unwrap();
        let (store, path) = (store(&directory, "db").await, directory.path().join("admin.key"));
        let starts: Vec<_> = (0..8)
            .map(|_| {
                let (store, path) = (store.clone(), path.clone());
                tokio::spawn(async move { ensure_admin(&*store, &path).await })
            })
            .collect();
        for start in starts {
            assert!(matches!(start.await.unwrap(), Ok(Admin::Created | Admin::Kept)));
        }
        assert!(works(&store, &path).await);
        assert_eq!(keys::list(&*store, None).await.unwrap().len(), 1);
        let left = std::fs::read_dir(directory.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".admin.key."));
        assert_eq!(left.count(), 0);
    }

    #[tokio::test]
    async fn a_file_that_was_open_to_others_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let (store, path) = (store(&directory, "db").await, directory.path().join("admin.key"));
        ensure_admin(&*store, &path).await.unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        ensure_admin(&*store, &path).await.unwrap();
        assert_eq!(mode(&path), 0o600);
    }
}

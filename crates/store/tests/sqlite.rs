//! What only the SQLite engine has to show: its files, and its faults.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nullspace_store::{Error, now, open};
use sqlx::{Connection as _, Executor as _};

fn url(path: &Path) -> String {
    format!("sqlite://{}", path.display())
}

fn modes(directory: &Path) -> Vec<(String, u32)> {
    let mut modes: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().permissions().mode() & 0o777)
        })
        .collect();
    modes.sort();
    modes
}

#[tokio::test]
async fn every_file_of_the_database_is_its_owners_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let store = open(&url(&path)).await.unwrap();
    store.tenant_ensure("one", now()).await.unwrap();
    let names = ["store.db", "store.db-shm", "store.db-wal", "store.db.migrating"];
    assert_eq!(modes(directory.path()), names.map(|name| (name.to_owned(), 0o600)));
    store.close().await;

    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    open(&url(&path)).await.unwrap().close().await;
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_may_open_a_new_database_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = url(&directory.path().join("store.db"));
    let opening: Vec<_> = (0..8)
        .map(|_| {
            let path = path.clone();
            tokio::spawn(async move { open(&path).await.unwrap() })
        })
        .collect();
    for store in opening {
        store.await.unwrap().tenant_ensure("one", now()).await.unwrap();
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let text = "something else entirely\n".repeat(100);
    std::fs::write(&path, &text).unwrap();
    assert!(matches!(open(&url(&path)).await.err(), Some(Error::Corrupt(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    assert!(matches!(
        open(&url(&directory.path().join("no/such/place"))).await.err(),
        Some(Error::Unavailable(_))
    ));
}

#[tokio::test]
async fn a_url_of_no_known_kind_is_refused_without_repeating_it() {
    for url in ["mysql://u:secret@h/d", "sqlite://", "store.db"] {
        let error = open(url).await.err().unwrap();
        assert!(matches!(error, Error::Invalid(_)) && !format!("{error:?}").contains("secret"));
    }
}

#[tokio::test]
async fn a_database_that_cannot_grow_is_full() {
    let mut connection = sqlx::SqliteConnection::connect("sqlite::memory:").await.unwrap();
    connection.execute("PRAGMA max_page_count = 2; CREATE TABLE t (x)").await.unwrap();
    let error = connection.execute("INSERT INTO t VALUES (zeroblob(100000))").await.unwrap_err();
    assert!(matches!(Error::from(error), Error::Full(_)));
}

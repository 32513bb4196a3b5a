//! What only the SQLite engine has to show: its files, and its faults.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nullspace_store::event::{EventCursor, EventFilter};
use nullspace_store::idempotency::Idempotency;
use nullspace_store::sandbox::{Change, DesiredState, Insertion, NewSandbox, ObservedState, SandboxFilter};
use nullspace_store::{Error, now, open};
use nullspace_types::id::{IncarnationId, SnapshotId};
use nullspace_types::network::NetworkSettings;
use sha2::{Digest as _, Sha256};
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

/// A sandbox that runs, with metadata and a key, one that is gone, and an event, as 0.1 wrote them.
const OLD: &str = "
INSERT INTO tenants VALUES ('ten_00000000000000000000000000000001', 'one', 1);
INSERT INTO sandboxes VALUES (
    'sb_00000000000000000000000000000001', 'ten_00000000000000000000000000000001', 1000000, NULL,
    'running', 3, 'inc_00000000000000000000000000000001', 'base', 2, 512, 4096, '{\"A\":\"b\"}',
    '{\"team\":\"red\"}', '/w', 1, 60000, 'hibernate', 61000000, NULL, 'running', 7, 4096, 1000001, NULL);
INSERT INTO sandboxes VALUES (
    'sb_00000000000000000000000000000002', 'ten_00000000000000000000000000000001', 2000000, 3000000,
    'destroyed', 2, 'inc_00000000000000000000000000000002', 'base', 1, 256, NULL, '{}', '{}', NULL, 0, 60000,
    'destroy', NULL, 'manual', 'none', 0, NULL, NULL, 'it failed');
INSERT INTO idempotency VALUES (
    'ten_00000000000000000000000000000001', 'sandbox_create', 'k', zeroblob(32),
    'sb_00000000000000000000000000000001', 1000000);
INSERT INTO events (id, tenant_id, sandbox_id, occurred_at, operation, status, actor_kind, reason, metadata)
VALUES ('evt_00000000000000000000000000000001', 'ten_00000000000000000000000000000001',
    'sb_00000000000000000000000000000001', 1000002, 'create', 'succeeded', 'user', 'api', '{}');
";

#[tokio::test]
async fn a_database_of_before_hibernation_keeps_every_row() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let migrations = directory.path().join("migrations");
    std::fs::create_dir(&migrations).unwrap();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations/sqlite")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().into_string().unwrap().as_str() < "0005" {
            std::fs::copy(entry.path(), migrations.join(entry.file_name())).unwrap();
        }
    }
    std::fs::write(&path, "").unwrap();
    let mut old = sqlx::SqliteConnection::connect(&url(&path)).await.unwrap();
    sqlx::migrate::Migrator::new(migrations.as_path()).await.unwrap().run(&mut old).await.unwrap();
    old.execute(OLD).await.unwrap();
    let pair = Sha256::digest(r#""team":"red""#);
    sqlx::query("INSERT INTO sandbox_metadata SELECT tenant_id, $1, id FROM sandboxes WHERE cwd = '/w'")
        .bind(&pair[..])
        .execute(&mut old)
        .await
        .unwrap();
    old.close().await.unwrap();

    let store = open(&url(&path)).await.unwrap();
    let tenant = store.tenant_find("one").await.unwrap().unwrap().id;
    let all = SandboxFilter { limit: 10, ..SandboxFilter::default() };
    let rows = store.sandbox_list(tenant, &all).await.unwrap();
    let [gone, running] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((gone.desired.state, gone.observed.state), (DesiredState::Destroyed, ObservedState::None));
    assert_eq!(gone.observed.error_message.as_deref(), Some("it failed"));
    assert!(gone.destroyed_at.is_some());
    let desired = &running.desired;
    assert_eq!((desired.generation, running.observed.generation, desired.disk_mb), (3, 7, Some(4096)));
    assert_eq!((desired.cwd.as_deref(), desired.envs["A"].as_str()), (Some("/w"), "b"));
    assert_eq!((desired.auto_resume, desired.snapshot_id, desired.parent_id), (false, None, None));
    assert_eq!(desired.timeout_at.unwrap().as_microsecond(), 61_000_000);
    assert_eq!(desired.network, NetworkSettings::default());
    let red = SandboxFilter { metadata: desired.metadata.clone(), ..all };
    assert_eq!(store.sandbox_list(tenant, &red).await.unwrap(), std::slice::from_ref(running));
    let key = Idempotency { operation: "sandbox_create", key: "k".into(), request_hash: [0; 32] };
    let again = NewSandbox {
        id: nullspace_types::id::SandboxId::new(),
        tenant_id: tenant,
        incarnation: IncarnationId::new(),
        template: "base".into(),
        vcpus: 1,
        memory_mb: 256,
        disk_mb: None,
        envs: [].into(),
        metadata: serde_json::Map::new(),
        cwd: None,
        internet_access: true,
        network: NetworkSettings::default(),
        timeout_ms: 60_000,
        timeout_action: desired.timeout_action,
        auto_resume: false,
        parent_id: Some(running.id),
        origin_id: None,
        created_at: now(),
    };
    let again = store.sandbox_insert(&again, Some(&key), &[]).await.unwrap();
    assert_eq!(again, Insertion::Existing(Box::new(running.clone())));
    let of = EventFilter { sandbox_id: Some(running.id), limit: 9, ..EventFilter::default() };
    let events = store.event_list(tenant, &of).await.unwrap();
    assert_eq!((events.len(), events[0].event.reason.as_deref()), (1, Some("api")));
    assert_eq!(store.events_after(EventCursor::START, 9).await.unwrap(), events);
    // It can do what it could not.
    let pausing = store.sandbox_pause_begin(running.id, SnapshotId::new(), &[]).await.unwrap();
    assert!(matches!(pausing, Change::Applied(_)));
    let mut after = sqlx::SqliteConnection::connect(&url(&path)).await.unwrap();
    let broken = sqlx::query("PRAGMA foreign_key_check").fetch_all(&mut after).await.unwrap();
    assert!(broken.is_empty());
    after.close().await.unwrap();
}

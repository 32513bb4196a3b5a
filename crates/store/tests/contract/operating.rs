//! What the schema refuses, and the store as a whole: opened, closed, out of date.

use nullspace_store::key::NewKey;
use nullspace_store::sandbox::SandboxFilter;
use nullspace_store::{Error, now, open};
use nullspace_types::id::KeyId;

use crate::world::{World, new};

pub async fn a_wrong_state_cannot_be_written(world: &World) {
    let tenant = world.tenant("one").await;
    world.running(tenant).await;
    for sql in [
        "UPDATE sandboxes SET desired = 'paused'",
        "UPDATE sandboxes SET observed_state = 'gone'",
        "UPDATE sandboxes SET observed_state = 'paused', timeout_at = NULL",
        "UPDATE sandboxes SET observed_state = 'paused', snapshot_id = 'snap_0'",
        "UPDATE sandboxes SET desired = 'destroyed'",
        "UPDATE sandboxes SET destroy_reason = 'manual'",
        "UPDATE sandboxes SET destroyed_at = 1",
        "UPDATE sandboxes SET timeout_at = NULL",
        "UPDATE sandboxes SET observed_state = 'none'",
        "UPDATE sandboxes SET vcpus = 0",
        "UPDATE sandboxes SET timeout_action = 'forget'",
        "UPDATE sandboxes SET tenant_id = 'ten_0'",
        "INSERT INTO events (id, tenant_id, occurred_at, operation, status, actor_kind, metadata) \
         VALUES ('e', 't', 1, 'explode', 'requested', 'user', '{}')",
    ] {
        let refused = world.raw(sql).await;
        assert!(matches!(refused, Err(Error::Invalid(_))), "{sql}: {refused:?}");
    }
    let mut large = new(tenant);
    large.timeout_ms = u64::MAX;
    assert!(matches!(world.store.sandbox_insert(&large, None, &[]).await, Err(Error::Invalid(_))));
}

pub async fn texts_that_one_engine_refuses_are_refused_by_both(world: &World) {
    let tenant = world.tenant("one").await;
    let mut asked = new(tenant);
    asked.cwd = Some("/a\0b".into());
    assert!(matches!(world.store.sandbox_insert(&asked, None, &[]).await, Err(Error::Invalid(_))));
    assert!(matches!(world.store.tenant_ensure("a\0b", now()).await, Err(Error::Invalid(_))));
    assert!(matches!(world.store.tenant_ensure("", now()).await, Err(Error::Invalid(_))));
    // A filter may come from anybody: it finds nothing.
    let filter = SandboxFilter { template: Some("a\0b".into()), limit: 9, ..SandboxFilter::default() };
    assert_eq!(world.store.sandbox_list(tenant, &filter).await.unwrap(), []);
    let key = NewKey {
        id: KeyId::new(),
        tenant_id: tenant,
        label: "a\0b".into(),
        hint: "h".into(),
        secret_hash: [0; 32],
        created_at: now(),
    };
    assert_eq!(world.store.key_insert(&key).await.unwrap().label, "a\u{fffd}b");
}

pub async fn an_opened_store_can_be_opened_again_at_once(world: &World) {
    let tenant = world.tenant("one").await;
    let opening: Vec<_> = (0..4)
        .map(|_| {
            let url = world.url.clone();
            tokio::spawn(async move { open(&url).await.unwrap() })
        })
        .collect();
    for other in opening {
        let other = other.await.unwrap();
        let asked = new(tenant);
        other.sandbox_insert(&asked, None, &[]).await.unwrap();
        world.store.sandbox_get(tenant, asked.id).await.unwrap();
        other.close().await;
    }
    world.store.ping().await.unwrap();
}

pub async fn a_closed_store_is_unavailable(world: &World) {
    let store = open(&world.url).await.unwrap();
    let tenant = world.tenant("one").await;
    store.close().await;
    assert!(matches!(store.ping().await, Err(Error::Unavailable(_))));
    assert!(matches!(store.sandbox_insert(&new(tenant), None, &[]).await, Err(Error::Unavailable(_))));
    world.store.ping().await.unwrap();
}

pub async fn a_newer_database_is_refused(world: &World) {
    world
        .raw(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             SELECT 9999, 'of the future', success, checksum, 0 FROM _sqlx_migrations WHERE version = 1",
        )
        .await
        .unwrap();
    assert!(matches!(open(&world.url).await.err(), Some(Error::Incompatible(_))));
}

/// What SQLite shows of this is in the tests of its own.
pub async fn faults_of_postgresql_are_told_apart(world: &World) {
    let of = async |sql| world.raw(sql).await.unwrap_err();
    assert!(matches!(of("DO $$ BEGIN RAISE disk_full; END $$").await, Error::Full(_)));
    for sql in [
        "DO $$ BEGIN RAISE deadlock_detected; END $$",
        "DO $$ BEGIN RAISE too_many_connections; END $$",
        "DO $$ BEGIN RAISE admin_shutdown; END $$",
        "SET statement_timeout = 1; SELECT pg_sleep(60)",
        "BEGIN READ ONLY; DELETE FROM events",
    ] {
        assert!(matches!(of(sql).await, Error::Unavailable(_)), "{sql}");
    }
    assert!(matches!(of("DO $$ BEGIN RAISE data_corrupted; END $$").await, Error::Corrupt(_)));
    assert!(matches!(of("SELECT nothing").await, Error::Other(_)));
    let nowhere = open("postgres:///x?host=/nowhere&user=x").await.err();
    assert!(matches!(nowhere, Some(Error::Unavailable(_))), "{nowhere:?}");
}

//! Snapshots from their insert to their removal.

use nullspace_store::idempotency::Idempotency;
use nullspace_store::sandbox::Destruction;
use nullspace_store::snapshot::{
    NewSnapshot, SnapshotFilter, SnapshotInsertion, SnapshotRemoval, SnapshotRow,
};
use nullspace_store::{Error, now};
use nullspace_types::event::{EventStatus, Operation};
use nullspace_types::id::{IncarnationId, SnapshotId};

use crate::world::{World, applied, event, hibernation, new, object, snapshot_of};

fn request(byte: u8) -> Option<Idempotency> {
    Some(Idempotency { operation: "snapshot_create", key: "k".into(), request_hash: [byte; 32] })
}

fn ids(rows: &[SnapshotRow]) -> Vec<SnapshotId> {
    rows.iter().map(|row| row.snapshot.id).collect()
}

async fn taken(world: &World, new: &NewSnapshot) {
    assert_eq!(world.store.snapshot_insert(new, None).await.unwrap(), SnapshotInsertion::Inserted);
    world.store.snapshot_ready(new.id, 77, now(), &[]).await.unwrap();
}

pub async fn a_snapshot_is_seen_once_it_is_ready(world: &World) {
    let (one, two) = (world.tenant("one").await, world.tenant("two").await);
    let row = world.running(one).await;
    let mut new = snapshot_of(&row);
    new.metadata = object(r#"{"team":"red","n":[1,null]}"#);
    new.envs = [("A".into(), "b".into())].into();
    new.cwd = Some("/w".into());
    new.internet_access = false;
    let first = world.store.snapshot_insert(&new, request(1).as_ref()).await.unwrap();
    assert_eq!(first, SnapshotInsertion::Inserted);
    let all = SnapshotFilter::default();
    assert_eq!(world.store.snapshot_list(one, &all).await.unwrap(), []);
    assert!(matches!(world.store.snapshot_get(one, new.id).await, Err(Error::NotFound("snapshot"))));
    assert!(matches!(world.store.snapshot_remove(one, new.id).await, Err(Error::NotFound("snapshot"))));
    let half = SnapshotRow { snapshot: new.clone(), ready: false };
    assert_eq!(world.store.snapshot_all(None, 10).await.unwrap(), std::slice::from_ref(&half));
    let again = world.store.snapshot_insert(&snapshot_of(&row), request(1).as_ref()).await.unwrap();
    assert_eq!(again, SnapshotInsertion::Existing(Box::new(half)));
    let other = world.store.snapshot_insert(&snapshot_of(&row), request(2).as_ref()).await.unwrap();
    assert_eq!(other, SnapshotInsertion::KeyReused);

    let (at, mut told) = (now(), event(Operation::SnapshotCreated, EventStatus::Succeeded));
    told.snapshot_id = Some(new.id);
    for _ in 0..2 {
        world.store.snapshot_ready(new.id, 1 << 40, at, std::slice::from_ref(&told)).await.unwrap();
    }
    let ready = SnapshotRow {
        snapshot: NewSnapshot { size_bytes: 1 << 40, created_at: at, ..new.clone() },
        ready: true,
    };
    assert_eq!(world.store.snapshot_get(one, new.id).await.unwrap(), ready);
    assert!(world.store.snapshot_get(two, new.id).await.is_err());
    assert_eq!(world.store.snapshot_count().await.unwrap(), 1);
    let log = world.log().await;
    assert_eq!(
        (log.len(), log[0].event.sandbox_id, log[0].event.snapshot_id),
        (1, Some(row.id), Some(new.id))
    );
    let missing = world.store.snapshot_ready(SnapshotId::new(), 1, at, &[]).await;
    assert!(matches!(missing, Err(Error::NotFound("snapshot"))));
    let early = world.store.snapshot_insert(&hibernation(&row), None).await;
    assert!(matches!(early, Err(Error::Invalid(_))));
}

pub async fn a_snapshot_that_failed_frees_its_key(world: &World) {
    let tenant = world.tenant("one").await;
    let row = world.running(tenant).await;
    let failed = snapshot_of(&row);
    world.store.snapshot_insert(&failed, request(1).as_ref()).await.unwrap();
    for _ in 0..2 {
        let told = event(Operation::SnapshotCreated, EventStatus::Failed);
        world.store.snapshot_abandon(failed.id, &[told]).await.unwrap();
    }
    assert_eq!(world.log().await.len(), 1);
    assert_eq!(world.store.snapshot_count().await.unwrap(), 0);
    let second = snapshot_of(&row);
    let again = world.store.snapshot_insert(&second, request(2).as_ref()).await.unwrap();
    assert_eq!(again, SnapshotInsertion::Inserted);
    // One that is captured is not given up, and when it is removed its key is free.
    world.store.snapshot_ready(second.id, 1, now(), &[]).await.unwrap();
    world.store.snapshot_abandon(second.id, &[]).await.unwrap();
    assert_eq!(world.store.snapshot_remove(tenant, second.id).await.unwrap(), SnapshotRemoval::Removed);
    let again = world.store.snapshot_insert(&snapshot_of(&row), request(3).as_ref()).await.unwrap();
    assert_eq!(again, SnapshotInsertion::Inserted);
}

pub async fn snapshots_are_listed_newest_first_by_sandbox_and_metadata(world: &World) {
    let (one, two) = (world.tenant("one").await, world.tenant("two").await);
    let (a, b) = (world.running(one).await, world.running(one).await);
    let mut made = vec![];
    for (row, metadata) in [
        (&a, r#"{"team":"red","n":1}"#),
        (&a, r#"{"team":"red"}"#),
        (&b, r#"{"team":"red","n":1}"#),
        (&b, "{}"),
    ] {
        let new = NewSnapshot { metadata: object(metadata), ..snapshot_of(row) };
        taken(world, &new).await;
        made.push(new.id);
    }
    let found = async |sandbox_id, metadata: &str| {
        let filter = SnapshotFilter { sandbox_id, metadata: object(metadata) };
        assert_eq!(world.store.snapshot_list(two, &filter).await.unwrap(), []);
        ids(&world.store.snapshot_list(one, &filter).await.unwrap())
    };
    assert_eq!(found(None, "{}").await, [made[3], made[2], made[1], made[0]]);
    assert_eq!(found(Some(a.id), "{}").await, [made[1], made[0]]);
    assert_eq!(found(None, r#"{"team":"red","n":1.0}"#).await, [made[2], made[0]]);
    assert_eq!(found(Some(a.id), r#"{"n":1}"#).await, [made[0]]);
    assert_eq!(found(None, r#"{"n":2}"#).await, []);
    let page = world.store.snapshot_all(Some(made[1]), 1).await.unwrap();
    assert_eq!(ids(&page), [made[2]]);
}

pub async fn a_snapshot_that_a_paused_sandbox_needs_stays(world: &World) {
    let (one, two) = (world.tenant("one").await, world.tenant("two").await);
    let (row, needed) = world.paused(one).await;
    let remove = async |id| world.store.snapshot_remove(one, id).await.unwrap();
    assert_eq!(remove(needed.id).await, SnapshotRemoval::InUse);
    let foreign = world.store.snapshot_remove(two, needed.id).await;
    assert!(matches!(foreign, Err(Error::NotFound("snapshot"))));
    applied(world.store.sandbox_resume_begin(row.id, IncarnationId::new(), &[]).await);
    assert_eq!(remove(needed.id).await, SnapshotRemoval::InUse);
    let paused = applied(world.store.sandbox_resume_undo(row.id, &[]).await);
    let running = world.resume(&paused).await;
    assert_eq!(remove(needed.id).await, SnapshotRemoval::Removed);
    assert!(matches!(world.store.snapshot_remove(one, needed.id).await, Err(Error::NotFound("snapshot"))));

    // Who began from one does not need it, and what somebody asked for outlives its sandbox.
    let manual = snapshot_of(&running);
    taken(world, &manual).await;
    let mut child = new(one);
    child.origin_id = Some(manual.id);
    world.insert(&child, None, &[]).await;
    let end = Destruction { reason: "manual".into(), error_message: None, free_key: false, at: now() };
    applied(world.store.sandbox_destroyed(running.id, &end, &[]).await);
    assert_eq!(remove(manual.id).await, SnapshotRemoval::Removed);
    assert_eq!(world.store.snapshot_count().await.unwrap(), 0);
}

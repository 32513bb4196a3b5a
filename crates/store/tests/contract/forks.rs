//! Children, and who descends from whom.

use nullspace_store::idempotency::Idempotency;
use nullspace_store::sandbox::{Destruction, Insertion, Insertions, NewSandbox, SandboxRow};
use nullspace_store::snapshot::SnapshotInsertion;
use nullspace_store::{Error, now};
use nullspace_types::event::{EventStatus, Operation};
use nullspace_types::id::{SandboxId, SnapshotId, TenantId};

use crate::world::{World, applied, event, new, snapshot_of};

fn children(tenant: TenantId, parent: SandboxId, number: usize) -> Vec<NewSandbox> {
    let origin = SnapshotId::new();
    (0..number)
        .map(|_| NewSandbox { parent_id: Some(parent), origin_id: Some(origin), ..new(tenant) })
        .collect()
}

fn ids(rows: &[SandboxRow]) -> Vec<SandboxId> {
    rows.iter().map(|row| row.id).collect()
}

fn request(key: &str, byte: u8) -> Idempotency {
    Idempotency { operation: "sandbox_fork", key: key.into(), request_hash: [byte; 32] }
}

pub async fn a_fork_makes_all_children_or_none_once_per_key(world: &World) {
    let tenant = world.tenant("one").await;
    let parent = world.running(tenant).await;
    let first = children(tenant, parent.id, 3);
    let mut told = event(Operation::Fork, EventStatus::Succeeded);
    told.sandbox_id = Some(first[1].id);
    let made = world.store.sandbox_insert_fork(&first, Some(&request("k", 1)), &[told]).await.unwrap();
    assert_eq!(made, Insertions::Inserted);
    assert_eq!(world.log().await[0].event.sandbox_id, Some(first[1].id));

    let again = children(tenant, parent.id, 3);
    match world.store.sandbox_insert_fork(&again, Some(&request("k", 1)), &[]).await.unwrap() {
        Insertions::Existing(rows) => {
            assert_eq!(ids(&rows), first.iter().map(|child| child.id).collect::<Vec<_>>());
        }
        other => panic!("{other:?}"),
    }
    let other = world.store.sandbox_insert_fork(&again, Some(&request("k", 2)), &[]).await.unwrap();
    assert_eq!(other, Insertions::KeyReused);

    // One child that cannot be written takes the others with it.
    let mut broken = children(tenant, parent.id, 2);
    broken[1].id = first[0].id;
    let failed = world.store.sandbox_insert_fork(&broken, Some(&request("b", 1)), &[]).await;
    assert!(matches!(failed, Err(Error::Conflict(_))));
    assert!(world.store.sandbox_get(tenant, broken[0].id).await.is_err());
    let mut strangers = children(tenant, parent.id, 2);
    strangers[1].origin_id = Some(SnapshotId::new());
    for refused in [&strangers[..], &[], &[new(tenant)]] {
        let refused = world.store.sandbox_insert_fork(refused, None, &[]).await;
        assert!(matches!(refused, Err(Error::Invalid(_))));
    }

    // A fork that failed frees its key, and no other.
    let end = Destruction { reason: "create_failed".into(), error_message: None, free_key: true, at: now() };
    for child in &first {
        applied(world.store.sandbox_destroyed(child.id, &end, &[]).await);
    }
    let made = world.store.sandbox_insert_fork(&again, Some(&request("k", 2)), &[]).await.unwrap();
    assert_eq!(made, Insertions::Inserted);
}

pub async fn a_failed_create_from_a_snapshot_leaves_the_snapshots_key_alone(world: &World) {
    let tenant = world.tenant("one").await;
    let snapshot = snapshot_of(&world.running(tenant).await);
    world.store.snapshot_insert(&snapshot, Some(&request("s", 1))).await.unwrap();
    let child = NewSandbox { origin_id: Some(snapshot.id), ..new(tenant) };
    world.insert(&child, Some(&request("c", 1)), &[]).await;
    let end = Destruction { reason: "create_failed".into(), error_message: None, free_key: true, at: now() };
    applied(world.store.sandbox_destroyed(child.id, &end, &[]).await);
    let other = snapshot_of(&world.running(tenant).await);
    let again = world.store.snapshot_insert(&other, Some(&request("s", 2))).await.unwrap();
    assert_eq!(again, SnapshotInsertion::KeyReused);
    let freed = world.store.sandbox_insert(&new(tenant), Some(&request("c", 2)), &[]).await.unwrap();
    assert!(matches!(freed, Insertion::Inserted(_)));
}

pub async fn descendants_are_found_through_every_generation(world: &World) {
    let (one, two) = (world.tenant("one").await, world.tenant("two").await);
    let root = world.running(one).await;
    world.running(one).await;
    let mut expected = vec![root.id];
    for parent in [root.id; 2] {
        let children = children(one, parent, 2);
        world.store.sandbox_insert_fork(&children, None, &[]).await.unwrap();
        expected.extend(children.iter().map(|child| child.id));
    }
    let mut deep = expected[3];
    for _ in 0..40 {
        let child = NewSandbox { parent_id: Some(deep), ..new(one) };
        deep = world.insert(&child, None, &[]).await.id;
        expected.push(deep);
    }
    // One that is gone still holds the tree together; a foreign one is no part of it.
    let end = Destruction { reason: "manual".into(), error_message: None, free_key: false, at: now() };
    applied(world.store.sandbox_destroyed(expected[10], &end, &[]).await);
    world.insert(&NewSandbox { parent_id: Some(root.id), ..new(two) }, None, &[]).await;

    let found =
        async |tenant, root, limit| ids(&world.store.sandbox_descendants(tenant, root, limit).await.unwrap());
    assert_eq!(found(one, root.id, 1000).await, expected);
    assert_eq!(found(one, root.id, 7).await, expected[..7]);
    assert_eq!(found(one, expected[43], 10).await, expected[43..]);
    assert_eq!(found(two, root.id, 10).await, []);
    assert_eq!(found(one, SandboxId::new(), 10).await, []);
}

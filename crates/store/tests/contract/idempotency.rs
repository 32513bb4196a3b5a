//! One key makes at most one sandbox.

use jiff::ToSpan as _;
use nullspace_store::idempotency::Idempotency;
use nullspace_store::now;
use nullspace_store::sandbox::{Destruction, Insertion, SandboxFilter};
use nullspace_types::event::{EventStatus, Operation};

use crate::world::{World, applied, event, new};

fn request(key: &str, byte: u8) -> Idempotency {
    Idempotency { operation: "sandbox_create", key: key.into(), request_hash: [byte; 32] }
}

pub async fn the_same_request_again_answers_what_it_made(world: &World) {
    let (one, two) = (world.tenant("one").await, world.tenant("two").await);
    let made = world.insert(&new(one), Some(&request("k", 1)), &[]).await;
    let again = world.store.sandbox_insert(&new(one), Some(&request("k", 1)), &[]).await.unwrap();
    assert_eq!(again, Insertion::Existing(Box::new(made.clone())));
    let other = world.store.sandbox_insert(&new(one), Some(&request("k", 2)), &[]).await.unwrap();
    assert_eq!(other, Insertion::KeyReused);

    // It answers with the sandbox as it is now, even when that is on its way out.
    let ending = applied(world.store.sandbox_destroy_request(made.id, "manual", false, &[]).await);
    let again = world.store.sandbox_insert(&new(one), Some(&request("k", 1)), &[]).await.unwrap();
    assert_eq!(again, Insertion::Existing(Box::new(ending)));

    // Neither another tenant's key nor another operation's is the same key.
    world.insert(&new(two), Some(&request("k", 2)), &[]).await;
    let fork = Idempotency { operation: "sandbox_fork", ..request("k", 3) };
    world.insert(&new(one), Some(&fork), &[]).await;
    assert_eq!(world.store.sandbox_unfinished(None, 10).await.unwrap().len(), 3);
}

pub async fn ten_callers_at_once_with_one_key_make_one_sandbox(world: &World) {
    let tenant = world.tenant("one").await;
    let callers: Vec<_> = (0..10)
        .map(|_| {
            let store = world.store.clone();
            tokio::spawn(async move {
                let created = event(Operation::Create, EventStatus::Requested);
                store.sandbox_insert(&new(tenant), Some(&request("k", 1)), &[created]).await.unwrap()
            })
        })
        .collect();
    let (mut inserted, mut ids) = (0, vec![]);
    for caller in callers {
        match caller.await.unwrap() {
            Insertion::Inserted(row) => {
                inserted += 1;
                ids.push(row.id);
            }
            Insertion::Existing(row) => ids.push(row.id),
            Insertion::KeyReused => panic!("it was the same request"),
        }
    }
    ids.dedup();
    assert_eq!((inserted, ids.len()), (1, 1));
    let all = SandboxFilter { limit: 100, ..SandboxFilter::default() };
    assert_eq!(world.store.sandbox_list(tenant, &all).await.unwrap().len(), 1);
    assert_eq!(world.log().await.len(), 1);
}

pub async fn a_freed_key_can_be_used_again(world: &World) {
    let tenant = world.tenant("one").await;
    let failed = world.insert(&new(tenant), Some(&request("k", 1)), &[]).await;
    let destruction =
        Destruction { reason: "create_failed".into(), error_message: None, free_key: true, at: now() };
    applied(world.store.sandbox_destroyed(failed.id, &destruction, &[]).await);
    let second = world.insert(&new(tenant), Some(&request("k", 2)), &[]).await;
    applied(world.store.sandbox_destroy_request(second.id, "manual", true, &[]).await);
    world.insert(&new(tenant), Some(&request("k", 3)), &[]).await;
}

pub async fn old_keys_are_forgotten(world: &World) {
    let tenant = world.tenant("one").await;
    let mut old = new(tenant);
    old.created_at = now() - 25.hours();
    world.insert(&old, Some(&request("old", 1)), &[]).await;
    world.insert(&new(tenant), Some(&request("young", 1)), &[]).await;
    assert_eq!(world.store.idempotency_prune(now() - 24.hours()).await.unwrap(), 1);
    world.insert(&new(tenant), Some(&request("old", 2)), &[]).await;
    let young = world.store.sandbox_insert(&new(tenant), Some(&request("young", 2)), &[]).await.unwrap();
    assert_eq!(young, Insertion::KeyReused);
}

//! Tenants and keys.

use nullspace_store::key::NewKey;
use nullspace_store::{Error, now};
use nullspace_types::id::{KeyId, TenantId};

use crate::world::World;

fn key(tenant_id: TenantId, byte: u8) -> NewKey {
    NewKey {
        id: KeyId::new(),
        tenant_id,
        label: "laptop".into(),
        hint: "ns_live_abcd".into(),
        secret_hash: [byte; 32],
        created_at: now(),
    }
}

pub async fn a_tenant_is_made_once_however_many_ask_for_it(world: &World) {
    let asked: Vec<_> = (0..10)
        .map(|_| {
            let store = world.store.clone();
            tokio::spawn(async move { store.tenant_ensure("acme", now()).await.unwrap() })
        })
        .collect();
    let mut made = vec![];
    for ask in asked {
        made.push(ask.await.unwrap());
    }
    assert!(made.iter().all(|tenant| *tenant == made[0] && tenant.name == "acme"));
    assert_eq!(world.store.tenant_find("acme").await.unwrap().as_ref(), Some(&made[0]));
    assert_eq!(world.store.tenant_find("other").await.unwrap(), None);
    assert_ne!(world.tenant("ACME").await, made[0].id);
}

pub async fn a_key_is_found_by_its_digest_and_revoked_once(world: &World) {
    let (one, two) = (world.tenant("one").await, world.tenant("two").await);
    let (first, second) = (key(one, 1), key(two, 2));
    let stored = world.store.key_insert(&first).await.unwrap();
    assert_eq!(
        (stored.tenant.as_str(), stored.created_at, stored.revoked_at),
        ("one", first.created_at, None)
    );
    world.store.key_insert(&second).await.unwrap();

    let found = world.store.key_find(&[1; 32]).await.unwrap().unwrap();
    assert_eq!((found.key, found.secret_hash), (stored.clone(), [1; 32]));
    assert_eq!(world.store.key_find(&[3; 32]).await.unwrap(), None);
    assert_eq!(world.store.key_get(first.id).await.unwrap().as_ref(), Some(&stored));
    assert_eq!(world.store.key_get(KeyId::new()).await.unwrap(), None);
    assert_eq!(world.store.key_list(Some(one)).await.unwrap(), [stored]);
    assert_eq!(world.store.key_list(None).await.unwrap().len(), 2);

    let revoked = world.store.key_revoke(first.id, now()).await.unwrap();
    assert!(revoked.revoked_at.is_some());
    assert_eq!(world.store.key_revoke(first.id, now()).await.unwrap(), revoked);
    assert_eq!(world.store.key_find(&[1; 32]).await.unwrap().unwrap().key, revoked);
    assert!(matches!(world.store.key_revoke(KeyId::new(), now()).await, Err(Error::NotFound("API key"))));
}

pub async fn a_key_needs_a_tenant_and_a_digest_of_its_own(world: &World) {
    let tenant = world.tenant("one").await;
    world.store.key_insert(&key(tenant, 1)).await.unwrap();
    assert!(matches!(world.store.key_insert(&key(tenant, 1)).await, Err(Error::Conflict(_))));
    assert!(matches!(world.store.key_insert(&key(TenantId::new(), 2)).await, Err(Error::Invalid(_))));
}

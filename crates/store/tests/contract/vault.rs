//! Stored secrets.

use nullspace_store::{Error, now};
use nullspace_types::id::TenantId;
use nullspace_types::vault::StoredSecret;

use crate::world::World;

pub async fn a_secret_is_its_tenants_until_it_is_deleted(world: &World) {
    let (one, two) = (world.tenant("one").await, world.tenant("two").await);
    let at = now();
    let stored = |name: &str| StoredSecret { name: name.to_owned(), created_at: at };
    for (tenant, name, sealed) in [(one, "b", &[1, 0, 255][..]), (one, "a", &[2]), (two, "b", &[3])] {
        assert_eq!(world.store.vault_insert(tenant, name, sealed, at).await.unwrap(), stored(name));
    }
    let taken = world.store.vault_insert(one, "b", &[9], at).await;
    assert!(matches!(taken, Err(Error::Conflict(_))));
    assert_eq!(world.store.vault_list(one).await.unwrap(), [stored("a"), stored("b")]);
    assert_eq!(world.store.vault_list(two).await.unwrap(), [stored("b")]);
    let get = async |tenant, names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        world.store.vault_get(tenant, &names).await.unwrap()
    };
    let (a, b) = (("a".to_owned(), vec![2]), ("b".to_owned(), vec![1, 0, 255]));
    assert_eq!(get(one, &["b", "missing", "a"]).await, [a.clone(), b]);
    assert_eq!(get(one, &[]).await, []);
    assert_eq!(get(two, &["a"]).await, []);

    world.store.vault_delete(one, "b").await.unwrap();
    assert!(matches!(world.store.vault_delete(one, "b").await, Err(Error::NotFound("secret"))));
    assert_eq!(get(one, &["a", "b"]).await, [a]);
    assert_eq!(get(two, &["b"]).await, [("b".to_owned(), vec![3])]);
    world.store.vault_insert(one, "b", &[4], at).await.unwrap();
    let nobody = world.store.vault_insert(TenantId::new(), "b", &[5], at).await;
    assert!(matches!(nobody, Err(Error::Invalid(_))));
}

pub async fn a_tenant_has_a_thousand_secrets_however_many_are_stored_at_once(world: &World) {
    let (one, two) = (world.tenant("one").await, world.tenant("two").await);
    for number in 0..996 {
        world.store.vault_insert(one, &format!("s{number}"), &[1], now()).await.unwrap();
    }
    let storing: Vec<_> = (0..8)
        .map(|number| {
            let store = world.store.clone();
            tokio::spawn(async move { store.vault_insert(one, &format!("late{number}"), &[1], now()).await })
        })
        .collect();
    let mut refused = 0;
    for insert in storing {
        match insert.await.unwrap() {
            Ok(_) => {}
            Err(error) => {
                assert!(matches!(error, Error::Invalid(_)), "{error:?}");
                refused += 1;
            }
        }
    }
    assert_eq!((refused, world.store.vault_list(one).await.unwrap().len()), (4, 1000));
    // What is there already is told as that, and others have room.
    assert!(matches!(world.store.vault_insert(one, "s0", &[1], now()).await, Err(Error::Conflict(_))));
    world.store.vault_insert(two, "s0", &[1], now()).await.unwrap();
}

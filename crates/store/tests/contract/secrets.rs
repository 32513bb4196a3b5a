//! Secrets of the server's own.

use nullspace_store::Error;

use crate::world::World;

pub async fn the_first_to_come_makes_a_secret_for_all(world: &World) {
    let asked: Vec<_> = (0..10)
        .map(|byte| {
            let store = world.store.clone();
            tokio::spawn(async move { store.secret_ensure("signing", &[byte; 32]).await.unwrap() })
        })
        .collect();
    let mut given = vec![];
    for ask in asked {
        given.push(ask.await.unwrap());
    }
    assert!(given[0][0] < 10 && given.iter().all(|secret| *secret == given[0]), "{given:?}");
    assert_eq!(world.store.secret_ensure("signing", &[77; 32]).await.unwrap(), given[0]);
    assert_eq!(world.store.secret_ensure("other", &[77; 32]).await.unwrap(), [77; 32]);
    assert!(matches!(world.store.secret_ensure("", &[1; 32]).await, Err(Error::Invalid(_))));
}

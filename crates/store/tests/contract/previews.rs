//! Preview grants, and the addresses that stand for ports.

use jiff::ToSpan as _;
use nullspace_store::preview::{GrantRow, GrantUse, LocalPort, NewGrant};
use nullspace_store::sandbox::SandboxRow;
use nullspace_store::{Error, now};
use nullspace_types::id::{KeyId, PreviewGrantId, SandboxId};
use nullspace_types::preview::{AuthMode, TokenKind};

use crate::world::{World, applied, in_a_minute};

fn grant(of: &SandboxRow, port: u16) -> NewGrant {
    NewGrant {
        id: PreviewGrantId::new(),
        tenant_id: of.tenant_id,
        key_id: KeyId::new(),
        sandbox_id: of.id,
        port,
        auth_mode: AuthMode::Direct,
        token_kinds: vec![TokenKind::HttpPort, TokenKind::WebsocketPort],
        issued_at: now(),
        expires_at: in_a_minute(),
    }
}

fn ids(rows: &[GrantRow]) -> Vec<PreviewGrantId> {
    rows.iter().map(|row| row.grant.id).collect()
}

pub async fn a_grant_is_read_back_and_listed_by_its_owner_alone(world: &World) {
    let (one, two) = (world.tenant("one").await, world.tenant("two").await);
    let (row, other) = (world.running(one).await, world.running(one).await);
    let first = grant(&row, 8080);
    let proxied = NewGrant {
        auth_mode: AuthMode::Proxy,
        token_kinds: vec![TokenKind::WebsocketPort],
        ..grant(&row, 65_535)
    };
    let written = world.store.grant_insert(&first).await.unwrap();
    let unused = GrantRow {
        grant: first.clone(),
        revoked_at: None,
        disabled_at: None,
        used: GrantUse::default(),
        updated_at: first.issued_at,
    };
    assert_eq!(written, unused);
    assert_eq!(world.store.grant_insert(&proxied).await.unwrap().grant, proxied);
    world.store.grant_insert(&grant(&other, 8080)).await.unwrap();
    assert_eq!(world.store.grant_find(first.id).await.unwrap(), Some(unused));
    assert_eq!(world.store.grant_find(PreviewGrantId::new()).await.unwrap(), None);
    let listed = world.store.grant_list(one, row.id, None).await.unwrap();
    assert_eq!(ids(&listed), [proxied.id, first.id]);
    assert_eq!(ids(&world.store.grant_list(one, row.id, Some(8080)).await.unwrap()), [first.id]);
    assert_eq!(world.store.grant_list(two, row.id, None).await.unwrap(), []);

    assert!(matches!(world.store.grant_insert(&first).await, Err(Error::Conflict(_))));
    for wrong in [grant(&row, 0), NewGrant { token_kinds: vec![], ..grant(&row, 1) }] {
        assert!(matches!(world.store.grant_insert(&wrong).await, Err(Error::Invalid(_))));
    }
    let foreign = world.store.grant_insert(&NewGrant { tenant_id: two, ..grant(&row, 1) }).await;
    assert!(matches!(foreign, Err(Error::NotFound("sandbox"))));
}

pub async fn a_grant_is_revoked_once_and_only_as_its_sandboxs(world: &World) {
    let (one, two) = (world.tenant("one").await, world.tenant("two").await);
    let (row, other) = (world.running(one).await, world.running(one).await);
    let made = grant(&row, 80);
    world.store.grant_insert(&made).await.unwrap();
    for (tenant, sandbox, id) in [
        (two, row.id, made.id),
        (one, other.id, made.id),
        (one, SandboxId::new(), made.id),
        (one, row.id, PreviewGrantId::new()),
    ] {
        let refused = world.store.grant_revoke(tenant, sandbox, id, now()).await;
        assert!(matches!(refused, Err(Error::NotFound("preview grant"))));
    }
    assert_eq!(world.store.grant_find(made.id).await.unwrap().unwrap().revoked_at, None);
    let at = now();
    let revoked = world.store.grant_revoke(one, row.id, made.id, at).await.unwrap();
    assert_eq!((revoked.revoked_at, revoked.updated_at), (Some(at), at));
    let again = world.store.grant_revoke(one, row.id, made.id, at + 1.second()).await.unwrap();
    assert_eq!(again, revoked);
}

pub async fn what_grants_were_used_is_added_up(world: &World) {
    let row = world.running(world.tenant("one").await).await;
    let (busy, idle) = (grant(&row, 1), grant(&row, 2));
    for new in [&busy, &idle] {
        world.store.grant_insert(new).await.unwrap();
    }
    let (start, gone) = (now(), PreviewGrantId::new());
    let spans = [
        GrantUse {
            http_requests: 2,
            bytes_in: 1 << 40,
            first_used_at: Some(start),
            last_used_at: Some(start + 1.second()),
            last_error: Some(("preview_service_not_ready".into(), start)),
            ..GrantUse::default()
        },
        GrantUse {
            http_requests: 1,
            websockets: 3,
            bytes_out: 7,
            first_used_at: Some(start + 2.seconds()),
            last_used_at: Some(start + 3.seconds()),
            ..GrantUse::default()
        },
    ];
    for (span, at) in spans.into_iter().zip([start + 1.second(), start + 4.seconds()]) {
        world.store.grants_used(&[(gone, span.clone()), (busy.id, span)], at).await.unwrap();
    }
    let used = world.store.grant_find(busy.id).await.unwrap().unwrap();
    let sum = GrantUse {
        http_requests: 3,
        websockets: 3,
        bytes_in: 1 << 40,
        bytes_out: 7,
        first_used_at: Some(start),
        last_used_at: Some(start + 3.seconds()),
        last_error: Some(("preview_service_not_ready".into(), start)),
    };
    assert_eq!((used.used, used.updated_at), (sum, start + 4.seconds()));
    assert_eq!(world.store.grant_find(idle.id).await.unwrap().unwrap().used, GrantUse::default());
    assert_eq!(world.store.grant_find(gone).await.unwrap(), None);
}

pub async fn grants_and_addresses_outlive_a_hibernation_and_end_with_the_sandbox(world: &World) {
    let tenant = world.tenant("one").await;
    let (row, other) = (world.running(tenant).await, world.running(tenant).await);
    let (made, foreign) = (grant(&row, 80), grant(&other, 80));
    for new in [&made, &foreign] {
        world.store.grant_insert(new).await.unwrap();
    }
    let given = LocalPort { local: 20_000, sandbox_id: row.id, port: 80 };
    world.store.local_port_assign(given).await.unwrap();
    let (paused, _) = world.pause(&row).await;
    assert_eq!(world.store.grant_find(made.id).await.unwrap().unwrap().disabled_at, None);
    assert_eq!(world.store.local_port_list().await.unwrap(), [given]);

    applied(world.store.sandbox_destroy_request(paused.id, "manual", false, &[]).await);
    let at = now();
    for later in [at, at + 1.second()] {
        world.store.grants_disable(row.id, later).await.unwrap();
    }
    let disabled = world.store.grant_find(made.id).await.unwrap().unwrap();
    assert_eq!((disabled.disabled_at, disabled.updated_at), (Some(at), at));
    assert_eq!(world.store.grant_find(foreign.id).await.unwrap().unwrap().disabled_at, None);
    assert_eq!(world.store.local_ports_release(row.id).await.unwrap(), [given]);
    assert_eq!(world.store.local_port_list().await.unwrap(), []);
    // Nothing new is given to what is about to be gone, or it would never be given back.
    let late = world.store.grant_insert(&grant(&row, 81)).await;
    assert!(matches!(late, Err(Error::NotFound("sandbox"))));
    assert!(matches!(world.store.local_port_assign(given).await, Err(Error::NotFound("sandbox"))));
}

pub async fn of_a_sandboxs_grants_the_newest_thousand_are_kept(world: &World) {
    let tenant = world.tenant("one").await;
    let row = world.running(tenant).await;
    let mut made = vec![];
    for _ in 0..1000 {
        let new = grant(&row, 80);
        world.store.grant_insert(&new).await.unwrap();
        made.push(new.id);
    }
    let full = world.store.grant_insert(&grant(&row, 80)).await;
    assert!(matches!(full, Err(Error::Invalid(_))));
    // The oldest that is good no more goes; those before it stay.
    for id in [made[5], made[3]] {
        world.store.grant_revoke(tenant, row.id, id, now()).await.unwrap();
    }
    world.store.grant_insert(&grant(&row, 80)).await.unwrap();
    let kept = ids(&world.store.grant_list(tenant, row.id, None).await.unwrap());
    assert_eq!(kept.len(), 1000);
    assert!(!kept.contains(&made[3]) && kept.contains(&made[0]) && kept.contains(&made[5]));
}

pub async fn a_port_has_one_address_however_many_ask(world: &World) {
    let tenant = world.tenant("one").await;
    let (row, other) = (world.running(tenant).await, world.running(tenant).await);
    let asked: Vec<_> = (0..10)
        .map(|number| {
            let (store, candidate) =
                (world.store.clone(), LocalPort { local: 20_000 + number, sandbox_id: row.id, port: 80 });
            tokio::spawn(async move { store.local_port_assign(candidate).await.unwrap() })
        })
        .collect();
    let mut given = vec![];
    for ask in asked {
        given.push(ask.await.unwrap());
    }
    let first = given[0];
    assert!(given.iter().all(|port| *port == first), "{given:?}");
    let wanted = LocalPort { sandbox_id: other.id, ..first };
    assert!(matches!(world.store.local_port_assign(wanted).await, Err(Error::Conflict(_))));
    let second = LocalPort { local: 20_999, ..wanted };
    assert_eq!(world.store.local_port_assign(second).await.unwrap(), second);
    assert_eq!(world.store.local_port_list().await.unwrap(), [first, second]);
    world.store.local_port_release(first.local).await.unwrap();
    assert_eq!(world.store.local_port_list().await.unwrap(), [second]);
    assert_eq!(world.store.local_ports_release(row.id).await.unwrap(), []);
}

pub async fn one_address_is_given_to_one_port_however_many_want_it(world: &World) {
    let tenant = world.tenant("one").await;
    let mut rows = vec![];
    for _ in 0..6 {
        rows.push(world.running(tenant).await);
    }
    let asked: Vec<_> = rows
        .iter()
        .map(|row| {
            let (store, candidate) =
                (world.store.clone(), LocalPort { local: 20_000, sandbox_id: row.id, port: 80 });
            tokio::spawn(async move { store.local_port_assign(candidate).await })
        })
        .collect();
    let mut given = vec![];
    for ask in asked {
        match ask.await.unwrap() {
            Ok(port) => given.push(port),
            Err(error) => assert!(matches!(error, Error::Conflict(_)), "{error:?}"),
        }
    }
    assert_eq!(world.store.local_port_list().await.unwrap(), given);
    assert_eq!(given.len(), 1);
}

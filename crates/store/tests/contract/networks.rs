//! Network settings, and what was denied.

use jiff::{Timestamp, ToSpan as _};
use nullspace_store::sandbox::Change;
use nullspace_store::{Error, now};
use nullspace_types::id::SandboxId;
use nullspace_types::network::{
    Denial, DeniedProtocol, DeniedTarget, DenyReason, DomainPattern, EgressLimits, HeaderInjection,
    NetworkSettings,
};

use crate::world::{World, applied, new, snapshot_of};

fn settings() -> NetworkSettings {
    NetworkSettings {
        allow_public_traffic: false,
        mask_request_host: Some("localhost:${PORT}".into()),
        allow_out: vec!["192.0.2.0/24".parse().unwrap()],
        deny_out: vec!["0.0.0.0/0".parse().unwrap()],
        allow_domains: vec![DomainPattern::from_normal("*.example.com".into())],
        deny_domains: vec![DomainPattern::from_normal("bad.example.com".into())],
        inject: vec![HeaderInjection {
            host: "api.example.com".into(),
            header: "authorization".into(),
            secret: "token".into(),
            format: "Bearer ${secret}".into(),
        }],
        limits: EgressLimits { connections_max: Some(7), ..EgressLimits::default() },
    }
}

fn denial(name: &str, count: u64, first_at: Timestamp, last_at: Timestamp) -> Denial {
    let target = DeniedTarget {
        protocol: DeniedProtocol::Tcp,
        address: Some([192, 0, 2, 1].into()),
        port: Some(443),
        name: Some(name.to_owned()),
        reason: DenyReason::NameNotAllowed,
    };
    Denial { target, count, first_at, last_at }
}

pub async fn settings_are_kept_with_sandboxes_and_snapshots_and_changed_while_wanted(world: &World) {
    let tenant = world.tenant("one").await;
    let mut asked = new(tenant);
    asked.network = settings();
    let row = world.insert(&asked, None, &[]).await;
    assert_eq!(world.store.sandbox_get(tenant, row.id).await.unwrap().desired.network, settings());
    let mut snapshot = snapshot_of(&row);
    snapshot.network = settings();
    world.store.snapshot_insert(&snapshot, None).await.unwrap();
    assert_eq!(world.store.snapshot_all(None, 1).await.unwrap()[0].snapshot, snapshot);

    let plain = NetworkSettings::default();
    let changed = applied(world.store.sandbox_network_set(row.id, false, &plain).await);
    assert_eq!((changed.desired.internet_access, &changed.desired.network), (false, &plain));
    assert_eq!(changed.desired.generation, row.desired.generation + 1);
    assert_eq!(world.store.sandbox_get(tenant, row.id).await.unwrap(), changed);
    // One that is paused has settings, too.
    let (paused, _) = world.paused(tenant).await;
    applied(world.store.sandbox_network_set(paused.id, true, &settings()).await);

    let ending = applied(world.store.sandbox_destroy_request(row.id, "manual", false, &[]).await);
    assert_eq!(world.store.sandbox_network_set(row.id, true, &settings()).await.unwrap(), Change::Stale);
    assert_eq!(world.store.sandbox_get(tenant, row.id).await.unwrap(), ending);
    let missing = world.store.sandbox_network_set(SandboxId::new(), true, &plain).await;
    assert!(matches!(missing, Err(Error::NotFound("sandbox"))));
}

pub async fn equal_denials_are_one_and_the_latest_come_first(world: &World) {
    let (one, two) = (world.tenant("one").await, world.tenant("two").await);
    let (row, other) = (world.running(one).await, world.running(two).await);
    let start = now();
    let at = |seconds: i64| start + seconds.seconds();
    let bare = Denial {
        target: DeniedTarget {
            protocol: DeniedProtocol::Other,
            address: None,
            port: None,
            name: None,
            reason: DenyReason::ForgedSource,
        },
        ..denial("", 1, at(1), at(1))
    };
    let batch = [
        (row.id, denial("a.example", 2, at(0), at(5))),
        (SandboxId::new(), denial("a.example", 9, at(0), at(9))),
        (row.id, bare.clone()),
        (row.id, denial("a.example", 3, at(2), at(3))),
        (other.id, denial("a.example", 4, at(4), at(4))),
    ];
    world.store.denials_add(&batch).await.unwrap();
    world.store.denials_add(&[(row.id, Denial { last_at: at(8), ..bare.clone() })]).await.unwrap();
    world.store.denials_add(&[]).await.unwrap();
    let bare = Denial { count: 2, last_at: at(8), ..bare };
    let named = denial("a.example", 5, at(0), at(5));
    assert_eq!(world.store.denial_list(one, row.id, 0, 10).await.unwrap(), [bare.clone(), named.clone()]);
    assert_eq!(world.store.denial_list(one, row.id, 0, 1).await.unwrap(), [bare]);
    assert_eq!(world.store.denial_list(one, row.id, 1, 1).await.unwrap(), [named]);
    assert_eq!(world.store.denial_list(two, row.id, 0, 10).await.unwrap(), []);
    assert_eq!(world.store.denial_list(two, other.id, 0, 10).await.unwrap()[0].count, 4);
}

pub async fn of_a_sandboxs_denials_the_latest_thousand_are_kept_whatever_their_names(world: &World) {
    let tenant = world.tenant("one").await;
    let row = world.running(tenant).await;
    let start = now();
    let long = "x".repeat(60_000);
    let batch: Vec<_> = (0..1100_i64)
        .map(|number| {
            // The earlier, the later they are written.
            let at = start - number.seconds();
            let name = if number == 0 { long.clone() } else { format!("{number}.example") };
            (row.id, denial(&name, 1, at, at))
        })
        .collect();
    for part in batch.chunks(300) {
        world.store.denials_add(part).await.unwrap();
    }
    let kept = world.store.denial_list(tenant, row.id, 0, 2000).await.unwrap();
    let latest: Vec<_> = batch[..1000].iter().map(|(_, denial)| denial.clone()).collect();
    assert_eq!(kept, latest);
}

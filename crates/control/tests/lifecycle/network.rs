//! What sandboxes may reach, and the secrets that are added on the way.

use nullspace_node_api::Report;
use nullspace_types::id::SandboxId;
use nullspace_types::network::{
    Denial, DenialQuery, DeniedProtocol, DeniedTarget, DenyReason, EgressPolicy, Ipv4Range, SandboxNetwork,
};
use nullspace_types::vault::StoredSecretCreate;

use super::*;

const VALUE: &str = "a value that nobody may see";

impl World {
    async fn network(&self, id: SandboxId, change: Value) -> Result<SandboxNetwork> {
        self.control.network_update(self.caller, id, change.as_object().unwrap().clone()).await
    }

    async fn secret(&self, name: &str) -> Result<()> {
        let request = StoredSecretCreate { name: Some(name.into()), value: Some(VALUE.into()) };
        self.control.secret_create(self.caller, request).await.map(drop)
    }

    fn policy(&self, id: SandboxId) -> Option<EgressPolicy> {
        self.node.with(|node| node.policies.get(&id).cloned())
    }
}

fn range(text: &str) -> Ipv4Range {
    text.parse().unwrap()
}

#[tokio::test]
async fn settings_are_in_force_from_the_first_instruction_through_every_change_of_the_machine() {
    let mut world = World::start().await;
    let network = json!({"deny_out": ["198.51.100.0/24"], "allow_public_traffic": false});
    let id = world.create(json!({"network": network})).await.unwrap().id;
    assert_eq!(world.policy(id).unwrap().deny, [range("198.51.100.0/24")]);
    let changed = world.network(id, json!({"allow_out": ["192.0.2.1"], "internet_access": false})).await;
    let changed = changed.unwrap();
    assert!(!changed.internet_access && !changed.settings.allow_public_traffic);
    let policy = world.policy(id).unwrap();
    assert!(policy.allow == [range("192.0.2.1")] && policy.deny.len() == 1 && !policy.internet_access);

    // Forks and snapshots inherit, and what is changed while it is paused is in force when it wakes.
    let child = world.fork(id, None, None).await.unwrap()[0].id;
    assert_eq!(world.policy(child), Some(policy.clone()));
    let snapshot = world.snapshot(id, None).await.unwrap().id;
    let body = json!({"snapshot_id": snapshot, "network": {"allow_public_traffic": true}});
    let other = world.create(body).await.unwrap().id;
    assert_eq!(world.policy(other), Some(policy));
    assert!(world.control.network_get(world.caller, other).await.unwrap().settings.allow_public_traffic);
    let refused =
        world.create(json!({"snapshot_id": snapshot, "network": {"deny_out": ["0.0.0.0/0"]}})).await;
    assert_eq!(code(refused), Code::InvalidRequest);
    world.hibernate(id).await.unwrap();
    world.network(id, json!({"deny_out": null})).await.unwrap();
    world.resume(id).await.unwrap();
    assert!(world.policy(id).unwrap().deny.is_empty());

    // A change that comes while it is being hibernated waits for that.
    world.node.hold(Point::CaptureBefore);
    let change = async {
        world.node.reached(Point::CaptureBefore).await;
        let changed = world.network(id, json!({"internet_access": true}));
        let release = async {
            tokio::task::yield_now().await;
            world.node.release(Point::CaptureBefore);
        };
        futures::join!(changed, release).0
    };
    let (paused, changed) = futures::join!(world.hibernate(id), change);
    assert!(paused.is_ok() && changed.unwrap().internet_access);
    assert!(!world.policy(id).unwrap().internet_access, "there is no machine to tell");
    world.resume(id).await.unwrap();
    assert!(world.policy(id).unwrap().internet_access);

    // A server that begins again tells the node again, until it has taken it.
    let before = world.policy(id);
    world.node.with(|node| {
        node.policies.clear();
        node.egress_errors = vec![Error::new(Code::Unavailable, "not now")];
    });
    world.restart(Point::CaptureBefore).await;
    world.node.until(|node| node.policies.len() == 3).await;
    assert_eq!(world.policy(id), before);
}

#[tokio::test]
async fn a_change_that_the_node_does_not_take_is_put_back() {
    let world = World::start().await;
    let id = world.create(json!({"network": {"deny_out": ["198.51.100.0/24"]}})).await.unwrap().id;
    let before = world.control.network_get(world.caller, id).await.unwrap();
    let policy = world.policy(id);
    let failure = || Error::new(Code::CapacityExceeded, "no memory");

    for change in [json!({"deny_out": ["x"]}), json!({"unknown": 1}), json!({"internet_access": 1})] {
        assert_eq!(code(world.network(id, change).await), Code::InvalidRequest);
    }
    let missing = json!({"inject": [{"host": "a.example", "header": "x", "secret": "none"}]});
    assert_eq!(code(world.network(id, missing.clone()).await), Code::SecretNotFound);
    let refused = world.create(json!({"network": missing})).await;
    assert!(code(refused) == Code::SecretNotFound && world.machines() == 1);

    world.node.with(|node| node.egress_errors = vec![failure()]);
    let refused =
        world.network(id, json!({"deny_out": null, "allow_public_traffic": false})).await.unwrap_err();
    assert_eq!(refused.code, Code::CapacityExceeded);
    assert!(refused.message.contains("not changed: no memory"), "{refused}");
    assert_eq!(world.control.network_get(world.caller, id).await.unwrap(), before);
    assert_eq!(world.policy(id), policy);
    let row = world.store.sandbox_get(world.tenant, id).await.unwrap();
    assert_eq!(row.desired.network, before.settings);

    // If that fails too, the sandbox reaches nothing, and it is tried until it does not fail.
    world.node.with(|node| node.egress_errors = vec![failure(), failure(), failure()]);
    let refused = world.network(id, json!({"deny_out": null})).await.unwrap_err();
    assert!(refused.message.contains("reaches nothing until"), "{refused}");
    world.node.until(|node| node.policies.contains_key(&id)).await;
    assert_eq!(world.policy(id), policy);
}

#[tokio::test]
async fn a_secret_reaches_the_node_alone_and_leaves_with_its_row() {
    let world = World::start().await;
    world.secret("key").await.unwrap();
    assert_eq!(code(world.secret("key").await), Code::Conflict);
    assert_eq!(code(world.secret("no spaces").await), Code::InvalidRequest);
    let inject = json!([{"host": "api.example.com", "header": "Authorization", "secret": "key",
        "format": "Bearer ${secret}"}]);
    let id = world.create(json!({"network": {"inject": inject}})).await.unwrap().id;
    let value = |world: &World| world.policy(id).and_then(|policy| policy.injections[0].value.clone());
    assert_eq!(value(&world), Some(format!("Bearer {VALUE}")));
    let seen = format!("{:?}", world.policy(id)) + &serde_json::to_string(&world.policy(id)).unwrap();
    assert!(!seen.contains(VALUE), "{seen}");
    let shown = serde_json::to_string(&world.control.network_get(world.caller, id).await.unwrap()).unwrap();
    let listed = world.control.secret_list(world.caller).await.unwrap();
    assert!(listed.items.len() == 1 && !format!("{listed:?}{shown}").contains(VALUE));
    for file in std::fs::read_dir(world.directory.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(VALUE.len()).any(|window| window == VALUE.as_bytes()));
    }

    world.control.secret_delete(world.caller, "key".into()).await.unwrap();
    world.node.until(|node| node.policies[&id].injections[0].value.is_none()).await;
    let again = world.control.secret_delete(world.caller, "key".into()).await;
    assert_eq!(code(again), Code::SecretNotFound);
    world.secret("key").await.unwrap();
    world.node.until(|node| node.policies.get(&id).is_some_and(|p| p.injections[0].value.is_some())).await;
}

#[tokio::test]
async fn what_was_denied_is_counted_and_listed_for_its_own_tenant() {
    let world = World::start().await;
    let id = world.create(json!({})).await.unwrap().id;
    world.control.stop().await;
    let (sender, reports) = mpsc::channel(8);
    let (clock, webhooks) = (Arc::new(SystemClock), WebhookConfig::default());
    let access = access(&*world.store, world.directory.path(), &world.doors).await;
    let (store, node) = (world.store.clone(), Arc::new(world.node.clone()));
    let control =
        Control::start(store, node, reports, clock, Limits::default(), webhooks, access).await.unwrap();
    let at = nullspace_store::now();
    let denial = |port| Denial {
        target: DeniedTarget {
            protocol: DeniedProtocol::Tcp,
            address: Some([192, 0, 2, 1].into()),
            port: Some(port),
            name: None,
            reason: DenyReason::DeniedAddress,
        },
        count: 2,
        first_at: at,
        last_at: at,
    };
    sender.send(Report::Denied(vec![(id, denial(1)), (id, denial(1)), (id, denial(2))])).await.unwrap();
    let page = |query| control.network_denied(world.caller, id, query);
    let listed = async {
        loop {
            let listed = page(DenialQuery::default()).await.unwrap();
            if !listed.items.is_empty() {
                return listed;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let listed = tokio::time::timeout(Duration::from_secs(20), listed).await.unwrap();
    let counts: Vec<_> = listed.items.iter().map(|denial| (denial.target.port, denial.count)).collect();
    assert!(counts.contains(&(Some(1), 4)) && counts.contains(&(Some(2), 2)), "{counts:?}");
    let one = page(DenialQuery { limit: Some("1".into()), offset: None }).await.unwrap();
    assert!(one.items.len() == 1 && one.has_more && !listed.has_more);
    let bad = page(DenialQuery { limit: Some("201".into()), offset: None }).await.unwrap_err();
    assert!(bad.message.contains("limit must be between 1 and 200"), "{bad}");
    let stranger = Principal { tenant_id: TenantId::new(), ..world.caller };
    let foreign = control.network_denied(stranger, id, DenialQuery::default()).await;
    assert_eq!(code(foreign), Code::SandboxNotFound);
}

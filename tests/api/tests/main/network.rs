//! What sandboxes may reach: the settings on their way to the node, and the secrets in them.

use jiff::Timestamp;
use nullspace_tests_api::{Answer, Harness};
use nullspace_types::id::SandboxId;
use nullspace_types::network::{Denial, DeniedProtocol, DeniedTarget, DenyReason, EgressPolicy};
use reqwest::Method;
use serde_json::{Value, json};

const SECRET: &str = "a-value-that-nobody-may-see";

async fn create(server: &Harness, network: Value) -> SandboxId {
    let made = server.post("/v1/sandboxes", json!({"network": network})).await.expect(201);
    made["id"].as_str().unwrap().parse().unwrap()
}

async fn change(server: &Harness, id: SandboxId, change: Value) -> Answer {
    let request = server.request(Method::PATCH, &format!("/v1/sandboxes/{id}/network"));
    server.send(request.json(&change)).await
}

fn injected(policy: &EgressPolicy) -> Option<&str> {
    policy.injections.first().and_then(|injection| injection.value.as_deref())
}

#[tokio::test]
async fn a_network_is_in_force_from_the_start_and_when_a_change_is_answered() {
    let mut server = Harness::start().await;
    let id = create(&server, json!({"deny_out": ["192.0.2.0/24"], "allow_domains": ["example.com"]})).await;
    let policy = server.host.spec(id).unwrap().egress;
    assert_eq!((policy.deny.len(), policy.allow_domains.len(), policy.internet_access), (1, 1, true));
    let now = change(&server, id, json!({"allow_domains": null, "internet_access": false})).await.expect(200);
    assert_eq!((&now["allow_domains"], &now["deny_out"]), (&json!([]), &json!(["192.0.2.0/24"])));
    let policy = server.host.egress(id).unwrap();
    assert_eq!((policy.deny.len(), policy.allow_domains.len(), policy.internet_access), (1, 0, false));
    server.kill().await;
    server.start_again().await;
    assert_eq!(server.get(&format!("/v1/sandboxes/{id}/network")).await.expect(200), now);
    for (wrong, says) in [
        (json!({"deny_out": ["192.0.2.1/24"]}), "network.deny_out"),
        (json!({"allow_everything": true}), "allow_everything"),
        (json!({"internet_access": "yes"}), "internet_access"),
    ] {
        let message = change(&server, id, wrong).await.refused(400, "invalid_request");
        assert!(message.contains(says), "{message}");
    }
    assert_eq!(server.get(&format!("/v1/sandboxes/{id}/network")).await.expect(200), now);
}

#[tokio::test]
async fn a_secret_reaches_the_node_and_nobody_else() {
    let mut server = Harness::start().await;
    let rule = json!({"inject": [{"host": "api.test", "header": "authorization", "secret": "token"}]});
    let body = json!({"network": rule});
    let message = server.post("/v1/sandboxes", body).await.refused(404, "secret_not_found");
    assert!(message.contains("token"), "{message}");
    assert_eq!(server.host.made(), 0);
    let stored =
        server.post("/v1/secrets", json!({"name": "token", "value": SECRET})).await.expect(201).to_string();
    let again = server.post("/v1/secrets", json!({"name": "token", "value": "other"})).await;
    again.refused(409, "conflict");
    let id = create(&server, rule.clone()).await;
    assert_eq!(injected(&server.host.spec(id).unwrap().egress), Some(SECRET));
    // The node forgets it with the server, and is told again.
    server.kill().await;
    server.host.forget_secrets();
    server.start_again().await;
    server.host.egress_until(id, |policy| injected(policy) == Some(SECRET)).await;
    let listed = server.get("/v1/secrets").await.expect(200);
    assert_eq!(listed["items"][0]["name"], "token");
    let network = server.get(&format!("/v1/sandboxes/{id}/network")).await.expect(200);
    for shown in [stored, listed.to_string(), network.to_string(), server.log()] {
        assert!(!shown.contains(SECRET), "{shown}");
    }
    server.delete("/v1/secrets/token").await.expect(204);
    server.host.egress_until(id, |policy| injected(policy).is_none()).await;
    server.delete("/v1/secrets/token").await.refused(404, "secret_not_found");
}

#[tokio::test]
async fn what_was_denied_is_counted_and_listed() {
    let server = Harness::start().await;
    let id = create(&server, json!({"deny_out": ["192.0.2.0/24"]})).await;
    let target = DeniedTarget {
        protocol: DeniedProtocol::Tcp,
        address: "192.0.2.1".parse().ok(),
        port: Some(443),
        name: None,
        reason: DenyReason::DeniedAddress,
    };
    let denial = Denial { target, count: 2, first_at: Timestamp::now(), last_at: Timestamp::now() };
    let path = format!("/v1/sandboxes/{id}/network/denied");
    for count in [2, 4] {
        server.host.deny(id, denial.clone()).await;
        server
            .until(|| async {
                let listed = server.get(&path).await.expect(200);
                (listed["items"][0]["count"] == count).then_some(())
            })
            .await;
    }
    let listed = server.get(&path).await.expect(200);
    assert_eq!((listed["items"].as_array().unwrap().len(), &listed["has_more"]), (1, &json!(false)));
    assert_eq!(listed["items"][0]["reason"], "denied_address");
    server.get(&format!("{path}?limit=0")).await.refused(400, "invalid_request");
}

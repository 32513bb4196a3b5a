use nullspace_tests_api::Harness;
use nullspace_types::{Code, Error};
use reqwest::Method;
use serde_json::{Value, json};

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

#[tokio::test]
async fn sandboxes_that_begin_from_a_snapshot_have_what_it_has_and_go_their_own_ways() {
    let server = Harness::start().await;
    let body = json!({"vcpus": 2, "memory_mb": 512, "envs": {"A": "1"}, "metadata": {"of": "parent"}});
    let made = server.post("/v1/sandboxes", body).await.expect(201);
    let path = format!("/v1/sandboxes/{}", text(&made["id"]));
    server.post(&format!("{path}/files/write"), json!({"path": "/a", "content": "1"})).await.expect(200);
    let snapshot = server.act(&format!("{path}/snapshots")).await.expect(201);
    assert_eq!(snapshot.as_object().unwrap().len(), 5, "the client refuses more fields: {snapshot}");
    assert_eq!(server.get(&path).await.expect(200)["status"], "running");
    server.post(&format!("{path}/files/write"), json!({"path": "/a", "content": "2"})).await.expect(200);

    let create = |more: Value| {
        let mut body = json!({"snapshot_id": snapshot["id"], "timeout_ms": 60_000});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/sandboxes", body)
    };
    // As the public client sends it.
    let first = create(json!({"metadata": {}, "network": null, "volumes": null, "auto_resume": false})).await;
    let first = first.expect(201);
    let second = create(json!({})).await.expect(201);
    assert_eq!((&first["metadata"], &second["metadata"]), (&json!({}), &json!({"of": "parent"})));
    for child in [&first, &second] {
        assert_eq!((&child["parent_id"], &child["config"]), (&made["id"], &made["config"]));
        let read = format!("/v1/sandboxes/{}/files/read", text(&child["id"]));
        assert_eq!(server.post(&read, json!({"path": "/a"})).await.expect(200)["content"], "1");
        let spec = server.host.spec(text(&child["id"]).parse().unwrap()).unwrap();
        assert_eq!(spec.envs["A"], "1");
    }
    let words = server.event_words(&text(&first["id"])).await;
    assert_eq!(words, ["create/succeeded api"]);
    let event = &server.events(&text(&first["id"])).await[0];
    assert_eq!(json!(event.snapshot_id), snapshot["id"]);
    let words = server.event_words(&text(&made["id"])).await;
    assert_eq!(words[1], "snapshot_created/succeeded api", "{words:?}");

    // It outlives its sandbox, and those that came of it outlive it.
    server.delete(&path).await.expect(200);
    let kept = format!("/v1/snapshots/{}", text(&snapshot["id"]));
    assert_eq!(server.get(&kept).await.expect(200), snapshot);
    create(json!({})).await.expect(201);
    server.delete(&kept).await.expect(204);
    server.delete(&kept).await.refused(404, "snapshot_not_found");
    server.host.until_checkpoints(0).await;
    create(json!({})).await.refused(404, "snapshot_not_found");
    assert_eq!(server.get("/v1/sandboxes").await.expect(200).as_array().unwrap().len(), 3);
    // What came of it can still be read.
    let log = server.get(&format!("{kept}/lifecycle?order=asc")).await.expect(200);
    assert_eq!(log["events"][0]["operation"], "snapshot_created");
}

#[tokio::test]
async fn one_key_takes_one_snapshot_and_one_that_fails_leaves_nothing() {
    let server = Harness::start().await;
    let (id, other) = (server.sandbox().await, server.sandbox().await);
    let take = |id: &str| {
        let path = format!("/v1/sandboxes/{id}/snapshots");
        server.send(server.request(Method::POST, &path).header("Idempotency-Key", "k"))
    };
    server.host.fail_captures(Some(Error::new(Code::CapacityExceeded, "the disk is full")));
    let message = take(&id).await.refused(503, "capacity_exceeded");
    assert!(message.contains("the disk is full"), "{message}");
    assert_eq!(server.get("/v1/snapshots").await.expect(200), json!([]));
    server.post(&format!("/v1/sandboxes/{id}/exec"), json!({"command": "true"})).await.expect(200);
    server.host.fail_captures(None);
    let taken = take(&id).await.expect(201);
    assert_eq!(take(&id).await.expect(201), taken);
    take(&other).await.refused(409, "conflict");
    assert_eq!(server.get("/v1/snapshots").await.expect(200), json!([taken]));
    let words = server.event_words(&id).await;
    assert_eq!(words[1..], ["snapshot_created/failed api", "snapshot_created/succeeded api"]);
}

#[tokio::test]
async fn snapshots_are_listed_newest_first_and_filtered() {
    let server = Harness::start().await;
    let mut taken = Vec::new();
    for number in 0..3 {
        let made = server.post("/v1/sandboxes", json!({"metadata": {"n": number}})).await.expect(201);
        let path = format!("/v1/sandboxes/{}/snapshots", text(&made["id"]));
        taken.insert(0, server.act(&path).await.expect(201));
    }
    assert_eq!(server.get("/v1/snapshots").await.expect(200), json!(taken));
    let of = format!("/v1/snapshots?sandbox_id={}", text(&taken[1]["sandbox_id"]));
    assert_eq!(server.get(&of).await.expect(200), json!([taken[1]]));
    let metadata = "/v1/snapshots?metadata=%7B%22n%22%3A+2%7D";
    assert_eq!(server.get(metadata).await.expect(200), json!([taken[0]]));
    for (query, says) in
        [("sandbox_id=x", "sandbox_id"), ("metadata=1", "metadata"), ("metadata=%7B", "metadata")]
    {
        let message = server.get(&format!("/v1/snapshots?{query}")).await.refused(400, "invalid_request");
        assert!(message.contains(says), "{query}: {message}");
    }
}

#[tokio::test]
async fn what_the_snapshot_decides_cannot_be_asked_for_beside_it() {
    let server = Harness::start().await;
    let path = format!("/v1/sandboxes/{}/snapshots", server.sandbox().await);
    let snapshot = server.act(&path).await.expect(201);
    for (field, value) in [
        ("vcpus", json!(2)),
        ("memory_mb", json!(512)),
        ("disk_mb", json!(4096)),
        ("template", json!("base")),
        ("envs", json!({"A": "1"})),
        ("cwd", json!("/srv")),
        ("internet_access", json!(false)),
    ] {
        let body = json!({"snapshot_id": snapshot["id"], field: value});
        let message = server.post("/v1/sandboxes", body).await.refused(400, "invalid_request");
        assert!(message.contains(field), "{field}: {message}");
    }
    server.post("/v1/sandboxes", json!({"snapshot_id": "snap_x"})).await.refused(400, "invalid_request");
    assert_eq!(server.host.made(), 1);
}

#[tokio::test]
async fn a_foreign_snapshot_is_like_one_that_does_not_exist() {
    let mut server = Harness::start().await;
    let id = server.sandbox().await;
    let manual = text(&server.act(&format!("/v1/sandboxes/{id}/snapshots")).await.expect(201)["id"]);
    let own = text(&server.act(&format!("/v1/sandboxes/{id}/hibernate")).await.expect(200)["id"]);
    let mine = std::mem::take(&mut server.key);
    server.key = server.key_of("other").await;
    let missing = "snap_00000000000070008000000000000000".to_owned();
    for snapshot in [&manual, &own, &missing] {
        let path = format!("/v1/snapshots/{snapshot}");
        let message = server.get(&path).await.refused(404, "snapshot_not_found");
        assert_eq!(message, format!("snapshot {snapshot} does not exist"));
        server.delete(&path).await.refused(404, "snapshot_not_found");
        let create = json!({"snapshot_id": snapshot});
        server.post("/v1/sandboxes", create).await.refused(404, "snapshot_not_found");
        server.act(&format!("/v1/sandboxes/{snapshot}/resume")).await.refused(404, "snapshot_not_found");
    }
    let foreign = server.get(&format!("/v1/snapshots/{manual}/lifecycle")).await;
    let none = server.get(&format!("/v1/snapshots/{missing}/lifecycle")).await;
    assert_eq!((foreign.status, &foreign.body["events"]), (none.status, &none.body["events"]));
    assert_eq!(server.get("/v1/snapshots").await.expect(200), json!([]));
    server.key = mine;
    assert_eq!(server.get("/v1/snapshots").await.expect(200).as_array().unwrap().len(), 2);
}

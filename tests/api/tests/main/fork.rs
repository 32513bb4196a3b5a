use nullspace_tests_api::Harness;
use nullspace_types::{Code, Error};
use reqwest::Method;
use serde_json::{Value, json};

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

async fn write(server: &Harness, id: &str, path: &str, content: &str) {
    let body = json!({"path": path, "content": content});
    server.post(&format!("/v1/sandboxes/{id}/files/write"), body).await.expect(200);
}

async fn read(server: &Harness, id: &str, path: &str) -> Value {
    let body = json!({"path": path});
    server.post(&format!("/v1/sandboxes/{id}/files/read"), body).await.expect(200)["content"].clone()
}

async fn fork(server: &Harness, id: &str) -> String {
    text(&server.act(&format!("/v1/sandboxes/{id}/fork")).await.expect(201)["id"])
}

#[tokio::test]
async fn a_child_goes_on_from_its_parents_instant_and_then_its_own_way() {
    let server = Harness::start().await;
    let body = json!({"envs": {"A": "1"}, "metadata": {"m": 1}, "cwd": "/srv", "timeout_ms": 700_000,
        "timeout_action": "hibernate"});
    let parent = server.post("/v1/sandboxes", body).await.expect(201);
    let id = text(&parent["id"]);
    write(&server, &id, "/a", "before").await;
    let child = server.act(&format!("/v1/sandboxes/{id}/fork")).await.expect(201);
    let child_id = text(&child["id"]);
    assert_ne!(child_id, id);
    for field in ["status", "config", "template", "metadata", "cwd", "timeout_ms", "timeout_action"] {
        assert_eq!(child[field], parent[field], "{field}");
    }
    assert_eq!(child["parent_id"], json!(id));
    let spec = server.host.spec(child_id.parse().unwrap()).unwrap();
    assert_eq!(spec.envs["A"], "1");
    write(&server, &id, "/a", "parent").await;
    assert_eq!(read(&server, &child_id, "/a").await, "before");
    write(&server, &child_id, "/a", "child").await;
    assert_eq!(read(&server, &id, "/a").await, "parent");
    server.host.until_checkpoints(0).await;
    assert_eq!(server.get("/v1/snapshots").await.expect(200), json!([]), "a fork is no snapshot");

    let events = server.events(&child_id).await;
    assert_eq!(server.event_words(&child_id).await, ["fork/succeeded api"]);
    let (own, of) = (Some(child_id.parse().unwrap()), Some(id.parse().unwrap()));
    assert_eq!(
        (events[0].sandbox_id, events[0].target_sandbox_id, events[0].source_sandbox_id),
        (own, own, of)
    );
    // The same event is the parent's too.
    assert_eq!(server.events(&id).await.last(), events.first());
    server.delete(&format!("/v1/sandboxes/{id}")).await.expect(200);
    assert_eq!(read(&server, &child_id, "/a").await, "child");
}

#[tokio::test]
async fn many_children_of_one_instant_come_as_a_list_all_or_none() {
    let server = Harness::start().await;
    let id = server.sandbox().await;
    let path = format!("/v1/sandboxes/{id}/fork");
    let forked = server.post(&path, json!({"count": 3})).await.expect(201);
    let children = forked["items"].as_array().unwrap();
    assert_eq!((children.len(), server.host.machines().len()), (3, 4));
    assert_eq!(
        server.post(&path, json!({"count": 1})).await.expect(201)["items"].as_array().unwrap().len(),
        1
    );
    assert!(server.post(&path, json!({"count": null})).await.expect(201)["id"].is_string());
    for count in [0, 65, -1] {
        let message = server.post(&path, json!({"count": count})).await.refused(400, "invalid_request");
        assert_eq!(message, format!("count must be between 1 and 64, got {count}"));
    }
    let before = server.host.machines();
    server.host.fail_creates(Some(Error::new(Code::CapacityExceeded, "no memory for another machine")));
    server.post(&path, json!({"count": 4})).await.refused(503, "capacity_exceeded");
    server.host.fail_creates(None);
    server.host.fail_captures(Some(Error::new(Code::CapacityExceeded, "no memory for a checkpoint")));
    server.post(&path, json!({"count": 4})).await.refused(503, "capacity_exceeded");
    server.host.fail_captures(None);
    assert_eq!(server.host.machines(), before);
    server.host.until_checkpoints(0).await;
    assert_eq!(server.get("/v1/sandboxes").await.expect(200).as_array().unwrap().len(), before.len());
    let failed = server.event_words(&id).await.iter().filter(|word| *word == "fork/failed api").count();
    assert_eq!(failed, 2, "one for each fork that failed");
}

#[tokio::test]
async fn one_key_forks_once() {
    let server = Harness::start().await;
    let id = server.sandbox().await;
    let fork = |count: u32| {
        let path = format!("/v1/sandboxes/{id}/fork");
        let request = server.request(Method::POST, &path).header("Idempotency-Key", "k");
        server.send(request.json(&json!({"count": count})))
    };
    server.host.fail_creates(Some(Error::new(Code::CapacityExceeded, "no room")));
    fork(2).await.refused(503, "capacity_exceeded");
    server.host.fail_creates(None);
    let made = fork(2).await.expect(201);
    assert_eq!(fork(2).await.expect(201), made);
    fork(3).await.refused(409, "conflict");
    assert_eq!(server.host.machines().len(), 3);
}

#[tokio::test]
async fn relatives_are_a_tree_and_their_files_are_compared_without_waking_anyone() {
    let server = Harness::start().await;
    let root = server.sandbox().await;
    let first = fork(&server, &root).await;
    let grandchild = fork(&server, &first).await;
    let second = fork(&server, &root).await;
    server.delete(&format!("/v1/sandboxes/{first}")).await.expect(200);
    for id in [&root, &second, &grandchild] {
        let tree = server.get(&format!("/v1/sandboxes/{id}/tree")).await.expect(200);
        assert_eq!((&tree["root_id"], &tree["truncated"]), (&json!(root), &json!(false)));
        let items = tree["items"].as_array().unwrap().iter();
        let shown: Vec<_> = items.map(|item| (text(&item["id"]), item["depth"].as_u64().unwrap())).collect();
        let expected = [(root.clone(), 0), (first.clone(), 1), (grandchild.clone(), 2), (second.clone(), 1)];
        assert_eq!(shown, expected);
        assert_eq!(tree["items"][1]["status"], "destroyed");
    }

    write(&server, &root, "/only-root", "x").await;
    write(&server, &root, "/both", "1").await;
    let third = fork(&server, &root).await;
    write(&server, &third, "/both", "22").await;
    write(&server, &third, "/only-third", "333").await;
    server.act(&format!("/v1/sandboxes/{third}/hibernate")).await.expect(200);
    let made = server.host.made();
    let path = format!("/v1/sandboxes/{third}/diff?against={root}");
    let diff = server.get(&path).await.expect(200);
    assert_eq!(
        diff,
        json!({"sandbox_id": third, "against": root, "truncated": false, "items": [
            {"path": "/both", "change": "modified", "type": "file", "size": 2},
            {"path": "/only-third", "change": "added", "type": "file", "size": 3},
        ]})
    );
    let cut = server.get(&format!("{path}&limit=1")).await.expect(200);
    assert_eq!((cut["items"].as_array().unwrap().len(), &cut["truncated"]), (1, &json!(true)));
    let back = server.get(&format!("/v1/sandboxes/{second}/diff?against={root}")).await.expect(200);
    assert_eq!(back["items"][0]["change"], "removed");
    assert_eq!(server.host.made(), made, "somebody was woken");

    let stranger = server.sandbox().await;
    for (against, status, code) in [
        (stranger.clone(), 400, "invalid_request"),
        ("x".into(), 400, "invalid_request"),
        ("sb_00000000000070008000000000000000".into(), 404, "sandbox_not_found"),
        ("snap_00000000000070008000000000000000".into(), 404, "snapshot_not_found"),
    ] {
        let path = format!("/v1/sandboxes/{third}/diff?against={against}");
        server.get(&path).await.refused(status, code);
    }
    let path = format!("/v1/sandboxes/{third}/diff");
    assert!(server.get(&path).await.refused(400, "invalid_request").contains("against"));
    let limit = format!("{path}?against={root}&limit=0");
    assert!(server.get(&limit).await.refused(400, "invalid_request").contains("limit must be between 1 and"));
}

use futures::future::join_all;
use nullspace_tests_api::Harness;
use nullspace_types::{Code, Error};
use serde_json::{Value, json};

/// What a hibernation adds to the log, and a resume.
const PAUSE: [&str; 3] =
    ["hibernate/requested manual", "hibernate/succeeded manual", "snapshot_created/succeeded manual"];
const RESUME: &str = "resume_from_snapshot/succeeded api";

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

#[tokio::test]
async fn a_hibernated_sandbox_has_no_machine_and_goes_on_where_it_was() {
    let server = Harness::start().await;
    let body = json!({"metadata": {"a": 1}, "cwd": "/srv", "timeout_ms": 900_000});
    let made = server.post("/v1/sandboxes", body).await.expect(201);
    let id = text(&made["id"]);
    let path = format!("/v1/sandboxes/{id}");
    server.post(&format!("{path}/files/write"), json!({"path": "/a", "content": "kept"})).await.expect(200);
    let sleep = json!({"command": "sleep", "args": ["999"], "background": true});
    let pid = server.post(&format!("{path}/exec"), sleep).await.expect(200)["pid"].clone();

    let snapshot = server.act(&format!("{path}/hibernate")).await.expect(200);
    assert_eq!((&snapshot["sandbox_id"], &snapshot["metadata"]), (&json!(id), &json!({"a": 1})));
    assert!(snapshot["size_bytes"].as_u64().unwrap() > 0);
    assert!(server.host.machines().is_empty());
    let paused = server.get(&path).await.expect(200);
    assert_eq!((&paused["status"], &paused["snapshot_id"]), (&json!("paused"), &snapshot["id"]));
    assert_eq!((&paused["timeout_at"], &paused["timeout_ms"]), (&Value::Null, &json!(900_000)));
    let listed = server.get("/v1/sandboxes?state=paused").await.expect(200);
    assert_eq!(listed["items"], json!([paused]));
    // Asked again it answers the same, and a snapshot that is needed stays.
    assert_eq!(server.act(&format!("{path}/hibernate")).await.expect(200), snapshot);
    let kept = format!("/v1/snapshots/{}", text(&snapshot["id"]));
    server.delete(&kept).await.refused(409, "snapshot_in_use");
    // Nothing that only looks wakes it.
    for look in ["", "/lifecycle", "/tree", "?fields=id"] {
        server.get(&format!("{path}{look}")).await.expect(200);
    }
    assert_eq!(server.host.made(), 1);

    let resumed = server.act(&format!("{path}/resume")).await.expect(200);
    assert_eq!((&resumed["id"], &resumed["status"]), (&json!(id), &json!("running")));
    assert_eq!(
        (&resumed["snapshot_id"], &resumed["cwd"], &resumed["timeout_ms"]),
        (&Value::Null, &json!("/srv"), &json!(900_000))
    );
    assert!(resumed["timeout_at"].is_string());
    assert_eq!(server.act(&format!("{path}/resume")).await.expect(200), resumed);
    let read = server.post(&format!("{path}/files/read"), json!({"path": "/a"})).await.expect(200);
    assert_eq!(read["content"], "kept");
    let processes = server.get(&format!("{path}/processes")).await.expect(200);
    assert!(
        processes.as_array().unwrap().contains(&json!({"pid": pid, "command": "sleep", "running": true}))
    );

    let events = server.events(&id).await;
    let words = server.event_words(&id).await;
    assert_eq!(words, [&["create/succeeded api"], &PAUSE[..], &[RESUME]].concat());
    let named = |event: usize| events[event].snapshot_id.map(|id| json!(id)).unwrap_or_default();
    assert_eq!(
        (named(2), named(3), named(4)),
        (snapshot["id"].clone(), snapshot["id"].clone(), snapshot["id"].clone())
    );
    assert_eq!(events[3].metadata["created_via"], "hibernate");
    let itself = Some(id.parse().unwrap());
    assert_eq!((events[4].source_sandbox_id, events[4].target_sandbox_id), (itself, itself));
    // It stays until the next one takes its place.
    server.get(&kept).await.expect(200);
    let second = server.act(&format!("{path}/hibernate")).await.expect(200);
    assert_ne!(second["id"], snapshot["id"]);
    server.get(&kept).await.refused(404, "snapshot_not_found");
    server.host.until_checkpoints(1).await;
}

#[tokio::test]
async fn a_sandbox_is_resumed_by_the_snapshot_that_it_is_paused_on() {
    let server = Harness::start().await;
    let id = server.sandbox().await;
    let path = format!("/v1/sandboxes/{id}");
    let snapshot = server.act(&format!("{path}/hibernate")).await.expect(200);
    let resume = format!("/v1/sandboxes/{}/resume", text(&snapshot["id"]));
    assert_eq!(server.act(&resume).await.expect(200)["id"], json!(id));
    // Deleting it while the sandbox runs is allowed.
    server.delete(&format!("/v1/snapshots/{}", text(&snapshot["id"]))).await.expect(204);
    server.act(&resume).await.refused(404, "snapshot_not_found");

    let snapshot = server.act(&format!("{path}/hibernate")).await.expect(200);
    server.delete(&path).await.expect(200);
    server
        .act(&format!("/v1/sandboxes/{}/resume", text(&snapshot["id"])))
        .await
        .refused(404, "sandbox_not_found");
    server.host.until_checkpoints(0).await;
    assert!(server.host.machines().is_empty());

    let manual = server.act(&format!("/v1/sandboxes/{}/snapshots", server.sandbox().await)).await.expect(201);
    let answer = server.act(&format!("/v1/sandboxes/{}/resume", text(&manual["id"]))).await;
    answer.refused(400, "invalid_request");
}

#[tokio::test]
async fn calls_wake_a_sandbox_once_and_only_one_that_wakes_by_itself() {
    let server = Harness::start().await;
    let body = json!({"auto_resume": true, "timeout_action": "hibernate"});
    let made = server.post("/v1/sandboxes", body).await.expect(201);
    assert_eq!(made["auto_resume"], true);
    let path = format!("/v1/sandboxes/{}", text(&made["id"]));
    server.act(&format!("{path}/hibernate")).await.expect(200);
    let exec = format!("{path}/exec");
    let calls = (0..8).map(|_| server.post(&exec, json!({"command": "true"})));
    for answer in join_all(calls).await {
        answer.expect(200);
    }
    assert_eq!(server.host.made(), 2, "it woke more than once");
    assert_eq!(server.get(&path).await.expect(200)["status"], "running");
    server.act(&format!("{path}/hibernate")).await.expect(200);
    let write = json!({"path": "/a", "content": "x"});
    server.post(&format!("{path}/files/write"), write.clone()).await.expect(200);
    server.act(&format!("{path}/hibernate")).await.expect(200);
    server.get(&format!("{path}/processes")).await.expect(200);
    server.act(&format!("{path}/hibernate")).await.expect(200);
    server.act(&format!("{path}/fork")).await.expect(201);

    let sleeper = format!("/v1/sandboxes/{}", server.sandbox().await);
    server.act(&format!("{sleeper}/hibernate")).await.expect(200);
    for answer in [
        server.post(&format!("{sleeper}/exec"), json!({"command": "true"})).await,
        server.post(&format!("{sleeper}/files/write"), write).await,
        server.act(&format!("{sleeper}/snapshots")).await,
        server.act(&format!("{sleeper}/fork")).await,
    ] {
        assert!(
            answer.body["suggested_action"].as_str().unwrap_or_default().contains("resume"),
            "{answer:?}"
        );
        answer.refused(409, "sandbox_not_ready");
    }
    let answer = server.post("/v1/sandboxes", json!({"auto_resume": true})).await;
    assert!(answer.refused(400, "invalid_request").contains("auto_resume"));
    let destroy = json!({"timeout_ms": 1000, "timeout_action": "destroy"});
    server.post(&format!("{path}/timeout"), destroy).await.refused(400, "invalid_request");
}

#[tokio::test]
async fn a_sandbox_whose_time_is_over_is_hibernated_if_that_was_asked_for() {
    let mut server = Harness::start().await;
    let body = json!({"timeout_ms": 100, "lifecycle": {"on_timeout": "pause"}});
    let made = server.post("/v1/sandboxes", body).await.expect(201);
    assert_eq!(made["timeout_action"], "hibernate");
    let id = text(&made["id"]);
    server.until_status(&id, "paused").await;
    let expected = [
        "create/succeeded api",
        "timeout_expired/succeeded timeout",
        "hibernate/requested timeout",
        "hibernate/succeeded timeout",
        "snapshot_created/succeeded timeout",
    ];
    assert_eq!(server.event_words(&id).await, expected);
    for event in server.events(&id).await {
        assert_eq!(event.metadata["timeout_action"], "hibernate", "{event:?}");
    }
    // Neither a look nor another server wakes it or lets its time be over again.
    server.stop().await;
    server.start_again().await;
    assert_eq!(server.get(&format!("/v1/sandboxes/{id}")).await.expect(200)["status"], "paused");
    assert_eq!(server.event_words(&id).await, expected);
    assert!(server.host.machines().is_empty());
}

#[tokio::test]
async fn a_hibernation_that_fails_leaves_the_sandbox_running_and_a_resume_that_fails_leaves_it_paused() {
    let server = Harness::start().await;
    let id = server.sandbox().await;
    let path = format!("/v1/sandboxes/{id}");
    server.host.fail_captures(Some(Error::new(Code::CapacityExceeded, "the disk is full")));
    server.act(&format!("{path}/hibernate")).await.refused(503, "capacity_exceeded");
    assert_eq!(server.get(&path).await.expect(200)["status"], "running");
    server.post(&format!("{path}/exec"), json!({"command": "true"})).await.expect(200);
    assert_eq!(server.get("/v1/snapshots").await.expect(200), json!([]));
    server.host.fail_captures(None);

    let snapshot = server.act(&format!("{path}/hibernate")).await.expect(200);
    let checkpoint = text(&snapshot["id"]).parse().unwrap();
    for (code, name) in [
        (Code::SnapshotCorrupted, "snapshot_corrupted"),
        (Code::IncompatibleSnapshot, "incompatible_snapshot"),
    ] {
        server
            .host
            .refuse_restores(checkpoint, Some(Error::new(code, "machine.mem: the checksum does not hold")));
        let answer = server.act(&format!("{path}/resume")).await;
        assert_eq!(answer.body["retryable"], false);
        assert!(answer.refused(409, name).contains("checksum"));
        let create = json!({"snapshot_id": snapshot["id"]});
        server.post("/v1/sandboxes", create).await.refused(409, name);
        assert_eq!(server.get(&path).await.expect(200)["status"], "paused");
    }
    server.host.refuse_restores(checkpoint, None);
    server.act(&format!("{path}/resume")).await.expect(200);
    let words = server.event_words(&id).await;
    let failed = "resume_from_snapshot/failed api";
    let expected = [
        &["create/succeeded api", PAUSE[0], "hibernate/failed manual"],
        &PAUSE[..],
        &[failed, failed, RESUME],
    ];
    assert_eq!(words, expected.concat());
}

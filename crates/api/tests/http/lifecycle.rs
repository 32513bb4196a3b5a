//! Snapshots, forks, the log of events, webhooks, the monitor: their routes and their sockets.

use std::sync::atomic::Ordering;

use axum::body::Body;
use futures::SinkExt;
use http::Request;
use nullspace_api::Connected;
use nullspace_types::id::{SandboxId, SnapshotId};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;

use crate::fake::Fake;
use crate::fake_lifecycle::MANY;
use crate::socket::{Wire, until};
use crate::{ask, request, send};

#[tokio::test]
async fn successes_have_the_statuses_of_the_contract_and_need_no_body() {
    let fake = Fake::new();
    let sandbox = format!("/v1/sandboxes/{}", fake.id);
    let snapshot = format!("/v1/snapshots/{}", fake.snapshot().id);
    let webhooks = "/v1/lifecycle/webhooks";
    let webhook = format!("{webhooks}/{}", fake.webhook().id);
    let delivery = format!("{webhook}/deliveries/{}", fake.delivery().id);
    for (method, path, body, status) in [
        ("POST", format!("{sandbox}/hibernate"), "", 200),
        ("POST", format!("{sandbox}/resume"), "", 200),
        ("POST", format!("/v1/sandboxes/{}/resume", fake.snapshot().id), "", 200),
        ("POST", format!("{sandbox}/snapshots"), "", 201),
        ("POST", format!("{sandbox}/fork"), "", 201),
        ("GET", format!("{sandbox}/tree"), "", 200),
        ("GET", format!("{sandbox}/diff?against=x&limit=1"), "", 200),
        ("GET", "/v1/snapshots".into(), "", 200),
        ("GET", snapshot.clone(), "", 200),
        ("GET", "/v1/lifecycle/events".into(), "", 200),
        ("GET", format!("{sandbox}/lifecycle"), "", 200),
        ("GET", format!("{snapshot}/lifecycle"), "", 200),
        ("POST", webhooks.into(), "{}", 201),
        ("GET", webhooks.into(), "", 200),
        ("GET", webhook.clone(), "", 200),
        ("PATCH", webhook.clone(), "{}", 200),
        ("GET", format!("{webhook}/deliveries?limit=1"), "", 200),
        ("GET", delivery.clone(), "", 200),
        ("POST", format!("{delivery}/redeliver"), "", 200),
        ("DELETE", webhook.clone(), "", 204),
    ] {
        let answer = ask(&fake, method, &path, body).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {}", answer.text);
        assert_eq!(answer.text.is_empty(), status == 204, "{method} {path}: {}", answer.text);
    }
    let (status, code, _) = ask(&fake, "DELETE", &snapshot, "").await.error();
    assert_eq!((status, code.as_str()), (409, "snapshot_in_use"));
}

#[tokio::test]
async fn a_fork_without_a_count_is_bare_and_one_with_a_count_is_a_list() {
    let fake = Fake::new();
    let path = format!("/v1/sandboxes/{}/fork", fake.id);
    for body in ["", "{}", "{\"count\":null}"] {
        let answer = ask(&fake, "POST", &path, body).await;
        assert_eq!(answer.json()["id"], fake.id.to_string(), "{body}");
    }
    let answer = ask(&fake, "POST", &path, "{\"count\":3}").await;
    assert_eq!(answer.json()["items"].as_array().unwrap().len(), 3);
    let (_, _, message) = ask(&fake, "POST", &path, "{\"count\":\"3\"}").await.error();
    assert_eq!(message, "count: invalid type: string \"3\", expected i64");
    let mut keyed = request("POST", &path, "");
    keyed.headers_mut().insert("idempotency-key", "k".parse().unwrap());
    send(&fake, keyed).await;
    assert_eq!(*fake.asked.lock().unwrap().last().unwrap(), "(Some(\"k\"), None)");
}

#[tokio::test]
async fn what_is_no_id_of_its_kind_answers_like_one_that_nothing_has() {
    let fake = Fake::new();
    let sandbox = fake.id.to_string();
    for id in [&*SnapshotId::new().to_string(), "snap_1", &sandbox, "%ff"] {
        for method in ["GET", "DELETE"] {
            let (status, code, message) =
                ask(&fake, method, &format!("/v1/snapshots/{id}"), "").await.error();
            assert_eq!((status, code.as_str()), (404, "snapshot_not_found"), "{method} {id}");
            assert!(message.starts_with("snapshot ") && message.ends_with(" does not exist"), "{message}");
        }
        for path in ["", "/deliveries", "/deliveries/whd_1"] {
            let path = format!("/v1/lifecycle/webhooks/{id}{path}");
            let (status, code, _) = ask(&fake, "GET", &path, "").await.error();
            assert_eq!((status, code.as_str()), (404, "webhook_not_found"), "{path}");
        }
    }
    let path = format!("/v1/lifecycle/webhooks/{}/deliveries/x", fake.webhook().id);
    let (status, code, _) = ask(&fake, "GET", &path, "").await.error();
    assert_eq!((status, code.as_str()), (404, "delivery_not_found"));
    let path = format!("/v1/sandboxes/{}/resume", "x".repeat(1000));
    assert!(ask(&fake, "POST", &path, "").await.error().2.len() < 300);
}

#[tokio::test]
async fn the_log_of_one_thing_is_that_things_and_no_other_may_be_asked_for_there() {
    let fake = Fake::new();
    let (sandbox, snapshot) = (fake.id, fake.snapshot().id);
    let path = format!("/v1/sandboxes/{sandbox}/lifecycle");
    ask(&fake, "GET", &format!("{path}?order=asc"), "").await;
    let asked = format!("(Some(\"{sandbox}\"), None, Some(\"asc\"))");
    assert_eq!(*fake.asked.lock().unwrap().last().unwrap(), asked);
    ask(&fake, "GET", &format!("/v1/snapshots/{snapshot}/lifecycle?sandbox_id={sandbox}"), "").await;
    let asked = format!("(Some(\"{sandbox}\"), Some(\"{snapshot}\"), None)");
    assert_eq!(*fake.asked.lock().unwrap().last().unwrap(), asked);
    let other = SandboxId::new();
    let (status, code, message) = ask(&fake, "GET", &format!("{path}?sandbox_id={other}"), "").await.error();
    assert_eq!((status, code.as_str()), (400, "invalid_request"));
    assert!(message.starts_with("sandbox_id must be that of the path"), "{message}");
}

fn subscribe(more: Value) -> Value {
    let mut frame = json!({ "type": "subscribe" });
    frame.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    frame
}

#[tokio::test]
async fn a_follower_is_first_told_what_it_follows_and_may_follow_something_else() {
    let fake = Fake::new();
    let mut wire = Wire::at(&fake, "/v1/lifecycle/ws").await.unwrap();
    wire.say(subscribe(json!({ "status": null, "replay_limit": 100, "live_only": false }))).await;
    let first = wire.hear().await.unwrap();
    assert_eq!(
        (&first["type"], &first["subscription"], &first["reconnect_mode"]),
        (&json!("subscribed"), &json!({ "live_only": false, "replay_limit": 100 }), &json!("after_event_id"))
    );
    for number in 0..3 {
        assert_eq!(wire.hear().await.unwrap()["event"]["metadata"]["number"], number);
    }
    let other = subscribe(json!({ "operation": "fork" })).to_string();
    wire.0.send(Message::binary(other)).await.unwrap();
    assert_eq!(wire.hear().await.unwrap()["subscription"], json!({ "operation": "fork" }));
    until(|| fake.dropped.load(Ordering::SeqCst) == 1).await;
    drop(wire);
    until(|| fake.dropped.load(Ordering::SeqCst) == 2).await;
}

#[tokio::test]
async fn a_follower_of_one_sandbox_follows_that_one() {
    let fake = Fake::new();
    let path = format!("/v1/sandboxes/{}/lifecycle/ws", fake.id);
    let mut wire = Wire::at(&fake, &path).await.unwrap();
    wire.say(subscribe(json!({}))).await;
    assert_eq!(wire.hear().await.unwrap()["subscription"], json!({ "sandbox_id": fake.id }));
    let mut wire = Wire::at(&fake, &path).await.unwrap();
    wire.say(subscribe(json!({ "sandbox_id": SandboxId::new() }))).await;
    let (frames, code) = wire.rest().await;
    assert_eq!((&frames[0]["code"], code), (&json!("invalid_request"), CloseCode::Normal));
    let missing = format!("/v1/sandboxes/{}/lifecycle/ws", SandboxId::new());
    match Wire::at(&fake, &missing).await.err().expect("refused") {
        Error::Http(response) => assert_eq!(response.status(), 404),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn nonsense_and_what_cannot_be_told_close_a_follower_with_an_error() {
    let fake = Fake::new();
    for text in [
        "",
        "[]",
        "{\"type\":\"unsubscribe\"}",
        "{\"type\":\"subscribe\",\"replay_limit\":\"x\"}",
        "{\"type\":\"subscribe\",\"operation\":\"nothing\"}",
    ] {
        // As the first frame, and as a later one.
        for later in [false, true] {
            let mut wire = Wire::at(&fake, "/v1/lifecycle/ws").await.unwrap();
            if later {
                wire.say(subscribe(json!({}))).await;
                assert_eq!(wire.hear().await.unwrap()["type"], "subscribed");
            }
            wire.0.send(Message::text(text)).await.unwrap();
            let (frames, code) = wire.rest().await;
            let last = frames.last().unwrap();
            assert_eq!(
                (&last["type"], &last["code"], code),
                (&json!("error"), &json!("invalid_request"), CloseCode::Normal),
                "{text}"
            );
        }
    }
    let mut wire = Wire::at(&fake, "/v1/lifecycle/ws").await.unwrap();
    wire.say(subscribe(json!({ "replay_limit": 0 }))).await;
    assert_eq!(wire.rest().await.0.last().unwrap()["code"], "internal_error");
}

#[tokio::test]
async fn a_follower_that_never_reads_holds_back_the_log_until_it_is_dropped() {
    let fake = Fake::new();
    let mut wire = Wire::at(&fake, "/v1/lifecycle/ws").await.unwrap();
    wire.say(subscribe(json!({ "replay_limit": 1_000_000 }))).await;
    assert_eq!(wire.hear().await.unwrap()["type"], "subscribed");
    // The buffers between the two fill, and then nothing more is taken.
    let mut before = usize::MAX;
    while before != fake.taken.load(Ordering::SeqCst) || before == 0 {
        before = fake.taken.load(Ordering::SeqCst);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(before < 100_000, "{before} events were taken ahead");
    tokio::time::pause();
    for _ in 0..120 {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    assert_eq!(fake.dropped.load(Ordering::SeqCst), 1);
    drop(wire);
}

fn watch(more: Value) -> Value {
    let mut frame = json!({ "type": "monitor_subscribe", "id": "m" });
    frame.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    frame
}

#[tokio::test]
async fn a_monitor_begins_with_a_snapshot_and_tells_who_is_gone() {
    let fake = Fake::new();
    let mut wire = Wire::at(&fake, "/v1/monitor/ws").await.unwrap();
    wire.say(watch(json!({ "interval_ms": null }))).await;
    let snapshot = wire.hear().await.unwrap();
    assert_eq!((&snapshot["type"], &snapshot["id"]), (&json!("monitor_snapshot"), &json!("m")));
    assert_eq!(snapshot["sandboxes"][0]["id"], json!(fake.id));
    let gone = json!({ "type": "monitor_update", "id": "m", "sandbox_id": fake.id, "sandbox": null, "removed": true });
    assert_eq!(wire.hear().await.unwrap(), gone);
    for (interval, taken) in [(1, 250), (-5, 250), (100_000, 60_000), (999, 999)] {
        wire.say(watch(json!({ "id": "n", "interval_ms": interval }))).await;
        until(|| fake.asked.lock().unwrap().last().unwrap() == &format!("({taken}, false)")).await;
    }
    wire.say(json!({ "type": "monitor_unsubscribe", "id": "n" })).await;
    // All that were watched are let go.
    until(|| fake.dropped.load(Ordering::SeqCst) == 5).await;
    wire.say(json!({ "type": "monitor_start", "id": "o" })).await;
    let (frames, code) = wire.rest().await;
    let last = frames.last().unwrap();
    assert_eq!((&last["type"], &last["id"], code), (&json!("monitor_error"), &json!("o"), CloseCode::Normal));
}

#[tokio::test]
async fn a_snapshot_of_thousands_and_long_commands_come_in_frames_that_clients_take() {
    let fake = Fake::new();
    let mut wire = Wire::at(&fake, "/v1/monitor/ws").await.unwrap();
    wire.say(watch(json!({ "interval_ms": 60_000, "include_processes": true }))).await;
    let (mut sandboxes, mut processes) = (0, 0);
    // Each frame's length is looked at where it is heard.
    loop {
        let frame = wire.hear().await.unwrap();
        match frame["type"].as_str().unwrap() {
            "monitor_snapshot" => sandboxes += frame["sandboxes"].as_array().unwrap().len(),
            "monitor_processes" => processes += frame["processes"].as_array().unwrap().len(),
            _ if frame["removed"] == true => break,
            _ => sandboxes += 1,
        }
    }
    assert_eq!(sandboxes, MANY);
    assert!(processes > 10, "{processes}");
}

#[tokio::test]
async fn a_server_that_stops_says_goodbye_where_nothing_is_taken_for_an_end() {
    let fake = Fake::new();
    let stopping = CancellationToken::new();
    let mut followers = Vec::new();
    for path in ["/v1/lifecycle/ws", "/v1/monitor/ws"] {
        let mut wire = Wire::stopping(&fake, path, &stopping).await;
        let frame = if path.contains("monitor") { watch(json!({})) } else { subscribe(json!({})) };
        wire.say(frame).await;
        wire.hear().await.unwrap();
        followers.push(wire);
    }
    let mut sandbox = Wire::stopping(&fake, &format!("/v1/sandboxes/{}/ws", fake.id), &stopping).await;
    let exec = json!({ "type": "exec_start", "id": "e", "command": "quiet", "args": [] });
    sandbox.say(exec).await;
    assert_eq!(sandbox.hear().await.unwrap()["type"], "exec_started");
    stopping.cancel();
    for mut wire in followers {
        assert_eq!(wire.rest().await.1, CloseCode::Away);
    }
    let end = futures::StreamExt::next(&mut sandbox.0).await;
    assert!(matches!(end, None | Some(Err(_))), "{end:?}");
}

#[tokio::test]
async fn metrics_need_a_key_unless_they_are_asked_for_on_the_host_itself() {
    let fake = Fake::new();
    let get = |peer: Option<&str>, header: Option<&str>| {
        let mut request = Request::get("/metrics");
        if let Some(name) = header {
            request = request.header(name, "x");
        }
        let mut request = request.body(Body::empty()).unwrap();
        if let Some(peer) = peer {
            let connected = Connected { peer: peer.parse().unwrap(), stopping: CancellationToken::new() };
            request.extensions_mut().insert(connected);
        }
        request
    };
    for peer in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        let answer = send(&fake, get(Some(peer), None)).await;
        assert_eq!(answer.status, 200, "{peer}");
        assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4");
        assert_eq!(answer.text, "nullspace_sandboxes{status=\"running\"} 1\n");
        for header in ["x-forwarded-for", "forwarded", "origin"] {
            assert_eq!(send(&fake, get(Some(peer), Some(header))).await.error().1, "unauthorized");
        }
    }
    for peer in [None, Some("192.0.2.1:1"), Some("[2001:db8::1]:1")] {
        assert_eq!(send(&fake, get(peer, None)).await.error().0, 401, "{peer:?}");
    }
    assert_eq!(send(&fake, request("GET", "/metrics", "")).await.status, 200);
}

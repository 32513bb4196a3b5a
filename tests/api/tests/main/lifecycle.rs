use std::collections::BTreeSet;

use nullspace_tests_api::{Harness, Socket};
use serde_json::{Value, json};

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

fn ids(events: &Value) -> Vec<String> {
    events["events"].as_array().unwrap().iter().map(|event| text(&event["id"])).collect()
}

/// Sets a sandbox's window, which writes two events.
async fn touch(server: &Harness, id: &str) {
    server.post(&format!("/v1/sandboxes/{id}/timeout"), json!({"timeout_ms": 900_000})).await.expect(200);
}

#[tokio::test]
async fn the_log_is_paged_ordered_and_filtered_and_every_route_has_the_same_events() {
    let server = Harness::start().await;
    let id = server.sandbox().await;
    touch(&server, &id).await;
    let child = text(&server.act(&format!("/v1/sandboxes/{id}/fork")).await.expect(201)["id"]);
    server.delete(&format!("/v1/sandboxes/{id}")).await.expect(200);
    let ended = |log: &Value| ids(log).len() == 6;
    let own = format!("/v1/sandboxes/{id}/lifecycle");
    let log = server
        .until(|| async {
            let log = server.get(&format!("{own}?order=asc")).await.expect(200);
            ended(&log).then_some(log)
        })
        .await;
    let words: Vec<_> = log["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| format!("{}/{}", text(&event["operation"]), text(&event["status"])))
        .collect();
    assert_eq!(
        words,
        [
            "create/succeeded",
            "timeout_updated/requested",
            "timeout_updated/succeeded",
            "fork/succeeded",
            "destroy/requested",
            "destroy/succeeded"
        ]
    );
    assert_eq!((&log["offset"], &log["limit"], &log["has_more"]), (&json!(0), &json!(50), &json!(false)));
    let all = ids(&log);
    let mut backwards = ids(&server.get("/v1/lifecycle/events").await.expect(200));
    backwards.reverse();
    assert_eq!(backwards, all);
    let of_child = server.get(&format!("/v1/sandboxes/{child}/lifecycle")).await.expect(200);
    assert_eq!(ids(&of_child), [&*all[3]]);

    let page = server.get(&format!("{own}?order=asc&offset=1&limit=2")).await.expect(200);
    assert_eq!((ids(&page), &page["has_more"]), (all[1..3].to_vec(), &json!(true)));
    let at = text(&log["events"][3]["occurred_at"]);
    for (query, expected) in [
        ("operation=destroy".to_owned(), &all[4..]),
        ("status=requested&operation=destroy".to_owned(), &all[4..5]),
        (format!("source_sandbox_id={id}"), &all[3..4]),
        (format!("target_sandbox_id={child}"), &all[3..4]),
        (format!("from={at}"), &all[3..]),
        (format!("to={at}"), &all[..3]),
        ("audience=customer".to_owned(), &all[..]),
    ] {
        let found = server.get(&format!("/v1/lifecycle/events?order=asc&{query}")).await.expect(200);
        assert_eq!(ids(&found), expected, "{query}");
    }
}

#[tokio::test]
async fn questions_about_the_log_out_of_the_rules_are_refused() {
    let mut server = Harness::start().await;
    let id = server.sandbox().await;
    for (query, says) in [
        ("limit=0", "limit must be between 1 and 500"),
        ("limit=501", "limit must be between 1 and 500"),
        ("offset=-1", "offset must be between 0 and 1000000"),
        ("order=up", "order"),
        ("operation=nothing", "operation"),
        ("status=done", "status"),
        ("from=yesterday", "from"),
        ("to=1", "to"),
        ("audience=internal", "audience"),
        ("sandbox_id=x", "sandbox_id"),
        ("snapshot_id=x", "snapshot_id"),
        ("source_sandbox_id=x", "source_sandbox_id"),
        ("target_sandbox_id=x", "target_sandbox_id"),
    ] {
        let message =
            server.get(&format!("/v1/lifecycle/events?{query}")).await.refused(400, "invalid_request");
        assert!(message.contains(says), "{query}: {message}");
    }
    server.key = server.key_of("other").await;
    server.get(&format!("/v1/sandboxes/{id}/lifecycle")).await.refused(404, "sandbox_not_found");
    assert_eq!(server.get("/v1/lifecycle/events").await.expect(200)["events"], json!([]));
}

async fn subscribed(server: &Harness, path: &str, more: Value) -> Socket {
    let mut socket = server.socket_at(path).await;
    let mut frame = json!({"type": "subscribe"});
    frame.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    socket.send(frame).await;
    let answer = socket.expect("subscribed").await;
    assert_eq!(answer["reconnect_mode"], "after_event_id");
    socket
}

#[tokio::test]
async fn a_follower_hears_the_past_and_then_what_happens_without_a_gap_and_again_after_a_break() {
    let mut server = Harness::start().await;
    let id = server.sandbox().await;
    let mut socket = subscribed(&server, "/v1/lifecycle/ws", json!({})).await;
    let mut heard = vec![socket.expect("event").await["event"].clone()];
    // While it happens, and with a server that is stopped and started again meanwhile.
    for round in 0..2 {
        for _ in 0..10 {
            touch(&server, &id).await;
        }
        for _ in 0..7 {
            heard.push(socket.expect("event").await["event"].clone());
        }
        if round == 0 {
            server.stop().await;
            assert_eq!(socket.closed().await, Some(1001));
            server.start_again().await;
            let last = heard.last().unwrap()["id"].clone();
            let again = json!({"after_event_id": last, "live_only": false, "replay_limit": 1});
            socket = subscribed(&server, "/v1/lifecycle/ws", again).await;
        }
    }
    while heard.len() < 41 {
        heard.push(socket.expect("event").await["event"].clone());
    }
    let log = server.get("/v1/lifecycle/events?order=asc&limit=500").await.expect(200);
    assert_eq!(json!(heard), log["events"]);
}

#[tokio::test]
async fn a_follower_hears_what_it_asked_for_and_may_ask_for_something_else() {
    let server = Harness::start().await;
    let (id, other) = (server.sandbox().await, server.sandbox().await);
    let own = format!("/v1/sandboxes/{id}/lifecycle/ws");
    let mut socket = subscribed(&server, &own, json!({"live_only": true})).await;
    touch(&server, &other).await;
    touch(&server, &id).await;
    for status in ["requested", "succeeded"] {
        let event = socket.expect("event").await["event"].clone();
        assert_eq!((&event["sandbox_id"], &event["status"]), (&json!(id), &json!(status)));
    }
    socket.send(json!({"type": "subscribe", "status": "succeeded", "replay_limit": 1})).await;
    socket.expect("subscribed").await;
    assert_eq!(socket.expect("event").await["event"]["operation"], "timeout_updated");
    let child = text(&server.act(&format!("/v1/sandboxes/{id}/fork")).await.expect(201)["id"]);
    assert_eq!(socket.expect("event").await["event"]["target_sandbox_id"], json!(child));
    // Its history is followed also once it is destroyed.
    server.delete(&format!("/v1/sandboxes/{id}")).await.expect(200);
    let asked = json!({"operation": "destroy", "replay_limit": 10});
    let mut socket = subscribed(&server, &own, asked).await;
    for status in ["requested", "succeeded"] {
        assert_eq!(socket.expect("event").await["event"]["status"], status);
    }
    for (frame, says) in [
        (json!({"type": "subscribe", "operation": "nothing"}), "operation"),
        (json!({"type": "subscribe", "audience": "internal"}), "audience"),
        (json!({"type": "subscribe", "replay_limit": 1001}), "replay_limit must be between 0 and 1000"),
        (
            json!({"type": "subscribe", "after_event_id": "evt_00000000000070008000000000000000"}),
            "after_event_id",
        ),
        (json!({"type": "subscribe", "sandbox_id": "x"}), "sandbox_id"),
        (json!({"type": "listen"}), "invalid message"),
    ] {
        let mut socket = server.socket_at("/v1/lifecycle/ws").await;
        socket.send(frame.clone()).await;
        let error = socket.expect("error").await;
        assert!(error["message"].as_str().unwrap().contains(says), "{frame}: {error}");
        assert_eq!((&error["code"], socket.closed().await), (&json!("invalid_request"), Some(1000)));
    }
}

#[tokio::test]
async fn many_followers_miss_nothing_while_many_events_are_written() {
    let server = Harness::start().await;
    let mut sockets = Vec::new();
    for _ in 0..5 {
        sockets.push(subscribed(&server, "/v1/lifecycle/ws", json!({})).await);
    }
    // One that never reads holds nobody back.
    let silent = subscribed(&server, "/v1/lifecycle/ws", json!({})).await;
    let id = server.sandbox().await;
    let writers = (0..4).map(|_| async {
        for _ in 0..25 {
            touch(&server, &id).await;
        }
    });
    futures::future::join_all(writers).await;
    let mut logs = BTreeSet::new();
    for socket in &mut sockets {
        let mut heard = Vec::new();
        for _ in 0..201 {
            heard.push(text(&socket.expect("event").await["event"]["id"]));
        }
        logs.insert(heard);
    }
    assert_eq!(logs.len(), 1, "they heard different things");
    let mut log = ids(&server.get("/v1/lifecycle/events?order=asc&limit=500").await.expect(200));
    log.dedup();
    assert_eq!(logs.pop_first().unwrap(), log);
    drop(silent);
}

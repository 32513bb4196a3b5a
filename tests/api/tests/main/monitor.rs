use nullspace_tests_api::{Harness, Socket};
use serde_json::{Value, json};

async fn watching(server: &Harness, more: Value) -> Socket {
    let mut socket = server.socket_at("/v1/monitor/ws").await;
    let mut frame = json!({"type": "monitor_subscribe", "id": "m", "interval_ms": 250});
    frame.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    socket.send(frame).await;
    socket
}

/// The next frame of a type, whatever else comes before it.
async fn next(socket: &mut Socket, kind: &str) -> Value {
    loop {
        let frame = socket.next().await.expect("the socket stays open");
        assert_eq!(frame["id"], "m", "{frame}");
        if frame["type"] == kind {
            return frame;
        }
    }
}

#[tokio::test]
async fn a_monitor_shows_what_is_there_what_changes_and_what_is_used() {
    let mut server = Harness::start().await;
    let (id, paused) = (server.sandbox().await, server.sandbox().await);
    let gone = server.sandbox().await;
    server.act(&format!("/v1/sandboxes/{paused}/hibernate")).await.expect(200);
    server.delete(&format!("/v1/sandboxes/{gone}")).await.expect(200);
    let mut socket = watching(&server, json!({"include_processes": true})).await;
    let snapshot = socket.expect("monitor_snapshot").await;
    let mut shown: Vec<_> = snapshot["sandboxes"].as_array().unwrap().clone();
    shown.sort_by_key(|sandbox| sandbox["id"].as_str().unwrap().to_owned());
    let shown: Vec<_> = shown.iter().map(|sandbox| (&sandbox["id"], &sandbox["status"])).collect();
    assert_eq!(shown, [(&json!(id), &json!("running")), (&json!(paused), &json!("paused"))]);

    let metrics = next(&mut socket, "monitor_metrics").await;
    assert_eq!(metrics["sandbox_id"], json!(id), "a paused one has no sample");
    assert_eq!(metrics["metrics"]["cpu_percent"], 1.5);
    let processes = next(&mut socket, "monitor_processes").await;
    assert_eq!((&processes["sandbox_id"], &processes["processes"]), (&json!(id), &json!([])));

    server.act(&format!("/v1/sandboxes/{paused}/resume")).await.expect(200);
    loop {
        let update = next(&mut socket, "monitor_update").await;
        assert_eq!((&update["sandbox_id"], &update["removed"]), (&json!(paused), &json!(false)));
        if update["sandbox"]["status"] == "running" {
            break;
        }
    }
    server.delete(&format!("/v1/sandboxes/{paused}")).await.expect(200);
    loop {
        let update = next(&mut socket, "monitor_update").await;
        if update["removed"] == true {
            assert_eq!((&update["sandbox_id"], &update["sandbox"]), (&json!(paused), &Value::Null));
            break;
        }
    }
    server.stop().await;
    assert_eq!(socket.closed().await, Some(1001));
}

#[tokio::test]
async fn a_monitor_shows_the_sandboxes_of_its_key_alone_and_refuses_nonsense() {
    let mut server = Harness::start().await;
    server.sandbox().await;
    server.key = server.key_of("other").await;
    let mut socket = watching(&server, json!({})).await;
    assert_eq!(socket.expect("monitor_snapshot").await["sandboxes"], json!([]));
    let own = server.sandbox().await;
    assert_eq!(next(&mut socket, "monitor_update").await["sandbox_id"], json!(own));
    socket.send(json!({"type": "monitor_subscribe"})).await;
    loop {
        let frame = socket.next().await.expect("an error comes");
        if frame["type"] == "monitor_error" {
            assert!(frame["message"].as_str().unwrap().contains("invalid message"), "{frame}");
            break;
        }
    }
    assert_eq!(socket.closed().await, Some(1000));
}

#[tokio::test]
async fn the_operator_reads_metrics_on_the_host_without_a_key() {
    let server = Harness::start().await;
    let id = server.sandbox().await;
    server.act(&format!("/v1/sandboxes/{id}/hibernate")).await.expect(200);
    server.get("/v1/sandboxes/sb_x").await.refused(404, "sandbox_not_found");
    let url = server.request(reqwest::Method::GET, "/metrics").build().unwrap().url().to_string();
    let bare = |headers: &[&str]| {
        let request = server.bare(reqwest::Method::GET, &url);
        headers.iter().fold(request, |request, header| request.header(*header, "192.0.2.1"))
    };
    let answer = server.send(bare(&[])).await;
    assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4");
    let text = answer.expect(200).as_str().expect("a text").to_owned();
    for line in [
        "nullspace_sandboxes{status=\"paused\"} 1",
        "nullspace_api_errors_total{code=\"sandbox_not_found\"}",
        "nullspace_sandbox_create_seconds_count{outcome=\"succeeded\"}",
        "nullspace_sandbox_hibernate_seconds_count{outcome=\"succeeded\"}",
    ] {
        assert!(text.lines().any(|found| found.starts_with(line)), "{line} is not in:\n{text}");
    }
    for header in ["x-forwarded-for", "forwarded"] {
        server.send(bare(&[header])).await.refused(401, "unauthorized");
    }
    server
        .send(server.request(reqwest::Method::GET, "/metrics").header("forwarded", "for=x"))
        .await
        .expect(200);
}

use nullspace_tests_api::Harness;
use serde_json::json;

const EXPIRY: [&str; 4] = [
    "create/succeeded api",
    "timeout_expired/succeeded timeout",
    "destroy/requested timeout",
    "destroy/succeeded timeout",
];

async fn until_gone(server: &Harness, id: &str) {
    let path = format!("/v1/sandboxes/{id}");
    server.until(|| async { (server.get(&path).await.status == 404).then_some(()) }).await;
    server.host.empty().await;
}

/// The end is seen by its users before it is written whole.
async fn until_words(server: &Harness, id: &str, count: usize) -> Vec<String> {
    server
        .until(|| async {
            let words = server.event_words(id).await;
            (words.len() == count).then_some(words)
        })
        .await
}

#[tokio::test]
async fn a_sandbox_whose_time_is_over_is_destroyed() {
    let server = Harness::start().await;
    let made = server.post("/v1/sandboxes", json!({"timeout_ms": 100})).await.expect(201);
    let id = made["id"].as_str().unwrap();
    until_gone(&server, id).await;
    assert_eq!(until_words(&server, id, 4).await, EXPIRY);
    assert_eq!(server.events(id).await[1].metadata["timeout_action"], "destroy");
}

#[tokio::test]
async fn a_new_window_counts_from_now_and_is_recorded() {
    let server = Harness::start().await;
    let id = server.sandbox().await;
    let path = format!("/v1/sandboxes/{id}");
    let window = server.post(&format!("{path}/timeout"), json!({"timeout_ms": 900_000})).await.expect(200);
    assert_eq!((&window["timeout_ms"], &window["timeout_action"]), (&json!(900_000), &json!("destroy")));
    let left = window["remaining_ms"].as_u64().unwrap();
    assert!((800_000..=900_000).contains(&left), "{left}");
    let body = server.get(&path).await.expect(200);
    assert_eq!((&body["timeout_ms"], &body["timeout_at"]), (&json!(900_000), &window["timeout_at"]));
    // The timer heeds the new window.
    server.post(&format!("{path}/timeout"), json!({"timeout_ms": 1})).await.expect(200);
    until_gone(&server, &id).await;
    let words = until_words(&server, &id, 8).await;
    assert_eq!(words[1..3], ["timeout_updated/requested api", "timeout_updated/succeeded api"]);
    assert_eq!(words[5..], EXPIRY[1..]);
}

#[tokio::test]
async fn a_time_that_was_over_while_no_server_ran_is_over_at_the_next_start() {
    let mut server = Harness::start().await;
    let made = server.post("/v1/sandboxes", json!({"timeout_ms": 1500})).await.expect(201);
    let id = made["id"].as_str().unwrap().to_owned();
    server.kill().await;
    let end: jiff::Timestamp = made["timeout_at"].as_str().unwrap().parse().unwrap();
    let left = std::time::Duration::try_from(end.duration_since(jiff::Timestamp::now())).unwrap_or_default();
    tokio::time::sleep(left).await;
    assert_eq!(server.host.machines().len(), 1, "nobody destroys it meanwhile");
    server.start_again().await;
    until_gone(&server, &id).await;
    assert_eq!(until_words(&server, &id, 4).await, EXPIRY);
}

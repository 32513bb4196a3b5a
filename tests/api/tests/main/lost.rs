use nullspace_tests_api::Harness;
use serde_json::json;

#[tokio::test]
async fn a_lost_machine_makes_an_error_that_says_why_and_can_be_destroyed() {
    let server = Harness::start().await;
    let id = server.sandbox().await;
    let path = format!("/v1/sandboxes/{id}");
    server.host.lose(id.parse().unwrap(), "its monitor was killed by signal 9").await;
    let body = server.until_status(&id, "error").await;
    assert_eq!(body["error_message"], "its monitor was killed by signal 9");
    let message = server
        .post(&format!("{path}/exec"), json!({"command": "true"}))
        .await
        .refused(409, "sandbox_not_ready");
    assert!(message.contains("its monitor was killed by signal 9"), "{message}");
    server
        .post(&format!("{path}/timeout"), json!({"timeout_ms": 1000}))
        .await
        .refused(409, "sandbox_not_ready");
    assert_eq!(server.get(&format!("{path}/metrics")).await.expect(200), json!([]));
    let listed = server.get("/v1/sandboxes?state=error").await.expect(200);
    assert_eq!(listed["items"][0]["id"], json!(id));
    server.delete(&path).await.expect(200);
    let events = server.events(&id).await;
    assert_eq!(events[1].operation.as_str(), "reconcile");
    assert_eq!(events[1].error_message.as_deref(), Some("its monitor was killed by signal 9"));
    assert_eq!(events.len(), 4);
}

#[tokio::test]
async fn stale_reports_change_nothing() {
    let server = Harness::start().await;
    let id = server.sandbox().await;
    server.host.report_stale_losses(id.parse().unwrap()).await;
    // A later, true report is handled after them.
    let other = server.sandbox().await;
    server.host.lose(other.parse().unwrap(), "gone").await;
    server.until_status(&other, "error").await;
    assert_eq!(server.get(&format!("/v1/sandboxes/{id}")).await.expect(200)["status"], "running");
    assert_eq!(server.event_words(&id).await, ["create/succeeded api"]);
}

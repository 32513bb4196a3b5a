//! A kill of the server after each step of each operation, and what the next server makes of it.

use nullspace_tests_api::{Harness, Point};
use serde_json::json;

/// Sends a request, and kills the server once the call to the node is at the point.
async fn kill_at(server: &mut Harness, point: Point, request: reqwest::RequestBuilder) {
    server.host.hold(point);
    let call = tokio::spawn(request.send());
    server.host.reached(point).await;
    server.kill().await;
    server.host.release(point);
    // The answer is lost, or was never given.
    assert!(call.await.unwrap().is_err());
}

fn create(server: &Harness) -> reqwest::RequestBuilder {
    server.request(reqwest::Method::POST, "/v1/sandboxes").header("Idempotency-Key", "k").json(&json!({}))
}

#[tokio::test]
async fn a_kill_during_a_create_leaves_nothing_and_the_same_request_makes_one() {
    for point in [Point::CreateBefore, Point::CreateAfter] {
        let mut server = Harness::start().await;
        let request = create(&server);
        kill_at(&mut server, point, request).await;
        server.start_again().await;
        server.host.empty().await;
        let made = server.send(create(&server)).await.expect(201);
        let listed = server.get("/v1/sandboxes").await.expect(200);
        assert_eq!(listed, json!([made]), "{point:?}");
        assert_eq!(server.host.machines().len(), 1);
        let history = server.get("/v1/sandboxes?state=destroyed").await.expect(200);
        for item in history["items"].as_array().unwrap() {
            assert_eq!(server.event_words(item["id"].as_str().unwrap()).await, ["create/failed api"]);
        }
    }
}

#[tokio::test]
async fn a_kill_after_a_create_was_written_leaves_the_sandbox_to_whoever_repeats_the_request() {
    let mut server = Harness::start().await;
    let made = server.send(create(&server)).await.expect(201);
    server.kill().await;
    server.start_again().await;
    assert_eq!(server.send(create(&server)).await.expect(201), made);
    let path = format!("/v1/sandboxes/{}/exec", made["id"].as_str().unwrap());
    server.post(&path, json!({"command": "true"})).await.expect(200);
}

#[tokio::test]
async fn a_kill_during_a_destroy_is_a_destroy() {
    for point in [Point::DestroyBefore, Point::DestroyAfter] {
        let mut server = Harness::start().await;
        let id = server.sandbox().await;
        let path = format!("/v1/sandboxes/{id}");
        let request = server.request(reqwest::Method::DELETE, &path);
        kill_at(&mut server, point, request).await;
        server.start_again().await;
        server.host.empty().await;
        server.get(&path).await.refused(404, "sandbox_not_found");
        let words = server
            .until(|| async {
                let words = server.event_words(&id).await;
                (words.len() == 3).then_some(words)
            })
            .await;
        assert_eq!(words, ["create/succeeded api", "destroy/requested manual", "destroy/succeeded manual"]);
    }
}

#[tokio::test]
async fn machines_that_belong_to_nobody_are_ended_at_the_start() {
    let mut server = Harness::start().await;
    let id = server.sandbox().await;
    server.stop().await;
    server.host.stray();
    assert_eq!(server.host.machines().len(), 2);
    server.start_again().await;
    let wanted = id.parse().unwrap();
    server.until(|| async { (server.host.machines() == [wanted]).then_some(()) }).await;
    server.get(&format!("/v1/sandboxes/{id}")).await.expect(200);
}

#[tokio::test]
async fn a_machine_that_was_lost_while_no_server_ran_is_shown_as_an_error() {
    let mut server = Harness::start().await;
    let (lost, kept) = (server.sandbox().await, server.sandbox().await);
    server.kill().await;
    server.host.lose_silently(lost.parse().unwrap());
    server.start_again().await;
    let body = server.until_status(&lost, "error").await;
    assert!(body["error_message"].as_str().unwrap().contains("was not found when the server started"));
    server.get(&format!("/v1/sandboxes/{kept}")).await.expect(200);
    assert_eq!(server.event_words(&lost).await, ["create/succeeded api", "reconcile/succeeded machine_lost"]);
    server.delete(&format!("/v1/sandboxes/{lost}")).await.expect(200);
}

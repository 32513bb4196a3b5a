//! A kill of the server after each step of each operation, and what the next server makes of it.

use nullspace_tests_api::{Harness, Point};
use serde_json::{Value, json};

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

/// Sends a request as clients repeat it, until what a killed server had begun with its key is cleared away.
async fn repeated(server: &Harness, request: impl Fn(&Harness) -> reqwest::RequestBuilder) -> Value {
    server
        .until(|| async {
            let answer = server.send(request(server)).await;
            match answer.body["code"].as_str() {
                Some("transition_in_progress") => None,
                _ => Some(answer.expect(201)),
            }
        })
        .await
}

#[tokio::test]
async fn a_kill_during_a_create_leaves_nothing_and_the_same_request_makes_one() {
    for point in [Point::CreateBefore, Point::CreateAfter] {
        let mut server = Harness::start().await;
        let request = create(&server);
        kill_at(&mut server, point, request).await;
        server.start_again().await;
        server.host.empty().await;
        let mut made = repeated(&server, create).await;
        // A list does not tell it.
        made.as_object_mut().unwrap().remove("traffic_access_token");
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

/// Hibernates, with the server killed at the point; answers the sandbox's path.
async fn killed_hibernating(server: &mut Harness, point: Point) -> String {
    let path = format!("/v1/sandboxes/{}", server.sandbox().await);
    let request = server.request(reqwest::Method::POST, &format!("{path}/hibernate"));
    kill_at(server, point, request).await;
    path
}

#[tokio::test]
async fn a_kill_during_a_hibernation_is_a_hibernation() {
    for point in [Point::CaptureBefore, Point::CaptureAfter] {
        let mut server = Harness::start().await;
        let path = killed_hibernating(&mut server, point).await;
        server.start_again().await;
        let paused = server.until_status(path.rsplit('/').next().unwrap(), "paused").await;
        server.host.empty().await;
        assert_eq!(server.host.checkpoints().len(), 1);
        let kept = server.get("/v1/snapshots").await.expect(200);
        assert_eq!(kept[0]["id"], paused["snapshot_id"], "{point:?}");
        server.act(&format!("{path}/resume")).await.expect(200);
        let words = server.event_words(path.rsplit('/').next().unwrap()).await;
        assert_eq!(
            words,
            [
                "create/succeeded api",
                "hibernate/requested manual",
                "hibernate/succeeded manual",
                "snapshot_created/succeeded manual",
                "resume_from_snapshot/succeeded api"
            ],
            "{point:?}"
        );
    }
}

#[tokio::test]
async fn a_kill_during_a_resume_is_a_resume() {
    for point in [Point::CreateBefore, Point::CreateAfter] {
        let mut server = Harness::start().await;
        let id = server.sandbox().await;
        let path = format!("/v1/sandboxes/{id}");
        server.act(&format!("{path}/hibernate")).await.expect(200);
        let request = server.request(reqwest::Method::POST, &format!("{path}/resume"));
        kill_at(&mut server, point, request).await;
        server.start_again().await;
        server.until_status(&id, "running").await;
        assert_eq!(server.host.machines(), [id.parse().unwrap()], "{point:?}");
        server.post(&format!("{path}/exec"), json!({"command": "true"})).await.expect(200);
    }
}

#[tokio::test]
async fn a_kill_during_a_snapshot_leaves_it_whole_or_not_at_all_and_the_same_request_takes_one() {
    for point in [Point::CaptureBefore, Point::CaptureAfter] {
        let mut server = Harness::start().await;
        let id = server.sandbox().await;
        let take = |server: &Harness| {
            let path = format!("/v1/sandboxes/{id}/snapshots");
            server.request(reqwest::Method::POST, &path).header("Idempotency-Key", "k")
        };
        let request = take(&server);
        kill_at(&mut server, point, request).await;
        server.start_again().await;
        server.post(&format!("/v1/sandboxes/{id}/exec"), json!({"command": "true"})).await.expect(200);
        let taken = repeated(&server, take).await;
        assert_eq!(server.get("/v1/snapshots").await.expect(200), json!([taken]), "{point:?}");
        server.host.until_checkpoints(1).await;
    }
}

#[tokio::test]
async fn a_kill_during_a_fork_leaves_all_children_or_none() {
    for point in [Point::CaptureBefore, Point::CaptureAfter, Point::CreateBefore, Point::CreateAfter] {
        let mut server = Harness::start().await;
        let id = server.sandbox().await;
        let fork = |server: &Harness| {
            let path = format!("/v1/sandboxes/{id}/fork");
            let request = server.request(reqwest::Method::POST, &path).header("Idempotency-Key", "k");
            request.json(&json!({"count": 3}))
        };
        let request = fork(&server);
        kill_at(&mut server, point, request).await;
        server.start_again().await;
        // What there was of it is gone, or whole, before the key makes it again.
        let forked = repeated(&server, fork).await;
        assert_eq!(forked["items"].as_array().unwrap().len(), 3, "{point:?}");
        let there = || server.host.machines().len() == 4 && server.host.checkpoints().is_empty();
        server.until(|| async { there().then_some(()) }).await;
        assert_eq!(server.get("/v1/sandboxes").await.expect(200).as_array().unwrap().len(), 4, "{point:?}");
    }
}

#[tokio::test]
async fn a_kill_while_a_snapshot_is_deleted_deletes_it() {
    let mut server = Harness::start().await;
    let id = server.sandbox().await;
    let path = format!("/v1/sandboxes/{id}/snapshots");
    let taken = server.act(&path).await.expect(201);
    let kept = format!("/v1/snapshots/{}", taken["id"].as_str().unwrap());
    let request = server.request(reqwest::Method::DELETE, &kept);
    kill_at(&mut server, Point::RemoveBefore, request).await;
    server.start_again().await;
    server.get(&kept).await.refused(404, "snapshot_not_found");
    server.host.until_checkpoints(0).await;
}

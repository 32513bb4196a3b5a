use nullspace_tests_api::{Harness, Point};
use serde_json::json;

#[tokio::test]
async fn a_destroy_during_a_create_ends_both() {
    for point in [Point::CreateBefore, Point::CreateAfter] {
        let server = Harness::start().await;
        server.host.hold(point);
        let create = server.post("/v1/sandboxes", json!({}));
        let destroy = async {
            server.host.reached(point).await;
            let id = server.creating().await;
            let path = format!("/v1/sandboxes/{id}");
            server
                .post(&format!("{path}/exec"), json!({"command": "true"}))
                .await
                .refused(409, "sandbox_not_ready");
            server
                .post(&format!("{path}/timeout"), json!({"timeout_ms": 1000}))
                .await
                .refused(409, "sandbox_not_ready");
            server.delete(&path).await.expect(200);
            id
        };
        let (created, id) = futures::join!(create, destroy);
        created.refused(404, "sandbox_not_found");
        assert!(server.host.machines().is_empty(), "{point:?}");
        assert_eq!(
            server.event_words(&id).await,
            ["create/failed api", "destroy/requested manual", "destroy/succeeded manual"]
        );
    }
}

#[tokio::test]
async fn two_destroys_at_once_both_end_and_one_destroy_is_recorded() {
    let server = Harness::start().await;
    let id = server.sandbox().await;
    let path = format!("/v1/sandboxes/{id}");
    server.host.hold(Point::DestroyBefore);
    let release = async {
        server.host.reached(Point::DestroyBefore).await;
        // It is gone for its users from the moment that its end was asked for.
        server.get(&path).await.refused(404, "sandbox_not_found");
        server
            .post(&format!("{path}/exec"), json!({"command": "true"}))
            .await
            .refused(404, "sandbox_not_found");
        server.host.release(Point::DestroyBefore);
    };
    let (first, second, ()) = futures::join!(server.delete(&path), server.delete(&path), release);
    for answer in [first, second] {
        assert!(matches!(answer.status, 200 | 404), "{answer:?}");
    }
    assert_eq!(server.event_words(&id).await.len(), 3);
}

#[tokio::test]
async fn a_destroy_that_the_host_refuses_is_tried_again_until_it_is_done() {
    let server = Harness::start().await;
    let id = server.sandbox().await;
    server.host.fail_destroys(2);
    server.delete(&format!("/v1/sandboxes/{id}")).await.expect(200);
    assert!(server.host.machines().is_empty());
}

#[tokio::test]
async fn a_machine_that_is_never_made_is_given_up_and_its_create_fails() {
    let mut config = nullspace_server::Config::default();
    config.limits.create_secs_max = 1;
    let server = Harness::with(config).await;
    server.host.hold(Point::CreateBefore);
    let message = server.post("/v1/sandboxes", json!({})).await.refused(503, "unavailable");
    assert!(message.contains("was not made within 1 second"), "{message}");
    assert_eq!((server.host.made(), server.get("/v1/sandboxes").await.expect(200)), (0, json!([])));
}

#[tokio::test]
async fn a_destroy_is_heard_while_the_host_refuses_to_end_what_a_kill_left_half_made() {
    let mut server = Harness::start().await;
    server.host.hold(Point::CreateAfter);
    let call = tokio::spawn(server.request(reqwest::Method::POST, "/v1/sandboxes").json(&json!({})).send());
    server.host.reached(Point::CreateAfter).await;
    let path = format!("/v1/sandboxes/{}", server.creating().await);
    server.kill().await;
    assert!(call.await.unwrap().is_err());
    server.host.release(Point::CreateAfter);
    server.host.fail_destroys(2);
    server.start_again().await;
    server.delete(&path).await.expect(200);
    assert!(server.host.machines().is_empty());
}

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
            let listed = server.get("/v1/sandboxes?state=creating").await.expect(200);
            let id = listed["items"][0]["id"].as_str().unwrap().to_owned();
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

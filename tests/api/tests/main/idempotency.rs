use futures::future::join_all;
use nullspace_tests_api::{Harness, Point};
use nullspace_types::{Code, Error};
use serde_json::json;

#[tokio::test]
async fn ten_callers_with_one_key_at_once_get_one_sandbox() {
    let server = Harness::start().await;
    server.host.hold(Point::CreateBefore);
    let calls = join_all((0..10).map(|_| server.create_with_key("one", json!({"metadata": {"a": 1}}))));
    let release = async {
        server.host.reached(Point::CreateBefore).await;
        server.host.release(Point::CreateBefore);
    };
    let (answers, ()) = futures::join!(calls, release);
    let first = &answers[0].body;
    assert!(answers.iter().all(|answer| answer.status == 201 && answer.body == *first), "{answers:?}");
    assert_eq!(server.host.made(), 1);
    assert_eq!(server.create_with_key("one", json!({"metadata": {"a": 1}})).await.expect(201), *first);
    server.create_with_key("one", json!({"metadata": {"a": 2}})).await.refused(409, "conflict");
    assert_eq!(server.host.made(), 1);
}

#[tokio::test]
async fn a_key_is_remembered_by_the_next_server_and_is_its_tenants_own() {
    let mut server = Harness::start().await;
    let made = server.create_with_key("k", json!({})).await.expect(201);
    server.stop().await;
    server.start_again().await;
    assert_eq!(server.create_with_key("k", json!({})).await.expect(201), made);
    server.create_with_key("k", json!({"vcpus": 2})).await.refused(409, "conflict");
    // The machine that was begun beside the look into the store is gone again.
    let id = made["id"].as_str().unwrap().parse().unwrap();
    server.until(|| async { (server.host.machines() == [id]).then_some(()) }).await;
    server.key = server.key_of("other").await;
    let other = server.create_with_key("k", json!({})).await.expect(201);
    assert_ne!(other["id"], made["id"]);
}

#[tokio::test]
async fn a_create_that_failed_frees_its_key() {
    let server = Harness::start().await;
    server.host.fail_creates(Some(Error::new(Code::CapacityExceeded, "no slot")));
    server.create_with_key("k", json!({})).await.refused(503, "capacity_exceeded");
    server.host.fail_creates(None);
    server.create_with_key("k", json!({})).await.expect(201);
    assert_eq!(server.host.machines().len(), 1);
}

#[tokio::test]
async fn a_caller_who_goes_away_in_the_middle_of_a_create_finds_it_done() {
    let server = Harness::start().await;
    server.host.hold(Point::CreateBefore);
    let call = server.create_with_key("k", json!({}));
    let gone = async { server.host.reached(Point::CreateBefore).await };
    tokio::select! {
        answer = call => panic!("{answer:?}"),
        () = gone => {}
    }
    server.host.release(Point::CreateBefore);
    let items = server
        .until(|| async {
            let items = server.get("/v1/sandboxes?state=running").await.expect(200)["items"].clone();
            (items.as_array().unwrap().len() == 1).then_some(items)
        })
        .await;
    let again = server.create_with_key("k", json!({})).await.expect(201);
    assert_eq!(again["id"], items[0]["id"]);
    assert!(again["timeout_at"].is_string());
    assert_eq!(server.host.made(), 1);
}

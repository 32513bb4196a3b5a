use std::collections::BTreeSet;

use nullspace_tests_api::Harness;
use serde_json::{Value, json};

fn ids(items: &Value) -> Vec<&str> {
    items.as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn without_a_query_everything_but_history_comes_as_an_array_newest_first() {
    let server = Harness::start().await;
    assert_eq!(server.get("/v1/sandboxes").await.expect(200), json!([]));
    let (first, second, third) = (server.sandbox().await, server.sandbox().await, server.sandbox().await);
    server.delete(&format!("/v1/sandboxes/{second}")).await.expect(200);
    assert_eq!(ids(&server.get("/v1/sandboxes").await.expect(200)), [&third, &first]);
    let history = server.get("/v1/sandboxes?state=destroyed").await.expect(200);
    assert_eq!(ids(&history["items"]), [&second]);
    assert_eq!(history["items"][0]["status"], "destroyed");
    assert_eq!(history["has_next"], false);
    let both = server.get("/v1/sandboxes?state=destroyed,running").await.expect(200);
    assert_eq!(ids(&both["items"]), [&third, &second, &first]);
    assert_eq!(server.get("/v1/sandboxes?state=paused").await.expect(200)["items"], json!([]));
}

#[tokio::test]
async fn pages_lead_through_all_once_and_filters_and_fields_hold() {
    let server = Harness::start().await;
    for number in 0..5 {
        let metadata = json!({"even": number % 2 == 0, "n": number});
        server.post("/v1/sandboxes", json!({"metadata": metadata})).await.expect(201);
    }
    let (mut seen, mut token) = (BTreeSet::new(), String::new());
    for page in 0.. {
        let body = server.get(&format!("/v1/sandboxes?limit=2{token}")).await.expect(200);
        let here = ids(&body["items"]);
        assert!(here.len() <= 2);
        assert!(here.iter().all(|id| seen.insert((*id).to_owned())), "one came twice");
        if body["has_next"] == false {
            assert!(page == 2 && body["next_token"].is_null());
            break;
        }
        token = format!("&next_token={}", body["next_token"].as_str().unwrap());
    }
    assert_eq!(seen.len(), 5);
    // As the public client encodes it.
    let even =
        server.get("/v1/sandboxes?metadata=%7B%22even%22%3A+true%7D&fields=metadata").await.expect(200);
    assert_eq!(even["items"].as_array().unwrap().len(), 3);
    assert_eq!(even["items"][0], json!({"metadata": {"even": true, "n": 4}}));
    assert_eq!(server.get("/v1/sandboxes?template=other").await.expect(200)["items"], json!([]));
    for query in ["limit=0", "limit=101", "state=lost", "metadata=1", "next_token=x"] {
        server.get(&format!("/v1/sandboxes?{query}")).await.refused(400, "invalid_request");
    }
    server.get("/v1/sandboxes?fields=id,color").await.refused(400, "invalid_fields");
}

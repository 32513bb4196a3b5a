//! Ten thousand sandboxes: what can be asked about them, and how long that takes.

use std::time::{Duration, Instant};

use nullspace_tests_api::Harness;
use serde_json::json;

const COUNT: usize = 10_000;
const CHILDREN: usize = 64;

/// The time below which 99 of 100 calls are answered.
async fn percentile(server: &Harness, path: impl Fn(usize) -> String) -> Duration {
    let mut times = Vec::new();
    for number in 0..300 {
        let path = path(number);
        let begun = Instant::now();
        server.get(&path).await.expect(200);
        times.push(begun.elapsed());
    }
    times.sort();
    times[times.len() * 99 / 100]
}

#[tokio::test]
#[allow(clippy::print_stdout, reason = "a measurement is there to be read")]
async fn ten_thousand_sandboxes_are_listed_got_and_filtered() {
    let server = Harness::start().await;
    let mut ids = Vec::new();
    for group in 0..10 {
        let body = json!({"metadata": {"group": group}});
        let parent = server.post("/v1/sandboxes", body).await.expect(201);
        ids.push(parent["id"].as_str().unwrap().to_owned());
        let path = format!("/v1/sandboxes/{}/fork", ids[ids.len() - 1]);
        let mut missing = COUNT / 10 - 1;
        while missing > 0 {
            let count = missing.min(CHILDREN);
            let forked = server.post(&path, json!({"count": count})).await.expect(201);
            let children = forked["items"].as_array().unwrap().iter();
            ids.extend(children.map(|child| child["id"].as_str().unwrap().to_owned()));
            missing -= count;
        }
    }
    assert_eq!(ids.len(), COUNT);
    for id in ids.iter().step_by(100) {
        server.act(&format!("/v1/sandboxes/{id}/hibernate")).await.expect(200);
    }

    let (mut found, mut token) = (0, String::new());
    loop {
        let page = server.get(&format!("/v1/sandboxes?limit=100{token}")).await.expect(200);
        found += page["items"].as_array().unwrap().len();
        let Some(next) = page["next_token"].as_str() else { break };
        token = format!("&next_token={next}");
    }
    assert_eq!(found, COUNT);
    let paused = server.get("/v1/sandboxes?state=paused&limit=100").await.expect(200);
    assert_eq!(paused["items"].as_array().unwrap().len(), COUNT / 100);
    let filtered = "/v1/sandboxes?metadata=%7B%22group%22%3A7%7D&limit=100";
    assert_eq!(server.get(filtered).await.expect(200)["items"].as_array().unwrap().len(), 100);

    let get = percentile(&server, |number| format!("/v1/sandboxes/{}", ids[number * 31 % COUNT])).await;
    let list = percentile(&server, |_| "/v1/sandboxes?limit=100".into()).await;
    let by_state = percentile(&server, |_| "/v1/sandboxes?state=paused&limit=100".into()).await;
    let by_metadata = percentile(&server, |_| filtered.into()).await;
    println!(
        "{COUNT} sandboxes, 99th percentile: get {get:?}, list {list:?}, by state {by_state:?}, \
         by metadata {by_metadata:?}"
    );
}

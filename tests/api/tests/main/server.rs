use futures::FutureExt as _;
use nullspace_server::compose::{NodeStart, local_node};
use nullspace_server::{Server, ServerOptions};
use nullspace_tests_api::{Harness, Point};
use nullspace_types::{Code, Error};
use serde_json::json;

#[tokio::test]
async fn health_is_true_only_while_a_sandbox_could_be_created() {
    let server = Harness::start().await;
    server.get("/healthz").await.expect(200);
    server.host.set_ready(Some(Error::new(Code::CapacityExceeded, "no memory for another machine")));
    let message = server.get("/healthz").await.refused(503, "unavailable");
    assert_eq!(message, "no memory for another machine");
    server.host.set_ready(None);
    server.get("/healthz").await.expect(200);
}

#[tokio::test]
async fn a_server_that_starts_says_so_until_its_node_is_up() {
    let mut server = Harness::start().await;
    let id = server.sandbox().await;
    server.stop().await;
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let host = server.host.clone();
    let start = move |start: NodeStart| {
        async move {
            wait.await.expect("the test lets it go on");
            Ok(host.node(start.reports))
        }
        .boxed()
    };
    server.launch(Box::new(start)).await;
    assert_eq!(server.get("/healthz").await.refused(503, "unavailable"), "the server is starting");
    server.get(&format!("/v1/sandboxes/{id}")).await.refused(503, "unavailable");
    // The code on which clients repeat a create.
    server.create_with_key("k", json!({})).await.refused(409, "transition_in_progress");
    go.send(()).expect("the node waits");
    server.until(|| async { (server.get("/healthz").await.status == 200).then_some(()) }).await;
    server.get(&format!("/v1/sandboxes/{id}")).await.expect(200);
}

#[tokio::test]
async fn a_second_server_on_the_same_directory_is_refused_with_the_first_ones_pid() {
    let server = Harness::start().await;
    let options = ServerOptions {
        data_dir: server.data_dir(),
        listen: Some(([127, 0, 0, 1], 0).into()),
        config: Default::default(),
    };
    let error = Server::start(options, local_node()).await.err().expect("it is in use").to_string();
    assert!(error.contains(&format!("PID {}", std::process::id())), "{error}");
}

#[tokio::test]
async fn a_stop_lets_the_request_at_hand_end_and_machines_run_on() {
    let mut server = Harness::start().await;
    let id = server.sandbox().await;
    server.host.hold(Point::CreateBefore);
    let call = tokio::spawn(server.request(reqwest::Method::POST, "/v1/sandboxes").json(&json!({})).send());
    server.host.reached(Point::CreateBefore).await;
    let host = server.host.clone();
    let release = async move { host.release(Point::CreateBefore) };
    let ((), ()) = futures::join!(server.stop(), release);
    assert_eq!(call.await.unwrap().unwrap().status(), 201);
    assert_eq!(server.host.machines().len(), 2);
    server.start_again().await;
    assert_eq!(server.get("/v1/sandboxes").await.expect(200).as_array().unwrap().len(), 2);
    server.post(&format!("/v1/sandboxes/{id}/exec"), json!({"command": "true"})).await.expect(200);
}

#[tokio::test]
async fn the_first_key_is_for_its_owners_eyes_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let server = Harness::start().await;
    let metadata = std::fs::metadata(server.data_dir().join("admin.key")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}

use nullspace_tests_api::Harness;
use serde_json::json;

#[tokio::test]
async fn a_tenants_sandbox_looks_to_others_as_if_it_were_not_there() {
    let mut server = Harness::start().await;
    let id = server.sandbox().await;
    let mine = std::mem::take(&mut server.key);
    server.key = server.key_of("other").await;
    let path = format!("/v1/sandboxes/{id}");
    let message = server.get(&path).await.refused(404, "sandbox_not_found");
    assert_eq!(message, format!("sandbox {id} does not exist"));
    server.delete(&path).await.refused(404, "sandbox_not_found");
    server.post(&format!("{path}/exec"), json!({"command": "true"})).await.refused(404, "sandbox_not_found");
    server
        .post(&format!("{path}/timeout"), json!({"timeout_ms": 1000}))
        .await
        .refused(404, "sandbox_not_found");
    server.post(&format!("{path}/files/read"), json!({"path": "/a"})).await.refused(404, "sandbox_not_found");
    server.get(&format!("{path}/processes")).await.refused(404, "sandbox_not_found");
    assert_eq!(server.get("/v1/sandboxes").await.expect(200), json!([]));
    assert_eq!(server.get("/v1/sandboxes?state=running,destroyed").await.expect(200)["items"], json!([]));
    server.key = mine;
    server.get(&path).await.expect(200);
}

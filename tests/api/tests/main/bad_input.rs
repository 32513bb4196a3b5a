use nullspace_tests_api::Harness;
use nullspace_types::{Code, Error};
use reqwest::Method;
use serde_json::json;

#[tokio::test]
async fn a_create_out_of_the_rules_is_refused_and_makes_nothing() {
    let server = Harness::start().await;
    for (body, status, code, says) in [
        (json!({"vcpus": 0}), 400, "invalid_request", "vcpus must be between 1 and 8, got 0"),
        (
            json!({"memory_mb": 100}),
            400,
            "invalid_request",
            "memory_mb must be between 256 and 65536, got 100",
        ),
        (
            json!({"disk_mb": 999_999}),
            400,
            "invalid_request",
            "disk_mb must be between 512 and 131072, got 999999",
        ),
        (
            json!({"timeout_ms": 0}),
            400,
            "invalid_request",
            "timeout_ms must be between 1 and 2592000000, got 0",
        ),
        (json!({"vcpus": "two"}), 400, "invalid_request", "vcpus"),
        (json!({"envs": {"A": 1}}), 400, "invalid_request", "envs"),
        (json!({"cwd": "/workspace/.nullspace/a"}), 400, "invalid_request", "cwd must not lie in"),
        (json!({"metadata": {"shared_volume_mount": {}}}), 400, "invalid_request", "shared_volume_mount"),
        (json!({"template": "nope"}), 404, "template_not_found", "\"nope\" does not exist"),
        (json!({"snapshot_id": "snap_x"}), 400, "invalid_request", "snapshot_id"),
        (json!({"auto_resume": true}), 400, "invalid_request", "auto_resume"),
    ] {
        let message = server.post("/v1/sandboxes", body.clone()).await.refused(status, code);
        assert!(message.contains(says), "{body}: {message}");
    }
    for body in ["{", "[]", "\"x\"", ""] {
        let request = server.request(Method::POST, "/v1/sandboxes").body(body);
        let answer = server.send(request).await;
        // An empty body is an empty request.
        if body.is_empty() && answer.status == 201 {
            continue;
        }
        answer.refused(400, "invalid_request");
    }
    let large = server.request(Method::POST, "/v1/sandboxes").body(vec![b' '; (4 << 20) + 1]);
    server.send(large).await.refused(413, "payload_too_large");
    assert!(server.host.made() <= 1);
}

#[tokio::test]
async fn keys_that_prove_nothing_are_refused() {
    let server = Harness::start().await;
    let bare = |method, path: &str| {
        let request = server.request(method, path).build().unwrap();
        (request.method().clone(), request.url().clone())
    };
    let (method, url) = bare(Method::GET, "/v1/sandboxes");
    let http = reqwest::Client::new();
    for header in [
        None,
        Some("Bearer"),
        Some("Bearer nonsense"),
        Some("Basic dXNlcjpwYXNz"),
        Some("Bearer ns_live_unknown"),
    ] {
        let mut request = http.request(method.clone(), url.clone());
        if let Some(header) = header {
            request = request.header("Authorization", header);
        }
        server.send(request).await.refused(401, "unauthorized");
    }
    assert_eq!(
        server.send(http.get(url.join("/healthz").unwrap())).await.expect(200),
        json!({"status": "ok"})
    );
}

#[tokio::test]
async fn what_does_not_exist_is_not_found_whatever_is_asked_of_it() {
    let server = Harness::start().await;
    let foreign = "sb_0192f0c45b7a70008000000000000000";
    for id in [foreign, "sb_x", "snap_0192f0c45b7a70008000000000000000"] {
        let path = format!("/v1/sandboxes/{id}");
        server.get(&path).await.refused(404, "sandbox_not_found");
        server.delete(&path).await.refused(404, "sandbox_not_found");
        server
            .post(&format!("{path}/timeout"), json!({"timeout_ms": 1000}))
            .await
            .refused(404, "sandbox_not_found");
        server
            .post(&format!("{path}/exec"), json!({"command": "true"}))
            .await
            .refused(404, "sandbox_not_found");
        server.get(&format!("{path}/metrics")).await.refused(404, "sandbox_not_found");
        server.get(&format!("{path}/processes")).await.refused(404, "sandbox_not_found");
        server
            .post(&format!("{path}/files/read"), json!({"path": "/a"}))
            .await
            .refused(404, "sandbox_not_found");
    }
    server.get("/v1/nothing").await.refused(404, "not_found");
    server.send(server.request(Method::PUT, "/v1/sandboxes")).await.refused(405, "method_not_allowed");
    server.get("/v1/volumes").await.refused(501, "not_implemented");
}

#[tokio::test]
async fn commands_windows_and_paths_out_of_the_rules_are_refused() {
    let server = Harness::start().await;
    let path = format!("/v1/sandboxes/{}", server.sandbox().await);
    for (verb, body, says) in [
        ("exec", json!({"command": ""}), "command must not be empty"),
        ("exec", json!({"command": "ls", "shell": true, "args": ["a"]}), "args must be empty"),
        ("exec", json!({"command": "ls", "timeout_secs": 0}), "timeout_secs must be greater than 0"),
        ("exec", json!({"command": "ls", "timeout_secs": 86401}), "at most 86400, got 86401"),
        ("exec", json!({"command": "ls", "cwd": "a"}), "cwd must be an absolute path"),
        ("exec", json!({"command": "ls", "envs": {"": "x"}}), "name must not be empty"),
        ("exec", json!({"args": []}), "command"),
        ("timeout", json!({"timeout_ms": -5}), "timeout_ms must be between 1 and 2592000000, got -5"),
        ("timeout", json!({}), "timeout_ms"),
        ("files/read", json!({"path": ""}), "path must not be empty"),
        ("files/read", json!({"path": "/workspace/.nullspace/x"}), "path must not lie in"),
        ("files/write", json!({"path": "x/../.nullspace/x", "content": ""}), "path must not lie in"),
        (
            "files/write",
            json!({"path": "/a", "content": "!", "encoding": "base64"}),
            "content is not valid base64",
        ),
        ("files/mkdir", json!({"path": "/a\u{0}b"}), "NUL"),
        ("files/permissions", json!({"path": "/a", "permissions": "9"}), "octal"),
        ("files/rename", json!({"old_path": "/a", "new_path": ""}), "new_path must not be empty"),
    ] {
        let message =
            server.post(&format!("{path}/{verb}"), body.clone()).await.refused(400, "invalid_request");
        assert!(message.contains(says), "{verb} {body}: {message}");
    }
    server.get(&format!("{path}?fields=id,nothing")).await.refused(400, "invalid_fields");
    server.get(&format!("{path}/files?depth=1000")).await.refused(400, "invalid_request");
}

#[tokio::test]
async fn a_host_without_room_refuses_new_sandboxes_and_the_old_ones_go_on() {
    let server = Harness::start().await;
    let old = server.sandbox().await;
    server.host.fail_creates(Some(Error::new(Code::CapacityExceeded, "no memory for another machine")));
    let answer = server.post("/v1/sandboxes", json!({})).await;
    assert!(answer.headers.contains_key("retry-after"));
    answer.refused(503, "capacity_exceeded");
    server.get(&format!("/v1/sandboxes/{old}")).await.expect(200);
    let items = server.get("/v1/sandboxes").await.expect(200);
    assert_eq!(items.as_array().unwrap().len(), 1);
    let history = server.get("/v1/sandboxes?state=destroyed").await.expect(200);
    let failed = history["items"][0]["id"].as_str().unwrap();
    let events = server.events(failed).await;
    assert_eq!(events.len(), 1);
    assert_eq!(
        (events[0].status.as_str(), events[0].error_code.as_deref()),
        ("failed", Some("capacity_exceeded"))
    );
    server.host.fail_creates(None);
    server.sandbox().await;
}

use nullspace_tests_api::Harness;
use reqwest::Method;
use serde_json::json;

#[tokio::test]
async fn a_sandbox_is_created_used_and_destroyed() {
    let server = Harness::start().await;
    let request = json!({
        "template": "base", "vcpus": 2, "memory_mb": 512, "disk_mb": 4096, "timeout_ms": 60000, "cwd": "/srv//app/",
        "envs": {"A": "1"}, "metadata": {"user": {"name": "x"}}, "internet_access": false,
        "network": null, "desktop": null, "volumes": null, "auto_resume": false,
    });
    let mut made = server.post("/v1/sandboxes", request).await.expect(201);
    // Only the create tells it.
    let token = made.as_object_mut().unwrap().remove("traffic_access_token").unwrap();
    assert!(token.as_str().unwrap().starts_with("nst_"));
    assert_eq!(made["status"], "running");
    assert_eq!(made["config"], json!({"vcpus": 2, "memory_mb": 512, "disk_mb": 4096}));
    assert_eq!((&made["cwd"], &made["metadata"]["user"]["name"]), (&json!("/srv/app"), &json!("x")));
    assert_eq!((&made["timeout_ms"], &made["timeout_action"]), (&json!(60000), &json!("destroy")));
    assert_eq!(made["timeout_at"], made["expires_at"]);
    assert!(made["started_at"].is_string() && made["snapshot_id"].is_null());
    let id = made["id"].as_str().unwrap();
    let spec = server.host.spec(id.parse().unwrap()).unwrap();
    assert!(!spec.egress.internet_access && spec.envs["A"] == "1" && spec.cwd.as_deref() == Some("/srv/app"));

    let path = format!("/v1/sandboxes/{id}");
    assert_eq!(server.get(&path).await.expect(200), made);
    assert_eq!(
        server.get(&format!("{path}?fields=id,status")).await.expect(200),
        json!({"id": id, "status": "running"})
    );
    let metrics = server.get(&format!("{path}/metrics")).await.expect(200);
    assert_eq!(metrics[0]["cpu_count"], 1);

    let result =
        server.post(&format!("{path}/exec"), json!({"command": "echo", "args": ["hi"]})).await.expect(200);
    assert_eq!(
        (&result["exit_code"], &result["stdout"], &result["stderr"]),
        (&json!(0), &json!("hi\n"), &json!(""))
    );

    assert_eq!(server.delete(&path).await.expect(200), json!({"id": id, "status": "destroyed"}));
    assert!(server.host.machines().is_empty());
    server.get(&path).await.refused(404, "sandbox_not_found");
    server.delete(&path).await.refused(404, "sandbox_not_found");
    assert_eq!(
        server.event_words(id).await,
        ["create/succeeded api", "destroy/requested manual", "destroy/succeeded manual"]
    );
    assert_eq!(server.events(id).await[0].metadata["timeout_action"], "destroy");
}

#[tokio::test]
async fn commands_run_in_the_foreground_and_in_the_background() {
    let server = Harness::start().await;
    let path = format!("/v1/sandboxes/{}", server.sandbox().await);
    let exec = async |body| server.post(&format!("{path}/exec"), body).await;

    assert_eq!(exec(json!({"command": "false"})).await.expect(200)["exit_code"], 1);
    assert_eq!(exec(json!({"command": "latin1"})).await.expect(200)["stdout"], "caf\u{fffd}\n");
    let much = exec(json!({"command": "yes", "args": ["3000000"]})).await.expect(200);
    assert_eq!(much["stdout"].as_str().unwrap().len(), 3_000_000);

    let pid =
        exec(json!({"command": "cat", "background": true, "timeout_secs": 30})).await.expect(200)["pid"]
            .clone();
    let process = format!("{path}/processes/{pid}");
    server.post(&format!("{process}/stdin"), json!({"data": "abc"})).await.expect(204);
    let listed = server.get(&format!("{path}/processes")).await.expect(200);
    assert!(listed.as_array().unwrap().contains(&json!({"pid": pid, "command": "cat", "running": true})));
    let logs = server.get(&format!("{process}/logs")).await.expect(200);
    assert_eq!(logs, json!({"stdout": "abc", "stderr": "", "output": "abc", "exit_code": null}));
    server.send(server.request(Method::POST, &format!("{process}/kill"))).await.expect(204);
    assert_eq!(server.get(&format!("{process}/logs")).await.expect(200)["exit_code"], 137);
    server.get(&format!("{path}/processes/99999/logs")).await.refused(404, "process_not_found");
}

#[tokio::test]
async fn a_command_that_cannot_run_or_runs_too_long_is_answered_as_the_contract_says() {
    let server = Harness::start().await;
    let path = format!("/v1/sandboxes/{}/exec", server.sandbox().await);
    server.post(&path, json!({"command": "no-such-command"})).await.refused(502, "exec_failed");
    let message = server
        .post(&path, json!({"command": "sleep", "args": ["1000"], "timeout_secs": 0.05}))
        .await
        .refused(504, "exec_timeout");
    assert!(message.contains("timeout_secs (0.05)"), "{message}");
}

#[tokio::test]
async fn files_are_written_read_listed_and_removed() {
    let server = Harness::start().await;
    let path = format!("/v1/sandboxes/{}", server.sandbox().await);
    let file = async |verb: &str, body| server.post(&format!("{path}/files/{verb}"), body).await;

    let written = file("write", json!({"path": "/tmp/a", "content": "aGVsbG8=", "encoding": "base64"}))
        .await
        .expect(200);
    assert_eq!(
        (&written["path"], &written["size"], &written["type"]),
        (&json!("/tmp/a"), &json!(5), &json!("file"))
    );
    let read = file("read", json!({"path": "/tmp/a", "encoding": "utf8", "user": null})).await.expect(200);
    assert_eq!(read["content"], "hello");
    assert_eq!(
        file("read", json!({"path": "/tmp/a", "encoding": "base64"})).await.expect(200)["content"],
        "aGVsbG8="
    );
    assert_eq!(file("exists", json!({"path": "/tmp/a"})).await.expect(200), json!({"exists": true}));
    assert_eq!(file("info", json!({"path": "/tmp/a"})).await.expect(200)["name"], "a");
    let listed = server.get(&format!("{path}/files?path=/tmp&depth=1")).await.expect(200);
    assert_eq!(listed[0]["path"], "/tmp/a");

    let raw = server.request(Method::PUT, &format!("{path}/file?path=/tmp/b")).body("raw bytes");
    server.send(raw).await.expect(204);
    assert_eq!(server.get(&format!("{path}/file?path=/tmp/b")).await.expect(200), json!("raw bytes"));
    file("mkdir", json!({"path": "/tmp/d"})).await.expect(204);
    file("remove", json!({"path": "/tmp/a"})).await.expect(204);
    assert_eq!(file("exists", json!({"path": "/tmp/a"})).await.expect(200), json!({"exists": false}));
    file("read", json!({"path": "/tmp/a"})).await.refused(404, "file_not_found");
}

#[tokio::test]
async fn the_built_in_template_is_listed_under_its_name() {
    let server = Harness::start().await;
    let templates = server.get("/v1/templates").await.expect(200);
    assert_eq!((&templates[0]["id"], &templates[0]["name"]), (&json!("base"), &json!("base")));
}

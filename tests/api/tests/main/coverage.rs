//! Every operation of the OpenAPI document, asked without a right to.

use nullspace_tests_api::Harness;
use reqwest::Method;
use serde_json::{Value, json};

/// The document as it is committed; `make check` verifies that it is that of the routes.
const DOCUMENT: &str = include_str!("../../../../openapi/nullspace.json");

/// A public key that nobody has the other half of.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE+xfoatj9ISz4RzuxnvcDd4Af/CkJhRZHS3ScF8BDnE test";

struct Operation {
    name: String,
    method: Method,
    path: String,
}

/// Every operation, with its path as the document has it.
fn operations() -> Vec<Operation> {
    let document: Value = serde_json::from_str(DOCUMENT).expect("the document is JSON");
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("it has paths") {
        for (method, operation) in methods.as_object().expect("they have methods") {
            operations.push(Operation {
                name: operation["operationId"].as_str().expect("it has a name").to_owned(),
                method: method.to_uppercase().parse().expect("a method"),
                path: path.clone(),
            });
        }
    }
    assert!(operations.len() >= 60, "{} operations", operations.len());
    operations
}

/// A body that every operation understands.
fn body() -> Value {
    json!({
        "command": "true", "data": "x", "timeout_ms": 60_000,
        "path": "/tmp/x", "content": "x", "old_path": "/tmp/x", "new_path": "/tmp/y", "permissions": "644",
        "pattern": "x", "files": ["/tmp/x"], "replacement": "y", "cols": 80, "rows": 24, "kind": "file",
        "source_kind": "restartable_file", "target_path": "/tmp/x", "content_length": 1,
        "port": 8080, "public_key": KEY, "name": "token", "value": "x",
        "url": "https://example.com/", "operations": ["fork"], "signing_secret": "a-secret-of-some-length",
    })
}

/// The same as a form, of one file or of several.
fn form(batch: bool) -> String {
    let part = |name: &str, content: &str| {
        format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{content}\r\n")
    };
    let manifest = json!({"files": [{"path": "/tmp/x", "field": "file"}]}).to_string();
    let manifest = if batch { part("manifest", &manifest) } else { String::new() };
    format!("{manifest}{}--x--\r\n", part("file", "x"))
}

/// Asks with this `Authorization` header; the query is what raw files need, and no matter elsewhere.
async fn ask(
    server: &Harness,
    operation: &Operation,
    id: &str,
    key: Option<&str>,
) -> nullspace_tests_api::Answer {
    let path = operation.path.replace("{sandbox_id}", id).replace("{pid}", "1").replace("{part}", "0");
    let path = path.replace("{session_id}", "ses_00000000000070008000000000000000");
    let path = path.replace("{upload_id}", "up_00000000000070008000000000000000");
    let path = path.replace("{snapshot_id}", "snap_00000000000070008000000000000000");
    let path = path.replace("{webhook_id}", "wh_00000000000070008000000000000000");
    let path = path.replace("{grant_id}", "pvg_00000000000070008000000000000000");
    let path = path.replace("{port}", "8080").replace("{name}", "token");
    let path = path.replace("{delivery_id}", "whd_00000000000070008000000000000000") + "?path=/tmp/x";
    let mut request = server.request(operation.method.clone(), &path);
    request = match (&operation.method, &*operation.name) {
        (&Method::GET, _) => request,
        (_, name @ ("file_upload_form" | "file_batch_write")) => {
            let form = form(name == "file_batch_write");
            request.header("content-type", "multipart/form-data; boundary=x").body(form)
        }
        (_, "upload_part") => request.header("x-nullspace-part-sha256", "0".repeat(64)).body("x"),
        // What it does not know is refused there.
        (_, "network_update") => request.json(&json!({})),
        _ => request.json(&body()),
    };
    let (client, request) = request.build_split();
    let mut request = request.expect("a request");
    request.headers_mut().remove("authorization");
    if let Some(key) = key {
        request.headers_mut().insert("authorization", key.parse().expect("a header"));
    }
    server.send(reqwest::RequestBuilder::from_parts(client, request)).await
}

#[tokio::test]
async fn no_operation_answers_without_a_good_key() {
    let server = Harness::start().await;
    let id = server.sandbox().await;
    let shortened = format!("Bearer {}", &server.key[..server.key.len() - 1]);
    let other_scheme = format!("Basic {}", server.key);
    let keys = [None, Some(""), Some("Bearer"), Some("Bearer x"), Some(&*shortened), Some(&*other_scheme)];
    // Health and, on the host itself, metrics are there for anyone.
    let open = ["health", "metrics"];
    for operation in operations().iter().filter(|operation| !open.contains(&&*operation.name)) {
        for id in [&*id, "not-an-id"] {
            for key in keys {
                let answer = ask(&server, operation, id, key).await;
                assert_eq!(answer.status, 401, "{} with {key:?}: {}", operation.name, answer.body);
                answer.refused(401, "unauthorized");
            }
        }
    }
    assert_eq!(server.get(&format!("/v1/sandboxes/{id}")).await.expect(200)["status"], "running");
}

#[tokio::test]
async fn to_every_operation_a_foreign_sandbox_is_like_one_that_does_not_exist() {
    let server = Harness::start().await;
    let id = server.sandbox().await;
    let foreign = format!("Bearer {}", server.key_of("other").await);
    let own = format!("Bearer {}", server.key);
    let missing = "sb_00000000000070008000000000000000";
    for operation in operations().iter().filter(|operation| operation.path.contains("{sandbox_id}")) {
        let mut messages = Vec::new();
        for (id, key) in [(&*id, &foreign), (missing, &own), ("sb_1", &own)] {
            let answer = ask(&server, operation, id, Some(key)).await;
            assert_eq!(answer.status, 404, "{} of {id}: {}", operation.name, answer.body);
            messages.push(answer.refused(404, "sandbox_not_found").replace(id, "ID"));
        }
        assert!(messages.iter().all(|message| *message == messages[0]), "{}: {messages:?}", operation.name);
    }
    assert_eq!(server.get(&format!("/v1/sandboxes/{id}")).await.expect(200)["status"], "running");
    let listed = ask(&server, &list(), "", Some(&foreign)).await.expect(200);
    assert_eq!(listed["items"], json!([]), "{listed}");
}

fn list() -> Operation {
    operations().into_iter().find(|operation| operation.name == "sandbox_list").expect("there is one")
}

#[tokio::test]
async fn to_every_operation_a_destroyed_sandbox_is_gone() {
    let server = Harness::start().await;
    let id = server.sandbox().await;
    server.delete(&format!("/v1/sandboxes/{id}")).await.expect(200);
    let own = format!("Bearer {}", server.key);
    // Its history stays.
    let history = [
        "lifecycle_list_sandbox",
        "sandbox_lifecycle_socket",
        "sandbox_tree",
        "network_denied",
        "preview_grant_list",
        "preview_grant_revoke",
    ];
    let of_sandbox = |operation: &&Operation| {
        operation.path.contains("{sandbox_id}") && !history.contains(&&*operation.name)
    };
    for operation in operations().iter().filter(of_sandbox) {
        let answer = ask(&server, operation, &id, Some(&own)).await;
        assert_eq!(answer.status, 404, "{}: {}", operation.name, answer.body);
        answer.refused(404, "sandbox_not_found");
    }
}

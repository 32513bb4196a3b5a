//! The routes, from outside, over an implementation that answers at once.

mod access;
mod fake;
mod fake_access;
mod fake_lifecycle;
mod file;
mod lifecycle;
mod socket;
mod wire;

use std::collections::BTreeSet;

use axum::body::Body;
use fake::{Fake, KEY};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use nullspace_types::id::SandboxId;
use nullspace_types::{Code, Error};
use serde_json::{Value, json};
use tower::ServiceExt;

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Checks that this is an error as all are, and gives its status, code and message.
    #[track_caller]
    fn error(&self) -> (u16, String, String) {
        let body = self.json();
        assert_eq!(self.headers["content-type"], "application/json");
        assert_eq!(body["request_id"], self.headers["x-request-id"].to_str().unwrap());
        assert!(body["retryable"].is_boolean(), "{body}");
        let text = |name: &str| body[name].as_str().unwrap_or_else(|| panic!("{name}: {body}")).to_owned();
        (self.status.as_u16(), text("code"), text("error"))
    }
}

async fn send(fake: &Fake, request: Request<Body>) -> Answer {
    let router = fake.router.get_or_init(|| nullspace_api::router(fake.clone())).clone();
    let response = router.oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let answer = Answer {
        status: parts.status,
        headers: parts.headers,
        text: String::from_utf8_lossy(&bytes).into_owned(),
    };
    assert!(answer.headers.contains_key("x-request-id"));
    assert!(!answer.status.is_redirection());
    answer
}

fn request(method: &str, path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::builder().method(method).uri(path).header("authorization", KEY).body(body.into()).unwrap()
}

async fn ask(fake: &Fake, method: &str, path: &str, body: impl Into<Body>) -> Answer {
    send(fake, request(method, path, body)).await
}

/// Every method and path of the OpenAPI document, with a sandbox in it.
fn operations(id: &str) -> Vec<(String, String)> {
    let document = serde_json::to_value(nullspace_api::openapi()).unwrap();
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let path = path.replace("{sandbox_id}", id).replace("{pid}", "1").replace("{part}", "0");
            let path = path.replace("{port}", "8080").replace("{name}", "token");
            let digits = id.rsplit('_').next().unwrap();
            let path = path
                .replace("{session_id}", &format!("ses_{digits}"))
                .replace("{upload_id}", &format!("up_{digits}"))
                .replace("{snapshot_id}", &format!("snap_{digits}"))
                .replace("{grant_id}", &format!("pvg_{digits}"))
                .replace("{webhook_id}", &format!("wh_{digits}"))
                .replace("{delivery_id}", &format!("whd_{digits}"));
            operations.push((method.to_uppercase(), path));
        }
    }
    assert!(operations.len() >= 40, "{operations:?}");
    operations
}

#[tokio::test]
async fn without_a_good_key_nothing_is_read_or_revealed() {
    let fake = Fake::new();
    let paths = operations("not-an-id").into_iter().filter(|(_, path)| path != "/healthz");
    let unknown =
        [("GET", "/v1"), ("GET", "/v1/nothing"), ("PATCH", "/v1/sandboxes"), ("GET", "/v1/volumes")]
            .map(|(method, path)| (method.to_owned(), path.to_owned()));
    for (method, path) in paths.chain(unknown) {
        for key in [None, Some("Bearer bad"), Some("good"), Some("Bearer g\u{f6}\u{f6}d")] {
            let mut request = Request::builder().method(method.as_str()).uri(&path);
            if let Some(key) = key {
                request = request.header("authorization", key);
            }
            let answer = send(&fake, request.body(Body::from("{ not JSON")).unwrap()).await;
            let (status, code, _) = answer.error();
            assert_eq!((status, code.as_str()), (401, "unauthorized"), "{method} {path} {key:?}");
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
            assert_eq!(answer.json()["suggested_action"], "set NULLSPACE_API_KEY");
        }
    }
    assert!(fake.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_is_no_id_answers_like_an_id_that_nothing_has() {
    let fake = Fake::new();
    let missing = SandboxId::new().to_string();
    let body = json!({ "command": "x", "timeout_ms": 1, "path": "/x", "content": "", "data": "",
        "old_path": "/x", "new_path": "/y", "permissions": "644", "pattern": "x", "files": [], "replacement": "",
        "cols": 1, "rows": 1, "kind": "file", "source_kind": "restartable_file", "target_path": "/x",
        "content_length": 1 });
    for id in [missing.as_str(), "sb_1", "snap_00000000000000000000000000000000", "%ff", "a%2Fb"] {
        for (method, path) in operations(id) {
            // A form is not JSON, and a part has a checksum: both are looked at first.
            let form = path.contains("/parts/")
                || path.ends_with("/batch-write")
                || (method == "POST" && path.ends_with("/file"));
            if !path.contains(&format!("/sandboxes/{id}")) || form {
                continue;
            }
            let (status, code, message) = ask(&fake, &method, &path, body.to_string()).await.error();
            assert_eq!((status, code.as_str()), (404, "sandbox_not_found"), "{method} {path}");
            assert!(message.starts_with("sandbox ") && message.ends_with(" does not exist"), "{message}");
        }
    }
}

#[tokio::test]
async fn what_is_no_pid_is_a_process_that_does_not_exist() {
    let fake = Fake::new();
    for pid in ["x", "-1", "+1", "4294967296"] {
        let path = format!("/v1/sandboxes/{}/processes/{pid}/kill", fake.id);
        let (status, code, _) = ask(&fake, "POST", &path, "").await.error();
        assert_eq!((status, code.as_str()), (404, "process_not_found"), "{pid}");
    }
}

#[tokio::test]
async fn bodies_that_are_wrong_are_answered_with_the_place_and_the_reason() {
    let fake = Fake::new();
    for (body, expected) in [
        ("", "the body is empty; a JSON object is expected"),
        (" \n", "the body is empty; a JSON object is expected"),
        ("{\"a\" 1}", "the body is not valid JSON: expected `:` at line 1 column 6"),
        ("nope", "the body is not valid JSON: expected ident at line 1 column 2"),
        ("{} {}", "the body is not valid JSON: trailing characters at line 1 column 4"),
        ("{\"template\":\"b", "the body is not valid JSON: EOF while parsing a string at line 1 column 14"),
        ("[1]", "the body must be a JSON object"),
        ("\"text\"", "the body must be a JSON object"),
        ("{\"timeout_ms\":\"x\"}", "timeout_ms: invalid type: string \"x\", expected i64"),
        ("{\"envs\":{\"A\":1}}", "envs.A: invalid type: integer `1`, expected a string"),
    ] {
        let (status, code, message) = ask(&fake, "POST", "/v1/sandboxes", body).await.error();
        assert_eq!((status, code.as_str()), (400, "invalid_request"), "{body}");
        assert_eq!(message, expected, "{body}");
    }
    assert!(fake.asked.lock().unwrap().is_empty());
    let path = format!("/v1/sandboxes/{}/exec", fake.id);
    let (_, _, message) = ask(&fake, "POST", &path, "{\"args\":[]}").await.error();
    assert_eq!(message, "missing field `command`");
}

#[tokio::test]
async fn null_is_absent_unknown_fields_and_other_content_types_are_no_matter() {
    let fake = Fake::new();
    let body = json!({ "vcpus": null, "template": null, "no_such_field": [1] }).to_string();
    let mut request = request("POST", "/v1/sandboxes", body);
    request.headers_mut().insert("content-type", "text/plain".parse().unwrap());
    let answer = send(&fake, request).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    assert_eq!(answer.json()["id"], fake.id.to_string());
    assert_eq!(*fake.asked.lock().unwrap(), ["(None, None, None)"]);
}

#[tokio::test]
async fn a_body_over_its_limit_is_refused_with_and_without_a_length() {
    let fake = Fake::new();
    let exec = format!("/v1/sandboxes/{}/exec", fake.id);
    let write = format!("/v1/sandboxes/{}/files/write", fake.id);
    for (path, limit) in [(&exec, 4 << 20), (&write, 64 << 20)] {
        // Chunks, as of a body whose length nobody knows.
        let chunk = vec![b' '; 1 << 20];
        let chunks = (0..(limit >> 20) + 1).map(move |_| Ok::<_, std::io::Error>(chunk.clone()));
        let body = Body::from_stream(futures::stream::iter(chunks));
        let (status, code, message) = ask(&fake, "POST", path, body).await.error();
        assert_eq!((status, code.as_str()), (413, "payload_too_large"));
        assert_eq!(message, format!("the body is larger than {} MiB", limit >> 20));
        let mut early = request("POST", path, "");
        early.headers_mut().insert("content-length", (limit + 1).to_string().parse().unwrap());
        assert_eq!(send(&fake, early).await.error().0, 413);
    }
    let body = json!({ "path": "/x", "content": "x".repeat(5 << 20) }).to_string();
    assert_eq!(ask(&fake, "POST", &write, body).await.status, StatusCode::OK);
}

#[tokio::test]
async fn idempotency_keys_are_visible_ascii_of_bounded_length() {
    let fake = Fake::new();
    for (key, good) in
        [("k".repeat(255), true), ("k".repeat(256), false), ("".into(), false), ("a b".into(), false)]
    {
        let mut request = request("POST", "/v1/sandboxes", "{}");
        request.headers_mut().insert("idempotency-key", key.parse().unwrap());
        let answer = send(&fake, request).await;
        match good {
            true => assert_eq!(answer.status, StatusCode::CREATED),
            false => assert!(answer.error().2.contains("Idempotency-Key"), "{key}"),
        }
    }
}

#[tokio::test]
async fn queries_take_both_kinds_of_space_and_unknown_and_repeated_parameters() {
    let fake = Fake::new();
    for query in ["", "?", "?metadata=%7B%22a%22:+1%7D", "?metadata=a%20b&nothing=1&limit=1&limit=2"] {
        assert_eq!(ask(&fake, "GET", &format!("/v1/sandboxes{query}"), "").await.status, StatusCode::OK);
    }
    let asked = fake.asked.lock().unwrap().clone();
    assert_eq!(
        asked,
        [
            "(None, None, false)",
            "(None, None, false)",
            "(Some(\"{\\\"a\\\": 1}\"), None, true)",
            "(Some(\"a b\"), Some(\"2\"), true)",
        ]
    );
}

#[tokio::test]
async fn output_that_is_written_while_it_comes_is_the_json_that_it_would_be_whole() {
    let fake = Fake::new();
    let path = format!("/v1/sandboxes/{}", fake.id);
    let exec = async |command: &str| {
        ask(&fake, "POST", &format!("{path}/exec"), json!({ "command": command }).to_string()).await
    };
    let spilled = exec("spill").await;
    assert_eq!(spilled.json(), json!({ "exit_code": 3, "pid": 7, "stdout": "a\"€\u{fffd}\n", "stderr": "" }));
    let timing = spilled.headers["server-timing"].to_str().unwrap();
    assert!(timing.starts_with("guest;dur=1.500, total;dur="), "{timing}");
    assert_eq!(exec("true").await.json(), json!({ "exit_code": 0, "pid": 7, "stdout": "", "stderr": "" }));
    assert_eq!(exec("sleep").await.json(), json!({ "pid": 7 }));
    let logs = ask(&fake, "GET", &format!("{path}/processes/7/logs"), "").await;
    assert_eq!(
        logs.json(),
        json!({ "stdout": "out", "stderr": "err", "output": "outerr", "exit_code": null })
    );
    let read = async |encoding: Value| {
        let body = json!({ "path": "/x", "encoding": encoding }).to_string();
        ask(&fake, "POST", &format!("{path}/files/read"), body).await.json()
    };
    assert_eq!(read(Value::Null).await, json!({ "content": "a\u{fffd}b", "encoding": "utf8", "size": 3 }));
    assert_eq!(read("base64".into()).await, json!({ "content": "Yf9i", "encoding": "base64", "size": 3 }));
}

#[tokio::test]
async fn successes_have_the_statuses_of_the_contract() {
    let fake = Fake::new();
    let base = format!("/v1/sandboxes/{}", fake.id);
    let path = json!({ "path": "/x" });
    for (method, rest, body, status) in [
        ("GET", "", json!({}), 200),
        ("DELETE", "", json!({}), 200),
        ("GET", "/metrics", json!({}), 200),
        ("POST", "/timeout", json!({ "timeout_ms": 1 }), 200),
        ("GET", "/processes", json!({}), 200),
        ("POST", "/processes/1/kill", Value::Null, 204),
        ("POST", "/processes/1/stdin", json!({ "data": "x" }), 204),
        ("GET", "/files?path=/x&depth=2", json!({}), 200),
        ("POST", "/files/info", path.clone(), 200),
        ("POST", "/files/exists", path.clone(), 200),
        ("POST", "/files/remove", path.clone(), 204),
        ("POST", "/files/mkdir", path.clone(), 204),
        ("POST", "/files/rename", json!({ "old_path": "/x", "new_path": "/y" }), 200),
        ("POST", "/files/permissions", json!({ "path": "/x", "permissions": "644" }), 204),
        ("GET", "/file?path=/x", json!({}), 200),
        ("PUT", "/file?path=/x", json!({}), 204),
    ] {
        let answer = ask(&fake, method, &format!("{base}{rest}"), body.to_string()).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {rest}: {}", answer.text);
        assert_eq!(answer.text.is_empty(), status == 204, "{method} {rest}: {}", answer.text);
    }
}

#[tokio::test]
async fn what_is_not_built_and_what_does_not_exist_are_told_apart() {
    let fake = Fake::new();
    let mut seen = BTreeSet::new();
    for (method, path) in nullspace_api::not_built::routes() {
        assert!(seen.insert((method.to_string(), path)), "{method} {path} stands twice in the table");
        let (status, code, message) =
            ask(&fake, method.as_str(), &path.replace(['{', '}', '*'], ""), "").await.error();
        assert_eq!((status, code.as_str()), (501, "not_implemented"), "{method} {path}");
        assert!(message.contains(path), "{message}");
    }
    for path in ["/v1/nothing", "/v1", "/v1/sandboxes/", "/", "/healthz/"] {
        let (status, code, _) = ask(&fake, "GET", path, "").await.error();
        assert_eq!((status, code.as_str()), (404, "not_found"), "{path}");
    }
    let answer = ask(&fake, "PUT", "/v1/sandboxes", "").await;
    assert_eq!(answer.error().1, "method_not_allowed");
    let allowed: BTreeSet<_> = answer.headers["allow"].to_str().unwrap().split(',').collect();
    assert_eq!(allowed, BTreeSet::from(["GET", "HEAD", "POST"]));
}

#[tokio::test]
async fn faults_say_nothing_of_their_cause_and_a_panic_is_one() {
    let fake = Fake::new();
    for template in ["fault", "panic"] {
        let body = json!({ "template": template }).to_string();
        let answer = ask(&fake, "POST", "/v1/sandboxes", body).await;
        let (status, code, _) = answer.error();
        assert_eq!((status, code.as_str()), (500, "internal_error"));
        assert!(!answer.text.contains("secret"), "{}", answer.text);
    }
    let answer = ask(&fake, "POST", "/v1/sandboxes", json!({ "template": "full" }).to_string()).await;
    assert_eq!(answer.error().0, 503);
    assert_eq!(answer.headers["retry-after"], "5");
    assert_eq!(answer.json()["retryable"], true);
}

#[tokio::test]
async fn health_is_answered_to_anyone() {
    let fake = Fake::new();
    let health = async || send(&fake, Request::get("/healthz").body(Body::empty()).unwrap()).await;
    assert_eq!(health().await.text, "{\"status\":\"ok\"}");
    *fake.unhealthy.lock().unwrap() = Some(Error::new(Code::CapacityExceeded, "no free slot"));
    let answer = health().await;
    assert_eq!(answer.error(), (503, "unavailable".into(), "no free slot".into()));
    assert_eq!(answer.json()["status"], "unavailable");
    assert_eq!(answer.json()["reason"], "no free slot");
}

#[tokio::test]
async fn browsers_may_ask_from_anywhere_and_need_no_key_to_ask_whether() {
    let fake = Fake::new();
    let preflight = Request::options("/v1/sandboxes")
        .header("origin", "https://example.com")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,idempotency-key")
        .body(Body::empty())
        .unwrap();
    let answer = send(&fake, preflight).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.headers["access-control-allow-methods"].to_str().unwrap().contains("POST"));
    assert_eq!(answer.headers["access-control-allow-headers"], "authorization,idempotency-key");
    let refused = send(&fake, Request::get("/v1/sandboxes").body(Body::empty()).unwrap()).await;
    assert_eq!(refused.headers["access-control-allow-origin"], "*");
}

#[test]
fn the_document_names_every_operation_after_its_function_and_says_what_it_can_come_to() {
    let document = serde_json::to_value(nullspace_api::openapi()).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let mut names = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap();
            assert!(names.insert(name.to_owned()), "{name} stands twice");
            let open = path == "/healthz";
            assert_eq!(operation["responses"].get("401").is_none(), open, "{method} {path}");
            assert!(operation["responses"].as_object().unwrap().len() > 1, "{method} {path}");
        }
    }
    for (method, path) in nullspace_api::not_built::routes() {
        let built = &document["paths"][path][method.as_str().to_lowercase()];
        assert!(built.is_null(), "{method} {path} is built, and still in the table of what is not");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stands_still_is_given_up() {
    let fake = Fake::new();
    let body = Body::from_stream(futures::stream::pending::<Result<String, std::io::Error>>());
    let (status, _, message) = ask(&fake, "POST", "/v1/sandboxes", body).await.error();
    assert_eq!((status, message.as_str()), (400, "the body stood still for 60 seconds and was given up"));
}

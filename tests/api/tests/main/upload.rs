use nullspace_tests_api::{Answer, Harness};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn file(length: usize) -> Value {
    json!({
        "kind": "file", "source_kind": "restartable_file", "target_path": "/tmp/up", "content_length": length,
        "conflict": "merge", "archive_format": null, "checksum_algorithm": "sha256",
        "whole_checksum_sha256": null, "metadata": {},
    })
}

/// A server whose uploads are in parts of four bytes, of at most eight, and a sandbox's uploads.
async fn small() -> (Harness, String) {
    let mut config = nullspace_server::Config::default();
    config.limits.upload_part_bytes = 4;
    config.limits.upload_bytes_max = 8;
    let server = Harness::with(config).await;
    let path = format!("/v1/sandboxes/{}/uploads", server.sandbox().await);
    (server, path)
}

async fn part(server: &Harness, upload: &str, number: u32, content: &'static str, said: &str) -> Answer {
    let request = server.request(Method::PUT, &format!("{upload}/parts/{number}"));
    server.send(request.header("x-nullspace-part-sha256", digest(said.as_bytes())).body(content)).await
}

/// An upload error, and its reason.
#[track_caller]
fn reason(answer: Answer, status: u16) -> Value {
    let detail = answer.body["error_detail"]["reason"].clone();
    answer.refused(status, "file_upload_error");
    detail
}

#[tokio::test]
async fn an_upload_takes_its_parts_in_any_order_and_is_put_in_place_once() {
    let (server, path) = small().await;
    let create = |key: &str| {
        let request = server.request(Method::POST, &path).header("Idempotency-Key", key);
        server.send(request.json(&file(6)))
    };
    let session = create("k").await.expect(201)["session"].clone();
    let limits = json!({
        "max_upload_bytes": 8, "max_part_bytes": 4, "max_concurrency": 4,
        "sandbox_staging_quota_bytes": 64_u64 << 30,
    });
    assert_eq!((&session["part_count"], &session["limits"]), (&json!(2), &limits));
    assert_eq!(
        (&session["source_kind"], &session["status"]),
        (&json!("restartable_file"), &json!("created"))
    );
    assert_eq!(create("k").await.expect(201)["session"]["upload_id"], session["upload_id"]);
    let other = server.request(Method::POST, &path).header("Idempotency-Key", "k").json(&file(5));
    server.send(other).await.refused(409, "conflict");

    let upload = format!("{path}/{}", session["upload_id"].as_str().unwrap());
    part(&server, &upload, 1, "ef", "ef").await.expect(200);
    assert_eq!(reason(part(&server, &upload, 0, "abcd", "abcX").await, 400), "invalid_part_checksum");
    assert_eq!(reason(part(&server, &upload, 0, "abc", "abc").await, 400), "part_size_mismatch");
    assert_eq!(reason(part(&server, &upload, 2, "", "").await, 400), "part_out_of_range");
    let complete = || server.send(server.request(Method::POST, &format!("{upload}/complete")));
    assert_eq!(reason(complete().await, 400), "missing_parts");
    let status = server.get(&upload).await.expect(200);
    assert_eq!((&status["next_part"], &status["accepted_bytes"]), (&json!(0), &json!(2)));
    part(&server, &upload, 0, "abcd", "abcd").await.expect(200);
    let published = complete().await.expect(200);
    assert_eq!((&published["published_bytes"], &published["published_file_count"]), (&json!(6), &json!(1)));
    assert_eq!(complete().await.expect(200), published);
    assert_eq!(reason(part(&server, &upload, 0, "abcd", "abcd").await, 400), "upload_already_completed");
    let raw = path.replace("/uploads", "/file?path=/tmp/up");
    assert_eq!(server.get(&raw).await.expect(200), json!("abcdef"));
}

#[tokio::test]
async fn an_upload_that_was_given_up_or_never_was_takes_nothing() {
    let (server, path) = small().await;
    let session = server.post(&path, file(4)).await.expect(201)["session"].clone();
    let upload = format!("{path}/{}", session["upload_id"].as_str().unwrap());
    server.delete(&upload).await.expect(204);
    server.delete(&upload).await.expect(204);
    assert_eq!(reason(part(&server, &upload, 0, "abcd", "abcd").await, 400), "upload_aborted");
    assert_eq!(server.get(&upload).await.expect(200)["status"], "aborted");
    let missing = format!("{path}/up_00000000000070008000000000000000");
    server.get(&missing).await.refused(404, "upload_not_found");
    part(&server, &missing, 0, "x", "x").await.refused(404, "upload_not_found");
}

#[tokio::test]
async fn an_upload_out_of_the_rules_is_refused_with_the_rule() {
    let (server, path) = small().await;
    for (change, says) in [
        (json!({"target_path": "/workspace/.nullspace/x"}), "target_path must not lie in"),
        (json!({"target_path": ""}), "target_path must not be empty"),
        (json!({"archive_format": "tar"}), "archive_format must be tar if kind is directory_tar"),
        (json!({"kind": "directory_tar", "archive_format": "tar"}), "source_kind must be directory_archive"),
        (json!({"whole_checksum_sha256": "12"}), "whole_checksum_sha256 must be 64 hexadecimal digits"),
        (json!({"content_length": -1}), "content_length"),
        (json!({"kind": "socket"}), "kind"),
    ] {
        let mut body = file(4);
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let message = server.post(&path, body).await.refused(400, "invalid_request");
        assert!(message.contains(says), "{change}: {message}");
    }
    assert_eq!(reason(server.post(&path, file(9)).await, 400), "size_limit_exceeded");
}

#[tokio::test]
async fn a_batch_writes_what_it_can_and_says_what_it_could_not() {
    let server = Harness::start().await;
    let path = format!("/v1/sandboxes/{}", server.sandbox().await);
    let manifest = json!({"files": [
        {"path": "/tmp/a", "field": "file0"},
        {"path": "/workspace/.nullspace/b", "field": "file1"},
        {"path": "/proc/c", "field": "file2"},
        {"path": "/tmp/d", "field": "file3"},
    ]});
    let part = |name: &str, content: &str| {
        format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"f\"\r\n\r\n{content}\r\n")
    };
    let files: String = (0..4).map(|n| part(&format!("file{n}"), &n.to_string().repeat(n + 1))).collect();
    let body = format!("{}{files}--x--\r\n", part("manifest", &manifest.to_string()));
    let request = server.request(Method::POST, &format!("{path}/files/batch-write"));
    let request = request.header("content-type", "multipart/form-data; boundary=x").body(body);
    let results = server.send(request).await.expect(200)["results"].clone();
    let status = |n: usize| (results[n]["status"].as_str().unwrap(), results[n]["path"].as_str().unwrap());
    assert_eq!(
        [status(0), status(1), status(2), status(3)],
        [
            ("success", "/tmp/a"),
            ("error", "/workspace/.nullspace/b"),
            ("error", "/proc/c"),
            ("success", "/tmp/d"),
        ]
    );
    assert!(results[1]["error"].as_str().unwrap().contains("path must not lie in"), "{results}");
    assert_eq!(server.get(&format!("{path}/file?path=/tmp/d")).await.expect(200), json!(3333));
}

#[tokio::test]
async fn files_are_searched_and_changed_within_bounds() {
    let server = Harness::start().await;
    let path = format!("/v1/sandboxes/{}/files", server.sandbox().await);
    let file = async |verb: &str, body| server.post(&format!("{path}/{verb}"), body).await;
    for (name, content) in [("a.py", "one\ntwo\n"), ("b.txt", "two\n")] {
        file("write", json!({"path": format!("/tmp/{name}"), "content": content})).await.expect(200);
    }
    let found = file("find", json!({"path": "/tmp", "pattern": "two", "user": null})).await.expect(200);
    let matched = |file: &str, line: u64| json!({"file": file, "line": line, "content": "two"});
    assert_eq!(found, json!([matched("/tmp/a.py", 2), matched("/tmp/b.txt", 1)]));
    let limited = file("find", json!({"path": "/tmp", "pattern": "two", "limit": 1})).await;
    assert_eq!(limited.headers["x-nullspace-limited"], "true");
    assert_eq!(
        file("search", json!({"path": "/tmp", "pattern": "*.py"})).await.expect(200),
        json!(["/tmp/a.py"])
    );
    let replace = json!({"files": ["/tmp/a.py", "/tmp/b.txt"], "pattern": "two", "replacement": "three"});
    assert_eq!(file("replace", replace).await.expect(200)["replacements"], 2);
    for (verb, body, says) in [
        ("find", json!({"path": "/tmp", "pattern": ""}), "pattern must not be empty"),
        (
            "find",
            json!({"path": "/tmp", "pattern": "x", "limit": 10001}),
            "limit must be between 1 and 10000",
        ),
        (
            "search",
            json!({"path": "/tmp", "pattern": "x", "limit": 0}),
            "limit must be between 1 and 100000, got 0",
        ),
        (
            "replace",
            json!({"files": [], "pattern": "x", "replacement": ""}),
            "files must name between 1 and 10000",
        ),
        (
            "replace",
            json!({"files": ["/workspace/.nullspace/x"], "pattern": "x", "replacement": ""}),
            "files must not lie in",
        ),
    ] {
        let message = file(verb, body.clone()).await.refused(400, "invalid_request");
        assert!(message.contains(says), "{verb} {body}: {message}");
    }
}

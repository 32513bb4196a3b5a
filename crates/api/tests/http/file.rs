//! Ranges, forms, batches, signed URLs and uploads.

use axum::body::Body;
use http::Request;
use nullspace_types::id::UploadId;
use serde_json::json;

use crate::fake::{Fake, KEY};
use crate::{Answer, ask, request, send};

fn multipart(parts: &[(&str, &[u8])]) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (name, content) in parts {
        body.extend_from_slice(
            format!("--edge\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"f\"\r\n\r\n")
                .as_bytes(),
        );
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--edge--\r\n");
    ("multipart/form-data; boundary=edge".into(), body)
}

async fn form(fake: &Fake, path: &str, parts: &[(&str, &[u8])]) -> Answer {
    let (kind, body) = multipart(parts);
    let mut request = request("POST", &format!("/v1/sandboxes/{}{path}", fake.id), body);
    request.headers_mut().insert("content-type", kind.parse().unwrap());
    send(fake, request).await
}

#[tokio::test]
async fn a_range_is_answered_as_one_and_only_of_the_file_that_is_meant() {
    let fake = Fake::new();
    let get = async |headers: &[(&str, &str)]| {
        let mut request = request("GET", &format!("/v1/sandboxes/{}/file?path=/x", fake.id), "");
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        send(&fake, request).await
    };
    let whole = get(&[]).await;
    assert_eq!((whole.status.as_u16(), whole.headers["accept-ranges"].to_str().unwrap()), (200, "bytes"));
    assert_eq!(whole.headers["last-modified"], "Thu, 01 Jan 1970 00:00:00 GMT");
    let etag = whole.headers["etag"].to_str().unwrap().to_owned();
    for (range, status, shown, text) in [
        ("bytes=2-", 206, Some("bytes 2-3/4"), "ab"),
        ("bytes=2-2", 206, Some("bytes 2-2/4"), "a"),
        ("bytes=-1", 206, Some("bytes 3-3/4"), "b"),
        ("bytes=-99", 206, Some("bytes 0-3/4"), "\0\u{fffd}ab"),
        ("bytes=0-1,3-3", 200, None, "\0\u{fffd}ab"),
    ] {
        let answer = get(&[("range", range)]).await;
        assert_eq!(answer.status.as_u16(), status, "{range}");
        assert_eq!(
            answer.headers.get("content-range").map(|value| value.to_str().unwrap()),
            shown,
            "{range}"
        );
        assert_eq!(answer.text, text, "{range}");
    }
    let mut head = request("HEAD", &format!("/v1/sandboxes/{}/file?path=/x", fake.id), "");
    head.headers_mut().insert("range", "bytes=2-2".parse().unwrap());
    let head = send(&fake, head).await;
    assert_eq!(
        (head.status.as_u16(), head.text.as_str(), &head.headers["etag"]),
        (200, "", &whole.headers["etag"])
    );
    let outside = get(&[("range", "bytes=4-")]).await;
    assert_eq!(outside.error().0, 416);
    assert_eq!(
        (outside.error().1.as_str(), &outside.headers["content-range"]),
        ("range_not_satisfiable", &"bytes */4".parse().unwrap())
    );
    assert_eq!(get(&[("range", "bytes=2-"), ("if-range", &etag)]).await.status, 206);
    assert_eq!(get(&[("range", "bytes=2-"), ("if-range", "\"another\"")]).await.status, 200);
}

#[tokio::test]
async fn a_form_has_the_file_and_nothing_else() {
    let fake = Fake::new();
    assert_eq!(form(&fake, "/file?path=/x", &[("file", b"a\0b")]).await.status, 204);
    assert_eq!(*fake.asked.lock().unwrap(), ["(\"/x\", b\"a\\0b\")"]);
    for parts in [&[("data", &b"x"[..])][..], &[], &[("file", b"x"), ("more", b"y")]] {
        assert_eq!(form(&fake, "/file?path=/x", parts).await.error().1, "invalid_request");
    }
    let plain = ask(&fake, "POST", &format!("/v1/sandboxes/{}/file?path=/x", fake.id), "x").await;
    assert!(plain.error().2.contains("Content-Type"), "{}", plain.text);
    assert_eq!(fake.asked.lock().unwrap().len(), 1, "something else was written");
}

#[tokio::test]
async fn a_form_whose_head_has_no_end_is_refused_and_not_kept() {
    let fake = Fake::new();
    for begin in ["no boundary", "--edge\r\ncontent-disposition: form-data; name=\""] {
        let more = std::iter::repeat(vec![b'x'; 16 << 10]);
        let pieces = std::iter::once(begin.as_bytes().to_vec()).chain(more).map(Ok::<_, std::io::Error>);
        let body = Body::from_stream(futures::stream::iter(pieces));
        let mut request = request("POST", &format!("/v1/sandboxes/{}/file?path=/x", fake.id), body);
        request.headers_mut().insert("content-type", "multipart/form-data; boundary=edge".parse().unwrap());
        let (status, code, message) = send(&fake, request).await.error();
        assert_eq!((status, code.as_str()), (400, "invalid_request"));
        assert_eq!(message, "a part's head may have at most 64 KiB");
    }
}

#[tokio::test]
async fn a_batch_is_answered_file_by_file_and_broken_ones_are_refused() {
    let fake = Fake::new();
    let manifest = json!({ "files": [{ "path": "/a", "field": "file0" }, { "path": "/bad", "field": "file1" }], "user": "u" });
    let manifest = manifest.to_string();
    let manifest = manifest.as_bytes();
    let answer =
        form(&fake, "/files/batch-write", &[("manifest", manifest), ("file0", b"one"), ("file1", b"")]).await;
    let results = &answer.json()["results"];
    assert_eq!((&results[0]["status"], &results[0]["info"]["path"]), (&json!("success"), &json!("/a")));
    assert_eq!(results[1], json!({ "status": "error", "path": "/bad", "error": "/bad cannot be written" }));
    assert!(fake.asked.lock().unwrap()[0].contains("\"u\""));
    for (parts, says) in [
        (&[("file0", &b"one"[..])][..], "manifest"),
        (&[("manifest", manifest), ("file1", b"")], "file0"),
        (&[("manifest", manifest), ("file0", b"one")], "file1"),
        (&[("manifest", manifest), ("file0", b""), ("file1", b""), ("file2", b"")], "file2"),
        (&[("manifest", b"{")], "manifest"),
        (&[("manifest", b"{\"files\":5}")], "files"),
    ] {
        let (status, code, message) = form(&fake, "/files/batch-write", parts).await.error();
        assert_eq!((status, code.as_str()), (400, "invalid_request"));
        assert!(message.contains(says), "{message}");
    }
}

#[tokio::test]
async fn a_search_says_if_there_was_more() {
    let fake = Fake::new();
    let path = format!("/v1/sandboxes/{}/files/find", fake.id);
    let all = ask(&fake, "POST", &path, json!({ "path": "/", "pattern": "x" }).to_string()).await;
    assert_eq!(all.json(), json!([{ "file": "/f", "line": 1, "content": "x" }]));
    assert!(!all.headers.contains_key("x-nullspace-limited"));
    let some =
        ask(&fake, "POST", &path, json!({ "path": "/", "pattern": "x", "limit": 1 }).to_string()).await;
    assert_eq!(some.headers["x-nullspace-limited"], "true");
}

#[tokio::test]
async fn a_signed_url_is_whole_and_works_for_a_sandboxs_file_alone() {
    let fake = Fake::new();
    let sign = async |verb: &str, headers: &[(&str, &str)]| {
        let path = format!("/v1/sandboxes/{}/files/{verb}-url", fake.id);
        let mut request = request("POST", &path, json!({ "path": "/x" }).to_string());
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        send(&fake, request).await
    };
    let id = fake.id;
    let host = ("host", "here:3000");
    assert_eq!(
        sign("download", &[host]).await.json()["url"],
        format!("http://here:3000/v1/sandboxes/{id}/file?path=/x&grant=good")
    );
    let forwarded = sign("download", &[host, ("x-forwarded-proto", "https")]).await;
    assert!(forwarded.json()["url"].as_str().unwrap().starts_with("https://here:3000/"));
    assert_eq!(sign("download", &[]).await.error().1, "invalid_request");
    let configured = sign("upload", &[host]).await.json();
    assert_eq!(
        configured["url"],
        format!("https://files.example/base/v1/sandboxes/{id}/file?path=/x&grant=good")
    );
    assert_eq!(configured["token"], "good");

    let without_key = async |method: &str, path: String| {
        let request = Request::builder().method(method).uri(path).body(Body::from("x")).unwrap();
        send(&fake, request).await
    };
    assert_eq!(without_key("GET", format!("/v1/sandboxes/{id}/file?path=/x&grant=good")).await.status, 200);
    assert_eq!(without_key("HEAD", format!("/v1/sandboxes/{id}/file?path=/x&grant=good")).await.status, 200);
    assert_eq!(without_key("PUT", format!("/v1/sandboxes/{id}/file?path=/x&grant=good")).await.status, 204);
    let other = without_key("DELETE", format!("/v1/sandboxes/{id}/file?path=/x&grant=good")).await;
    assert_eq!(other.error().1, "unauthorized");
    let bad = without_key("GET", format!("/v1/sandboxes/{id}/file?path=/x&grant=bad")).await;
    assert_eq!(bad.error().1, "edge_token_invalid");
    let mut keyed = request("GET", &format!("/v1/sandboxes/{id}/file?path=/x&grant=bad"), "");
    assert_eq!(send(&fake, keyed).await.status, 200, "with a key beside it the key counts");
    keyed = request("GET", &format!("/v1/sandboxes/{id}/file?path=/x&grant=good"), "");
    keyed.headers_mut().insert("authorization", "Bearer bad".parse().unwrap());
    assert_eq!(send(&fake, keyed).await.error().1, "unauthorized");
    for path in ["file?path=/x&grant=bad", "file?path=/x&xgrant=good", "files?grant=good", "exec?grant=good"]
    {
        let answer = without_key("GET", format!("/v1/sandboxes/{id}/{path}")).await;
        assert_eq!(answer.status, 401, "{path}");
    }
}

#[tokio::test]
async fn parts_need_their_checksum_and_refusals_have_their_detail() {
    let fake = Fake::new();
    let upload = UploadId::new();
    let base = format!("/v1/sandboxes/{}/uploads/{upload}", fake.id);
    let put = async |part: &str, checksum: Option<String>| {
        let mut builder =
            Request::builder().method("PUT").uri(format!("{base}/parts/{part}")).header("authorization", KEY);
        if let Some(checksum) = checksum {
            builder = builder.header("x-nullspace-part-sha256", checksum);
        }
        send(&fake, builder.body(Body::from("x")).unwrap()).await
    };
    let sum = "ab".repeat(32);
    assert_eq!(put("0", Some(sum.to_uppercase())).await.json()["upload_id"], upload.to_string());
    for wrong in [None, Some("ab".to_owned()), Some("zz".repeat(32)), Some("+f".repeat(32))] {
        let (status, code, message) = put("0", wrong).await.error();
        assert_eq!((status, code.as_str()), (400, "invalid_request"));
        assert!(message.contains("x-nullspace-part-sha256"));
    }
    for part in ["-1", "x", "99999999999"] {
        assert_eq!(put(part, Some(sum.clone())).await.error().1, "invalid_request");
    }
    for (part, status, reason) in
        [("1", 400, "invalid_part_checksum"), ("2", 410, "upload_expired"), ("3", 409, "target_conflict")]
    {
        let answer = put(part, Some(sum.clone())).await;
        assert_eq!((answer.error().0, answer.error().1.as_str()), (status, "file_upload_error"));
        let detail = &answer.json()["error_detail"];
        assert_eq!((&detail["reason"], &detail["upload_id"]), (&json!(reason), &json!(upload.to_string())));
        assert_eq!(detail["request_id"], answer.json()["request_id"]);
    }
    for body in ["", "{}", "{\"whole_checksum_sha256\":null}"] {
        assert_eq!(ask(&fake, "POST", &format!("{base}/complete"), body).await.status, 200, "{body:?}");
    }
    assert_eq!(ask(&fake, "POST", &format!("{base}/complete"), "[]").await.error().1, "invalid_request");
}

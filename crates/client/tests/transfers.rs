//! Downloads and uploads over connections that break: against a server that breaks them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nullspace_client::upload::{UploadContent, UploadTarget, UploadWatcher};
use nullspace_client::{Client, Config, RetryPolicy};
use nullspace_types::file::{FileBatchResult, FileRawQuery};
use nullspace_types::upload::{UploadReason, UploadSession};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A request as it came.
struct Request {
    line: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

/// Bytes that are written before the connection is closed, complete or not.
type Answer = Vec<u8>;

fn answer(status: &str, headers: &str, body: &[u8]) -> Answer {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} X\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

fn refusal(status: &str, body: &serde_json::Value) -> Answer {
    answer(status, "", body.to_string().as_bytes())
}

async fn server(route: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}", listener.local_addr().unwrap());
    let route = Arc::new(route);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let route = route.clone();
            tokio::spawn(async move {
                let Some(request) = read(&mut stream).await else { return };
                let answer = route(&request);
                stream.write_all(&answer).await.unwrap();
            });
        }
    });
    let retry = RetryPolicy { resume_wait: Duration::from_millis(1), ..RetryPolicy::default() };
    Client::new(Config { api_key: Some("k".to_owned()), base_url, request_timeout: None, retry }).unwrap()
}

async fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let head = loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = String::from_utf8(bytes[..head].to_vec()).unwrap();
    let mut lines = text.lines();
    let line = lines.next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let mut body = bytes.split_off(head);
    match headers.get("content-length") {
        Some(length) => {
            let length: usize = length.parse().unwrap();
            while body.len() < length {
                stream.read_buf(&mut body).await.ok().filter(|read| *read > 0)?;
            }
        }
        None if headers.contains_key("transfer-encoding") => {
            while !body.ends_with(b"0\r\n\r\n") {
                stream.read_buf(&mut body).await.ok().filter(|read| *read > 0)?;
            }
        }
        None => {}
    }
    Some(Request { line, headers, body })
}

fn raw() -> FileRawQuery {
    FileRawQuery { path: "/big".to_owned(), user: None }
}

/// Gives `content` in pieces of 1,000 bytes, each on a connection that breaks behind it.
fn piecemeal(content: &[u8], tag: &str, request: &Request) -> Answer {
    let range = request.headers.get("range").map(|range| {
        assert_eq!(request.headers["if-range"], tag, "a range is asked for on a condition");
        range.strip_prefix("bytes=").unwrap().trim_end_matches('-').parse().unwrap()
    });
    let offset = range.unwrap_or(0);
    let (status, range) = match range {
        Some(offset) => {
            ("206", format!("content-range: bytes {offset}-{}/{}\r\n", content.len() - 1, content.len()))
        }
        None => ("200", String::new()),
    };
    let mut answer = answer(status, &format!("etag: {tag}\r\n{range}"), &content[offset..]);
    let missing = (content.len() - offset).saturating_sub(1000);
    answer.truncate(answer.len() - missing);
    answer
}

#[tokio::test]
async fn a_download_goes_on_where_its_connection_broke_however_often() {
    let content: Vec<u8> = (0..12_345_u32).flat_map(u32::to_le_bytes).collect();
    let served = content.clone();
    let client = server(move |request| piecemeal(&served, "\"v1\"", request)).await;
    let mut target = Vec::new();
    let mut told = Vec::new();
    let progress = |done, length| told.push((done, length));
    let written = client.file_download("sb_1", &raw(), &mut target, progress).await.unwrap();
    assert_eq!((written, target == content), (content.len() as u64, true));
    assert_eq!((told[0], *told.last().unwrap()), ((0, Some(written)), (written, Some(written))));
}

#[tokio::test]
async fn a_file_that_changes_during_a_download_is_told_and_not_mixed() {
    let asked = Mutex::new(0);
    let client = server(move |request| {
        let mut asked = asked.lock().unwrap();
        *asked += 1;
        if *asked == 1 {
            piecemeal(&[1; 5000], "\"v1\"", request)
        } else {
            answer("200", "etag: \"v2\"\r\n", &[2; 5000])
        }
    })
    .await;
    let mut target = Vec::new();
    let error = client.file_download("sb_1", &raw(), &mut target, |_, _| {}).await.unwrap_err();
    assert_eq!((error.code(), target), ("source_conflict", vec![1; 1000]));
}

#[tokio::test]
async fn a_download_that_cannot_be_resumed_or_never_moves_ends_with_an_error() {
    for tag in ["W/\"weak\"", "\"v1\""] {
        let asked = Arc::new(Mutex::new(0));
        let count = asked.clone();
        let client = server(move |request| {
            *count.lock().unwrap() += 1;
            if request.headers.contains_key("range") {
                Vec::new()
            } else {
                piecemeal(&[1; 5000], tag, request)
            }
        })
        .await;
        let error = client.file_download("sb_1", &raw(), &mut Vec::new(), |_, _| {}).await.unwrap_err();
        let attempts = if tag.starts_with('W') { 1 } else { 6 };
        assert_eq!((error.code(), *asked.lock().unwrap()), ("transport_error", attempts), "{tag}");
    }
}

const UPLOAD: &str = "up_019a0000000070008000000000000001";
const PART: usize = 100_000;

/// A server's side of one upload, which loses answers and connections.
#[derive(Default)]
struct Uploads {
    content_length: usize,
    parts: BTreeMap<u32, Vec<u8>>,
    keys: Vec<(String, String)>,
    attempts: BTreeMap<String, u32>,
    status: &'static str,
}

impl Uploads {
    fn session(&self) -> serde_json::Value {
        let count = u32::try_from(self.content_length.div_ceil(PART)).unwrap();
        serde_json::json!({
            "upload_id": UPLOAD, "kind": "file", "source_kind": "restartable_file", "target_path": "/w/big",
            "user": null, "content_length": self.content_length,
            "accepted_bytes": self.parts.values().map(Vec::len).sum::<usize>(), "reserved_staging_bytes": 0,
            "part_size": PART, "part_count": count, "max_concurrency": 3,
            "next_part": (0..count).find(|part| !self.parts.contains_key(part)),
            "status": self.status, "conflict": "merge", "archive_format": null, "checksum_algorithm": "sha256",
            "whole_checksum_sha256": null, "limits": {"max_upload_bytes": 1 << 30, "max_part_bytes": PART,
            "max_concurrency": 3, "sandbox_staging_quota_bytes": 1 << 30}, "created_at": "2026-01-02T03:04:05Z",
            "updated_at": "2026-01-02T03:04:05Z", "expires_at": "2026-01-03T03:04:05Z",
        })
    }

    fn take(&mut self, request: &Request) -> Answer {
        let attempt = self.attempts.entry(request.line.clone()).or_default();
        *attempt += 1;
        let attempt = *attempt;
        if let Some(key) = request.headers.get("idempotency-key") {
            self.keys.push((request.line.clone(), key.clone()));
        }
        let ok = |value: &serde_json::Value| answer("200", "", value.to_string().as_bytes());
        let (method, path) = request.line.split_once(" /v1/sandboxes/sb_1/uploads").unwrap();
        match (method, path.split('/').next_back().unwrap()) {
            ("POST", "") => {
                let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
                self.content_length = body["content_length"].as_u64().unwrap().try_into().unwrap();
                self.status = "created";
                // The first answer is lost.
                if attempt == 1 { Vec::new() } else { ok(&serde_json::json!({"session": self.session()})) }
            }
            ("GET", _) => ok(&self.session()),
            ("POST", "complete") => {
                if attempt < 3 {
                    let busy =
                        serde_json::json!({"error": "it is under way", "code": "transition_in_progress"});
                    return refusal("409", &busy);
                }
                self.status = "completed";
                let whole: Vec<u8> = self.parts.values().flatten().copied().collect();
                let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
                assert_eq!(body["whole_checksum_sha256"], hex(&whole));
                ok(&serde_json::json!({
                    "session": self.session(), "published_bytes": whole.len(), "published_file_count": 1,
                }))
            }
            ("PUT", number) => {
                let number: u32 = number.parse().unwrap();
                assert_eq!(request.headers["x-nullspace-part-sha256"], hex(&request.body));
                match (number, attempt) {
                    // Lost on the way; refused for a moment; taken, and the answer lost.
                    (1, 1) => Vec::new(),
                    (2, 1) => answer("429", "retry-after: 0.001\r\n", br#"{"error":"slow down"}"#),
                    _ => {
                        self.parts.insert(number, request.body.clone());
                        if (number, attempt) == (3, 1) { Vec::new() } else { ok(&self.session()) }
                    }
                }
            }
            other => panic!("{other:?} is not a call of an upload"),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Default)]
struct Seen {
    began: Mutex<Vec<String>>,
    moved: Mutex<u64>,
}

impl UploadWatcher for Seen {
    fn began(&self, session: &UploadSession) {
        self.began.lock().unwrap().push(session.upload_id.to_string());
    }

    fn moved(&self, bytes: u64) {
        *self.moved.lock().unwrap() = bytes;
    }
}

fn file(content: &[u8]) -> (tempfile::NamedTempFile, UploadContent) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    let content = UploadContent::open(file.path()).unwrap();
    (file, content)
}

fn target() -> UploadTarget {
    UploadTarget { path: "/w/big".to_owned(), ..UploadTarget::default() }
}

#[tokio::test]
async fn an_upload_arrives_whole_though_calls_and_answers_are_lost() {
    let bytes: Vec<u8> = (0..123_456_u32).flat_map(u32::to_le_bytes).collect();
    let (_file, content) = file(&bytes);
    let uploads = Arc::new(Mutex::new(Uploads::default()));
    let theirs = uploads.clone();
    let client = server(move |request| theirs.lock().unwrap().take(request)).await;
    let seen = Arc::new(Seen::default());
    let done = client.upload_content("sb_1", &content, &target(), None, seen.clone()).await.unwrap();
    assert_eq!((done.files, done.resumed), (Some(1), false));
    assert_eq!(
        (&seen.began.lock().unwrap()[..], *seen.moved.lock().unwrap()),
        (&[UPLOAD.to_owned()][..], bytes.len() as u64)
    );
    let uploads = uploads.lock().unwrap();
    assert_eq!(uploads.parts.values().flatten().copied().collect::<Vec<_>>(), bytes);
    let keys = |line: &str| {
        let all = uploads.keys.iter().filter(|(of, _)| of.ends_with(line)).map(|(_, key)| key.clone());
        all.collect::<Vec<_>>()
    };
    for (line, count) in [("/uploads", 2), ("/complete", 3)] {
        let keys = keys(line);
        assert!(keys.len() == count && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    }
}

#[tokio::test]
async fn an_upload_is_resumed_from_the_lowest_part_that_is_missing() {
    let bytes = vec![9; 3 * PART + 5];
    let (_file, content) = file(&bytes);
    let mut begun = Uploads { content_length: bytes.len(), status: "uploading", ..Uploads::default() };
    begun.parts.insert(0, bytes[..PART].to_vec());
    begun.parts.insert(1, bytes[PART..2 * PART].to_vec());
    let uploads = Arc::new(Mutex::new(begun));
    let theirs = uploads.clone();
    let client = server(move |request| theirs.lock().unwrap().take(request)).await;
    let done = client.upload_resume("sb_1", UPLOAD, &content, Some(1), Arc::new(())).await.unwrap();
    assert_eq!((done.resumed, done.session.target_path.as_str()), (true, "/w/big"));
    {
        let uploads = uploads.lock().unwrap();
        let sent = uploads.attempts.keys().filter(|line| line.starts_with("PUT"));
        let sent: Vec<_> = sent.map(|line| line.rsplit('/').next().unwrap()).collect();
        assert_eq!(sent, ["2", "3"]);
    }
    // Once more: it is in place, and nothing is sent.
    uploads.lock().unwrap().attempts.clear();
    let done = client.upload_resume("sb_1", UPLOAD, &content, None, Arc::new(())).await.unwrap();
    assert_eq!((done.files, uploads.lock().unwrap().attempts.len()), (None, 1));
    let (_other, other) = file(b"something else");
    uploads.lock().unwrap().status = "uploading";
    let error = client.upload_resume("sb_1", UPLOAD, &other, None, Arc::new(())).await.unwrap_err();
    assert_eq!(error.code(), "invalid_request");
    uploads.lock().unwrap().status = "expired";
    let error = client.upload_resume("sb_1", UPLOAD, &content, None, Arc::new(())).await.unwrap_err();
    assert_eq!(error.upload_failure().unwrap().reason, UploadReason::UploadExpired);
}

#[tokio::test]
async fn a_refused_part_ends_the_upload_with_the_servers_reason() {
    let client = server(|request| {
        let uploads = Uploads { content_length: 10, status: "created", ..Uploads::default() };
        if request.line.starts_with("PUT") {
            let detail = serde_json::json!({
                "reason": "insufficient_staging_space", "message": "no room", "retryable": true,
                "upload_id": UPLOAD, "part_number": 0,
            });
            let body =
                serde_json::json!({"error": "no room", "code": "file_upload_error", "error_detail": detail});
            return refusal("507", &body);
        }
        answer("200", "", serde_json::json!({"session": uploads.session()}).to_string().as_bytes())
    })
    .await;
    let (_file, content) = file(&[1; 10]);
    let error = client.upload_content("sb_1", &content, &target(), None, Arc::new(())).await.unwrap_err();
    let failure = error.upload_failure().unwrap();
    assert_eq!((failure.reason, failure.part_number), (UploadReason::InsufficientStagingSpace, Some(0)));
}

#[tokio::test]
async fn a_stream_is_kept_until_it_is_uploaded() {
    let pieces = ["ab", "", "c"].map(|piece| Ok(bytes::Bytes::from(piece)));
    let content = UploadContent::spool(futures::stream::iter(pieces)).await.unwrap();
    assert_eq!(content.length(), 3);
    let broken = futures::stream::iter([Err(std::io::Error::other("no more"))]);
    assert_eq!(UploadContent::spool(broken).await.unwrap_err().code(), "local_error");
}

#[tokio::test]
async fn files_of_a_batch_stand_in_one_form_and_each_has_its_result() {
    let seen = Arc::new(Mutex::new(String::new()));
    let theirs = seen.clone();
    let client = server(move |request| {
        assert!(request.headers["content-type"].starts_with("multipart/form-data; boundary="));
        *theirs.lock().unwrap() = String::from_utf8(request.body.clone()).unwrap();
        let results = serde_json::json!({"results": [
            {"status": "error", "path": "/a", "error": "read-only"},
            {"status": "error", "path": "/b", "error": "full"},
        ]});
        answer("200", "", results.to_string().as_bytes())
    })
    .await;
    let files = vec![("/a".to_owned(), "one".into()), ("/b".to_owned(), "two".into())];
    let results = client.file_write_batch("sb_1", files, Some("user")).await.unwrap();
    assert!(matches!(&results[1], FileBatchResult::Error { path, error } if path == "/b" && error == "full"));
    let body = seen.lock().unwrap().clone();
    for part in [
        r#"name="manifest"; filename="manifest.json""#,
        r#"{"files":[{"path":"/a","field":"file0"},{"path":"/b","field":"file1"}],"user":"user"}"#,
        r#"name="file1"; filename="file1.bin""#,
    ] {
        assert!(body.contains(part), "{part} in {body}");
    }
    let error = client.file_write_batch("sb_1", Vec::new(), None).await.unwrap_err();
    assert_eq!(error.code(), "invalid_response");
}

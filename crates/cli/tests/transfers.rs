//! Whole commands that move files: upload and download, and what they leave when they fail.

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::{Answer, Ran, Server};

const UPLOAD: &str = "up_019a0000000070008000000000000001";
const INFO: &str = r#"{"name":"a","path":"/workspace/a","is_dir":false,"size":3,"type":"file","mode":"0644",
    "permissions":"0644","owner":"root","group":"root","modified_time":"2026-01-02T03:04:05.5Z"}"#;
const PART: usize = 1 << 20;

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A server that takes uploads, and what it has of the last.
#[derive(Default)]
struct Uploads {
    create: Value,
    parts: BTreeMap<u32, Vec<u8>>,
    completed: bool,
}

impl Uploads {
    fn content(&self) -> Vec<u8> {
        self.parts.values().flatten().copied().collect()
    }

    fn session(&self) -> Value {
        let length = self.create["content_length"].as_u64().unwrap();
        let count = u32::try_from(length.div_ceil(PART as u64)).unwrap();
        let field = |name: &str| self.create.get(name).cloned().unwrap_or(Value::Null);
        json!({
            "upload_id": UPLOAD, "kind": field("kind"), "source_kind": field("source_kind"),
            "target_path": format!("/workspace/{}", self.create["target_path"].as_str().unwrap()),
            "user": field("user"), "content_length": length, "accepted_bytes": self.content().len(),
            "reserved_staging_bytes": length, "part_size": PART, "part_count": count, "max_concurrency": 2,
            "next_part": (0..count).find(|part| !self.parts.contains_key(part)),
            "status": if self.completed { "completed" } else { "uploading" }, "conflict": field("conflict"),
            "archive_format": field("archive_format"), "checksum_algorithm": "sha256",
            "whole_checksum_sha256": field("whole_checksum_sha256"),
            "limits": {"max_upload_bytes": 1 << 30, "max_part_bytes": PART, "max_concurrency": 2,
                "sandbox_staging_quota_bytes": 1 << 30},
            "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z",
            "expires_at": "2026-01-03T03:04:05Z",
        })
    }
}

/// `refuse` may answer instead.
fn uploading(
    refuse: impl Fn(&str) -> Option<Answer> + Send + Sync + 'static,
) -> (Server, Arc<Mutex<Uploads>>) {
    let uploads = Arc::new(Mutex::new(Uploads::default()));
    let theirs = uploads.clone();
    let server = Server::start(move |request| {
        if let Some(answer) = refuse(&request.line) {
            return answer;
        }
        let mut uploads = theirs.lock().unwrap();
        let (method, path) = request.line.split_once(' ').unwrap();
        let path = path.trim_start_matches("/v1/sandboxes/sb_1/");
        let ok = |value: Value| Answer::json(200, &value.to_string());
        match (method, path.split('/').next_back().unwrap()) {
            ("POST", "uploads") => {
                *uploads =
                    Uploads { create: serde_json::from_slice(&request.body).unwrap(), ..Uploads::default() };
                ok(json!({"session": uploads.session()}))
            }
            ("GET", UPLOAD) => ok(uploads.session()),
            ("PUT", number) if path.contains("/parts/") => {
                assert_eq!(request.headers["x-nullspace-part-sha256"], hex(&request.body));
                uploads.parts.insert(number.parse().unwrap(), request.body.clone());
                ok(uploads.session())
            }
            ("POST", "complete") => {
                uploads.completed = true;
                let body: Value = serde_json::from_slice(&request.body).unwrap();
                assert_eq!(body["whole_checksum_sha256"], hex(&uploads.content()));
                let bytes = uploads.content().len();
                ok(json!({"session": uploads.session(), "published_bytes": bytes, "published_file_count": 2}))
            }
            ("PUT", _) => Answer(204, Vec::new(), Vec::new()),
            ("POST", "info") => Answer::json(200, INFO),
            other => panic!("nobody expected {other:?}"),
        }
    });
    (server, uploads)
}

fn upload(server: &Server, args: &[&str]) -> Ran {
    server.run(&[&["sandbox", "upload", "sb_1"], args].concat())
}

#[test]
fn a_small_file_goes_in_one_request() {
    let (server, _) = uploading(|_| None);
    std::fs::write(server.dir().join("a"), "abc").unwrap();
    insta::assert_snapshot!(upload(&server, &["a"]), @r"
    exit: 0
    ---- stdout
    uploaded a to /workspace/a (3 bytes)
    ");
    let put = "PUT /v1/sandboxes/sb_1/file?path=a";
    assert_eq!(
        (server.lines(), server.body_of(put)),
        (vec![put.to_owned(), "POST /v1/sandboxes/sb_1/files/info".to_owned()], b"abc".to_vec())
    );
    let answer = upload(&server, &["a", "/srv/", "--user", "user", "--json"]).json();
    assert_eq!(server.last().body, br#"{"path":"/srv/a","user":"user"}"#);
    let result = &answer["result"];
    let times: Vec<jiff::Timestamp> =
        ["started_at", "completed_at"].map(|name| result[name].as_str().unwrap().parse().unwrap()).to_vec();
    assert!(times[0] <= times[1]);
    let expected = json!({
        "source_kind": "file", "target_path": "/workspace/a", "transport": "direct", "resumed": false,
        "result": {
            "kind": "file", "target_path": "/workspace/a", "bytes_uploaded": 3, "file_count": 1,
            "transport": "direct", "resumed": false, "started_at": result["started_at"],
            "completed_at": result["completed_at"], "upload_id": null, "session": null,
        },
    });
    assert_eq!(answer, expected);
}

#[test]
fn a_large_file_goes_in_parts_with_their_checksums() {
    let (server, uploads) = uploading(|_| None);
    let content: Vec<u8> = (0..9_u32 << 18).flat_map(u32::to_le_bytes).collect();
    std::fs::write(server.dir().join("big"), &content).unwrap();
    let ran = upload(&server, &["big", "--concurrency", "3", "--json"]);
    assert_eq!((ran.status, &ran.stderr[..]), (Some(0), &b""[..]));
    let answer = ran.json();
    assert_eq!((&answer["transport"], &answer["result"]["upload_id"]), (&json!("resumable"), &json!(UPLOAD)));
    assert_eq!(answer["result"]["session"]["status"], "completed");
    let uploads = uploads.lock().unwrap();
    assert!(uploads.content() == content);
    let expected = json!({
        "kind": "file", "source_kind": "restartable_file", "target_path": "big", "content_length": content.len(),
        "conflict": "merge", "checksum_algorithm": "sha256",
    });
    assert_eq!(uploads.create, expected);
}

#[test]
fn a_directory_is_packed_without_what_its_patterns_name() {
    let (server, uploads) = uploading(|_| None);
    let site = server.dir().join("site");
    std::fs::create_dir_all(site.join("css")).unwrap();
    std::fs::write(site.join("index.html"), "<h1>").unwrap();
    std::fs::write(site.join("css/a.css"), "h1 {}").unwrap();
    std::fs::write(site.join("debug.log"), "x").unwrap();
    let dry = upload(&server, &["site", "/srv/site", "--exclude", "*.log", "--dry-run", "--json"]);
    insta::assert_snapshot!(dry, @r#"
    exit: 0
    ---- stdout
    {
      "dry_run": true,
      "plan": {
        "source_kind": "directory",
        "target_path": "/srv/site",
        "transport": "resumable",
        "source_kind_detail": "directory_archive",
        "content_length": 3584,
        "source_bytes": 9,
        "file_count": 2,
        "spooled": true,
        "included_entry_count": 3,
        "excluded_entry_count": 1,
        "conflict": "merge",
        "manifest": [
          {
            "path": "css",
            "kind": "directory",
            "included": true,
            "reason": null
          },
          {
            "path": "css/a.css",
            "kind": "file",
            "included": true,
            "reason": null
          },
          {
            "path": "debug.log",
            "kind": "file",
            "included": false,
            "reason": "*.log"
          },
          {
            "path": "index.html",
            "kind": "file",
            "included": true,
            "reason": null
          }
        ]
      }
    }
    "#);
    insta::assert_snapshot!(upload(&server, &["site", "--exclude", "*.log", "--dry-run"]), @r"
    exit: 0
    ---- stdout
    KIND       LEFT OUT BY  PATH
    directory  -            css
    file       -            css/a.css
    file       *.log        debug.log
    file       -            index.html
    ---- stderr
    would upload 2 files (9 bytes) to site in parts
    ");
    assert!(server.lines().is_empty(), "nothing is sent");

    insta::assert_snapshot!(upload(&server, &["site", "--exclude", "*.log", "--conflict", "replace"]), @r"
    exit: 0
    ---- stdout
    uploaded site to /workspace/site (2 files, 3584 bytes packed)
    ");
    let uploads = uploads.lock().unwrap();
    let content = uploads.content();
    assert_eq!(uploads.create["content_length"], dry.json()["plan"]["content_length"]);
    assert_eq!(uploads.create["whole_checksum_sha256"], hex(&content));
    assert_eq!(
        (&uploads.create["kind"], &uploads.create["conflict"]),
        (&json!("directory_tar"), &json!("replace"))
    );
    let seen = String::from_utf8_lossy(&content);
    assert!(seen.contains("css/a.css") && !seen.contains("debug.log"));
}

#[test]
fn standard_input_is_kept_and_then_sent_or_sent_as_it_comes() {
    let (server, uploads) = uploading(|_| None);
    let run = |args: &[&str], input: &[u8]| {
        server.run_with(&[&["sandbox", "upload", "sb_1", "-"], args].concat(), input)
    };
    insta::assert_snapshot!(run(&["a"], b"abc"), @r"
    exit: 0
    ---- stdout
    uploaded standard input to /workspace/a (3 bytes)
    ");
    let put = "PUT /v1/sandboxes/sb_1/file?path=a";
    assert_eq!(server.body_of(put), b"abc");
    let large = vec![7; 9 << 20];
    run(&["a", "--resumable", "never"], &large);
    assert!(server.body_of(put) == large);
    let answer = run(&["a", "--json"], &large).json();
    assert_eq!((&answer["source_kind"], &answer["transport"]), (&json!("stdin"), &json!("resumable")));
    assert_eq!(uploads.lock().unwrap().create["source_kind"], "spooled_stream");
    assert_eq!(run(&[], b"").status, Some(2));
}

#[test]
fn an_upload_that_broke_says_how_to_go_on_and_goes_on() {
    let broken = Arc::new(Mutex::new(true));
    let state = broken.clone();
    let (server, uploads) = uploading(move |line| {
        let refused = *state.lock().unwrap() && line.contains("/parts/1");
        refused
            .then(|| Answer::json(500, r#"{"error":"a fault","code":"internal_error","request_id":"req_7"}"#))
    });
    let content = vec![5; 2 * PART];
    std::fs::write(server.dir().join("it's"), &content).unwrap();
    let args = ["it's", "/srv/x", "--resumable", "always", "--concurrency", "1", "--user", "user"];
    insta::assert_snapshot!(upload(&server, &args), @r"
    exit: 1
    ---- stderr
    error: a fault
    hint: go on where it stopped with `nullspace sandbox upload sb_1 'it'\''s' /srv/x --resume up_019a0000000070008000000000000001 --user user`
    more about it: nullspace explain internal_error
    request req_7
    ");
    insta::assert_snapshot!(upload(&server, &[&args[..], &["--json"]].concat()), @r#"
    exit: 1
    ---- stdout
    {
      "error": {
        "code": "internal_error",
        "message": "a fault",
        "hint": "go on where it stopped with `nullspace sandbox upload sb_1 'it'\\''s' /srv/x --resume up_019a0000000070008000000000000001 --user user`",
        "doc_url": "docs/error-codes#internal-error",
        "request_id": "req_7",
        "retryable": null,
        "details": null,
        "upload_id": "up_019a0000000070008000000000000001",
        "path": null,
        "reason": null,
        "part_number": null,
        "resume_command": "nullspace sandbox upload sb_1 'it'\\''s' /srv/x --resume up_019a0000000070008000000000000001 --user user",
        "next_action": "go on with the resume command"
      }
    }
    "#);
    *broken.lock().unwrap() = false;
    let answer = upload(&server, &["it's", "/srv/x", "--resume", UPLOAD, "--user", "user", "--json"]).json();
    assert_eq!(
        (&answer["resumed"], &answer["result"]["bytes_uploaded"]),
        (&json!(true), &json!(content.len()))
    );
    assert!(uploads.lock().unwrap().content() == content);
}

#[test]
fn why_an_upload_is_refused_is_the_exit_status_and_the_advice() {
    let refusing = |reason: &'static str| {
        uploading(move |line| {
            line.ends_with("/uploads").then(|| {
                let detail =
                    json!({"reason": reason, "message": "no", "retryable": false, "path": "/workspace/a"});
                Answer::json(
                    409,
                    &json!({"error": "no", "code": "file_upload_error", "error_detail": detail}).to_string(),
                )
            })
        })
    };
    for (reason, status) in [("target_conflict", 7), ("size_limit_exceeded", 6), ("upload_expired", 1)] {
        let (server, _) = refusing(reason);
        std::fs::write(server.dir().join("a"), "abc").unwrap();
        let ran = upload(&server, &["a", "--checksum", "sha256", "--json"]);
        assert_eq!((reason, ran.status), (reason, Some(status)));
        if reason == "target_conflict" {
            insta::assert_snapshot!(ran, @r#"
    exit: 7
    ---- stdout
    {
      "error": {
        "code": "file_upload_error",
        "message": "no",
        "hint": "choose another destination, or --conflict merge or replace",
        "doc_url": "docs/error-codes#file-upload-error",
        "request_id": null,
        "retryable": null,
        "error_detail": {
          "message": "no",
          "path": "/workspace/a",
          "reason": "target_conflict",
          "retryable": false
        },
        "details": null,
        "upload_id": null,
        "path": "/workspace/a",
        "reason": "target_conflict",
        "part_number": null,
        "resume_command": null,
        "next_action": "choose another destination, or --conflict merge or replace"
      }
    }
    "#);
        }
    }
}

#[test]
fn what_cannot_be_uploaded_is_refused_before_anything_is_sent() {
    let (server, _) = uploading(|_| None);
    std::fs::create_dir(server.dir().join("d")).unwrap();
    std::os::unix::fs::symlink("/etc", server.dir().join("d/out")).unwrap();
    std::fs::write(server.dir().join("a"), "abc").unwrap();
    insta::assert_snapshot!(upload(&server, &["d"]).to_string().replace(server.dir().to_str().unwrap(), "DIR"), @r"
    exit: 2
    ---- stderr
    error: d/out cannot be uploaded: it is an absolute link, to /etc
    hint: leave it out with --exclude, or name it in .nullspaceignore
    ");
    for (args, status) in [
        (&["missing"][..], 1),
        (&["a", "--resumable", "never", "--checksum", "sha256"], 2),
        (&["d", "--spool-to-disk", "never", "--exclude", "out"], 2),
        (&["a", "--exclude", "x"], 2),
        (&["-", "x", "--dry-run"], 2),
        (&["a", "--concurrency", "0"], 2),
    ] {
        assert_eq!(upload(&server, args).status, Some(status), "{args:?}");
    }
    assert!(server.lines().is_empty());
}

#[test]
fn a_download_goes_on_where_it_broke_and_replaces_nothing_unasked() {
    let content: Vec<u8> = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
    let served = content.clone();
    let server = Server::start(move |request| {
        let tag = ("etag", "\"v1\"".to_owned());
        match request.headers.get("range") {
            // More is promised than comes.
            None => Answer(
                200,
                vec![tag, ("content-length", served.len().to_string())],
                served[..70_000].to_vec(),
            ),
            Some(range) => {
                assert_eq!(
                    (range.as_str(), request.headers["if-range"].as_str()),
                    ("bytes=70000-", "\"v1\"")
                );
                let range = format!("bytes 70000-{}/{}", served.len() - 1, served.len());
                Answer(206, vec![tag, ("content-range", range)], served[70_000..].to_vec())
            }
        }
    });
    let download = |args: &[&str]| server.run(&[&["sandbox", "download", "sb_1", "/w/big"], args].concat());
    insta::assert_snapshot!(download(&[]), @r"
    exit: 0
    ---- stdout
    downloaded /w/big to big (200000 bytes)
    ");
    assert!(std::fs::read(server.dir().join("big")).unwrap() == content);
    insta::assert_snapshot!(download(&[]), @r"
    exit: 7
    ---- stderr
    error: big exists
    hint: choose another destination, or replace it with --force
    ");
    std::fs::write(server.dir().join("big"), "old").unwrap();
    std::fs::create_dir(server.dir().join("sub")).unwrap();
    insta::assert_snapshot!(download(&["--force", "--json"]), @r#"
    exit: 0
    ---- stdout
    {
      "sandbox_id": "sb_1",
      "sandbox_path": "/w/big",
      "local_path": "big",
      "kind": "file",
      "bytes_downloaded": 200000
    }
    "#);
    assert!(std::fs::read(server.dir().join("big")).unwrap() == content);
    assert_eq!(download(&["sub"]).status, Some(0));
    assert!(std::fs::read(server.dir().join("sub/big")).unwrap() == content);
    let names = |dir: &str| std::fs::read_dir(server.dir().join(dir)).unwrap().count();
    assert_eq!((names("sub"), names(".")), (1, 2), "nothing else is left behind");
}

#[test]
fn a_download_that_fails_leaves_nothing() {
    let server = Server::start(|_| Answer::json(404, r#"{"error":"no file /w/x","code":"file_not_found"}"#));
    let ran = server.run(&["sandbox", "download", "sb_1", "/w/x"]);
    assert_eq!((ran.status, std::fs::read_dir(server.dir()).unwrap().count()), (Some(3), 0));
}

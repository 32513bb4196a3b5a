//! Whole commands about the life of sandboxes: pausing, snapshots, forks, events, webhooks.

mod support;

use serde_json::{Value, json};
use support::{Answer, Request, Server, Socket};

const IDS: [&str; 2] = ["sb_019a0000000070008000000000000001", "sb_019a0000000070008000000000000002"];
const SNAPSHOT_ID: &str = "snap_019a0000000070008000000000000001";
const SNAPSHOT: &str = r#"{"id":"snap_019a0000000070008000000000000001",
    "sandbox_id":"sb_019a0000000070008000000000000001","size_bytes":4096,
    "created_at":"2026-01-02T03:04:05Z","metadata":{"team":"a"}}"#;

fn sandbox(id: &str, status: &str) -> Value {
    json!({
        "id": id, "status": status, "config": {"vcpus": 2, "memory_mb": 512, "disk_mb": 2048},
        "template": "base", "metadata": {}, "created_at": "2026-01-02T03:04:05Z", "started_at": null,
        "timeout_at": null, "expires_at": null, "timeout_ms": null, "timeout_action": "hibernate",
        "cwd": null, "snapshot_id": null, "parent_id": IDS[0], "auto_resume": true,
    })
}

fn life() -> Server {
    Server::start(|request| {
        let child = || sandbox(IDS[1], "running");
        match request.line.split(['?', ' ']).take(2).collect::<Vec<_>>()[..] {
            ["POST", path] if path.ends_with("/hibernate") => Answer::json(200, SNAPSHOT),
            ["POST", path] if path.ends_with("/snapshots") => Answer::json(201, SNAPSHOT),
            ["POST", path] if path.ends_with("/resume") => Answer::json(200, &child().to_string()),
            ["POST", path] if path.ends_with("/fork") && request.body.is_empty() => {
                Answer::json(201, &child().to_string())
            }
            ["POST", path] if path.ends_with("/fork") => {
                Answer::json(201, &json!({"items": [child(), child()]}).to_string())
            }
            ["GET", path] if path.ends_with("/tree") => {
                let node = |id: &str, parent: Value, depth: u32, status: &str| {
                    json!({
                        "id": id, "parent_id": parent, "snapshot_id": null, "depth": depth, "status": status,
                        "created_at": "2026-01-02T03:04:05Z",
                    })
                };
                let items =
                    [node(IDS[0], Value::Null, 0, "destroyed"), node(IDS[1], json!(IDS[0]), 1, "running")];
                let tree = json!({"root_id": IDS[0], "items": items, "truncated": false});
                Answer::json(200, &tree.to_string())
            }
            ["GET", path] if path.ends_with("/diff") => Answer::json(
                200,
                &json!({"sandbox_id": IDS[0], "against": IDS[1], "truncated": true, "items": [
                    {"path": "/etc/hosts", "change": "modified", "type": "file", "size": 20},
                    {"path": "/tmp/\u{1b}x", "change": "added", "type": "dir", "size": 4096},
                ]})
                .to_string(),
            ),
            ["GET", "/v1/snapshots"] => Answer::json(200, &format!("[{SNAPSHOT}]")),
            ["GET", _] => Answer::json(200, SNAPSHOT),
            ["DELETE", _] => Answer(204, Vec::new(), Vec::new()),
            _ => Answer::json(404, r#"{"error":"not here","code":"snapshot_not_found"}"#),
        }
    })
}

#[test]
fn a_sandbox_is_paused_resumed_and_kept() {
    let server = life();
    insta::assert_snapshot!(server.run(&["sandbox", "hibernate", "sb_1"]), @r#"
    exit: 0
    ---- stdout
    {
      "id": "snap_019a0000000070008000000000000001",
      "sandbox_id": "sb_019a0000000070008000000000000001",
      "size_bytes": 4096,
      "created_at": "2026-01-02T03:04:05Z",
      "metadata": {
        "team": "a"
      }
    }
    "#);
    for (args, line) in [
        (&["sandbox", "pause", "sb_1"][..], "POST /v1/sandboxes/sb_1/hibernate"),
        (&["sandbox", "snapshot", "create", "sb_1"], "POST /v1/sandboxes/sb_1/snapshots"),
        (&["snapshot", "create", "sb_1", "--idempotency-key", "k"], "POST /v1/sandboxes/sb_1/snapshots"),
        (&["snapshot", "get", "snap_1"], "GET /v1/snapshots/snap_1"),
        (&["snapshot", "list"], "GET /v1/snapshots"),
        (&["sandbox", "snapshot", "list", "sb_1"], "GET /v1/snapshots?sandbox_id=sb_1"),
        (&["snapshot", "list", "--metadata", "a=b"], "GET /v1/snapshots?metadata=%7B%22a%22%3A%22b%22%7D"),
    ] {
        let ran = server.run(args);
        assert!(ran.status == Some(0) && ran.to_string().contains(SNAPSHOT_ID), "{args:?}: {ran}");
        assert_eq!((server.last().line.as_str(), server.last().body.len()), (line, 0));
    }
    let deleted = server.run(&["snapshot", "delete", "snap_1"]);
    assert_eq!((deleted.status, deleted.stdout.len(), deleted.stderr.len()), (Some(0), 0, 0));
    insta::assert_snapshot!(server.run(&["sandbox", "resume", SNAPSHOT_ID]), @r#"
    exit: 0
    ---- stdout
    {
      "id": "sb_019a0000000070008000000000000002",
      "status": "running",
      "template": "base",
      "config": {
        "vcpus": 2,
        "memory_mb": 512
      },
      "metadata": {},
      "started_at": null,
      "created_at": "2026-01-02T03:04:05Z",
      "timeout_ms": null,
      "timeout_at": null,
      "expires_at": null,
      "timeout_action": "hibernate",
      "snapshot_id": null,
      "parent_id": "sb_019a0000000070008000000000000001",
      "auto_resume": true
    }
    "#);
    assert_eq!(server.last().line, format!("POST /v1/sandboxes/{SNAPSHOT_ID}/resume"));
}

#[test]
fn a_snapshot_that_is_needed_is_a_conflict() {
    let in_use = r#"{"error":"snapshot snap_1 is needed by a paused sandbox","code":"snapshot_in_use"}"#;
    let ran = Server::start(move |_| Answer::json(409, in_use)).run(&["snapshot", "delete", "snap_1"]);
    assert_eq!(ran.status, Some(7));
    assert!(ran.to_string().contains("hint: resume or destroy the paused sandbox that needs it"), "{ran}");
}

#[test]
fn a_fork_is_one_sandbox_or_as_many_as_were_asked_for() {
    let server = life();
    let fork = ["sandbox", "fork", "sb_1", "--idempotency-key", "once"];
    assert_eq!(server.run(&fork).json()["id"], IDS[1]);
    assert_eq!((server.last().headers["idempotency-key"].as_str(), server.last().body.len()), ("once", 0));
    let many = server.run(&[&fork[..], &["--count", "2"]].concat()).json();
    assert_eq!(many.as_array().unwrap().len(), 2);
    assert_eq!(server.last().body, br#"{"count":2}"#);
}

#[test]
fn relatives_are_shown_as_a_tree_and_how_they_differ_as_a_table() {
    let server = life();
    insta::assert_snapshot!(server.run(&["sandbox", "tree", "sb_1"]), @r"
    exit: 0
    ---- stdout
    ID                                     STATUS     SNAPSHOT  CREATED
    sb_019a0000000070008000000000000001    destroyed  -         2026-01-02T03:04:05Z
      sb_019a0000000070008000000000000002  running    -         2026-01-02T03:04:05Z
    ");
    assert_eq!(server.run(&["sandbox", "tree", "sb_1", "--json"]).json()["root_id"], IDS[0]);
    insta::assert_snapshot!(server.run(&["sandbox", "diff", "sb_1", "sb_2", "--limit", "2"]), @r"
    exit: 0
    ---- stdout
    CHANGE    TYPE  SIZE  PATH
    modified  file  20    /etc/hosts
    added     dir   4096  /tmp/\u{1b}x
    ---- stderr
    there is more; see it with a larger --limit
    ");
    assert_eq!(server.last().line, "GET /v1/sandboxes/sb_1/diff?against=sb_2&limit=2");
    assert_eq!(server.run(&["sandbox", "diff", "sb_1", "sb_2", "--json"]).json()["against"], IDS[1]);
}

#[test]
fn what_is_done_in_a_paused_sandbox_wakes_it_first_and_what_is_done_with_it_does_not() {
    let paused = || {
        Server::start_asked(|request: &Request| match request.line.as_str() {
            line if line.ends_with("?fields=status") => Answer::json(200, r#"{"status":"paused"}"#),
            line if line.ends_with("/resume") => Answer::json(200, &sandbox(IDS[0], "running").to_string()),
            line if line.ends_with("/exec") => {
                Answer::json(200, r#"{"exit_code":0,"stdout":"","stderr":"","pid":1}"#)
            }
            line if line.starts_with("GET") => Answer::json(200, &sandbox(IDS[0], "paused").to_string()),
            _ => Answer(204, Vec::new(), Vec::new()),
        })
    };
    let server = paused();
    assert_eq!(server.run(&["sandbox", "exec", "sb_1", "true"]).status, Some(0));
    let expected = [
        "GET /v1/sandboxes/sb_1?fields=status",
        "POST /v1/sandboxes/sb_1/resume",
        "POST /v1/sandboxes/sb_1/exec",
    ];
    assert_eq!(server.lines(), expected);
    for args in [
        &["sandbox", "file", "mkdir", "sb_1", "/a"][..],
        &["sandbox", "process", "kill", "sb_1", "7"],
        &["sandbox", "pty", "kill", "sb_1", "ses_1"],
    ] {
        let server = paused();
        assert_eq!(server.run(args).status, Some(0), "{args:?}");
        assert_eq!(server.lines()[1], "POST /v1/sandboxes/sb_1/resume", "{args:?}");
    }
    let server = paused();
    assert_eq!(server.run(&["sandbox", "get", "sb_1"]).json()["status"], "paused");
    assert_eq!(server.lines(), ["GET /v1/sandboxes/sb_1"]);
}

#[test]
fn what_a_snapshot_brings_cannot_be_chosen() {
    let server = life();
    for option in [["--cwd", "/srv"], ["--env", "A=b"], ["--memory", "64"], ["--disk", "4096"]] {
        let create = ["sandbox", "create", "--snapshot-id", "snap_1"];
        let ran = server.run(&[&create[..], &option].concat());
        assert!(ran.status == Some(2) && ran.to_string().contains(option[0]), "{ran}");
    }
    assert!(server.lines().is_empty());
}

fn event(id: u32) -> Value {
    json!({
        "id": format!("evt_{id:032x}"), "occurred_at": "2026-01-02T03:04:05Z", "audience": "customer",
        "operation": "fork", "status": "succeeded", "actor_kind": "user", "sandbox_id": IDS[1],
        "snapshot_id": null, "source_sandbox_id": IDS[0], "target_sandbox_id": IDS[1], "user_id": null,
        "reason": "api", "error_code": null, "error_message": null, "metadata": {},
    })
}

#[test]
fn events_are_listed_with_every_filter() {
    let server = Server::start(|_| {
        let page = json!({"events": [event(1)], "offset": 2, "limit": 3, "has_more": true});
        Answer::json(200, &page.to_string())
    });
    let filters = [
        ("offset", "--offset", "2"),
        ("limit", "--limit", "3"),
        ("order", "--order", "asc"),
        ("operation", "--operation", "fork"),
        ("status", "--status", "succeeded"),
        ("from", "--from-time", "2026-01-01"),
        ("to", "--to-time", "2026-01-03"),
        ("sandbox_id", "--sandbox-id", "a"),
        ("snapshot_id", "--snapshot-id", "b"),
        ("source_sandbox_id", "--source-sandbox-id", "c"),
        ("target_sandbox_id", "--target-sandbox-id", "d"),
    ];
    let mut args = vec!["lifecycle", "events"];
    args.extend(filters.iter().flat_map(|(_, option, value)| [option, value]));
    let page = server.run(&args).json();
    assert_eq!((&page["events"][0], &page["has_more"]), (&event(1), &json!(true)));
    let line = server.last().line;
    let mut sent: Vec<_> = line.trim_start_matches("GET /v1/lifecycle/events?").split('&').collect();
    sent.sort_unstable();
    let mut expected = filters.map(|(name, _, value)| format!("{name}={value}"));
    expected.sort_unstable();
    assert_eq!(sent, expected);
    assert_eq!(server.run(&["lifecycle", "events", "--operation", "explode"]).status, Some(2));
    server.run(&["lifecycle", "events"]);
    assert_eq!(server.last().line, "GET /v1/lifecycle/events?limit=50&offset=0&order=desc");
}

fn subscribed(socket: &mut Socket<'_>) -> Value {
    let subscription = socket.next().unwrap();
    let echo = json!({"type": "subscribed", "subscription": {}, "reconnect_mode": "after_event_id"});
    socket.send(echo);
    subscription
}

#[test]
fn events_are_streamed_over_connections_that_break_until_there_are_enough() {
    let server = Server::talking(|socket| {
        let subscription = subscribed(socket);
        if socket.number == 0 {
            let expected = json!({
                "type": "subscribe", "sandbox_id": IDS[0], "status": "succeeded", "live_only": false,
                "replay_limit": 7, "metadata": {"a": 1},
            });
            assert_eq!(subscription, expected);
            socket.send(json!({"type": "event", "event": event(1)}));
            return;
        }
        assert_eq!(subscription["after_event_id"], event(1)["id"]);
        socket.send(json!({"type": "event", "event": event(2)}));
        socket.send(json!({"type": "event", "event": event(3)}));
    });
    let args = [
        "lifecycle",
        "stream",
        "--sandbox-id",
        IDS[0],
        "--status",
        "SUCCEEDED",
        "--replay-limit",
        "7",
        "--metadata-json",
        r#"{"a":1}"#,
        "--max-events",
        "3",
    ];
    let ran = server.run(&args);
    let lines: Vec<Value> = String::from_utf8(ran.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!((ran.status, lines), (Some(0), vec![event(1), event(2), event(3)]));
    assert_eq!(server.lines(), ["GET /v1/lifecycle/ws"; 2]);

    let quiet = Server::talking(|socket| {
        assert_eq!(subscribed(socket)["live_only"], true);
        assert_eq!(socket.next(), None);
    });
    let ran = quiet.run(&["lifecycle", "stream", "--live-only", "--timeout", "0.05"]);
    assert_eq!((ran.status, ran.stdout.len()), (Some(0), 0));
}

const WEBHOOK: &str = r#"{"id":"wh_019a0000000070008000000000000001","url":"https://h/x",
    "operations":["fork"],"enabled":true,"has_signing_secret":true,"created_at":"2026-01-02T03:04:05Z",
    "updated_at":"2026-01-02T03:04:05Z","last_delivery_at":null,"last_delivery_status":null,
    "last_error":null}"#;

fn delivery() -> Value {
    json!({
        "id": "whd_019a0000000070008000000000000001", "webhook_id": "wh_019a0000000070008000000000000001",
        "event_id": event(1)["id"], "operation": "fork", "status": "succeeded",
        "delivery_status": "dead_letter", "attempt_count": 9, "created_at": "2026-01-02T03:04:05Z",
        "next_attempt_at": null, "last_attempt_at": null, "last_response_status": 500, "last_error": "500",
    })
}

#[test]
fn webhooks_are_made_changed_looked_at_and_deleted() {
    let server = Server::start(|request| {
        let path = request.line.split(['?', ' ']).nth(1).unwrap();
        match path.split('/').skip(4).collect::<Vec<_>>()[..] {
            [_] if request.line.starts_with("DELETE") => Answer(204, Vec::new(), Vec::new()),
            [] if request.line.starts_with("GET") => Answer::json(200, &format!("[{WEBHOOK}]")),
            [] | [_] => Answer::json(200, WEBHOOK),
            [_, "deliveries"] => Answer::json(200, &json!([delivery()]).to_string()),
            [_, "deliveries", _] => {
                let detail = json!({"delivery": delivery(), "event": event(1), "attempts": []});
                Answer::json(200, &detail.to_string())
            }
            _ => Answer::json(200, &delivery().to_string()),
        }
    });
    let run = |args: &[&str]| server.run(&[&["lifecycle", "webhooks"], args].concat());
    let sent = || serde_json::from_slice::<Value>(&server.last().body).unwrap();
    let create =
        ["create", "--url", "https://h/x", "--signing-secret", "0123456789abcdef", "--operation", "fork"];
    let created = run(&[&create[..], &["--operation", "Create"]].concat()).json();
    assert_eq!(created["has_signing_secret"], true);
    let expected = json!({
        "url": "https://h/x", "operations": ["fork", "create"], "signing_secret": "0123456789abcdef",
        "enabled": true,
    });
    assert_eq!(sent(), expected);
    run(&[&create[..], &["--disabled"]].concat());
    assert_eq!(sent()["enabled"], false);
    assert_eq!(run(&create[..5]).status, Some(2), "an operation is needed");

    assert_eq!(run(&["update", "wh_1", "--enabled"]).status, Some(0));
    assert_eq!(server.last().line, "PATCH /v1/lifecycle/webhooks/wh_1");
    assert_eq!(sent(), json!({"enabled": true}));
    assert_eq!(run(&["update", "wh_1"]).status, Some(2), "a change is needed");

    assert_eq!(run(&["list"]).json()[0]["url"], "https://h/x");
    assert_eq!(run(&["get", "wh_1"]).json()["url"], "https://h/x");
    assert_eq!(run(&["deliveries", "wh_1", "--limit", "5"]).json()[0]["attempt_count"], 9);
    assert_eq!(server.last().line, "GET /v1/lifecycle/webhooks/wh_1/deliveries?limit=5&offset=0");
    assert_eq!(run(&["delivery", "wh_1", "whd_1"]).json()["event"]["operation"], "fork");
    assert_eq!(run(&["redeliver", "wh_1", "whd_1"]).json()["delivery_status"], "dead_letter");
    assert_eq!(server.last().line, "POST /v1/lifecycle/webhooks/wh_1/deliveries/whd_1/redeliver");
    insta::assert_snapshot!(run(&["delete", "wh_1"]), @r"
    exit: 0
    ---- stdout
    deleted wh_1
    ");
}

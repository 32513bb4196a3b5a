//! Whole commands about sandboxes: what is asked of the server, what is printed, how it exits.

mod support;

use support::{Answer, Server};

const ID: &str = "sb_019a0000000070008000000000000001";

const SANDBOX: &str = r#"{"id":"sb_019a0000000070008000000000000001","status":"running",
    "config":{"vcpus":2,"memory_mb":512,"disk_mb":2048},"template":"base","metadata":{"team":"a"},
    "created_at":"2026-01-02T03:04:05.678Z","started_at":"2026-01-02T03:04:06Z",
    "timeout_at":"2026-01-02T03:09:06Z","expires_at":"2026-01-02T03:09:06Z","timeout_ms":300000,
    "timeout_action":"destroy","cwd":null,"snapshot_id":null}"#;

fn sandboxes() -> Server {
    Server::start(|request| match request.line.split(['?', ' ']).take(2).collect::<Vec<_>>()[..] {
        ["POST", "/v1/sandboxes"] => Answer::json(201, SANDBOX),
        ["GET", "/v1/sandboxes"] if request.line.contains("next_token=page2") => {
            Answer::json(200, r#"{"items":[],"has_next":false}"#)
        }
        ["GET", "/v1/sandboxes"] if request.line.contains("fields=") => Answer::json(
            200,
            r#"{"items":[{"id":"sb_1","status":"running","cwd":null,"metadata":{"a":1}}],"has_next":false}"#,
        ),
        ["GET", "/v1/sandboxes"] => {
            Answer::json(200, &format!(r#"{{"items":[{SANDBOX}],"has_next":true,"next_token":"page2"}}"#))
        }
        ["DELETE", _] => Answer::json(200, &format!(r#"{{"id":"{ID}","status":"destroyed"}}"#)),
        ["POST", path] if path.ends_with("/timeout") => Answer::json(
            200,
            r#"{"timeout_ms":60000,"timeout_action":"destroy","timeout_at":"2026-01-02T03:09:06Z","remaining_ms":60000}"#,
        ),
        ["GET", path] if path.ends_with("/metrics") => Answer::json(
            200,
            r#"[{"timestamp":"2026-01-02T03:04:05Z","cpu_percent":12.5,"cpu_count":2,"mem_used_bytes":52428800,
                "mem_total_bytes":536870912,"disk_used_bytes":1048576,"disk_total_bytes":2147483648,
                "network_rx_bytes":null,"network_tx_bytes":2048}]"#,
        ),
        ["GET", path] if path.ends_with(ID) => Answer::json(200, SANDBOX),
        _ => Answer::json(404, r#"{"error":"not here","code":"not_found","request_id":"req_1"}"#),
    })
}

#[test]
fn create_sends_every_option_and_prints_the_sandbox_as_json() {
    let server = sandboxes();
    let ran = server.run(&[
        "sandbox",
        "create",
        "--vcpus",
        "4",
        "--memory",
        "1024",
        "--timeout",
        "60",
        "--env",
        "A=b=c",
        "--env-json",
        r#"{"X":"y"}"#,
        "--metadata",
        "team=a",
        "--cwd",
        "/srv",
        "--no-internet-access",
        "--idempotency-key",
        "once",
        "--on-timeout",
        "destroy",
    ]);
    insta::assert_snapshot!(ran, @r#"
    exit: 0
    ---- stdout
    {
      "id": "sb_019a0000000070008000000000000001",
      "status": "running",
      "template": "base",
      "config": {
        "vcpus": 2,
        "memory_mb": 512
      },
      "metadata": {
        "team": "a"
      },
      "started_at": "2026-01-02T03:04:06Z",
      "created_at": "2026-01-02T03:04:05.678Z",
      "timeout_ms": 300000,
      "timeout_at": "2026-01-02T03:09:06Z",
      "expires_at": "2026-01-02T03:09:06Z",
      "timeout_action": "destroy",
      "snapshot_id": null
    }
    "#);
    let request = server.last();
    assert_eq!(request.headers["authorization"], "Bearer ns_live_test");
    assert_eq!(request.headers["idempotency-key"], "once");
    let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
    let expected = serde_json::json!({
        "template": "base", "vcpus": 4, "memory_mb": 1024, "timeout_ms": 60000, "cwd": "/srv",
        "envs": {"A": "b=c", "X": "y"}, "metadata": {"team": "a"}, "internet_access": false,
        "auto_resume": false, "lifecycle": {"on_timeout": "destroy"},
    });
    assert_eq!(body, expected);
}

#[test]
fn a_create_from_a_snapshot_sends_only_what_a_snapshot_leaves_open() {
    let server = sandboxes();
    assert_eq!(server.run(&["sandbox", "create", "--snapshot-id", "snap_1"]).status, Some(0));
    let body: serde_json::Value = serde_json::from_slice(&server.last().body).unwrap();
    let expected = serde_json::json!({
        "snapshot_id": "snap_1", "timeout_ms": 300_000, "metadata": {}, "auto_resume": false,
    });
    assert_eq!(body, expected);
}

#[test]
fn list_follows_every_page_with_the_same_filters() {
    let server = sandboxes();
    let ran = server.run(&[
        "sandbox",
        "list",
        "--json",
        "--state",
        "running",
        "--state",
        "error",
        "--metadata",
        "a=b",
        "--limit",
        "1",
    ]);
    assert_eq!((ran.status, ran.json().as_array().unwrap().len()), (Some(0), 1));
    let query = "state=running%2Cerror&metadata=%7B%22a%22%3A%22b%22%7D&limit=1";
    let sorted = |line: &str| {
        let mut parts: Vec<_> = line.trim_start_matches("GET /v1/sandboxes?").split('&').collect();
        parts.sort_unstable();
        parts.join("&")
    };
    let lines = server.lines();
    assert_eq!(sorted(&lines[0]), sorted(query));
    assert_eq!(sorted(&lines[1]), sorted(&format!("{query}&next_token=page2")));
}

#[test]
fn a_list_for_people_is_a_table() {
    insta::assert_snapshot!(sandboxes().run(&["sandbox", "list"]), @r"
    exit: 0
    ---- stdout
    ID                                   STATUS   TEMPLATE  VCPUS  MEMORY   ENDS IN
    sb_019a0000000070008000000000000001  running  base      2      512 MiB  0s
    ");
    let empty = Server::start(|_| Answer::json(200, "[]"));
    insta::assert_snapshot!(empty.run(&["sandbox", "list"]), @r"
    exit: 0
    ---- stderr
    no sandboxes
    ");
    assert_eq!(empty.run(&["sandbox", "list", "--json"]).stdout, b"[]\n");
}

#[test]
fn chosen_fields_come_in_the_order_in_which_they_were_asked_for() {
    let server = sandboxes();
    let args = ["sandbox", "list", "--fields", "status, id,cwd,metadata"];
    insta::assert_snapshot!(server.run(&args).to_string().replace('\t', "|"), @r#"
    exit: 0
    ---- stdout
    running|sb_1||{"a":1}
    "#);
    let ran = server.run(&[&args[..], &["--json"]].concat());
    let compact = String::from_utf8(ran.stdout).unwrap().split_whitespace().collect::<String>();
    assert_eq!(compact, r#"[{"status":"running","id":"sb_1","cwd":null,"metadata":{"a":1}}]"#);
}

#[test]
fn kill_timeout_and_metrics_answer_what_the_contract_says() {
    let server = sandboxes();
    insta::assert_snapshot!(server.run(&["sandbox", "kill", ID]), @r"
    exit: 0
    ---- stdout
    destroyed sb_019a0000000070008000000000000001
    ");
    let killed = server.run(&["sandbox", "kill", ID, "--json"]).json();
    assert_eq!(killed, serde_json::json!({"id": ID, "status": "destroyed"}));

    let ran = server.run(&["sandbox", "timeout", "set", ID, "--seconds", "60"]);
    assert_eq!((ran.status, &ran.json()["id"]), (Some(0), &serde_json::json!(ID)));
    let lines = server.lines();
    assert!(lines[2].ends_with("/timeout") && lines[3].starts_with("GET "), "{lines:?}");

    insta::assert_snapshot!(server.run(&["sandbox", "metrics", ID]), @r"
    exit: 0
    ---- stdout
    TIME                  CPU          MEMORY                DISK                  RECEIVED  SENT
    2026-01-02T03:04:05Z  12.5 % of 2  50.0 MiB / 512.0 MiB  1.0 MiB / 2048.0 MiB  -         0.0 MiB
    ");
    let metrics = server.run(&["sandbox", "metrics", ID, "--json"]).json();
    assert_eq!(metrics[0]["network_rx_bytes"], serde_json::Value::Null);
}

#[test]
fn an_id_cannot_lead_to_another_route() {
    let server = sandboxes();
    for id in ["", "..", "."] {
        assert_eq!(server.run(&["sandbox", "get", id]).status, Some(2), "{id:?}");
    }
    assert_eq!(server.run(&["sandbox", "get", "../../healthz?x"]).status, Some(3));
    assert_eq!(server.lines(), ["GET /v1/sandboxes/..%2F..%2Fhealthz%3Fx"]);
}

//! What is said over a sandbox's socket, and what happens when it breaks: against a server that speaks
//! from a script.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use nullspace_client::{
    Client, Config, ProcessOffsets, ProcessOutput, RetryPolicy, TerminalStart, TerminalTarget,
};
use nullspace_types::event::LifecycleSubscription;
use nullspace_types::monitor::MonitorFrame;
use nullspace_types::process::ExecRequest;
use nullspace_types::terminal::{TerminalEvent, TerminalResize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

const SESSION: &str = "ses_019a0000000070008000000000000001";

/// What the server does on one connection, in order; then it breaks it.
enum Step {
    /// Waits for a frame with these fields; its `id` is given back in what is sent.
    Expect(Value),
    Send(Value),
    /// Says goodbye instead of breaking the connection.
    Close,
    /// Answers the opening with this status and body.
    Refuse(&'static str, &'static str),
}
use Step::{Close, Expect, Refuse, Send};

/// One script per connection. The task ends with the last; its panics are the test's.
async fn server(scripts: Vec<Vec<Step>>) -> (Client, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        for script in scripts {
            play(&listener, script).await;
        }
    });
    let retry = RetryPolicy { resume_wait: Duration::from_millis(1), ..RetryPolicy::default() };
    let config = Config { api_key: Some("k".to_owned()), base_url, request_timeout: None, retry };
    (Client::new(config).unwrap(), task)
}

async fn play(listener: &TcpListener, script: Vec<Step>) {
    let (mut stream, _) = listener.accept().await.unwrap();
    if let [Refuse(status, body)] = &script[..] {
        let mut request = vec![0; 4096];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await.unwrap();
        return;
    }
    let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
    let mut id = Value::Null;
    for step in script {
        match step {
            Expect(expected) => {
                let Some(Ok(Message::Text(text))) = socket.next().await else {
                    panic!("expected {expected} and the connection broke");
                };
                let frame: Value = serde_json::from_str(&text).unwrap();
                id = frame["id"].clone();
                for (name, value) in expected.as_object().unwrap() {
                    assert_eq!(frame[name], *value, "{name} in {frame}");
                }
            }
            Send(mut frame) => {
                frame["id"] = id.clone();
                socket.send(Message::text(frame.to_string())).await.unwrap();
            }
            Close => socket.close(None).await.unwrap(),
            Refuse(..) => panic!("an opening is refused before anything else"),
        }
    }
}

fn started() -> Step {
    Send(json!({"type": "exec_started", "pid": 7}))
}

fn out(text: &str) -> Step {
    Send(json!({"type": "exec_stdout", "pid": 7, "data": text}))
}

fn command() -> ExecRequest {
    ExecRequest { command: "make".to_owned(), ..ExecRequest::default() }
}

async fn all(mut stream: nullspace_client::ProcessStream) -> (String, String, Option<i32>) {
    let (mut stdout, mut stderr, mut exit) = (String::new(), String::new(), None);
    while let Some(output) = stream.next().await.unwrap() {
        match output {
            ProcessOutput::Stdout(text) => stdout.push_str(&text),
            ProcessOutput::Stderr(text) => stderr.push_str(&text),
            ProcessOutput::Exited { exit_code } => exit = Some(exit_code),
        }
    }
    (stdout, stderr, exit)
}

#[tokio::test]
async fn a_command_is_followed_to_its_end_and_fed() {
    let (client, server) = server(vec![vec![
        Expect(json!({"type": "exec_start", "command": "make"})),
        started(),
        Send(json!({"type": "of_a_later_version"})),
        out("a"),
        Expect(json!({"type": "exec_stdin", "pid": 7, "data": "yes\n"})),
        Expect(json!({"type": "exec_stdin_close", "pid": 7})),
        Send(json!({"type": "exec_stderr", "pid": 7, "data": "b"})),
        Expect(json!({"type": "exec_kill", "pid": 7})),
        Send(json!({"type": "exec_exit", "pid": 7, "exit_code": 137})),
    ]])
    .await;
    let mut stream = client.process_stream("sb_1", &command()).await.unwrap();
    assert_eq!(stream.pid(), 7);
    let input = stream.input();
    assert_eq!(stream.next().await.unwrap(), Some(ProcessOutput::Stdout("a".to_owned())));
    input.write("yes\n").await.unwrap();
    input.close().await.unwrap();
    assert_eq!(stream.next().await.unwrap(), Some(ProcessOutput::Stderr("b".to_owned())));
    input.kill().await.unwrap();
    assert_eq!(stream.next().await.unwrap(), Some(ProcessOutput::Exited { exit_code: 137 }));
    assert_eq!(stream.next().await.unwrap(), None);
    server.await.unwrap();
    assert_eq!(input.kill().await.unwrap_err().code(), "transport_error");
}

#[tokio::test]
async fn output_goes_on_where_the_connection_broke() {
    let exit = || Send(json!({"type": "exec_exit", "pid": 7, "exit_code": 0}));
    let (client, server) = server(vec![
        vec![
            Expect(json!({"type": "exec_start"})),
            started(),
            out("hä"),
            Send(json!({"type": "error", "code": "unavailable", "message": "the server stops"})),
        ],
        // It breaks before it says anything, and the server is not there for a moment.
        vec![Refuse("503", r#"{"error":"starting","code":"unavailable"}"#)],
        vec![
            Expect(json!({"type": "exec_connect", "pid": 7, "stdout_offset": 3, "stderr_offset": null})),
            started(),
            out("\u{fffd}!"),
            Send(json!({"type": "exec_stderr", "pid": 7, "data": "e"})),
            Close,
        ],
        // From now on bytes cannot be counted.
        vec![
            Expect(json!({"type": "exec_connect", "pid": 7, "stdout_offset": null, "stderr_offset": 1})),
            started(),
            out("hä\u{fffd}"),
            out("! end"),
            exit(),
        ],
    ])
    .await;
    let stream = client.process_stream("sb_1", &command()).await.unwrap();
    assert_eq!(all(stream).await, ("hä\u{fffd}! end".to_owned(), "e".to_owned(), Some(0)));
    server.await.unwrap();
}

#[tokio::test]
async fn a_connection_that_never_holds_is_given_up_and_can_be_tried_again() {
    let connect = || vec![Expect(json!({"type": "exec_connect", "stdout_offset": 5})), started()];
    let scripts = (0..7).map(|_| connect()).chain([vec![
        Expect(json!({"type": "exec_connect"})),
        started(),
        Send(json!({"type": "exec_exit", "pid": 7, "exit_code": 3})),
    ]]);
    let (client, server) = server(scripts.collect()).await;
    let from = ProcessOffsets { stdout: 5, stderr: 0 };
    let mut stream = client.process_attach("sb_1", 7, from).await.unwrap();
    assert_eq!(stream.next().await.unwrap_err().code(), "transport_error");
    assert_eq!(stream.next().await.unwrap(), Some(ProcessOutput::Exited { exit_code: 3 }));
    server.await.unwrap();
}

#[tokio::test]
async fn why_a_command_cannot_be_started_is_told_and_nothing_is_repeated() {
    let gone = r#"{"error":"sandbox sb_1 does not exist","code":"sandbox_not_found","request_id":"req_7"}"#;
    let (client, server) = server(vec![
        vec![Refuse("404", gone)],
        vec![
            Expect(json!({"type": "exec_start"})),
            Send(json!({"type": "error", "code": "exec_failed", "message": "make: not found"})),
        ],
        vec![Expect(json!({"type": "exec_start"}))],
    ])
    .await;
    let error = client.process_stream("sb_1", &command()).await.err().unwrap();
    assert_eq!((error.code(), error.request_id()), ("sandbox_not_found", Some("req_7")));
    let error = client.process_stream("sb_1", &command()).await.err().unwrap();
    assert_eq!((error.code(), error.message()), ("exec_failed", "make: not found"));
    // Whether it was started is not known.
    let error = client.process_stream("sb_1", &command()).await.err().unwrap();
    assert_eq!(error.code(), "transport_error");
    server.await.unwrap();
}

fn pty(kind: &str, mut fields: Value) -> Step {
    fields["type"] = kind.into();
    fields["session_id"] = SESSION.into();
    Send(fields)
}

#[tokio::test]
async fn a_terminal_passes_bytes_both_ways_and_is_connected_to_again() {
    let began = || pty("pty_started", json!({"pid": 9, "cols": 80, "rows": 24}));
    let (client, server) = server(vec![
        vec![
            Expect(json!({"type": "pty_start", "cols": 80, "rows": 24, "cwd": "/srv"})),
            began(),
            Expect(json!({"type": "pty_input", "session_id": SESSION, "data_base64": "/wA="})),
            Expect(json!({"type": "pty_resize", "cols": 100, "rows": 40})),
            pty("pty_output", json!({"data_base64": "G1tIAA=="})),
        ],
        vec![
            Expect(json!({"type": "pty_connect", "session_id": SESSION})),
            began(),
            Expect(json!({"type": "pty_kill", "session_id": SESSION})),
            pty("pty_exited", json!({"exit_code": 129})),
        ],
        vec![
            Expect(json!({"type": "pty_connect", "pid": 9})),
            Send(json!({"type": "error", "code": "pty_not_found", "message": "no session"})),
        ],
    ])
    .await;
    let start = TerminalStart {
        cols: Some(80),
        rows: Some(24),
        cwd: Some("/srv".to_owned()),
        ..TerminalStart::default()
    };
    let mut terminal = client.terminal_start("sb_1", &start).await.unwrap();
    assert_eq!((terminal.info().pid, terminal.info().session_id.to_string()), (9, SESSION.to_owned()));
    let input = terminal.input();
    input.write(b"\xff\x00").await.unwrap();
    input.resize(TerminalResize { cols: 100, rows: 40 }).await.unwrap();
    assert_eq!(terminal.next().await.unwrap(), Some(TerminalEvent::Output(b"\x1b[H\0".as_slice().into())));
    assert_eq!(terminal.next().await.unwrap_err().code(), "transport_error");
    terminal.reconnect().await.unwrap();
    input.kill().await.unwrap();
    assert_eq!(terminal.next().await.unwrap(), Some(TerminalEvent::Exited { exit_code: 129 }));
    assert_eq!(terminal.next().await.unwrap(), None);
    let error = client.terminal_connect("sb_1", &TerminalTarget::Pid(9), None).await.err().unwrap();
    assert_eq!(error.code(), "pty_not_found");
    server.await.unwrap();
}

#[tokio::test]
async fn a_watch_tells_changes_and_that_it_broke() {
    let (client, server) = server(vec![vec![
        Expect(json!({"type": "file_watch", "path": "/w", "recursive": true})),
        Send(json!({"type": "file_watch_started"})),
        Send(json!({"type": "file_event", "event": "create", "name": "a/b", "path": "/w/a/b"})),
    ]])
    .await;
    let mut watch = client.file_watch("sb_1", "/w", true, None, None).await.unwrap();
    let change = watch.next().await.unwrap().unwrap();
    assert_eq!((change.name.as_str(), change.path.as_str()), ("a/b", "/w/a/b"));
    assert_eq!(watch.next().await.unwrap_err().code(), "transport_error");
    server.await.unwrap();
}

const EVENTS: [&str; 3] = [
    "evt_019a0000000070008000000000000001",
    "evt_019a0000000070008000000000000002",
    "evt_019a0000000070008000000000000003",
];

fn event(id: &str, at: &str) -> Step {
    let event = json!({
        "id": id, "occurred_at": at, "audience": "customer", "operation": "create", "status": "succeeded",
        "actor_kind": "user", "sandbox_id": null, "reason": "api", "error_code": null, "error_message": null,
        "metadata": {},
    });
    Send(json!({"type": "event", "event": event}))
}

fn subscribed(at: &str) -> Step {
    let echo = json!({});
    let mode = "after_event_id";
    Send(json!({"type": "subscribed", "subscription": echo, "reconnect_mode": mode, "subscribed_at": at}))
}

#[tokio::test]
async fn events_go_on_behind_the_last_one_and_none_is_told_twice() {
    let (client, server) = server(vec![
        vec![
            Expect(json!({"type": "subscribe", "operation": "create", "replay_limit": 5})),
            subscribed("2026-01-02T03:00:00Z"),
            event(EVENTS[0], "2026-01-02T01:00:00Z"),
            event(EVENTS[1], "2026-01-02T03:04:05Z"),
            Close,
        ],
        vec![Refuse("503", r#"{"error":"starting","code":"unavailable"}"#)],
        vec![
            Expect(json!({"type": "subscribe", "operation": "create", "after_event_id": EVENTS[1]})),
            subscribed("2026-01-02T03:05:00Z"),
            event(EVENTS[1], "2026-01-02T03:04:05Z"),
            event(EVENTS[2], "2026-01-02T03:04:06Z"),
            Send(json!({"type": "error", "code": "invalid_request", "message": "no such event"})),
        ],
    ])
    .await;
    let subscription = LifecycleSubscription {
        operation: Some("create".to_owned()),
        replay_limit: Some(5),
        ..LifecycleSubscription::default()
    };
    let mut stream = client.lifecycle_stream(&subscription).await.unwrap();
    for id in EVENTS {
        assert_eq!(stream.next().await.unwrap().id.to_string(), id);
    }
    let error = stream.next().await.unwrap_err();
    assert_eq!((error.code(), error.message()), ("invalid_request", "no such event"));
    server.await.unwrap();
}

#[tokio::test]
async fn what_happened_while_a_live_stream_was_broken_is_told_and_nothing_from_before_it() {
    let (client, server) = server(vec![
        vec![Expect(json!({"type": "subscribe", "live_only": true})), subscribed("2026-01-02T03:00:00Z")],
        vec![
            Expect(json!({"type": "subscribe", "live_only": false, "replay_limit": 1000})),
            subscribed("2026-01-02T03:05:00Z"),
            event(EVENTS[0], "2026-01-02T02:59:59Z"),
            event(EVENTS[1], "2026-01-02T03:00:01Z"),
        ],
    ])
    .await;
    let subscription = LifecycleSubscription { live_only: Some(true), ..LifecycleSubscription::default() };
    let mut stream = client.lifecycle_stream(&subscription).await.unwrap();
    assert_eq!(stream.next().await.unwrap().id.to_string(), EVENTS[1]);
    server.await.unwrap();
}

#[tokio::test]
async fn a_monitor_begins_with_a_snapshot_whenever_it_was_connected_again() {
    let snapshot = || Send(json!({"type": "monitor_snapshot", "sandboxes": []}));
    let (client, server) = server(vec![
        vec![Expect(json!({"type": "monitor_subscribe", "interval_ms": 500})), snapshot()],
        vec![
            Expect(json!({"type": "monitor_subscribe", "include_processes": true})),
            snapshot(),
            Send(json!({"type": "monitor_error", "message": "interval_ms must be at least 250"})),
        ],
    ])
    .await;
    let mut monitor = client.monitor(Some(500), Some(true)).await.unwrap();
    for _ in 0..2 {
        let frame = monitor.next().await.unwrap();
        assert!(matches!(&frame, MonitorFrame::MonitorSnapshot { .. }), "{frame:?}");
    }
    let error = monitor.next().await.unwrap_err();
    assert_eq!((error.code(), error.message()), ("monitor_error", "interval_ms must be at least 250"));
    server.await.unwrap();
}

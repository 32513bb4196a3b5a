use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nullspace_tests_api::Harness;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_command_is_followed_fed_and_found_again_by_its_pid() {
    let server = Harness::start().await;
    let id = server.sandbox().await;
    let mut socket = server.socket(&id).await;
    socket.send(json!({"type": "exec_start", "id": "a", "command": "cat", "args": []})).await;
    let pid = socket.expect("exec_started").await["pid"].clone();
    socket.send(json!({"type": "exec_stdin", "id": "a", "pid": pid, "data": "hello"})).await;
    assert_eq!(socket.expect("exec_stdout").await["data"], "hello");
    drop(socket);

    // What ends a socket ends no command.
    let processes = format!("/v1/sandboxes/{id}/processes");
    let listed = server.get(&processes).await.expect(200);
    assert!(listed.as_array().unwrap().contains(&json!({"pid": pid, "command": "cat", "running": true})));
    let mut socket = server.socket(&id).await;
    socket.send(json!({"type": "exec_connect", "id": "b", "pid": pid, "stdout_offset": 3})).await;
    socket.expect("exec_started").await;
    assert_eq!(socket.expect("exec_stdout").await["data"], "lo");
    socket.send(json!({"type": "exec_stdin_close", "id": "b", "pid": pid})).await;
    assert_eq!(socket.expect("exec_exit").await["exit_code"], 0);
    assert_eq!(socket.next().await, None);
}

#[tokio::test]
async fn a_followed_command_out_of_its_time_exits_with_124_and_one_out_of_the_rules_never_starts() {
    let server = Harness::start().await;
    let id = server.sandbox().await;
    let mut socket = server.socket(&id).await;
    let sleep =
        json!({"type": "exec_start", "id": "a", "command": "sleep", "args": ["9"], "timeout_secs": 0.05});
    socket.send(sleep).await;
    socket.expect("exec_started").await;
    assert_eq!(socket.expect("exec_exit").await["exit_code"], 124);

    for (frame, code, says) in [
        (json!({"command": "true", "timeout_secs": 0}), "invalid_request", "timeout_secs must be greater"),
        (json!({"command": "no-such-command"}), "exec_failed", "no-such-command"),
        (json!({"type": "exec_connect", "pid": 9999}), "process_not_found", "9999"),
        (
            json!({"type": "pty_start", "cols": 0}),
            "invalid_request",
            "cols must be between 1 and 1000, got 0",
        ),
        (json!({"type": "pty_connect", "pid": 9999}), "pty_not_found", "9999"),
        (json!({"type": "file_watch", "path": ""}), "invalid_request", "path must not be empty"),
    ] {
        let mut whole = json!({"type": "exec_start", "id": "x", "args": []});
        whole.as_object_mut().unwrap().extend(frame.as_object().unwrap().clone());
        let mut socket = server.socket(&id).await;
        socket.send(whole).await;
        let error = socket.expect("error").await;
        assert_eq!((&error["id"], &error["code"]), (&json!("x"), &json!(code)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    }
}

fn output(frame: &Value) -> String {
    String::from_utf8(STANDARD.decode(frame["data_base64"].as_str().unwrap()).unwrap()).unwrap()
}

#[tokio::test]
async fn a_terminal_is_typed_into_listed_resized_left_and_found_again() {
    let server = Harness::start().await;
    let id = server.sandbox().await;
    let sessions = format!("/v1/sandboxes/{id}/pty");
    let mut socket = server.socket(&id).await;
    socket.send(json!({"type": "pty_start", "id": "p", "cols": 80, "rows": 24})).await;
    let started = socket.expect("pty_started").await;
    let (session, pid) = (started["session_id"].as_str().unwrap().to_owned(), started["pid"].clone());
    assert_eq!(output(&socket.expect("pty_output").await), "$ ");
    socket.send(json!({"type": "pty_input", "id": "p", "session_id": session, "data": "ls"})).await;
    assert_eq!(output(&socket.expect("pty_output").await), "ls");
    drop(socket);

    let resize = json!({"cols": 100, "rows": 1001});
    let refused = server.post(&format!("{sessions}/{session}/resize"), resize).await;
    assert_eq!(refused.refused(400, "invalid_request"), "rows must be between 1 and 1000, got 1001");
    let resize = json!({"cols": 100, "rows": 50});
    server.post(&format!("{sessions}/{session}/resize"), resize).await.expect(204);
    let shown = json!({"session_id": session, "pid": pid, "cols": 100, "rows": 50});
    assert_eq!(server.get(&sessions).await.expect(200), json!([shown]));
    assert_eq!(server.get(&format!("{sessions}/{session}")).await.expect(200), shown);
    server
        .get(&format!("{sessions}/ses_00000000000070008000000000000000"))
        .await
        .refused(404, "pty_not_found");

    let mut socket = server.socket(&id).await;
    socket.send(json!({"type": "pty_connect", "id": "q", "pid": pid})).await;
    assert_eq!(socket.expect("pty_started").await["session_id"], session);
    assert_eq!(output(&socket.expect("pty_output").await), "$ ls");
    server.delete(&format!("{sessions}/{session}")).await.expect(204);
    assert_eq!(socket.expect("pty_exited").await["exit_code"], 137);
    assert_eq!(server.get(&sessions).await.expect(200), json!([]));
}

#[tokio::test]
async fn a_watch_sees_what_is_written_after_it_began() {
    let server = Harness::start().await;
    let id = server.sandbox().await;
    let mut socket = server.socket(&id).await;
    socket.send(json!({"type": "file_watch", "id": "w", "path": "/tmp", "recursive": true})).await;
    socket.expect("file_watch_started").await;
    let write = json!({"path": "/tmp/d/a", "content": "x"});
    server.post(&format!("/v1/sandboxes/{id}/files/write"), write).await.expect(200);
    for event in ["create", "write"] {
        let seen = socket.expect("file_event").await;
        let expected =
            json!({"type": "file_event", "id": "w", "event": event, "name": "d/a", "path": "/tmp/d/a"});
        assert_eq!(seen, expected);
    }
}

#[tokio::test]
async fn sockets_end_when_the_sandbox_does_and_when_the_server_stops() {
    let mut server = Harness::start().await;
    let (lost, kept) = (server.sandbox().await, server.sandbox().await);
    let start = json!({"type": "exec_start", "id": "a", "command": "cat", "args": []});
    let (mut first, mut second) = (server.socket(&lost).await, server.socket(&kept).await);
    for socket in [&mut first, &mut second] {
        socket.send(start.clone()).await;
        socket.expect("exec_started").await;
    }
    server.delete(&format!("/v1/sandboxes/{lost}")).await.expect(200);
    first.expect("error").await;
    assert_eq!(first.next().await, None);

    let stopping = Instant::now();
    server.stop().await;
    assert_eq!(second.next().await, None, "nothing is said that would look like the command's end");
    assert!(stopping.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_socket_takes_the_place_of_a_connection_and_frees_it_when_it_closes() {
    let mut config = nullspace_server::Config::default();
    config.server.connections_max = 2;
    let server = Harness::with(config).await;
    let id = server.sandbox().await;
    // The client keeps the connection that made the sandbox; the socket is the other one.
    let first = server.socket(&id).await;
    let mut second = Box::pin(server.socket(&id));
    for _ in 0..10 {
        tokio::select! {
            biased;
            _ = second.as_mut() => panic!("there is no place for it"),
            answer = server.get("/healthz") => drop(answer.expect(200)),
        }
    }
    drop(first);
    second.await;
}

#[tokio::test]
async fn a_connection_that_closes_frees_its_place_at_once() {
    let mut config = nullspace_server::Config::default();
    config.server.connections_max = 1;
    let server = Harness::with(config).await;
    for _ in 0..3 {
        let request = server.request(reqwest::Method::GET, "/healthz").header("connection", "close");
        server.send(request).await.expect(200);
    }
}

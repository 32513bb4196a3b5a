//! Whole commands that follow something as it happens: processes, terminals, watches.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::process::Stdio;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustix::termios::{LocalModes, tcgetattr};
use serde_json::json;
use support::{Answer, Ran, Server, Socket, signal, terminal};

const SESSION: &str = "ses_019a0000000070008000000000000001";

fn exit(socket: &mut Socket<'_>, exit_code: i32) {
    socket.send(json!({"type": "exec_exit", "pid": 7, "exit_code": exit_code}));
}

#[test]
fn a_streamed_command_passes_output_and_status_on_over_connections_that_break() {
    let server = Server::talking(|socket| {
        let start = socket.next().unwrap();
        socket.send(json!({"type": "exec_started", "pid": 7}));
        if socket.number == 0 {
            let expected = json!({
                "type": "exec_start", "id": start["id"], "command": "make", "args": ["-k", "all"],
                "envs": {"A": "b"}, "cwd": "/srv", "timeout_secs": 5.0,
            });
            assert_eq!(start, expected);
            socket.send(json!({"type": "exec_stdout", "pid": 7, "data": "one\n"}));
            return;
        }
        assert_eq!((&start["type"], &start["stdout_offset"]), (&json!("exec_connect"), &json!(4)));
        socket.send(json!({"type": "exec_stderr", "pid": 7, "data": "oh\u{1b}[0m\n"}));
        socket.send(json!({"type": "exec_stdout", "pid": 7, "data": "two\n"}));
        exit(socket, 7);
    });
    let args = [
        "sandbox",
        "process",
        "stream",
        "sb_1",
        "make",
        "-k",
        "all",
        "--env",
        "A=b",
        "--cwd",
        "/srv",
        "--timeout",
        "5",
    ];
    let ran = server.run(&args);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    assert_eq!((text(&ran.stdout), text(&ran.stderr)), ("one\ntwo\n".to_owned(), "oh\u{1b}[0m\n".to_owned()));
    assert_eq!(ran.status, Some(7));
    assert_eq!(server.lines(), ["GET /v1/sandboxes/sb_1/ws?channel=exec"; 2]);
    assert_eq!(server.last().headers["authorization"], "Bearer ns_live_test");
}

#[test]
fn a_process_is_attached_to_and_told_as_json() {
    let server = Server::talking(|socket| {
        assert_eq!(socket.next().unwrap()["pid"], 7);
        socket.send(json!({"type": "exec_started", "pid": 7}));
        socket.send(json!({"type": "exec_stdout", "pid": 7, "data": "a"}));
        socket.send(json!({"type": "exec_stderr", "pid": 7, "data": "b"}));
        exit(socket, 3);
    });
    insta::assert_snapshot!(server.run(&["sandbox", "process", "attach", "sb_1", "7", "--json"]), @r#"
    exit: 3
    ---- stdout
    {
      "exit_code": 3,
      "stdout": "a",
      "stderr": "b",
      "pid": 7
    }
    "#);
}

#[test]
fn code_is_run_by_its_language_and_can_stand_in_a_file() {
    for (language, program, flag) in [
        ("python", "python3", "-c"),
        ("javascript", "node", "-e"),
        ("ruby", "ruby", "-e"),
        ("bash", "bash", "-c"),
        ("sh", "sh", "-c"),
        ("perl5", "perl5", "-c"),
    ] {
        let server = Server::talking(move |socket| {
            let start = socket.next().unwrap();
            assert_eq!((&start["command"], &start["args"]), (&json!(program), &json!([flag, "print(1)"])));
            socket.send(json!({"type": "exec_started", "pid": 7}));
            exit(socket, 0);
        });
        std::fs::write(server.dir().join("code"), "print(1)").unwrap();
        for code in ["print(1)", "@code", "-"] {
            let args = ["sandbox", "process", "code-run", "sb_1", code, "--language", language];
            let ran = server.run_with(&args, b"print(1)");
            assert_eq!((ran.status, &ran.stderr[..]), (Some(0), &b""[..]), "{language} {code}: {ran}");
        }
    }
}

#[test]
fn a_stream_that_cannot_begin_or_is_interrupted_says_what_to_do() {
    let server = Server::talking(|socket| {
        socket.next();
        socket.send(json!({"type": "error", "message": "nonsense: not found", "code": "exec_failed"}));
    });
    insta::assert_snapshot!(server.run(&["sandbox", "process", "stream", "sb_1", "nonsense"]), @r"
    exit: 8
    ---- stderr
    error: nonsense: not found
    hint: use --shell for a command line, and check that the program is in the sandbox
    ");

    let server = Server::talking(|socket| {
        socket.next();
        socket.send(json!({"type": "exec_started", "pid": 7}));
        socket.send(json!({"type": "exec_stdout", "pid": 7, "data": "x"}));
        // Until the program is gone.
        socket.next();
    });
    let mut command = server.command(&["sandbox", "process", "stream", "sb_1", "sleep", "99"]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    signal("-INT", child.id());
    insta::assert_snapshot!(Ran::of(&child.wait_with_output().unwrap()), @r"
    exit: 130
    ---- stderr
    error: interrupted
    hint: it runs on: follow it with `nullspace sandbox process attach sb_1 7`
    ");
}

fn started(socket: &mut Socket<'_>) {
    let (cols, rows) = (80, 24);
    socket.send(json!({"type": "pty_started", "session_id": SESSION, "pid": 9, "cols": cols, "rows": rows}));
}

fn output(socket: &mut Socket<'_>, data: &[u8]) {
    let data = BASE64_STANDARD.encode(data);
    socket.send(json!({"type": "pty_output", "session_id": SESSION, "data_base64": data}));
}

fn exited(socket: &mut Socket<'_>, exit_code: i32) {
    socket.send(json!({"type": "pty_exited", "session_id": SESSION, "exit_code": exit_code}));
}

const CONNECT: [&str; 6] = ["sandbox", "pty", "connect", "sb_1", "--session-id", SESSION];

#[test]
fn a_terminal_in_a_pipe_passes_bytes_both_ways() {
    let server = Server::talking(|socket| {
        let connect = socket.next().unwrap();
        assert_eq!((&connect["type"], &connect["session_id"]), (&json!("pty_connect"), &json!(SESSION)));
        started(socket);
        let mut typed = Vec::new();
        while typed != b"~.\xff\n" {
            let input = socket.next().unwrap();
            typed.extend(BASE64_STANDARD.decode(input["data_base64"].as_str().unwrap()).unwrap());
        }
        output(socket, b"\x1b[H\x00\xff");
        exited(socket, 5);
    });
    let ran = server.run_with(&CONNECT, b"~.\xff\n");
    assert_eq!((ran.status, &ran.stdout[..], &ran.stderr[..]), (Some(5), &b"\x1b[H\x00\xff"[..], &b""[..]));
    assert_eq!(server.lines(), ["GET /v1/sandboxes/sb_1/ws?channel=pty"]);
}

#[test]
fn a_terminal_is_left_when_its_time_is_over_and_that_it_ends_otherwise_is_told() {
    let waits = Server::talking(|socket| {
        socket.next();
        started(socket);
        assert_eq!(socket.next(), None, "the session is left alone");
    });
    let ran = waits.run(&[&CONNECT[..], &["--timeout", "0.05", "--json"]].concat());
    insta::assert_snapshot!(ran, @r#"
    exit: 124
    ---- stdout
    {
      "exit_code": 124,
      "error": "timed out",
      "timed_out": true
    }
    "#);
    assert_eq!(waits.run(&[&CONNECT[..], &["--timeout", "0.05"]].concat()).status, Some(124));

    let lost = Server::talking(|socket| {
        socket.next();
        started(socket);
        socket.send(json!({"type": "error", "message": "the sandbox is gone", "code": "sandbox_not_found"}));
    });
    insta::assert_snapshot!(lost.run(&CONNECT), @r"
    exit: 1
    ---- stderr
    error: the sandbox is gone
    hint: the session may go on: `nullspace sandbox pty connect sb_1 --session-id ses_019a0000000070008000000000000001`
    ");
    assert_eq!(lost.run(&[&CONNECT[..], &["--json"]].concat()).json()["error"], "the sandbox is gone");

    let breaks = Server::talking(|socket| {
        socket.next();
        started(socket);
    });
    let error = breaks.run(&[&CONNECT[..], &["--json"]].concat());
    assert_eq!((error.status, &error.json()["error"]["code"]), (Some(1), &json!("transport_error")));
    assert_eq!(breaks.run(&["sandbox", "pty", "connect", "sb_1"]).status, Some(2));
}

#[test]
fn terminal_sessions_are_created_listed_resized_and_ended() {
    let info = format!(r#"{{"session_id":"{SESSION}","pid":9,"cols":80,"rows":24}}"#);
    let server = Server::start_with_sockets(
        move |request| match request.line.split(' ').next() {
            Some("GET") if request.line.ends_with("/pty") => Answer::json(200, &format!("[{info}]")),
            Some("GET") => Answer::json(200, &info),
            _ => Answer(204, Vec::new(), Vec::new()),
        },
        |socket| {
            let start = socket.next().unwrap();
            let expected = json!({
                "type": "pty_start", "id": "mine", "cols": 80, "rows": 24, "cwd": "/srv", "envs": {"A": "b"},
            });
            assert_eq!(start, expected);
            started(socket);
            assert_eq!(socket.next(), None, "the session is left alone");
        },
    );
    let create = ["sandbox", "pty", "create", "sb_1", "--id", "mine", "--cols", "80", "--rows", "24"];
    insta::assert_snapshot!(server.run(&[&create[..], &["--cwd", "/srv", "--env", "A=b"]].concat()), @r#"
    exit: 0
    ---- stdout
    {
      "session_id": "ses_019a0000000070008000000000000001",
      "pid": 9,
      "cols": 80,
      "rows": 24
    }
    "#);
    assert_eq!(server.run(&["sandbox", "pty", "list", "sb_1"]).json()[0]["pid"], 9);
    assert_eq!(server.run(&["sandbox", "pty", "get", "sb_1", SESSION]).json()["session_id"], SESSION);
    for args in [
        &["sandbox", "pty", "resize", "sb_1", SESSION, "--cols", "100", "--rows", "50"][..],
        &["sandbox", "pty", "kill", "sb_1", SESSION],
    ] {
        let ran = server.run(args);
        assert_eq!((ran.status, ran.stdout.len(), ran.stderr.len()), (Some(0), 0, 0));
    }
    let resize = format!("POST /v1/sandboxes/sb_1/pty/{SESSION}/resize");
    assert_eq!(server.body_of(&resize), br#"{"cols":100,"rows":50}"#);
    assert_eq!(server.last().line, format!("DELETE /v1/sandboxes/sb_1/pty/{SESSION}"));
}

#[test]
fn a_real_terminal_is_raw_while_it_is_used_and_as_before_however_it_is_left() {
    for (way, status) in [("leave", 0), ("-TERM", 143), ("exit", 4)] {
        let server = Server::talking(move |socket| {
            socket.next();
            started(socket);
            let size = socket.next().unwrap();
            assert_eq!((&size["cols"], &size["rows"]), (&json!(101), &json!(31)));
            output(socket, b"ready");
            if way == "exit" {
                assert_eq!(socket.next().unwrap()["data_base64"], BASE64_STANDARD.encode(b"\x03"));
                exited(socket, 4);
            } else {
                assert_eq!(socket.next(), None, "the session is left alone");
            }
        });
        let (far, near) = terminal();
        let mode = || {
            let mode = tcgetattr(&near).unwrap();
            (mode.local_modes, mode.input_modes, mode.output_modes, mode.control_modes)
        };
        let before = mode();
        let mut command = server.command(&CONNECT);
        command.stdin(near.try_clone().unwrap()).stdout(near.try_clone().unwrap()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut far = File::from(far);
        let mut screen = Vec::new();
        while !screen.ends_with(b"ready") {
            let mut byte = [0];
            far.read_exact(&mut byte).unwrap();
            screen.push(byte[0]);
        }
        assert!(!mode().0.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
        match way {
            "leave" => far.write_all(b"~.").unwrap(),
            "exit" => far.write_all(b"\x03").unwrap(),
            name => signal(name, child.id()),
        }
        assert_eq!((way, child.wait().unwrap().code()), (way, Some(status)));
        assert_eq!(mode(), before, "{way}");
    }
}

#[test]
fn a_watch_prints_a_line_for_every_change() {
    let server = Server::talking(|socket| {
        let watch = socket.next().unwrap();
        let expected = json!({
            "type": "file_watch", "id": watch["id"], "path": "/w", "user": "user", "recursive": true,
        });
        assert_eq!(watch, expected);
        socket.send(json!({"type": "file_watch_started"}));
        socket.send(json!({"type": "file_event", "event": "create", "name": "a/b", "path": "/w/a/b"}));
        socket.send(json!({"type": "file_event", "event": "remove", "name": "c", "path": "/w/c"}));
        socket.send(json!({"type": "error", "message": "the watch has ended", "code": "watch_error"}));
    });
    let watch = ["sandbox", "file", "watch", "sb_1", "/w", "--recursive", "--user", "user"];
    insta::assert_snapshot!(server.run(&watch), @r#"
    exit: 1
    ---- stdout
    {"type":"create","name":"a/b","path":"/w/a/b","event_type":"create"}
    {"type":"remove","name":"c","path":"/w/c","event_type":"remove"}
    ---- stderr
    error: the watch has ended
    "#);
    assert_eq!(server.lines(), ["GET /v1/sandboxes/sb_1/ws"]);

    let quiet = Server::talking(|socket| {
        assert_eq!(socket.next().unwrap()["timeout_secs"], 0.05);
        socket.send(json!({"type": "file_watch_started"}));
        assert_eq!(socket.next(), None);
    });
    let ran = quiet.run(&["sandbox", "file", "watch", "sb_1", "/w", "--timeout", "0.05"]);
    assert_eq!((ran.status, ran.stdout.len()), (Some(0), 0));
}

//! Whole commands inside a sandbox: processes and files, byte for byte.

mod support;

use std::process::Stdio;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use support::{Answer, Ran, Server};

fn exec(answer: &'static str) -> Server {
    Server::start(move |_| Answer::json(200, answer))
}

#[test]
fn exec_passes_output_and_status_on() {
    let server = exec(r#"{"exit_code":7,"stdout":"a\u001b[0m\nb","stderr":"oh\n","pid":12}"#);
    let ran =
        server.run(&["sandbox", "exec", "sb_1", "sh", "-c", "exit 7", "--env", "K=V", "--timeout", "5"]);
    assert_eq!((ran.status, &ran.stdout[..], &ran.stderr[..]), (Some(7), &b"a\x1b[0m\nb"[..], &b"oh\n"[..]));
    assert_eq!(server.last().line, "POST /v1/sandboxes/sb_1/exec");
    let body: serde_json::Value = serde_json::from_slice(&server.last().body).unwrap();
    let expected = serde_json::json!({
        "command": "sh", "args": ["-c", "exit 7"], "envs": {"K": "V"}, "timeout_secs": 5.0, "background": false,
    });
    assert_eq!(body, expected);
}

#[test]
fn exec_as_json_keeps_the_status_too() {
    let server = exec(r#"{"exit_code":3,"stdout":"x","stderr":"","pid":12}"#);
    insta::assert_snapshot!(server.run(&["sandbox", "exec", "sb_1", "x", "--json"]), @r#"
    exit: 3
    ---- stdout
    {
      "exit_code": 3,
      "stdout": "x",
      "stderr": "",
      "pid": 12
    }
    "#);
}

#[test]
fn exec_in_the_background_answers_with_the_pid() {
    let server = exec(r#"{"pid":12}"#);
    let args = ["sandbox", "exec", "sb_1", "sleep 9", "--shell", "--background"];
    insta::assert_snapshot!(server.run(&args), @r"
    exit: 0
    ---- stdout
    started process 12
    ");
    assert_eq!(server.run(&[&args[..], &["--json"]].concat()).json(), serde_json::json!({"pid": 12}));
}

#[test]
fn an_exec_that_is_interrupted_exits_with_130() {
    // The answer never comes; the signal is sent when the request has arrived.
    let (arrived, wait) = std::sync::mpsc::channel();
    let arrived = std::sync::Mutex::new(arrived);
    let server = Server::start(move |_| {
        arrived.lock().unwrap().send(()).unwrap();
        std::thread::park();
        Answer::json(200, "{}")
    });
    let mut command = server.command(&["sandbox", "exec", "sb_1", "sleep", "99"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait.recv().unwrap();
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    insta::assert_snapshot!(Ran::of(&child.wait_with_output().unwrap()), @r"
    exit: 130
    ---- stderr
    error: interrupted
    hint: the command may still run: see `nullspace sandbox process list sb_1`
    ");
}

#[test]
fn a_reader_that_goes_away_ends_the_program_quietly() {
    let server = Server::start(|_| Answer(200, Vec::new(), vec![b'x'; 8 << 20]));
    let mut command = server.command(&["sandbox", "file", "read", "sb_1", "/big"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ran = Ran::of(&child.wait_with_output().unwrap());
    assert_eq!((ran.status, &ran.stderr[..]), (Some(141), &b""[..]));
}

#[test]
fn processes_are_listed_killed_and_fed() {
    let server = Server::start(|request| match &request.line {
        line if line.ends_with("/processes") => Answer::json(
            200,
            r#"[{"pid":7,"command":"sleep 9\n","running":true},{"pid":8,"command":"x","running":false}]"#,
        ),
        line if line.ends_with("/logs") => {
            Answer::json(200, r#"{"stdout":"out","stderr":"err","output":"outerr","exit_code":null}"#)
        }
        _ => Answer(204, Vec::new(), Vec::new()),
    });
    insta::assert_snapshot!(server.run(&["sandbox", "process", "list", "sb_1"]), @r"
    exit: 0
    ---- stdout
    PID  STATE    COMMAND
    7    running  sleep 9\n
    8    exited   x
    ");
    let logs = server.run(&["sandbox", "process", "logs", "sb_1", "7"]);
    assert_eq!((&logs.stdout[..], &logs.stderr[..]), (&b"out"[..], &b"err"[..]));
    let killed = server.run(&["sandbox", "process", "kill", "sb_1", "7", "--json"]).json();
    assert_eq!(killed, serde_json::json!({"pid": 7, "status": "killed"}));
    let sent = server.run_with(&["sandbox", "process", "stdin", "sb_1", "7", "--json"], "hä\n".as_bytes());
    assert_eq!(sent.json(), serde_json::json!({"pid": 7, "bytes_sent": 4}));
    assert_eq!(server.last().body, r#"{"data":"hä\n"}"#.as_bytes());
    let refused = server.run_with(&["sandbox", "process", "stdin", "sb_1", "7"], b"\xff");
    assert_eq!(refused.status, Some(2));
}

const INFO: &str = r#"{"name":"a","path":"/w/a","is_dir":false,"size":3,"type":"file","mode":"0644",
    "permissions":"0644","owner":"root","group":"root","modified_time":"2026-01-02T03:04:05.5Z"}"#;

#[test]
fn a_file_is_read_byte_for_byte() {
    const CONTENT: &[u8] = b"\x00\xff\x1b[31m no newline";
    let server = Server::start(|request| match request.line.split(' ').next() {
        Some("GET") => Answer(200, Vec::new(), CONTENT.to_vec()),
        _ => Answer::json(
            200,
            &format!(
                r#"{{"content":"{}","encoding":"base64","size":{}}}"#,
                BASE64_STANDARD.encode(CONTENT),
                CONTENT.len()
            ),
        ),
    });
    let read = ["sandbox", "file", "read", "sb_1", "/w/a b", "--user", "user"];
    assert_eq!(server.run(&read).stdout, CONTENT);
    assert_eq!(server.last().line, "GET /v1/sandboxes/sb_1/file?path=%2Fw%2Fa+b&user=user");
    let base64 = server.run(&[&read[..], &["--encoding", "base64"]].concat());
    assert_eq!(base64.stdout, BASE64_STANDARD.encode(CONTENT).as_bytes());
    let json = server.run(&[&read[..], &["--encoding", "base64", "--json"]].concat());
    let expected = serde_json::json!({"path": "/w/a b", "encoding": "base64", "content": BASE64_STANDARD.encode(CONTENT)});
    assert_eq!(json.json(), expected);
}

#[test]
fn a_server_without_raw_files_still_gives_every_byte() {
    let server = Server::start(|request| match request.line.split(' ').next() {
        Some("GET") => Answer::json(501, r#"{"error":"no raw files","code":"not_implemented"}"#),
        _ => Answer::json(200, r#"{"content":"AP8=","encoding":"base64","size":2}"#),
    });
    assert_eq!(server.run(&["sandbox", "file", "read", "sb_1", "/a"]).stdout, b"\x00\xff");
}

#[test]
fn standard_input_is_written_byte_for_byte_whatever_its_size() {
    let server = Server::start(|request| match request.line.split(' ').next() {
        Some("PUT") => Answer(204, Vec::new(), Vec::new()),
        _ => Answer::json(200, INFO),
    });
    let write = ["sandbox", "file", "write", "sb_1", "a"];
    insta::assert_snapshot!(server.run_with(&write, b"abc"), @r"
    exit: 0
    ---- stdout
    wrote /w/a (3 bytes)
    ");
    assert_eq!(server.last().body, br#"{"path":"a","content":"abc","encoding":"utf8"}"#);
    server.run_with(&write, b"\x00\xff");
    assert_eq!(server.last().body, br#"{"path":"a","content":"AP8=","encoding":"base64"}"#);
    server.run_with(&[&write[..], &["--encoding", "base64"]].concat(), b"YW\nJj\n");
    assert_eq!(server.last().body, br#"{"path":"a","content":"abc","encoding":"utf8"}"#);
    let refused = server.run_with(&[&write[..], &["--encoding", "base64"]].concat(), b"!");
    assert_eq!(refused.status, Some(2));

    let large = vec![7; 9 << 20];
    let ran = server.run_with(&[&write[..], &["--json"]].concat(), &large);
    assert_eq!(ran.json()["symlink_target"], serde_json::Value::Null);
    let lines = server.lines();
    let put = "PUT /v1/sandboxes/sb_1/file?path=a";
    assert_eq!(&lines[lines.len() - 2..], [put, "POST /v1/sandboxes/sb_1/files/info"]);
    assert_eq!(server.body_of(put), large);
}

#[test]
fn a_directory_is_listed_for_people_and_for_programs() {
    let server = Server::start(|_| Answer::json(200, &format!("[{INFO}]")));
    insta::assert_snapshot!(server.run(&["sandbox", "file", "list", "sb_1", "/w", "--depth", "2"]), @r"
    exit: 0
    ---- stdout
    MODE  OWNER      SIZE  MODIFIED              TYPE  PATH
    0644  root:root  3     2026-01-02T03:04:05Z  file  /w/a
    ");
    assert_eq!(server.last().line, "GET /v1/sandboxes/sb_1/files?depth=2&path=%2Fw");
    let json = server.run(&["sandbox", "file", "list", "sb_1", "--json"]).json();
    assert_eq!(json[0]["type"], "file");
    assert_eq!(server.last().line, "GET /v1/sandboxes/sb_1/files?path=%2F");
}

#[test]
fn whether_a_path_exists_is_also_the_exit_status() {
    for (answer, status) in [("true", 0), ("false", 1)] {
        let server = Server::start(move |_| Answer::json(200, &format!(r#"{{"exists":{answer}}}"#)));
        let ran = server.run(&["sandbox", "file", "exists", "sb_1", "/a"]);
        let expected = serde_json::json!({"path": "/a", "exists": status == 0});
        assert_eq!((ran.status, ran.json()), (Some(status), expected));
    }
}

#[test]
fn files_are_moved_searched_changed_and_signed() {
    let server = Server::start(|request| match request.line.rsplit('/').next() {
        Some("rename") => Answer::json(200, INFO),
        Some("find") => Answer::json(200, r#"[{"file":"/w/a","line":3,"content":"TODO \u001b"}]"#),
        Some("search") => Answer::json(200, r#"["/w/a.py"]"#),
        Some("replace") => Answer::json(
            200,
            r#"{"replacements":2,"files_modified":1,"files_skipped":0,"binary_files_skipped":0}"#,
        ),
        Some("download-url") => Answer::json(200, r#"{"url":"http://h/x?t=1"}"#),
        Some("upload-url") => Answer::json(200, r#"{"url":"http://h/x?t=1","token":"1"}"#),
        _ => Answer(204, Vec::new(), Vec::new()),
    });
    let run = |args: &[&str]| server.run(&[&["sandbox", "file"], args].concat());
    let sent = || serde_json::from_slice::<serde_json::Value>(&server.last().body).unwrap();
    assert_eq!(run(&["mv", "sb_1", "a", "b", "--user", "user"]).json()["path"], "/w/a");
    assert_eq!(sent(), serde_json::json!({"old_path": "a", "new_path": "b", "user": "user"}));
    assert_eq!(run(&["find", "sb_1", "/w", "TODO"]).json()[0]["line"], 3);
    assert_eq!(sent(), serde_json::json!({"path": "/w", "pattern": "TODO"}));
    assert_eq!(run(&["search", "sb_1", "/w", "*.py"]).json(), serde_json::json!(["/w/a.py"]));
    let replaced = run(&["replace", "sb_1", "x", "y", "/w/a", "/w/b"]).json();
    assert_eq!(replaced, serde_json::json!({"replacements": 2}));
    assert_eq!(sent()["files"], serde_json::json!(["/w/a", "/w/b"]));
    assert_eq!(run(&["chmod", "sb_1", "/w/a", "0755"]).stdout, b"set /w/a to 0755\n");
    assert_eq!(sent(), serde_json::json!({"path": "/w/a", "permissions": "0755"}));
    assert_eq!(run(&["download-url", "sb_1", "/w/a"]).stdout, b"http://h/x?t=1\n");
    assert_eq!(run(&["download-url", "sb_1", "/w/a", "--json"]).json()["url"], "http://h/x?t=1");
    assert_eq!(run(&["upload-url", "sb_1", "/w/a"]).json()["token"], "1");
}

#[test]
fn files_of_a_batch_are_written_each_for_itself() {
    let server = Server::start(|request| {
        let body = String::from_utf8_lossy(&request.body);
        let good = format!(r#"{{"status":"success","path":"/w/a","info":{INFO}}}"#);
        let bad = r#"{"status":"error","path":"/proc/x","error":"not permitted"}"#;
        let results = if body.contains("/proc/x") { format!("{good},{bad}") } else { good };
        Answer::json(200, &format!(r#"{{"results":[{results}]}}"#))
    });
    let write = |files: &str, more: &[&str]| {
        server.run_with(
            &[&["sandbox", "file", "write-files", "sb_1", files], more].concat(),
            br#"{"/w/a":"x"}"#,
        )
    };
    for files in [r#"{"/w/a":"x"}"#, r#"[{"path":"/w/a","content":"x"}]"#, "-"] {
        assert_eq!(write(files, &[]).json()[0]["path"], "/w/a");
    }
    insta::assert_snapshot!(write(r#"{"/w/a":"x","/proc/x":"y"}"#, &[]), @r"
    exit: 1
    ---- stderr
    error: 1 of 2 files are not written
    /proc/x: not permitted
    hint: the others are; see which there are with `nullspace sandbox file list`
    ");
    assert_eq!(write("{", &[]).status, Some(2));
}

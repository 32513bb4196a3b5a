//! What a person, a script and a program are told when something goes wrong.

mod support;

use support::{Answer, Ran, Server};

const MISSING: &str = r#"{"error":"sandbox sb_1 does not exist","code":"sandbox_not_found",
    "request_id":"req_7","retryable":false}"#;

fn answering(status: u16, body: &'static str) -> Server {
    Server::start(move |_| Answer::json(status, body))
}

#[test]
fn a_person_reads_the_message_and_what_to_do() {
    let server = answering(404, MISSING);
    let ran = server.run(&["sandbox", "get", "sb_1"]);
    assert_eq!(ran.status, Some(3));
    let stderr = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.stdout.is_empty());
    assert!(
        stderr.starts_with(
            "error: sandbox sb_1 does not exist\n\
             hint: see which sandboxes there are with `nullspace sandbox list`\n"
        ),
        "{stderr}"
    );
    assert!(stderr.ends_with("request req_7\n"), "{stderr}");
}

#[test]
fn a_program_reads_the_same_as_json() {
    insta::assert_snapshot!(answering(404, MISSING).run(&["sandbox", "get", "sb_1", "--json"]), @r#"
    exit: 3
    ---- stdout
    {
      "error": {
        "code": "sandbox_not_found",
        "message": "sandbox sb_1 does not exist",
        "hint": "see which sandboxes there are with `nullspace sandbox list`",
        "doc_url": "docs/error-codes#sandbox-not-found",
        "request_id": "req_7",
        "retryable": false
      }
    }
    "#);
}

#[test]
fn what_the_server_suggests_is_the_hint_and_details_are_kept() {
    let server = answering(
        503,
        r#"{"error":{"message":"no memory left","code":"capacity_exceeded","suggested_action":"destroy one",
            "details":{"free_mb":12}}}"#,
    );
    let ran = server.run(&["sandbox", "create", "--env", "json=--json"]);
    insta::assert_snapshot!(String::from_utf8_lossy(&ran.stderr).lines().take(2).collect::<Vec<_>>().join("\n"), @r"
    error: no memory left
    hint: destroy one
    ");
    // The literal `--json` counts wherever it stands, as part of a command too.
    let error = server.run(&["sandbox", "exec", "sb_1", "--", "git", "--json"]).json();
    assert_eq!(error["error"]["suggested_action"], "destroy one");
    assert_eq!(error["error"]["details"], serde_json::json!({"free_mb": 12}));
    assert_eq!(ran.status, Some(6));
}

#[test]
fn the_exit_status_says_what_kind_of_failure_it_was() {
    let cases = [
        ("invalid_request", 400, 2),
        ("unauthorized", 401, 4),
        ("permission_denied", 403, 5),
        ("quota_exceeded", 429, 6),
        ("conflict", 409, 7),
        ("exec_timeout", 504, 8),
        ("internal_error", 500, 1),
    ];
    for (code, http, status) in cases {
        let server =
            Server::start(move |_| Answer::json(http, &format!(r#"{{"error":"no","code":"{code}"}}"#)));
        assert_eq!(server.run(&["sandbox", "exec", "sb_1", "true"]).status, Some(status), "{code}");
    }
}

#[test]
fn without_a_key_nothing_is_sent_and_the_hint_says_where_to_find_one() {
    let server = answering(200, "[]");
    let ran =
        Ran::of(&server.command(&["sandbox", "list"]).env_remove("NULLSPACE_API_KEY").output().unwrap());
    insta::assert_snapshot!(String::from_utf8_lossy(&ran.stderr).lines().take(2).collect::<Vec<_>>().join("\n"), @r"
    error: there is no API key
    hint: set NULLSPACE_API_KEY; a server's first key is in the file admin.key of its data directory
    ");
    assert_eq!((ran.status, server.lines().len()), (Some(4), 0));
}

#[test]
fn a_server_that_is_not_there_is_named() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = answering(200, "[]");
    let url = format!("http://127.0.0.1:{port}");
    let run = |args: &[&str]| {
        Ran::of(
            &server
                .command(args)
                .env("NULLSPACE_API_URL", &url)
                .env("HTTP_PROXY", "http://127.0.0.1:9")
                .output()
                .unwrap(),
        )
    };
    let text = run(&["sandbox", "list"]).to_string().replace(&port.to_string(), "PORT");
    insta::assert_snapshot!(text, @r"
    exit: 1
    ---- stderr
    error: cannot reach http://127.0.0.1:PORT: connection refused
    hint: start a server with `nullspace server`, or set NULLSPACE_API_URL to the one you mean
    ");
    let error = run(&["sandbox", "list", "--json"]).json();
    assert_eq!(
        (&error["error"]["code"], &error["error"]["retryable"]),
        (&"transport_error".into(), &true.into())
    );
}

#[test]
fn an_answer_that_is_not_the_apis_is_told_as_such() {
    let ran = answering(200, "<html>").run(&["sandbox", "list"]);
    assert_eq!(ran.status, Some(2));
    assert!(String::from_utf8_lossy(&ran.stderr).contains("is not as expected"), "{ran}");
    let moved =
        Server::start(|_| Answer(302, vec![("location", "http://elsewhere/".to_owned())], Vec::new()));
    assert!(moved.run(&["sandbox", "list"]).to_string().contains("redirects to http://elsewhere/"));
}

#[test]
fn hostile_text_in_an_error_cannot_drive_the_terminal() {
    let ran = answering(400, r#"{"error":"a\u001b]0;x\u0007b","code":"invalid_request"}"#)
        .run(&["sandbox", "list"]);
    assert!(ran.to_string().contains(r"error: a\u{1b}]0;x\u{7}b"), "{ran}");
}

#[test]
fn a_wrong_command_line_exits_with_2_and_says_what_was_meant() {
    let server = answering(200, "[]");
    insta::assert_snapshot!(server.run(&["sandbox", "lst"]), @r"
    exit: 2
    ---- stderr
    error: unrecognized subcommand 'lst'

      tip: some similar subcommands exist: 'host', 'list'

    Usage: nullspace sandbox <COMMAND>

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(server.run(&["sandbox", "create", "--vcpus", "many", "--json"]), @r#"
    exit: 2
    ---- stdout
    {
      "error": {
        "code": "invalid_request",
        "message": "unexpected argument '--json' found",
        "hint": "run the command with --help to see what it takes",
        "doc_url": "docs/error-codes#invalid-request",
        "request_id": null,
        "retryable": null
      }
    }
    "#);
    for args in [&["sandbox", "list", "--metadata", "x"][..], &["--output-version", "v9", "sandbox", "list"]]
    {
        assert_eq!(server.run(args).status, Some(2), "{args:?}");
    }
    assert!(server.lines().is_empty());
}

#[test]
fn help_and_version_are_data() {
    let server = answering(200, "[]");
    let version = server.run(&["--version"]);
    assert_eq!((version.status, &version.stderr[..]), (Some(0), &b""[..]));
    assert!(version.stdout.starts_with(b"nullspace "));
    let help = server.run(&["sandbox", "--help"]);
    assert_eq!((help.status, &help.stderr[..]), (Some(0), &b""[..]));
}

#[test]
fn a_code_without_a_page_is_not_found() {
    let ran = answering(200, "[]").run(&["explain", "no-such-code"]);
    insta::assert_snapshot!(ran, @r#"
    exit: 3
    ---- stderr
    error: there is no page about an error code "no-such-code"
    hint: see which there are with `nullspace explain`
    "#);
}

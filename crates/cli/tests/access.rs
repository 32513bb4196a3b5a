//! Whole commands about ports, networks, secrets and SSH: what is asked, what is printed, what is hidden.

mod support;

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};
use support::{Answer, Ran, Request, Server};

const ID: &str = "sb_019a0000000070008000000000000001";
const GRANT: &str = "pvg_019a0000000070008000000000000001";

fn grant(status: &str) -> Value {
    json!({
        "id": GRANT, "sandbox_id": ID, "port": 8080, "auth_mode": "direct", "bootstrap_transport": "query",
        "status": status, "token_kinds": ["http_port", "websocket_port"], "principal_kind": "user",
        "principal_id": null, "issued_at": "2026-01-02T03:04:05Z", "expires_at": "2026-01-02T03:19:05Z",
        "revoked_at": null, "first_used_at": null, "last_used_at": null, "use_count": 3,
        "http_request_count": 2, "websocket_connection_count": 1, "bytes_in_count": 0, "bytes_out_count": 0,
        "last_error_code": null, "last_error_at": null, "disabled_at": null,
        "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z",
    })
}

fn readiness(ready: bool) -> Value {
    json!({
        "ready": ready, "route_ready": true, "service_ready": ready, "sandbox_id": ID, "port": 8080,
        "kind": "tcp", "checked_at": "2026-01-02T03:04:05Z", "elapsed_ms": 12, "attempts": 2,
        "error": "nothing listens on the port",
    })
}

fn previews(ready: bool) -> Server {
    Server::start(move |request: &Request| {
        let answer = match request.line.split(['?', ' ']).nth(1).unwrap().rsplit('/').next().unwrap() {
            "host" => json!({
                "host": "127.0.0.1:20000", "url": "http://127.0.0.1:20000",
                "websocket_url": "ws://127.0.0.1:20000",
            }),
            "preview-url" | "signed-preview-url" => json!({
                "grant": grant("active"), "url": "http://127.0.0.1:20000/?edge_token=nsp_http",
                "websocket_url": "ws://127.0.0.1:20000/?edge_token=nsp_ws",
                "access_token_expires_at": "2026-01-02T03:19:05Z", "access_token_transport": "query",
            }),
            "preview-proxy-target" => json!({
                "grant": grant("active"), "sandbox_id": ID, "port": 8080,
                "token_header_name": "x-nullspace-preview-proxy-token", "expires_at": "2026-01-02T03:19:05Z",
                "token_transport": "header",
                "http_url": "http://127.0.0.1:20000/?__ns_preview_transport=header", "websocket_url": null,
                "http_token": "nsp_http", "websocket_token": null,
                "required_forwarded_headers": ["x-forwarded-host", "x-forwarded-proto"],
                "traffic_access_required": true,
                "traffic_access_header_name": "x-nullspace-traffic-access-token", "warnings": ["mind the step"],
            }),
            "readiness" => readiness(ready),
            "preview-urls" => json!({"items": [grant("active"), grant("revoked")]}),
            GRANT => json!({"success": true, "grant": grant("revoked")}),
            other => panic!("nobody expected {other}"),
        };
        Answer::json(200, &answer.to_string())
    })
}

#[test]
fn hosts_and_urls_are_printed_bare() {
    let server = previews(true);
    let run = |args: &[&str]| server.run(&[&["sandbox"], args].concat());
    let host = run(&["host", "sb_1", "8080"]);
    assert_eq!((host.status, host.stdout.as_slice()), (Some(0), &b"127.0.0.1:20000\n"[..]));
    assert_eq!(server.last().body, br#"{"port":8080}"#);
    assert_eq!(run(&["host", "sb_1", "8080", "--json"]).json(), json!({"host": "127.0.0.1:20000"}));
    assert_eq!(run(&["url", "sb_1", "8080"]).stdout, b"http://127.0.0.1:20000\n");
    assert_eq!(run(&["url", "sb_1", "8080", "--websocket"]).stdout, b"ws://127.0.0.1:20000\n");
    let told = json!({
        "host": "127.0.0.1:20000", "url": "http://127.0.0.1:20000", "websocket_url": "ws://127.0.0.1:20000",
        "access_token_expires_at": null, "access_token_transport": null,
    });
    assert_eq!(run(&["url", "sb_1", "8080", "--json"]).json(), told);
    assert_eq!(run(&["url", "sb_1", "70000"]).status, Some(2));
}

#[test]
fn what_people_read_has_no_token_in_it_and_what_programs_read_has() {
    let server = previews(true);
    let run = |args: &[&str]| server.run(&[&["sandbox", "preview-url"], args].concat());
    insta::assert_snapshot!(run(&["create", "sb_1", "8080", "--expires", "10m"]), @r"
    exit: 0
    ---- stdout
    http://127.0.0.1:20000/?edge_token=[hidden]
    ---- stderr
    grant pvg_019a0000000070008000000000000001, good until 2026-01-02T03:19:05Z; see the URL with its token with --raw
    ");
    assert_eq!(server.last().line, "POST /v1/sandboxes/sb_1/ports/8080/signed-preview-url");
    assert_eq!(server.last().body, br#"{"expires_in_seconds":600}"#);
    let raw = run(&["get", "sb_1", "8080", "--websocket", "--raw"]);
    assert_eq!(raw.stdout, b"ws://127.0.0.1:20000/?edge_token=nsp_ws\n");
    assert_eq!(server.last().line, "GET /v1/sandboxes/sb_1/ports/8080/preview-url");
    let json = run(&["get", "sb_1", "8080", "--json"]).json();
    assert_eq!(
        (&json["selected_transport"], &json["selected_url"], &json["grant"]["id"]),
        (&json!("http"), &json!("http://127.0.0.1:20000/?edge_token=nsp_http"), &json!(GRANT))
    );
    assert_eq!(json.get("readiness"), None);
}

#[test]
fn a_proxy_target_is_shown_with_its_tokens_only_where_that_is_asked_for() {
    let server = previews(true);
    let create = ["sandbox", "preview-proxy-target", "create", "sb_1", "8080", "--transport", "http"];
    insta::assert_snapshot!(server.run(&create), @r"
    exit: 0
    ---- stdout
    http url        http://127.0.0.1:20000/?__ns_preview_transport=header
    http token      [hidden]
    header          x-nullspace-preview-proxy-token
    needs also      x-nullspace-traffic-access-token
    forward         x-forwarded-host x-forwarded-proto
    grant           pvg_019a0000000070008000000000000001
    good until      2026-01-02T03:19:05Z
    ---- stderr
    mind the step
    see the tokens with --raw
    ");
    assert_eq!(server.last().body, br#"{"transports":["http"]}"#);
    assert!(
        server.run(&[&create[..], &["--raw"]].concat()).to_string().contains("http token      nsp_http\n")
    );
    assert_eq!(server.run(&[&create[..], &["--json"]].concat()).json()["http_token"], "nsp_http");
}

#[test]
fn grants_are_listed_and_revoked() {
    let server = previews(true);
    let run = |args: &[&str]| server.run(&[&["sandbox", "preview-url"], args].concat());
    insta::assert_snapshot!(run(&["list", "sb_1", "--port", "8080"]), @r"
    exit: 0
    ---- stdout
    ID                                    PORT  MODE    STATUS   USES  ENDS IN
    pvg_019a0000000070008000000000000001  8080  direct  active   3     0s
    pvg_019a0000000070008000000000000001  8080  direct  revoked  3     -
    ");
    assert_eq!(server.last().line, "GET /v1/sandboxes/sb_1/preview-urls?port=8080");
    assert_eq!(run(&["list", "sb_1", "--json"]).json()["items"][1]["status"], "revoked");
    assert_eq!(run(&["revoke", "sb_1", GRANT]).stdout, format!("revoked {GRANT}\n").as_bytes());
    assert_eq!(server.last().line, format!("DELETE /v1/sandboxes/sb_1/preview-urls/{GRANT}"));
    assert_eq!(run(&["revoke", "sb_1", GRANT, "--json"]).json()["success"], true);
}

#[test]
fn a_service_is_waited_for_before_anything_is_made_for_it() {
    let server = previews(true);
    let wait = ["--wait", "--readiness-kind", "http", "--readiness-path", "/up", "--timeout-secs", "5"];
    let json = server.run(&[&["sandbox", "url", "sb_1", "8080", "--json"], &wait[..]].concat()).json();
    assert_eq!(json["readiness"], readiness(true));
    assert_eq!(
        server.lines(),
        ["POST /v1/sandboxes/sb_1/ports/8080/readiness", "POST /v1/sandboxes/sb_1/host"]
    );
    let ready = server.run(&["sandbox", "ready", "sb_1", "8080", "--http", "/up", "--timeout", "5"]);
    assert_eq!(ready.stdout, b"port 8080 is ready after 12 ms and 2 attempts\n");
    let asked: Value = serde_json::from_slice(&server.last().body).unwrap();
    assert_eq!(asked, json!({"kind": "http", "timeout_secs": 5, "path": "/up"}));

    let server = previews(false);
    let url = ["sandbox", "preview-url", "create", "sb_1", "8080", "--wait"];
    insta::assert_snapshot!(server.run(&url), @r"
    exit: 1
    ---- stderr
    error: port 8080 is not ready after 12 ms: nothing listens on the port
    ");
    assert_eq!(server.lines(), ["POST /v1/sandboxes/sb_1/ports/8080/readiness"]);
    let error = server.run(&[&url[..], &["--json"]].concat()).json();
    assert_eq!(error["error"]["code"], "preview_service_not_ready");
    assert_eq!(error["error"]["details"]["attempts"], 2);
    let ready = server.run(&["sandbox", "ready", "sb_1", "8080", "--json"]);
    assert_eq!((ready.status, &ready.json()["ready"]), (Some(1), &json!(false)));
}

const RULES: [&str; 16] = [
    "--private",
    "--mask-host",
    "localhost:${PORT}",
    "--allow-out",
    "192.0.2.0/24",
    "--deny-out",
    "0.0.0.0/0",
    "--allow-domain",
    "example.com",
    "--allow-domain",
    "*.example.com",
    "--deny-domain",
    "bad.example.com",
    "--inject",
    "api.test:authorization=token:Bearer ${secret}",
    "--network-json={\"deny_out\":[],\"limits\":{\"connections_max\":9}}",
];

fn rules() -> Value {
    json!({
        "allow_public_traffic": false, "mask_request_host": "localhost:${PORT}",
        "allow_out": ["192.0.2.0/24"], "deny_out": ["0.0.0.0/0"],
        "allow_domains": ["example.com", "*.example.com"], "deny_domains": ["bad.example.com"],
        "inject": [{"host": "api.test", "header": "authorization", "secret": "token",
            "format": "Bearer ${secret}"}],
        "limits": {"connections_max": 9},
    })
}

#[test]
fn a_network_is_shown_and_changed_by_the_same_options_that_a_create_has() {
    let server = Server::start(|request| {
        if request.line == "POST /v1/sandboxes" {
            let sandbox = json!({
                "id": ID, "status": "running", "config": {"vcpus": 2, "memory_mb": 512, "disk_mb": 2048},
                "template": "base", "metadata": {}, "created_at": "2026-01-02T03:04:05Z", "started_at": null,
                "timeout_at": null, "expires_at": null, "timeout_ms": null, "timeout_action": "destroy",
                "cwd": null, "snapshot_id": null, "traffic_access_token": "nst_x",
            });
            return Answer::json(201, &sandbox.to_string());
        }
        let mut network = rules();
        network["internet_access"] = json!(true);
        Answer::json(200, &network.to_string())
    });
    insta::assert_snapshot!(server.run(&["sandbox", "network", "get", "sb_1"]), @r"
    exit: 0
    ---- stdout
    SETTING               VALUE
    allow_domains         example.com, *.example.com
    allow_out             192.0.2.0/24
    allow_public_traffic  false
    deny_domains          bad.example.com
    deny_out              0.0.0.0/0
    inject                format=Bearer ${secret} header=authorization host=api.test secret=token
    internet_access       true
    limits                connections_max=9
    mask_request_host     localhost:${PORT}
    ");
    let body = |server: &Server| serde_json::from_slice::<Value>(&server.last().body).unwrap();
    let set = ["sandbox", "network", "set", "sb_1"];
    let more = ["--no-internet-access", "--reset", "limits", "--json"];
    let answer = server.run(&[&set[..], &RULES, &more].concat()).json();
    assert_eq!(answer["internet_access"], true);
    let mut expected = rules();
    expected["internet_access"] = json!(false);
    expected["limits"] = Value::Null;
    assert_eq!((server.last().line.as_str(), body(&server)), ("PATCH /v1/sandboxes/sb_1/network", expected));
    let nothing = server.run(&set);
    assert!(nothing.status == Some(2) && nothing.to_string().contains("nothing to change"), "{nothing}");

    let created = server.run(&[&["sandbox", "create"], &RULES[..]].concat()).json();
    assert_eq!(created["traffic_access_token"], "nst_x");
    assert_eq!(body(&server)["network"], rules());
}

#[test]
fn denials_are_listed() {
    let server = Server::start(|_| {
        let page = json!({"sandbox_id": ID, "has_more": true, "items": [
            {"protocol": "tcp", "address": "192.0.2.1", "port": 443, "name": "a.test",
                "reason": "name_not_allowed", "count": 2, "first_at": "2026-01-02T03:04:05Z",
                "last_at": "2026-01-02T03:04:06Z"},
            {"protocol": "dns", "address": null, "port": null, "name": "b\u{1b}.test", "reason": "denied_name",
                "count": 1, "first_at": "2026-01-02T03:04:05Z", "last_at": "2026-01-02T03:04:05Z"},
        ]});
        Answer::json(200, &page.to_string())
    });
    insta::assert_snapshot!(server.run(&["sandbox", "network", "denied", "sb_1", "--limit", "2"]), @r"
    exit: 0
    ---- stdout
    PROTOCOL  ADDRESS    PORT  NAME          REASON            COUNT  LAST
    tcp       192.0.2.1  443   a.test        name_not_allowed  2      2026-01-02T03:04:06Z
    dns       -          -     b\u{1b}.test  denied_name       1      2026-01-02T03:04:05Z
    ---- stderr
    there is more; see it with a larger --offset
    ");
    assert_eq!(server.last().line, "GET /v1/sandboxes/sb_1/network/denied?limit=2&offset=0");
}

#[test]
fn secrets_come_from_a_file_or_from_standard_input_and_are_never_shown() {
    let stored = json!({"name": "token", "created_at": "2026-01-02T03:04:05Z"});
    let server = Server::start(move |request| match request.line.split(' ').next().unwrap() {
        "POST" => Answer::json(201, &stored.to_string()),
        "GET" => Answer::json(200, &json!({"items": [stored]}).to_string()),
        _ => Answer(204, Vec::new(), Vec::new()),
    });
    let body = |server: &Server| serde_json::from_slice::<Value>(&server.last().body).unwrap();
    let ran = server.run_with(&["secret", "create", "token"], b"s3cret value\n");
    assert_eq!((ran.status, ran.stdout.as_slice()), (Some(0), &b"stored token\n"[..]));
    assert_eq!(body(&server), json!({"name": "token", "value": "s3cret value"}));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from a file\r\n").unwrap();
    let path = file.path().to_str().unwrap();
    let made = server.run(&["secret", "create", "token", "--from-file", path, "--json"]).json();
    assert_eq!((&made["name"], body(&server)["value"].as_str()), (&json!("token"), Some("from a file")));
    insta::assert_snapshot!(server.run(&["secret", "list"]), @r"
    exit: 0
    ---- stdout
    NAME   CREATED
    token  2026-01-02T03:04:05Z
    ");
    assert_eq!(server.run(&["secret", "delete", "token"]).stdout, b"deleted token\n");
    assert_eq!(server.last().line, "DELETE /v1/secrets/token");
}

fn relay(user: &'static str, host: &'static str) -> Server {
    Server::start(move |_| {
        let access = json!({
            "host": host, "port": 3022, "user": user,
            "access_id": "sshacc_019a0000000070008000000000000001",
            "certificate": "ssh-ed25519-cert-v01@openssh.com AAAA", "expires_at": "2026-01-02T03:14:05Z",
            "command": "ssh -p 3022 root@127.0.0.1", "host_key": "ssh-ed25519 AAAAhost",
            "host_ca": "ssh-ed25519 AAAAca", "relay_host_key": "ssh-ed25519 AAAAhost",
            "relay_host_ca": "ssh-ed25519 AAAAca",
        });
        Answer::json(200, &access.to_string())
    })
}

/// Programs of the test's own in the place of OpenSSH's.
fn programs() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, script) in [
        ("ssh", "printf '%s\\n' \"$@\"; exit 7\n"),
        (
            "ssh-keygen",
            "case $1 in -y) echo 'ssh-ed25519 AAAAown nullspace';; \
             *) for file; do :; done; (umask 077; echo private > \"$file\");; esac\n",
        ),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    dir
}

#[test]
fn ssh_is_run_with_a_key_of_its_own_a_certificate_and_the_relays_host_key_alone() {
    let server = relay("root", "127.0.0.1");
    let programs = programs();
    let path = format!("{}:/usr/bin:/bin", programs.path().display());
    let run = |args: &[&str]| Ran::of(&server.command(args).env("PATH", &path).output().unwrap());
    let ran = run(&["ssh", "sb_1", "--ttl", "5m", "--option", "LocalForward=8080 localhost:80", "ls", "-la"]);
    let home = server.dir().join(".nullspace/ssh");
    let at = home.display();
    let expected = format!(
        "-i\n{at}/nullspace_cli_ed25519\n-o\nLocalForward=8080 localhost:80\n\
         -o\nCertificateFile={at}/sb_1-root-cert.pub\n-o\nStrictHostKeyChecking=yes\n\
         -o\nUserKnownHostsFile={at}/sb_1-root.known_hosts\n-o\nControlPath=none\n-o\nIdentitiesOnly=yes\n\
         -p\n3022\nroot@127.0.0.1\nls\n-la\n"
    );
    assert_eq!((ran.status, String::from_utf8(ran.stdout).unwrap()), (Some(7), expected));
    let asked: Value = serde_json::from_slice(&server.last().body).unwrap();
    assert_eq!(asked, json!({"public_key": "ssh-ed25519 AAAAown nullspace", "ttl_seconds": 300}));

    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&home), 0o700);
    let mut files: Vec<_> = std::fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["nullspace_cli_ed25519", "sb_1-root-cert.pub", "sb_1-root.known_hosts"]);
    assert!(files.iter().all(|file| mode(file) == 0o600));
    let hosts = std::fs::read_to_string(&files[2]).unwrap();
    assert_eq!(hosts, "[127.0.0.1]:3022 ssh-ed25519 AAAAhost\n");

    // The key stays; what old log-ins left goes.
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(2 * 24 * 60 * 60);
    let left = home.join("sb_0-root-cert.pub");
    std::fs::write(&left, "old").unwrap();
    std::fs::File::options().write(true).open(&left).unwrap().set_modified(old).unwrap();
    std::fs::write(&files[0], "kept").unwrap();
    std::fs::File::options().write(true).open(&files[0]).unwrap().set_modified(old).unwrap();
    let printed = run(&["ssh", "sb_1", "--print-command", "echo", "two words"]);
    let text = String::from_utf8(printed.stdout).unwrap();
    assert!(text.starts_with("ssh -i ") && text.ends_with(" root@127.0.0.1 echo 'two words'\n"), "{text}");
    assert!(!left.exists());
    assert_eq!(std::fs::read_to_string(&files[0]).unwrap(), "kept");
}

#[test]
fn ssh_access_certifies_the_key_that_is_given_and_says_how_to_log_in() {
    let server = relay("root", "relay.example");
    let key = ["--public-key", "ssh-ed25519 AAAAgiven me"];
    let ran = server.run(&[&["sandbox", "ssh-access", "sb_1", "--user", "root"], &key[..]].concat());
    let asked: Value = serde_json::from_slice(&server.last().body).unwrap();
    assert_eq!(asked, json!({"public_key": "ssh-ed25519 AAAAgiven me", "user": "root"}));
    let text = String::from_utf8(ran.stdout).unwrap();
    assert!(
        text.starts_with("ssh -o CertificateFile=") && text.ends_with(" -p 3022 root@relay.example\n"),
        "{text}"
    );
    let json = server.run(&[&["ssh", "sb_1", "--json"], &key[..]].concat()).json();
    assert_eq!((&json["identity_file"], &json["port"]), (&Value::Null, &json!(3022)));
    assert_eq!(format!("{}\n", json["command"].as_str().unwrap()), text);
    let certificate = std::fs::read_to_string(json["certificate_file"].as_str().unwrap()).unwrap();
    assert_eq!(certificate, "ssh-ed25519-cert-v01@openssh.com AAAA\n");
}

#[test]
fn an_answer_that_would_become_something_else_in_a_command_or_a_path_is_refused() {
    let key = ["--public-key", "ssh-ed25519 AAAAgiven me"];
    for (user, host) in
        [("-oProxyCommand=x", "h"), ("../x", "h"), ("root", "h -oProxyCommand=x"), ("root", "")]
    {
        let ran = relay(user, host).run(&[&["ssh", "sb_1"], &key[..]].concat());
        assert!(
            ran.status == Some(2) && ran.to_string().contains("can be made from"),
            "{user} {host}: {ran}"
        );
    }
}

#[test]
fn without_openssh_it_is_said_what_is_missing() {
    let server = relay("root", "127.0.0.1");
    let empty = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| Ran::of(&server.command(args).env("PATH", empty.path()).output().unwrap());
    let ran = run(&["ssh", "sb_1"]);
    assert_eq!(ran.status, Some(1));
    assert!(ran.to_string().contains("ssh-keygen is not installed here"), "{ran}");
    let key = ["--public-key", "ssh-ed25519 AAAAgiven me"];
    let ran = run(&[&["ssh", "sb_1"], &key[..]].concat());
    assert!(ran.to_string().contains("ssh is not installed here"), "{ran}");
}

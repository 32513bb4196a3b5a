//! Whole commands that look at everything at once: the monitor, `top`, and what lies on the disk.

mod support;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use rustix::termios::tcgetattr;
use serde_json::{Value, json};
use support::{Answer, Server, signal, terminal};

const IDS: [&str; 2] = ["sb_019a0000000070008000000000000001", "sb_019a0000000070008000000000000002"];

fn sandbox(id: &str, status: &str) -> Value {
    json!({
        "id": id, "status": status, "config": {"vcpus": 2, "memory_mb": 512, "disk_mb": 2048},
        "template": "base", "metadata": {}, "created_at": "2026-01-02T03:04:05Z", "started_at": null,
        "timeout_at": null, "expires_at": null, "timeout_ms": null, "timeout_action": null,
        "cwd": null, "snapshot_id": null,
    })
}

fn metrics(id: &str, cpu: f64) -> Value {
    let metrics = json!({
        "timestamp": "2026-01-02T03:04:05Z", "cpu_percent": cpu, "cpu_count": 2, "mem_used_bytes": 52_428_800,
        "mem_total_bytes": 536_870_912, "disk_used_bytes": 1_048_576, "disk_total_bytes": 2_147_483_648_u64,
        "network_rx_bytes": null, "network_tx_bytes": 2048,
    });
    json!({"type": "monitor_metrics", "sandbox_id": id, "metrics": metrics})
}

#[test]
fn the_monitor_is_printed_line_by_line() {
    let server = Server::talking(|socket| {
        let subscription = socket.next().unwrap();
        assert_eq!(
            (&subscription["interval_ms"], &subscription["include_processes"]),
            (&json!(500), &json!(true))
        );
        socket.send(json!({"type": "monitor_snapshot", "sandboxes": [sandbox(IDS[0], "running")]}));
        socket.send(metrics(IDS[0], 1.5));
        socket
            .send(json!({"type": "monitor_update", "sandbox_id": IDS[0], "sandbox": null, "removed": true}));
    });
    let args = ["monitor", "stream", "--interval-ms", "500", "--include-processes", "--max-events", "3"];
    let ran = server.run(&args);
    let types: Vec<_> = String::from_utf8(ran.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].clone())
        .collect();
    assert_eq!(
        (ran.status, types),
        (Some(0), vec![json!("monitor_snapshot"), json!("monitor_metrics"), json!("monitor_update")])
    );
}

/// Two sandboxes, of which the second uses more; the snapshot has the first alone, as of a long list.
fn busy() -> Server {
    Server::start_with_sockets(
        |_| Answer::json(200, &json!([sandbox(IDS[0], "running"), sandbox(IDS[1], "running")]).to_string()),
        |socket| {
            socket.next();
            socket.send(json!({"type": "monitor_snapshot", "sandboxes": [sandbox(IDS[0], "running")]}));
            let (id, other) = (IDS[1], sandbox(IDS[1], "running"));
            socket.send(
                json!({"type": "monitor_update", "sandbox_id": id, "sandbox": other, "removed": false}),
            );
            socket.send(metrics(IDS[0], 1.5));
            socket.send(metrics(IDS[1], 99.0));
            assert_eq!(socket.next(), None);
        },
    )
}

#[test]
fn top_prints_one_table_where_there_is_no_terminal() {
    let server = busy();
    let ran = server.run(&["top"]);
    let table = String::from_utf8(ran.stdout).unwrap();
    let words: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((ran.status, words.len()), (Some(0), 3), "{table}");
    assert_eq!(words[0][..4], ["ID", "STATUS", "TEMPLATE", "CPU"]);
    assert_eq!(words[1][..9], [IDS[1], "running", "base", "99.0", "%", "50", "/", "512", "MiB"]);
    assert_eq!(words[2][..4], [IDS[0], "running", "base", "1.5"]);

    let line = server.run(&["top", "--once", "--json"]).json();
    assert_eq!(
        (&line["sandboxes"][0]["id"], &line["sandboxes"][1]["metrics"]["cpu_percent"]),
        (&json!(IDS[1]), &json!(1.5))
    );
}

/// Reads what is drawn on a terminal until there is this.
fn read_until(far: &mut File, screen: &mut String, text: &str) {
    while !screen.contains(text) {
        let mut piece = [0; 1024];
        let read = far.read(&mut piece).unwrap();
        screen.push_str(&String::from_utf8_lossy(&piece[..read]));
    }
}

#[test]
fn top_draws_on_a_screen_of_its_own_and_leaves_the_terminal_as_it_was() {
    for (way, status) in [("q", 0), ("\x03", 0), ("-TERM", 143)] {
        let server = busy();
        let (far, near) = terminal();
        let mode = || {
            let mode = tcgetattr(&near).unwrap();
            (mode.local_modes, mode.input_modes, mode.output_modes, mode.control_modes)
        };
        let before = mode();
        let mut command = server.command(&["top"]);
        command.stdin(near.try_clone().unwrap()).stdout(near.try_clone().unwrap()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut far = File::from(far);
        let mut screen = String::new();
        read_until(&mut far, &mut screen, "\x1b[?1049h");
        read_until(&mut far, &mut screen, "2 running; q leaves");
        read_until(&mut far, &mut screen, "99.0 %");
        if way.starts_with('-') {
            signal(way, child.id());
        } else {
            // Written to the far side, as a key that somebody presses.
            far.write_all(way.as_bytes()).unwrap();
        }
        read_until(&mut far, &mut screen, "\x1b[?25h\x1b[?1049l");
        assert_eq!((way, child.wait().unwrap().code()), (way, Some(status)));
        assert_eq!(mode(), before, "{way:?}");
    }
}

/// A server's socket for its operator, which answers one request.
fn operators_socket(server: &Server, status: u16, answer: Value) -> std::thread::JoinHandle<String> {
    let listener = UnixListener::bind(server.dir().join("admin.sock")).unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(&stream).lines();
        let request = lines.next().unwrap().unwrap();
        assert!(lines.any(|line| line.unwrap().is_empty()));
        let body = answer.to_string();
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", body.len());
        (&stream).write_all((head + &body).as_bytes()).unwrap();
        request
    })
}

#[test]
fn garbage_is_shown_first_and_removed_when_that_is_asked_for() {
    let server = busy();
    let gc = |more: &[&str]| server.run(&[&["gc", "--data-dir", "."], more].concat());
    insta::assert_snapshot!(gc(&[]), @r"
    exit: 1
    ---- stderr
    error: no server runs on the data directory .; start it with `nullspace server`, or name another with --data-dir
    ");
    let items = json!([
        {"kind": "layer", "name": "lay_1", "bytes": 3_145_728, "reason": "no machine and no checkpoint has it"},
        {"kind": "checkpoint", "name": "snap_019a0000000070008000000000000001", "bytes": 1024, "reason": "its making was interrupted"},
    ]);
    let report = |applied: bool| json!({"applied": applied, "bytes": 3_146_752, "items": items});
    let serving = operators_socket(&server, 200, report(false));
    insta::assert_snapshot!(gc(&[]), @r"
    exit: 0
    ---- stdout
    KIND        SIZE     NAME                                   WHY
    layer       3.0 MiB  lay_1                                  no machine and no checkpoint has it
    checkpoint  0.0 MiB  snap_019a0000000070008000000000000001  its making was interrupted
    ---- stderr
    3.0 MiB in 2 pieces; remove them with --apply
    ");
    assert_eq!(serving.join().unwrap(), "GET /v1/gc HTTP/1.1");
    std::fs::remove_file(server.dir().join("admin.sock")).unwrap();
    let serving = operators_socket(&server, 200, report(true));
    assert_eq!(gc(&["--apply", "--json"]).json(), report(true));
    assert_eq!(serving.join().unwrap(), "POST /v1/gc HTTP/1.1");
    std::fs::remove_file(server.dir().join("admin.sock")).unwrap();
    let serving =
        operators_socket(&server, 503, json!({"error": "the server is starting", "code": "unavailable"}));
    let starting = gc(&["--json"]);
    serving.join().unwrap();
    assert_eq!((starting.status, &starting.json()["error"]["code"]), (Some(1), &json!("unavailable")));
}

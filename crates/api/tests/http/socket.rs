//! The socket, over real connections.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use nullspace_api::Connected;
use nullspace_types::id::{SandboxId, SessionId};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};
use tokio_util::sync::CancellationToken;

use crate::fake::{Fake, KEY};

pub struct Wire(pub WebSocketStream<TcpStream>);

impl Wire {
    async fn try_open(fake: &Fake, id: &str, key: &str) -> Result<Self, Error> {
        let router = nullspace_api::router(fake.clone());
        Self::over(router, &format!("/v1/sandboxes/{id}/ws?channel=exec"), key).await
    }

    async fn over(router: axum::Router, path: &str, key: &str) -> Result<Self, Error> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let mut request = format!("ws://{address}{path}").into_client_request()?;
        request.headers_mut().insert("authorization", key.parse().unwrap());
        let stream = TcpStream::connect(address).await.unwrap();
        client_async(request, stream).await.map(|(socket, _)| Self(socket))
    }

    /// A socket at another path.
    pub async fn at(fake: &Fake, path: &str) -> Result<Self, Error> {
        Self::over(nullspace_api::router(fake.clone()), path, KEY).await
    }

    /// One of a server that says when it stops.
    pub async fn stopping(fake: &Fake, path: &str, stopping: &CancellationToken) -> Self {
        let connected = Connected { peer: ([192, 0, 2, 1], 1).into(), stopping: stopping.clone() };
        let router = nullspace_api::router(fake.clone()).layer(axum::Extension(connected));
        Self::over(router, path, KEY).await.unwrap()
    }

    async fn open(fake: &Fake) -> Self {
        Self::try_open(fake, &fake.id.to_string(), KEY).await.unwrap()
    }

    pub async fn say(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }

    /// The next frame; none if the socket is closed in order, with the code.
    pub async fn hear(&mut self) -> Result<Value, CloseCode> {
        loop {
            match self.0.next().await.expect("it is closed in order").unwrap() {
                Message::Text(text) => {
                    assert!(text.len() < 1 << 20, "a frame of {} bytes", text.len());
                    return Ok(serde_json::from_str(&text).unwrap());
                }
                Message::Close(frame) => return Err(frame.expect("it has a code").code),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub async fn rest(&mut self) -> (Vec<Value>, CloseCode) {
        let mut frames = Vec::new();
        loop {
            match self.hear().await {
                Ok(frame) => frames.push(frame),
                Err(code) => return (frames, code),
            }
        }
    }
}

fn exec(command: &str) -> Value {
    json!({ "type": "exec_start", "id": "e\"1", "command": command, "args": [], "timeout_secs": 30 })
}

pub async fn until(what: impl Fn() -> bool) {
    tokio::time::timeout(Duration::from_secs(20), async {
        while !what() {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("it comes to that");
}

#[tokio::test]
async fn output_comes_in_order_with_whole_characters_and_the_exit_is_last() {
    let fake = Fake::new();
    let mut wire = Wire::open(&fake).await;
    wire.say(exec("split")).await;
    let (frames, code) = wire.rest().await;
    let id = "e\"1";
    assert_eq!(
        frames,
        [
            json!({ "type": "exec_started", "id": id, "pid": 7 }),
            json!({ "type": "exec_stdout", "id": id, "pid": 7, "data": "a" }),
            json!({ "type": "exec_stderr", "id": id, "pid": 7, "data": "err\u{fffd}" }),
            json!({ "type": "exec_stdout", "id": id, "pid": 7, "data": "ü" }),
            json!({ "type": "exec_stdout", "id": id, "pid": 7, "data": "\u{fffd}" }),
            json!({ "type": "exec_exit", "id": id, "pid": 7, "exit_code": 3 }),
        ]
    );
    assert_eq!(code, CloseCode::Normal);
    assert_eq!(*fake.asked.lock().unwrap().last().unwrap(), "(\"split\", Some(30.0))");
}

#[tokio::test]
async fn no_frame_reaches_a_mebibyte_whatever_is_in_it() {
    let fake = Fake::new();
    let mut wire = Wire::open(&fake).await;
    wire.say(exec("control")).await;
    let (frames, _) = wire.rest().await;
    let length: usize = frames.iter().filter_map(|frame| frame["data"].as_str()).map(str::len).sum();
    assert_eq!(length, 3 << 20);
}

#[tokio::test]
async fn a_command_that_does_not_start_or_breaks_off_ends_with_an_error_and_never_without_a_word() {
    let fake = Fake::new();
    for (command, code) in [("none", "exec_failed"), ("broken", "internal_error")] {
        let mut wire = Wire::open(&fake).await;
        wire.say(exec(command)).await;
        let (frames, _) = wire.rest().await;
        let last = frames.last().unwrap();
        assert_eq!(
            (&last["type"], &last["code"], &last["id"]),
            (&json!("error"), &json!(code), &json!("e\"1"))
        );
    }
}

#[tokio::test]
async fn what_a_client_says_is_done_while_output_flows_and_nonsense_is_answered() {
    let fake = Fake::new();
    let mut wire = Wire::open(&fake).await;
    wire.say(json!({ "type": "exec_connect", "id": "c", "pid": 5, "stdout_offset": 10 })).await;
    assert_eq!(wire.hear().await.unwrap()["pid"], 5);
    wire.say(json!({ "type": "exec_stdin", "id": "c", "pid": 5, "data": "in" })).await;
    wire.say(json!({ "type": "exec_stdin_close", "id": "c", "pid": 5 })).await;
    wire.say(json!({ "type": "exec_kill", "id": "c", "pid": 5 })).await;
    until(|| fake.asked.lock().unwrap().len() == 5).await;
    assert_eq!(
        fake.asked.lock().unwrap()[1..],
        ["(\"attach\", 5, 10, 0)", "(5, \"in\")", "(\"close\", 5)", "5"]
    );
    wire.0.send(Message::binary("no json")).await.unwrap();
    assert!(wire.hear().await.unwrap()["message"].as_str().unwrap().starts_with("invalid message: "));
    wire.say(json!({ "type": "no_such", "id": "n" })).await;
    let answer = wire.hear().await.unwrap();
    assert_eq!((&answer["id"], &answer["code"]), (&json!("n"), &json!("invalid_request")));
    wire.say(exec("again")).await;
    assert_eq!(wire.hear().await.unwrap()["type"], "error");
}

#[tokio::test]
async fn a_first_frame_that_makes_no_sense_closes_the_socket_with_a_word() {
    let fake = Fake::new();
    for text in [
        "",
        "[]",
        "{}",
        "{\"type\":5}",
        "{\"type\":\"exec_start\",\"id\":\"x\"}",
        "{\"type\":\"exec_stdin\",\"id\":\"x\",\"pid\":1,\"data\":\"\"}",
    ] {
        let mut wire = Wire::open(&fake).await;
        wire.0.send(Message::text(text)).await.unwrap();
        let (frames, code) = wire.rest().await;
        assert_eq!(
            (frames.len(), &frames[0]["type"], code),
            (1, &json!("error"), CloseCode::Normal),
            "{text}"
        );
    }
    let mut wire = Wire::open(&fake).await;
    wire.0.send(Message::text("x".repeat((1 << 20) + 1))).await.unwrap();
    let (frames, code) = wire.rest().await;
    assert_eq!((frames.len(), code), (1, CloseCode::Size));
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_written_to_and_one_that_vanishes_lets_the_stream_go() {
    let fake = Fake::new();
    let mut wire = Wire::open(&fake).await;
    wire.say(exec("flood")).await;
    // The buffers between the two fill, and then nothing more is taken.
    let mut before = usize::MAX;
    while before != fake.taken.load(Ordering::SeqCst) || before == 0 {
        before = fake.taken.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(before < 1000, "{before} pieces were taken ahead");
    wire.say(json!({ "type": "exec_stdin", "id": "c", "pid": 7, "data": "heard" })).await;
    until(|| fake.asked.lock().unwrap().last().unwrap().contains("heard")).await;
    let raw = wire.0.get_mut();
    // The beginning of a frame, and never the rest.
    raw.write_all(&[0x81, 0xfe, 0x10]).await.unwrap();
    drop(wire);
    until(|| fake.dropped.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_dropped_though_its_connection_stays() {
    let fake = Fake::new();
    let mut wire = Wire::open(&fake).await;
    wire.say(exec("quiet")).await;
    assert_eq!(wire.hear().await.unwrap()["type"], "exec_started");
    // From here on the clock runs by itself, and nobody reads.
    tokio::time::pause();
    for _ in 0..120 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(fake.dropped.load(Ordering::SeqCst), 1);
    drop(wire);
}

#[tokio::test]
async fn what_is_written_comes_in_order_and_a_kill_does_not_wait_for_it() {
    let fake = Fake::new();
    let mut wire = Wire::open(&fake).await;
    wire.say(exec("cat")).await;
    let stdin = |data: &str| json!({ "type": "exec_stdin", "id": "e", "pid": 7, "data": data });
    for data in ["one", "stuck", "behind it"] {
        wire.say(stdin(data)).await;
    }
    wire.say(json!({ "type": "exec_kill", "id": "e", "pid": 7 })).await;
    until(|| fake.asked.lock().unwrap().last().unwrap() == "7").await;
    let asked = fake.asked.lock().unwrap().clone();
    assert_eq!(asked[2..], ["(7, \"one\")", "(7, \"stuck\")", "7"]);
    // One that leaves is noticed as well; it has read everything, so that it leaves in order.
    assert_eq!(wire.hear().await.unwrap()["type"], "exec_started");
    drop(wire);
    until(|| fake.dropped.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn what_a_client_sends_does_not_come_back_larger() {
    let fake = Fake::new();
    let flood = "\u{7f}".repeat(1 << 19);
    for frame in [
        json!({ "type": "exec_kill", "id": "e", "pid": flood }),
        json!({ "type": flood, "id": "e" }),
        json!({ "type": "exec_kill", "id": flood, "pid": 1 }),
    ] {
        let mut wire = Wire::open(&fake).await;
        wire.say(frame).await;
        let (frames, _) = wire.rest().await;
        let message = frames[0]["message"].as_str().unwrap();
        assert!(message.starts_with("invalid message: ") && message.len() < 5000, "{}", message.len());
        assert!(frames[0]["id"].as_str().is_none_or(|id| id == "e"));
    }
}

#[tokio::test]
async fn a_terminal_begins_with_itself_and_ends_with_its_exit() {
    let fake = Fake::new();
    let session = fake.terminal(fake.id).session_id;
    let mut wire = Wire::open(&fake).await;
    wire.say(json!({ "type": "pty_start", "id": "p", "cols": 1, "rows": null })).await;
    let (frames, code) = wire.rest().await;
    assert_eq!(
        frames[0],
        json!({ "type": "pty_started", "id": "p", "session_id": session, "pid": 9, "cols": 80, "rows": 24 })
    );
    assert!(frames[1..frames.len() - 1].iter().all(|frame| frame["type"] == "pty_output"));
    assert_eq!(
        *frames.last().unwrap(),
        json!({ "type": "pty_exited", "id": "p", "session_id": session, "exit_code": 5 })
    );
    assert_eq!((frames.len(), code), (5, CloseCode::Normal));

    let mut wire = Wire::open(&fake).await;
    wire.say(json!({ "type": "pty_start", "id": "p", "cols": 0 })).await;
    let (frames, _) = wire.rest().await;
    assert_eq!(
        frames,
        [
            json!({ "type": "error", "id": "p", "message": "cols must be between 1 and 1000, got 0", "code": "invalid_request" })
        ]
    );
}

#[tokio::test]
async fn a_terminal_takes_input_for_itself_alone_and_survives_nonsense() {
    let fake = Fake::new();
    let session = fake.terminal(fake.id).session_id;
    let mut wire = Wire::open(&fake).await;
    wire.say(json!({ "type": "pty_connect", "id": "p", "session_id": session })).await;
    assert_eq!(wire.hear().await.unwrap()["type"], "pty_started");
    wire.say(json!({ "type": "pty_input", "id": "p", "session_id": session, "data": "ls" })).await;
    wire.say(json!({ "type": "pty_input", "id": "p", "session_id": session, "data_base64": "AP8=" })).await;
    wire.say(json!({ "type": "pty_resize", "id": "p", "session_id": session, "cols": 100, "rows": 40 }))
        .await;
    until(|| fake.asked.lock().unwrap().len() == 5).await;
    assert_eq!(fake.asked.lock().unwrap()[2..4], ["b\"ls\"", "b\"\\0\\xff\""]);
    for (frame, says) in [
        (json!({ "type": "pty_input", "data": "a", "data_base64": "YQ==" }), "exactly one"),
        (json!({ "type": "pty_input" }), "exactly one"),
        (json!({ "type": "pty_input", "data_base64": "?" }), "base64"),
        (json!({ "type": "pty_resize", "cols": 0, "rows": 0 }), "cols"),
        (json!({ "type": "pty_kill", "session_id": SessionId::new() }), "session_id"),
        (json!({ "type": "exec_kill", "pid": 1 }), "open another one"),
    ] {
        let mut frame = frame;
        frame["id"] = json!("p");
        if frame.get("session_id").is_none() {
            frame["session_id"] = json!(session);
        }
        wire.say(frame).await;
        let answer = wire.hear().await.unwrap();
        assert!(answer["type"] == "error" && answer["message"].as_str().unwrap().contains(says), "{answer}");
    }
    wire.say(json!({ "type": "pty_kill", "id": "p", "session_id": session })).await;
    until(|| fake.asked.lock().unwrap().last().unwrap() == "\"terminal_kill\"").await;
    drop(wire);
    until(|| fake.dropped.load(Ordering::SeqCst) == 1).await;
    for frame in [
        json!({ "type": "pty_connect", "id": "p" }),
        json!({ "type": "pty_connect", "id": "p", "session_id": "x" }),
    ] {
        let mut wire = Wire::open(&fake).await;
        wire.say(frame).await;
        assert_eq!(wire.rest().await.0[0]["type"], "error");
    }
}

#[tokio::test]
async fn a_watch_starts_tells_and_is_silent_after_its_time() {
    let fake = Fake::new();
    let watch = |path: &str, timeout: Value| json!({ "type": "file_watch", "id": "w", "path": path, "user": null, "recursive": true, "timeout_secs": timeout });
    let mut wire = Wire::open(&fake).await;
    wire.say(watch("/d", json!(null))).await;
    assert_eq!(wire.hear().await.unwrap(), json!({ "type": "file_watch_started", "id": "w" }));
    assert_eq!(
        wire.hear().await.unwrap(),
        json!({ "type": "file_event", "id": "w", "event": "create", "name": "a", "path": "/d/a" })
    );
    drop(wire);
    until(|| fake.dropped.load(Ordering::SeqCst) == 1).await;

    let mut wire = Wire::open(&fake).await;
    wire.say(watch("/d", json!(0.01))).await;
    until(|| fake.dropped.load(Ordering::SeqCst) == 2).await;
    let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    wire.0.close(Some(close)).await.unwrap();
    assert_eq!(wire.rest().await.1, CloseCode::Normal);

    for (path, timeout) in [("/none", json!(null)), ("/d", json!(0)), ("/d", json!(-1))] {
        let mut wire = Wire::open(&fake).await;
        wire.say(watch(path, timeout)).await;
        let (frames, _) = wire.rest().await;
        assert_eq!((frames.len(), &frames[0]["type"]), (1, &json!("error")));
    }
}

#[tokio::test]
async fn only_the_sandboxs_owner_gets_a_socket() {
    let fake = Fake::new();
    for (id, key, status) in [(SandboxId::new(), KEY, 404), (fake.id, "Bearer bad", 401)] {
        match Wire::try_open(&fake, &id.to_string(), key).await.err().expect("refused") {
            Error::Http(response) => assert_eq!(response.status(), status),
            other => panic!("{other}"),
        }
    }
    let plain = crate::ask(&fake, "GET", &format!("/v1/sandboxes/{}/ws", fake.id), "").await;
    assert_eq!(plain.error().1, "invalid_request");
}

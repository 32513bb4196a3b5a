//! When a call is made again, and when it is not: against a server that answers from a script.

use std::sync::Arc;
use std::time::Duration;

use nullspace_client::{Client, Config, RetryPolicy};
use nullspace_types::process::ExecRequest;
use nullspace_types::sandbox::SandboxCreate;
use nullspace_types::snapshot::{SandboxFork, SandboxForked};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

const SANDBOX: &str = r#"{"id":"sb_019a0000000070008000000000000001","status":"running",
    "config":{"vcpus":1,"memory_mb":256,"disk_mb":2048},"template":"base","metadata":{},
    "created_at":"2026-01-02T03:04:05Z","started_at":null,"timeout_at":null,"expires_at":null,
    "timeout_ms":null,"timeout_action":null,"cwd":null,"snapshot_id":null}"#;

/// What the server does with one connection.
enum Step {
    Answer(&'static str, &'static str, &'static str),
    /// Takes the request and closes without a word.
    HangUp,
    /// Takes the request and stays silent.
    Silence,
}

/// One step per connection; the requests as they came.
async fn server(script: Vec<Step>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = seen.clone();
    tokio::spawn(async move {
        let mut silent = Vec::new();
        for step in script {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !complete(&request) {
                let read = stream.read_buf(&mut request).await.unwrap();
                assert!(read > 0, "the client hung up in the middle of a request");
            }
            record.lock().await.push(String::from_utf8_lossy(&request).to_lowercase());
            match step {
                Step::HangUp => {}
                Step::Silence => silent.push(stream),
                Step::Answer(status, headers, body) => {
                    let answer = format!(
                        "HTTP/1.1 {status} X\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        }
        // A silent connection stays open until the test is over.
        std::future::pending::<()>().await;
    });
    (url, seen)
}

fn complete(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

fn client(url: String) -> Client {
    let retry = RetryPolicy {
        create_attempts: 4,
        create_wait: Duration::from_millis(1),
        create_wait_max: Duration::from_millis(2),
        ..RetryPolicy::default()
    };
    let api_key = Some("ns_live_test".to_owned());
    Client::new(Config { api_key, base_url: url, request_timeout: None, retry }).unwrap()
}

const LIMITED: Step = Step::Answer("429", "retry-after: 0.001\r\n", r#"{"error":"slow down"}"#);

#[tokio::test]
async fn a_rate_limited_call_is_made_again_three_times() {
    let ok = Step::Answer("200", "", "[]");
    let (url, seen) = server(vec![LIMITED, LIMITED, LIMITED, ok]).await;
    assert_eq!(client(url).template_list().await.unwrap(), []);
    assert_eq!(seen.lock().await.len(), 4);

    let (url, seen) = server(vec![LIMITED, LIMITED, LIMITED, LIMITED]).await;
    let error = client(url).template_list().await.unwrap_err();
    assert_eq!((error.status(), error.message(), seen.lock().await.len()), (Some(429), "slow down", 4));
}

#[tokio::test]
async fn nothing_but_a_rate_limit_makes_a_plain_call_again() {
    let quota = r#"{"error":"too many","code":"quota_exceeded"}"#;
    let long = "retry-after: 86400\r\n";
    for step in [
        Step::Answer("429", "retry-after: 0.001\r\n", quota),
        Step::Answer("429", long, r#"{"error":"come back tomorrow"}"#),
        Step::Answer("503", "", r#"{"error":"starting","code":"unavailable"}"#),
        Step::Answer("409", "", r#"{"error":"busy","code":"transition_in_progress"}"#),
        Step::HangUp,
    ] {
        let (url, seen) = server(vec![step]).await;
        client(url).sandbox_get("sb_1").await.unwrap_err();
        assert_eq!(seen.lock().await.len(), 1);
    }
}

#[tokio::test]
async fn a_create_whose_outcome_is_unknown_is_asked_for_again_with_the_same_key() {
    let busy = Step::Answer("409", "", r#"{"error":"busy","code":"transition_in_progress"}"#);
    let (url, seen) = server(vec![Step::HangUp, busy, Step::Answer("201", "", SANDBOX)]).await;
    let sandbox = client(url).sandbox_create(&SandboxCreate::default(), None).await.unwrap();
    assert_eq!(sandbox.id.to_string(), "sb_019a0000000070008000000000000001");
    let seen = seen.lock().await;
    let key = |request: &String| {
        request.lines().find(|line| line.starts_with("idempotency-key: ")).map(str::to_owned)
    };
    let keys: Vec<_> = seen.iter().map(key).collect();
    assert!(keys.len() == 3 && keys[0].is_some() && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[tokio::test]
async fn a_fork_says_nothing_that_was_not_asked_and_is_asked_for_again_with_the_same_key() {
    let many: &'static str = format!(r#"{{"items":[{SANDBOX},{SANDBOX}]}}"#).leak();
    let busy = Step::Answer("409", "", r#"{"error":"busy","code":"transition_in_progress"}"#);
    let (url, seen) =
        server(vec![busy, Step::Answer("201", "", SANDBOX), Step::Answer("201", "", many)]).await;
    let client = client(url);
    let one = client.sandbox_fork("sb_1", &SandboxFork::default(), Some("mine")).await.unwrap();
    assert!(matches!(one, SandboxForked::One(_)), "{one:?}");
    let two = client.sandbox_fork("sb_1", &SandboxFork { count: Some(2) }, None).await.unwrap();
    assert!(matches!(&two, SandboxForked::Many { items } if items.len() == 2), "{two:?}");
    let seen = seen.lock().await;
    let body = |request: &String| request.split_once("\r\n\r\n").unwrap().1.to_owned();
    assert_eq!(seen.iter().map(body).collect::<Vec<_>>(), ["", "", r#"{"count":2}"#]);
    assert!(seen[..2].iter().all(|request| request.contains("idempotency-key: mine\r\n")), "{seen:?}");
}

#[tokio::test]
async fn a_create_ends_when_its_attempts_are_used_up_and_is_not_repeated_when_it_is_refused() {
    let (url, seen) = server((0..4).map(|_| Step::HangUp).collect()).await;
    let error = client(url).sandbox_create(&SandboxCreate::default(), Some("mine")).await.unwrap_err();
    assert_eq!((error.code(), seen.lock().await.len()), ("transport_error", 4));

    let full = Step::Answer("503", "", r#"{"error":"full","code":"capacity_exceeded","retryable":true}"#);
    let (url, seen) = server(vec![full]).await;
    let error = client(url).sandbox_create(&SandboxCreate::default(), Some("mine")).await.unwrap_err();
    assert_eq!((error.code(), seen.lock().await.len()), ("capacity_exceeded", 1));
}

#[tokio::test]
async fn a_server_that_stays_silent_is_given_up_on() {
    let (url, _) = server(vec![Step::Silence]).await;
    let config = Config {
        api_key: Some("k".to_owned()),
        base_url: url,
        request_timeout: Some(Duration::from_millis(20)),
        retry: RetryPolicy::default(),
    };
    let error = Client::new(config).unwrap().sandbox_get("sb_1").await.unwrap_err();
    assert_eq!(error.code(), "timeout");
    assert!(error.message().contains("within 0.02 seconds"), "{error}");
}

#[tokio::test]
async fn a_command_with_a_time_beyond_all_bounds_is_the_servers_to_refuse() {
    let refused = r#"{"error":"timeout_secs must be at most 86400","code":"invalid_request"}"#;
    for seconds in [f64::MAX, -1.0, 0.0] {
        let (url, _) = server(vec![Step::Answer("400", "", refused)]).await;
        let request =
            ExecRequest { command: "true".to_owned(), timeout_secs: Some(seconds), ..ExecRequest::default() };
        assert_eq!(client(url).exec("sb_1", &request).await.unwrap_err().code(), "invalid_request");
    }
}

use std::collections::BTreeMap;

use hmac::{Hmac, KeyInit as _, Mac as _};
use nullspace_tests_api::Harness;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

const WEBHOOKS: &str = "/v1/lifecycle/webhooks";
const SECRET: &str = "a-secret-of-some-length";

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

fn hook() -> Value {
    json!({"url": "https://example.com/hook", "operations": ["create", "destroy"], "signing_secret": SECRET})
}

async fn patch(server: &Harness, path: &str, body: Value) -> nullspace_tests_api::Answer {
    server.send(server.request(Method::PATCH, path).json(&body)).await
}

#[tokio::test]
async fn a_webhook_is_made_listed_changed_and_deleted_and_never_shows_its_secret() {
    let server = Harness::start().await;
    let made = server.post(WEBHOOKS, hook()).await.expect(201);
    assert_eq!((&made["enabled"], &made["has_signing_secret"]), (&json!(true), &json!(true)));
    let path = format!("{WEBHOOKS}/{}", text(&made["id"]));
    assert_eq!(server.get(&path).await.expect(200), made);
    let second = server.post(WEBHOOKS, hook()).await.expect(201);
    assert_eq!(server.get(WEBHOOKS).await.expect(200), json!([made, second]));
    assert_eq!(patch(&server, &path, json!({})).await.expect(200)["url"], made["url"]);
    let changed = json!({"url": "https://example.org/", "operations": ["fork"], "enabled": false,
        "signing_secret": "another-secret-of-some-length"});
    let changed = patch(&server, &path, changed).await.expect(200);
    assert_eq!((&changed["url"], &changed["operations"]), (&json!("https://example.org/"), &json!(["fork"])));
    assert_eq!((&changed["enabled"], &changed["id"]), (&json!(false), &made["id"]));
    assert_eq!(server.get(&format!("{path}/deliveries")).await.expect(200), json!([]));
    for said in
        [made.to_string(), changed.to_string(), server.get(WEBHOOKS).await.body.to_string(), server.log()]
    {
        assert!(!said.contains("of-some-length"), "{said}");
    }
    server.delete(&path).await.expect(204);
    for gone in [server.get(&path).await, server.delete(&path).await, patch(&server, &path, json!({})).await]
    {
        gone.refused(404, "webhook_not_found");
    }
}

#[tokio::test]
async fn webhooks_out_of_the_rules_are_refused_and_not_made() {
    let server = Harness::start().await;
    for (field, value) in [
        ("url", json!(null)),
        ("url", json!("ftp://example.com/")),
        ("url", json!("example.com")),
        ("url", json!("https://user:pass@example.com/")),
        ("url", json!("https://example.com/#x")),
        ("url", json!("http://127.0.0.1/")),
        ("url", json!("http://[::1]/")),
        ("url", json!("http://10.0.0.1/")),
        ("url", json!(format!("https://example.com/{}", "x".repeat(2048)))),
        ("operations", json!([])),
        ("operations", json!(["nothing"])),
        ("operations", json!(null)),
        ("signing_secret", json!("short")),
        ("signing_secret", json!("x".repeat(257))),
        ("signing_secret", json!("with a\ttab in its midst")),
        ("signing_secret", json!(null)),
        ("enabled", json!("yes")),
    ] {
        let mut body = hook();
        body[field] = value.clone();
        let message = server.post(WEBHOOKS, body).await.refused(400, "invalid_request");
        assert!(message.contains(field), "{field} {value}: {message}");
    }
    assert_eq!(server.get(WEBHOOKS).await.expect(200), json!([]));
    let path = format!("{WEBHOOKS}/{}", text(&server.post(WEBHOOKS, hook()).await.expect(201)["id"]));
    patch(&server, &path, json!({"operations": []})).await.refused(400, "invalid_request");
    for query in ["limit=0", "limit=501", "offset=-1"] {
        let path = format!("{path}/deliveries?{query}");
        server.get(&path).await.refused(400, "invalid_request");
    }
}

#[tokio::test]
async fn a_foreign_webhook_is_like_one_that_does_not_exist() {
    let mut server = Harness::start().await;
    let made = server.post(WEBHOOKS, hook()).await.expect(201);
    let mine = std::mem::take(&mut server.key);
    server.key = server.key_of("other").await;
    assert_eq!(server.get(WEBHOOKS).await.expect(200), json!([]));
    let missing = "wh_00000000000070008000000000000000".to_owned();
    let delivery = "whd_00000000000070008000000000000000";
    for id in [text(&made["id"]), missing, "wh_x".into()] {
        let path = format!("{WEBHOOKS}/{id}");
        for answer in [
            server.get(&path).await,
            patch(&server, &path, json!({"enabled": false})).await,
            server.delete(&path).await,
            server.get(&format!("{path}/deliveries")).await,
            server.get(&format!("{path}/deliveries/{delivery}")).await,
            server.act(&format!("{path}/deliveries/{delivery}/redeliver")).await,
        ] {
            assert_eq!(answer.refused(404, "webhook_not_found"), format!("webhook {id} does not exist"));
        }
    }
    server.key = mine;
    let path = format!("{WEBHOOKS}/{}", text(&made["id"]));
    assert_eq!(server.get(&path).await.expect(200), made);
    server.get(&format!("{path}/deliveries/{delivery}")).await.refused(404, "delivery_not_found");
    server.act(&format!("{path}/deliveries/{delivery}/redeliver")).await.refused(404, "delivery_not_found");
}

/// Takes one request: its headers and its body. Answers this status.
async fn receive(listener: &TcpListener, status: u16) -> (BTreeMap<String, String>, Vec<u8>) {
    let (stream, _) = listener.accept().await.expect("a delivery comes");
    let mut stream = BufReader::new(stream);
    let mut headers = BTreeMap::new();
    let mut line = String::new();
    while stream.read_line(&mut line).await.expect("a head comes") > 2 {
        if let Some((name, value)) = line.trim_end().split_once(": ") {
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        line.clear();
    }
    let mut body = vec![0; headers["content-length"].parse().expect("a length")];
    stream.read_exact(&mut body).await.expect("a body comes");
    let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(answer.as_bytes()).await.expect("the answer is taken");
    (headers, body)
}

#[tokio::test]
async fn an_event_is_delivered_signed_and_can_be_delivered_again() {
    let mut config = nullspace_server::Config::default();
    config.webhooks.allow_private = true;
    let server = Harness::with(config).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/hook", listener.local_addr().expect("it has an address"));
    let mut body = hook();
    body["url"] = json!(url);
    let made = server.post(WEBHOOKS, body).await.expect(201);
    let id = server.sandbox().await;
    let (headers, body) = receive(&listener, 200).await;
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length will do");
    mac.update(format!("{}.", headers["x-nullspace-timestamp"]).as_bytes());
    mac.update(&body);
    let digest: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(headers["x-nullspace-signature"], format!("v1={digest}"));
    assert_eq!(headers["x-nullspace-signature-version"], "v1");
    let said: Value = serde_json::from_slice(&body).expect("it is JSON");
    let event = server.get(&format!("/v1/sandboxes/{id}/lifecycle")).await.expect(200)["events"][0].clone();
    assert_eq!(said["event"], event);

    let path = format!("{WEBHOOKS}/{}", text(&made["id"]));
    let delivered = |count: u64| {
        let (server, path) = (&server, &path);
        server.until(move || async move {
            let listed = server.get(&format!("{path}/deliveries")).await.expect(200);
            let done = listed[0]["delivery_status"] == "succeeded" && listed[0]["attempt_count"] == count;
            done.then_some(listed)
        })
    };
    let listed = delivered(1).await;
    assert_eq!(listed.as_array().expect("a list").len(), 1);
    assert_eq!((&listed[0]["id"], &listed[0]["event_id"]), (&said["id"], &event["id"]));
    assert_eq!(headers["x-nullspace-delivery-id"], text(&listed[0]["id"]));
    let one = format!("{path}/deliveries/{}", text(&listed[0]["id"]));
    let detail = server.get(&one).await.expect(200);
    assert_eq!((&detail["delivery"], &detail["event"]), (&listed[0], &event));
    assert_eq!(detail["attempts"][0]["response_status"], 200);

    let again = server.act(&format!("{one}/redeliver")).await.expect(200);
    assert_eq!(again["delivery_status"], "queued");
    let (_, body) = receive(&listener, 204).await;
    assert_eq!(serde_json::from_slice::<Value>(&body).expect("it is JSON")["event"], event);
    assert_eq!(delivered(1).await[0]["last_response_status"], 204, "it is counted from new");
    assert_eq!(server.get(&path).await.expect(200)["last_delivery_status"], "succeeded");
}

#[tokio::test]
async fn a_name_that_leads_into_a_private_network_is_not_called() {
    let server = Harness::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let mut body = hook();
    body["url"] = json!(format!("http://localhost:{}/", listener.local_addr().expect("it has one").port()));
    let made = server.post(WEBHOOKS, body).await.expect(201);
    server.sandbox().await;
    let path = format!("{WEBHOOKS}/{}/deliveries", text(&made["id"]));
    let delivery = server
        .until(|| async {
            let listed = server.get(&path).await.expect(200);
            (listed[0]["attempt_count"] == 1).then(|| text(&listed[0]["id"]))
        })
        .await;
    let detail = server.get(&format!("{path}/{delivery}")).await.expect(200);
    assert_eq!(detail["attempts"][0]["error_code"], "address_refused");
    assert_eq!(detail["delivery"]["delivery_status"], "queued");
    let called = tokio::time::timeout(std::time::Duration::ZERO, listener.accept()).await;
    assert!(called.is_err(), "it was called");
}

//! Ports of sandboxes through the real gateway at local addresses, and what the guest sees of it.

use nullspace_tests_api::{Answer, Harness};
use reqwest::Method;
use reqwest::header::SET_COOKIE;
use serde_json::{Value, json};

/// A server with a sandbox in which something listens on 8080.
async fn served(more: Value) -> (Harness, Value) {
    let server = Harness::start().await;
    server.host.serve(8080);
    let sandbox = server.post("/v1/sandboxes", more).await.expect(201);
    (server, sandbox)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn path(sandbox: &Value, below: &str) -> String {
    format!("/v1/sandboxes/{}/{below}", text(&sandbox["id"]))
}

async fn get(server: &Harness, url: &str) -> Answer {
    server.send(server.bare(Method::GET, url)).await
}

#[tokio::test]
async fn a_port_has_one_address_that_outlives_the_server_and_not_the_sandbox() {
    let (mut server, sandbox) = served(json!({})).await;
    let host = server.post(&path(&sandbox, "host"), json!({"port": 8080})).await.expect(200);
    let url = text(&host["url"]).to_owned();
    assert_eq!(url, format!("http://{}", text(&host["host"])));
    let seen = get(&server, &format!("{url}/a?b=c")).await.expect(200);
    assert!(text(&seen).starts_with("GET /a?b=c HTTP/1.1\r\n"), "{seen}");
    assert_eq!(server.post(&path(&sandbox, "host"), json!({"port": 8080})).await.expect(200), host);
    server.stop().await;
    server.start_again().await;
    get(&server, &url).await.expect(200);
    server.kill().await;
    server.start_again().await;
    get(&server, &url).await.expect(200);
    let other = server.post(&path(&sandbox, "host"), json!({"port": 4242})).await.expect(200);
    assert_ne!(other["url"], host["url"]);
    get(&server, text(&other["url"])).await.refused(502, "preview_service_not_ready");
    server.post(&path(&sandbox, "host"), json!({"port": 22})).await.refused(400, "unsupported_preview_port");
    server.delete(&path(&sandbox, "")[..path(&sandbox, "").len() - 1]).await.expect(200);
    assert!(server.bare(Method::GET, &url).send().await.is_err(), "the address is given back");
}

#[tokio::test]
async fn a_preview_url_opens_its_port_until_it_is_revoked_and_the_guest_sees_no_token() {
    let (server, sandbox) = served(json!({})).await;
    let made = server.get(&path(&sandbox, "ports/8080/preview-url")).await.expect(200);
    let url = text(&made["url"]);
    let seen = get(&server, &format!("{url}&x=1")).await;
    let cookie = seen.headers[SET_COOKIE].to_str().unwrap().to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
    let seen = seen.expect(200);
    assert!(text(&seen).starts_with("GET /?x=1 HTTP/1.1\r\n") && !text(&seen).contains("nsp_"), "{seen}");
    // A token that is shown counts on a public sandbox too.
    let flipped = format!("{}{}", &url[..url.len() - 1], if url.ends_with('A') { 'B' } else { 'A' });
    get(&server, &flipped).await.refused(401, "edge_token_invalid");
    let websocket = text(&made["websocket_url"]).replacen("ws:", "http:", 1);
    get(&server, &websocket).await.refused(401, "edge_token_scope_mismatch");
    let listed = server.get(&path(&sandbox, "preview-urls?port=8080")).await.expect(200);
    let (grant, uses) = (&listed["items"][0]["id"], &listed["items"][0]["http_request_count"]);
    assert_eq!((grant, uses), (&made["grant"]["id"], &json!(1)));
    let revoke = path(&sandbox, &format!("preview-urls/{}", text(&made["grant"]["id"])));
    assert_eq!(server.delete(&revoke).await.expect(200)["grant"]["status"], "revoked");
    get(&server, url).await.refused(401, "preview_grant_revoked");
}

#[tokio::test]
async fn private_ports_need_the_token_that_only_the_create_tells() {
    let (server, sandbox) = served(json!({"network": {"allow_public_traffic": false}})).await;
    let host = server.post(&path(&sandbox, "host"), json!({"port": 8080})).await.expect(200);
    let url = text(&host["url"]);
    get(&server, url).await.refused(401, "edge_token_missing");
    let token = text(&sandbox["traffic_access_token"]);
    let with = |url: &str, token: &str| {
        server.bare(Method::GET, url).header("x-nullspace-traffic-access-token", token)
    };
    let seen = server.send(with(url, token)).await.expect(200);
    assert!(!text(&seen).contains("nst_"), "{seen}");
    server.send(with(url, "nst_x")).await.refused(401, "edge_token_invalid");
    // A preview URL is no way around it.
    let made = server.get(&path(&sandbox, "ports/8080/preview-url")).await.expect(200);
    get(&server, text(&made["url"])).await.refused(401, "edge_token_missing");
    server.send(with(text(&made["url"]), token)).await.expect(200);
    let id = text(&sandbox["id"]);
    for shown in [server.get(&format!("/v1/sandboxes/{id}")).await, server.get("/v1/sandboxes?limit=1").await]
    {
        assert!(!shown.body.to_string().contains("nst_"), "{}", shown.body);
    }
    let change = server.request(Method::PATCH, &path(&sandbox, "network"));
    server.send(change.json(&json!({"allow_public_traffic": true}))).await.expect(200);
    get(&server, url).await.expect(200);
}

#[tokio::test]
async fn the_first_request_wakes_a_sandbox_that_may_be_woken() {
    let more = json!({"auto_resume": true, "timeout_action": "hibernate"});
    let (server, sandbox) = served(more).await;
    let asleep = server.post("/v1/sandboxes", json!({})).await.expect(201);
    let mut urls = Vec::new();
    for sandbox in [&sandbox, &asleep] {
        let host = server.post(&path(sandbox, "host"), json!({"port": 8080})).await.expect(200);
        urls.push(text(&host["url"]).to_owned());
        server.act(&path(sandbox, "hibernate")).await.expect(200);
    }
    let made = server.host.made();
    let gets = (0..20).map(|_| get(&server, &urls[0]));
    assert!(futures::future::join_all(gets).await.iter().all(|answer| answer.status == 200));
    assert_eq!(server.host.made(), made + 1);
    get(&server, &urls[1]).await.refused(503, "sandbox_paused_auto_resume_disabled");
}

#[tokio::test]
async fn a_key_is_certified_for_a_sandbox_and_told_where_to_log_in() {
    let (server, sandbox) = served(json!({})).await;
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE+xfoatj9ISz4RzuxnvcDd4Af/CkJhRZHS3ScF8BDnE me";
    let access = server
        .post(&path(&sandbox, "ssh-access"), json!({"public_key": key, "expires_in_minutes": 5}))
        .await
        .expect(200);
    assert_eq!((&access["user"], &access["host"]), (&json!("root"), &json!("127.0.0.1")));
    assert!(text(&access["certificate"]).starts_with("ssh-ed25519-cert-v01@openssh.com "), "{access}");
    assert_eq!(access["host_key"], access["relay_host_key"]);
    let relay = (text(&access["host"]), u16::try_from(access["port"].as_u64().unwrap()).unwrap());
    let mut greeting = [0; 8];
    let mut stream = tokio::net::TcpStream::connect(relay).await.unwrap();
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut greeting).await.unwrap();
    assert_eq!(&greeting, b"SSH-2.0-");
    for (body, says) in [
        (json!({}), "public_key"),
        (json!({"public_key": "x"}), "public_key"),
        (json!({"public_key": key, "expires_in_minutes": 61}), "expires_in_minutes"),
        (json!({"public_key": key, "expires_in_minutes": 1, "ttl_seconds": 60}), "ttl_seconds"),
    ] {
        let message = server.post(&path(&sandbox, "ssh-access"), body).await.refused(400, "invalid_request");
        assert!(message.contains(says), "{message}");
    }
}

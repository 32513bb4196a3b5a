use nullspace_tests_api::Harness;
use reqwest::Method;
use serde_json::{Value, json};

/// Asks for a URL and gives it back.
async fn sign(server: &Harness, id: &str, verb: &str, more: Value) -> String {
    let mut body = json!({"path": "/tmp/a b&c"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let answer = server.post(&format!("/v1/sandboxes/{id}/files/{verb}-url"), body).await.expect(200);
    answer["url"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_signed_url_works_without_a_key_for_what_it_was_signed_for_and_nothing_else() {
    let server = Harness::start().await;
    let (id, other) = (server.sandbox().await, server.sandbox().await);
    let up = sign(&server, &id, "upload", json!({})).await;
    let down = sign(&server, &id, "download", json!({})).await;
    assert!(up.starts_with("http://127.0.0.1:"), "{up}");
    server.send(server.bare(Method::GET, &down)).await.refused(404, "file_not_found");
    server.send(server.bare(Method::PUT, &up).body("by URL")).await.expect(204);
    assert_eq!(server.send(server.bare(Method::GET, &down)).await.expect(200), json!("by URL"));
    assert_eq!(server.bare(Method::HEAD, &down).send().await.unwrap().status(), 200);

    let expires = down.split("expires=").nth(1).unwrap().split('&').next().unwrap();
    let later = (expires.parse::<i64>().unwrap() + 1).to_string();
    for (method, url) in [
        (Method::PUT, down.clone()),
        (Method::POST, down.clone()),
        (Method::GET, up.clone()),
        (Method::GET, down.replace("/tmp", "/etc").replace("%2Ftmp", "%2Fetc")),
        (Method::GET, down.replace(&id, &other)),
        (Method::GET, down.replace(expires, &later)),
        (Method::GET, format!("{down}&user=root")),
        (Method::GET, format!("{down}&path=/etc/passwd")),
        (Method::GET, down[..down.len() - 1].to_owned()),
    ] {
        assert_ne!((&method, &url), (&Method::GET, &down));
        server.send(server.bare(method, &url)).await.refused(401, "edge_token_invalid");
    }
    // It opens that one route and no other.
    let elsewhere = down.replace("/file?", "/files?");
    server.send(server.bare(Method::GET, &elsewhere)).await.refused(401, "unauthorized");
}

#[tokio::test]
async fn a_signed_url_ends_with_its_time_and_with_the_key_that_signed_it_and_outlives_the_server() {
    let mut server = Harness::start().await;
    let id = server.sandbox().await;
    let write = json!({"path": "/tmp/a b&c", "content": "x"});
    server.post(&format!("/v1/sandboxes/{id}/files/write"), write).await.expect(200);
    let short = sign(&server, &id, "download", json!({"expires_in_secs": 1})).await;
    let long = sign(&server, &id, "download", json!({"user": "user"})).await;
    server
        .until(|| async {
            let answer = server.send(server.bare(Method::GET, &short)).await;
            (answer.status != 200).then(|| answer.refused(401, "edge_token_expired"))
        })
        .await;
    let authority = |url: &str| url.split('/').nth(2).unwrap().to_owned();
    server.stop().await;
    server.start_again().await;
    let next = sign(&server, &id, "download", json!({})).await;
    let long = long.replace(&authority(&long), &authority(&next));
    server.send(server.bare(Method::GET, &long)).await.expect(200);

    let store = server.store().await;
    let key = store.key_list(None).await.unwrap().remove(0);
    nullspace_auth::keys::revoke(&*store, key.id).await.unwrap();
    store.close().await;
    server.send(server.bare(Method::GET, &long)).await.refused(401, "edge_token_invalid");
}

#[tokio::test]
async fn urls_are_signed_for_ones_own_sandbox_within_bounds_and_begin_as_configured() {
    let mut config = nullspace_server::Config::default();
    config.server.public_url = Some("https://example.com/nullspace/".into());
    let mut server = Harness::with(config).await;
    let id = server.sandbox().await;
    let url = sign(&server, &id, "upload", json!({})).await;
    let begin = format!("https://example.com/nullspace/v1/sandboxes/{id}/file?path=");
    assert!(url.starts_with(&begin), "{url}");
    let path = format!("/v1/sandboxes/{id}/files/download-url");
    for (body, says) in [
        (json!({"path": "/a", "expires_in_secs": 0}), "expires_in_secs must be between 1 and 86400, got 0"),
        (json!({"path": "/a", "expires_in_secs": 86401}), "got 86401"),
        (json!({"path": "/workspace/.nullspace/x"}), "path must not lie in"),
    ] {
        let message = server.post(&path, body).await.refused(400, "invalid_request");
        assert!(message.contains(says), "{message}");
    }
    server.key = server.key_of("other").await;
    server.post(&path, json!({"path": "/a"})).await.refused(404, "sandbox_not_found");
}

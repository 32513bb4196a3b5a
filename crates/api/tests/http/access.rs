//! Ports, grants, SSH, networks, secrets: their routes.

use serde_json::json;

use crate::ask;
use crate::fake::Fake;

#[tokio::test]
async fn successes_have_the_statuses_of_the_contract_and_what_may_be_empty_needs_no_body() {
    let fake = Fake::new();
    let sandbox = format!("/v1/sandboxes/{}", fake.id);
    let port = format!("{sandbox}/ports/8080");
    for (method, path, body, status) in [
        ("POST", format!("{sandbox}/host"), "{\"port\":8080}", 200),
        ("GET", format!("{port}/preview-url"), "", 200),
        ("POST", format!("{port}/signed-preview-url"), "", 200),
        ("POST", format!("{port}/signed-preview-url"), "{}", 200),
        ("POST", format!("{port}/preview-proxy-target"), "", 200),
        ("POST", format!("{port}/preview-proxy-target"), "{}", 200),
        ("POST", format!("{port}/readiness"), "", 200),
        ("GET", format!("{sandbox}/preview-urls"), "", 200),
        ("GET", format!("{sandbox}/preview-urls?port=8080"), "", 200),
        ("DELETE", format!("{sandbox}/preview-urls/{}", fake.grant().id), "", 200),
        ("POST", format!("{sandbox}/ssh-access"), "{\"public_key\":\"k\"}", 200),
        ("GET", format!("{sandbox}/network"), "", 200),
        ("PATCH", format!("{sandbox}/network"), "{}", 200),
        ("GET", format!("{sandbox}/network/denied?offset=0&limit=1"), "", 200),
        ("POST", "/v1/secrets".into(), "{\"name\":\"a\",\"value\":\"b\"}", 201),
        ("GET", "/v1/secrets".into(), "", 200),
        ("DELETE", "/v1/secrets/token".into(), "", 204),
    ] {
        let answer = ask(&fake, method, &path, body).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {}", answer.text);
        assert_eq!(answer.text.is_empty(), status == 204, "{method} {path}: {}", answer.text);
    }
}

#[tokio::test]
async fn a_port_comes_as_the_path_has_it_and_is_judged_behind_the_routes() {
    let fake = Fake::new();
    for (port, shown) in
        [("0", "0"), ("65536", "65536"), ("-1", "-1"), ("8080x", "8080x"), ("8%2080", "8 80")]
    {
        let path = format!("/v1/sandboxes/{}/ports/{port}/preview-url", fake.id);
        let (status, code, message) = ask(&fake, "GET", &path, "").await.error();
        assert_eq!((status, code.as_str()), (400, "invalid_request"), "{port}");
        assert!(message.ends_with(&format!("got {shown}")), "{message}");
    }
    let path = format!("/v1/sandboxes/{}/host", fake.id);
    let (status, code, _) = ask(&fake, "POST", &path, "{\"port\":22}").await.error();
    assert_eq!((status, code.as_str()), (400, "unsupported_preview_port"));
    let (_, _, message) = ask(&fake, "POST", &path, "{\"port\":\"22\"}").await.error();
    assert_eq!(message, "port: invalid type: string \"22\", expected i64");
}

#[tokio::test]
async fn what_has_tokens_in_it_is_kept_by_nobody_on_the_way() {
    let fake = Fake::new();
    let port = format!("/v1/sandboxes/{}/ports/8080", fake.id);
    for (method, what) in
        [("GET", "preview-url"), ("POST", "signed-preview-url"), ("POST", "preview-proxy-target")]
    {
        let answer = ask(&fake, method, &format!("{port}/{what}"), "").await;
        assert_eq!(answer.headers["cache-control"], "no-store", "{what}");
    }
}

#[tokio::test]
async fn objects_have_just_the_fields_of_the_contract() {
    let fake = Fake::new();
    let sandbox = format!("/v1/sandboxes/{}", fake.id);
    let fields = async |method: &str, path: &str, body: &str| {
        let answer = ask(&fake, method, &format!("{sandbox}{path}"), body.to_owned()).await.json();
        answer.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ")
    };
    // In the order of the alphabet.
    assert_eq!(fields("POST", "/host", "{\"port\":8080}").await, "host url websocket_url");
    assert_eq!(
        fields("GET", "/ports/8080/preview-url", "").await,
        "access_token_expires_at access_token_transport grant url websocket_url"
    );
    assert_eq!(
        fields("POST", "/ports/8080/readiness", "").await,
        "attempts checked_at code elapsed_ms kind port ready route_ready sandbox_id service_ready"
    );
    assert_eq!(
        fields("GET", "/network", "").await,
        "allow_domains allow_out allow_public_traffic deny_domains deny_out inject internet_access limits \
         mask_request_host"
    );
    let revoked =
        ask(&fake, "DELETE", &format!("{sandbox}/preview-urls/{}", fake.grant().id), "").await.json();
    let grant = json!({
        "id": fake.grant().id, "sandbox_id": fake.id, "port": 8080, "auth_mode": "direct",
        "bootstrap_transport": "query", "status": "active", "token_kinds": ["http_port", "websocket_port"],
        "principal_kind": "user", "principal_id": null, "issued_at": "1970-01-01T00:00:00Z",
        "expires_at": "1970-01-01T00:00:00Z", "revoked_at": null, "first_used_at": null, "last_used_at": null,
        "use_count": 0, "http_request_count": 0, "websocket_connection_count": 0, "bytes_in_count": 0,
        "bytes_out_count": 0, "last_error_code": null, "last_error_at": null, "disabled_at": null,
        "created_at": "1970-01-01T00:00:00Z", "updated_at": "1970-01-01T00:00:00Z",
    });
    assert_eq!(revoked, json!({ "success": true, "grant": grant }));
}

#[tokio::test]
async fn what_is_no_grant_and_no_secret_answers_like_one_that_nothing_has() {
    let fake = Fake::new();
    for grant in ["pvg_1", "pvg_00000000000000000000000000000000", "a%2Fb"] {
        let path = format!("/v1/sandboxes/{}/preview-urls/{grant}", fake.id);
        let (status, code, _) = ask(&fake, "DELETE", &path, "").await.error();
        assert_eq!((status, code.as_str()), (404, "preview_grant_not_found"), "{grant}");
    }
    for name in ["nothing", "%ff", "a%2Fb"] {
        let (status, code, _) = ask(&fake, "DELETE", &format!("/v1/secrets/{name}"), "").await.error();
        assert_eq!((status, code.as_str()), (404, "secret_not_found"), "{name}");
    }
}

#[tokio::test]
async fn a_change_to_the_network_keeps_apart_what_is_null_and_what_is_absent() {
    let fake = Fake::new();
    let path = format!("/v1/sandboxes/{}/network", fake.id);
    ask(&fake, "PATCH", &path, "{\"deny_out\":null,\"allow_out\":[\"192.0.2.0/24\"]}").await;
    let asked = fake.asked.lock().unwrap().last().unwrap().replace('\\', "");
    assert_eq!(asked, "\"{\"allow_out\":[\"192.0.2.0/24\"],\"deny_out\":null}\"");
    let (status, _, message) = ask(&fake, "PATCH", &path, "[]").await.error();
    assert_eq!((status, message.as_str()), (400, "the body must be a JSON object"));
    // The other form of the same is not built.
    let path = format!("/v1/sandboxes/{}/egress", fake.id);
    assert_eq!(ask(&fake, "PATCH", &path, "{}").await.error().0, 501);
}

//! Ports as others reach them: who is let in, what that wakes, and what cuts it.

use futures::future::join_all;
use nullspace_auth::EdgeTokens;
use nullspace_edge_api::{Admission, Admitted, Credentials, Destination, Edge, Refusal, Traffic};
use nullspace_types::id::PreviewGrantId;
use nullspace_types::preview::{
    GrantStatus, HostRequest, PreviewGrantList, PreviewGrantQuery, PreviewReadiness, PreviewTransport,
    PreviewUrl, ProxyTargetRequest, ReadinessRequest,
};
use tokio_util::sync::CancellationToken;

use super::*;

const PORT: u16 = 8000;
use PreviewTransport::{Http, Websocket};

fn token(url: &str) -> String {
    url.split_once("edge_token=").unwrap().1.to_owned()
}

fn edge(token: &str) -> Credentials {
    Credentials { edge_token: Some(token.to_owned()), ..Credentials::default() }
}

fn proxy(token: &str) -> Credentials {
    Credentials { proxy_token: Some(token.to_owned()), proxy_transport: true, ..Credentials::default() }
}

fn cookie(token: &str) -> Credentials {
    Credentials { cookie: Some(token.to_owned()), ..Credentials::default() }
}

fn traffic(token: Option<&str>) -> Credentials {
    Credentials { traffic_token: token.map(str::to_owned), ..Credentials::default() }
}

/// The same with one character changed.
fn flipped(token: &str) -> String {
    let mut text = token.to_owned();
    let at = text.len() - 9;
    let other = if text.as_bytes()[at] == b'A' { "B" } else { "A" };
    text.replace_range(at..=at, other);
    text
}

fn codes(answer: Result<Admitted, Refusal>) -> Code {
    answer.expect_err("it is refused").error.code
}

async fn cut(token: &CancellationToken) {
    tokio::time::timeout(Duration::from_secs(20), token.cancelled()).await.expect("it is cut");
}

impl World {
    async fn label(&self, id: SandboxId) -> String {
        EdgeTokens::load(&*self.store).await.unwrap().label(id)
    }

    async fn url(&self, id: SandboxId, port: u16) -> PreviewUrl {
        self.control.preview_url(self.caller, id, port.to_string()).await.unwrap()
    }

    async fn enter(
        &self,
        id: SandboxId,
        port: u16,
        transport: PreviewTransport,
        credentials: Credentials,
    ) -> Result<Admitted, Refusal> {
        let destination = Destination::Host { port, label: self.label(id).await };
        self.control.admit(Admission { destination, transport, credentials }).await
    }

    async fn enter_local(&self, id: SandboxId, credentials: Credentials) -> Result<Admitted, Refusal> {
        let destination = Destination::Local { port: PORT, sandbox_id: id };
        self.control.admit(Admission { destination, transport: Http, credentials }).await
    }

    async fn grants(&self, id: SandboxId) -> PreviewGrantList {
        let query = PreviewGrantQuery::default();
        self.control.preview_grant_list(self.caller, id, query).await.unwrap()
    }

    async fn revoke(&self, id: SandboxId, grant: PreviewGrantId) {
        assert!(self.control.preview_grant_revoke(self.caller, id, grant).await.unwrap().success);
    }

    async fn host(&self, id: SandboxId, port: i64) -> Result<String> {
        let request = HostRequest { port: Some(port) };
        Ok(self.control.preview_host(self.caller, id, request).await?.host)
    }

    async fn ready(&self, id: SandboxId, port: u16, body: Value) -> PreviewReadiness {
        let request: ReadinessRequest = serde_json::from_value(body).unwrap();
        self.control.preview_readiness(self.caller, id, port.to_string(), request).await.unwrap()
    }
}

#[tokio::test]
async fn a_token_is_good_for_its_sandbox_port_kind_and_place_and_nothing_else() {
    let world = World::start().await;
    let network = json!({"network": {"mask_request_host": "localhost:${PORT}"}});
    let id = world.create(network).await.unwrap().id;
    let other = world.create(json!({})).await.unwrap().id;
    let url = world.url(id, PORT).await;
    let (http, websocket) = (token(&url.url), token(&url.websocket_url));
    assert!(url.websocket_url.starts_with("ws://127.0.0.1:2") && http != websocket);
    let target = ProxyTargetRequest::default();
    let target =
        world.control.preview_proxy_target(world.caller, id, PORT.to_string(), target).await.unwrap();
    assert!(target.http_url.unwrap().ends_with("/?__ns_preview_transport=header"));
    let (proxy_http, proxy_websocket) = (target.http_token.unwrap(), target.websocket_token.unwrap());

    let passed = world.enter(id, PORT, Http, edge(&http)).await.unwrap();
    assert_eq!((passed.sandbox_id, passed.port, passed.grant), (id, PORT, Some(url.grant.id)));
    assert_eq!(passed.host.as_deref(), Some("localhost:8000"));
    let (given, left) = passed.cookie.unwrap();
    assert!((890..=900).contains(&left.as_secs()), "{left:?}");
    let passed = world.enter(id, PORT, Http, cookie(&given)).await.unwrap();
    assert!(passed.cookie.is_none() && passed.grant == Some(url.grant.id));
    let passed = world.enter(id, PORT, Websocket, edge(&websocket)).await.unwrap();
    assert!(passed.cookie.is_none() && passed.grant == Some(url.grant.id));
    world.enter(id, PORT, Http, proxy(&proxy_http)).await.unwrap();
    world.enter(id, PORT, Websocket, proxy(&proxy_websocket)).await.unwrap();
    assert_eq!(world.enter(id, PORT, Http, Credentials::default()).await.unwrap().grant, None);

    let unknown = {
        let gone = world.create(json!({})).await.unwrap().id;
        let grant = world.url(gone, PORT).await;
        (gone, token(&grant.url))
    };
    use Code::{
        EdgeTokenInvalid as Invalid, EdgeTokenScopeMismatch as Mismatch,
        PreviewProxyTokenInvalid as ProxyInvalid, PreviewProxyTokenScopeMismatch as ProxyMismatch,
    };
    let marked = Credentials { proxy_transport: true, ..Credentials::default() };
    for (what, to, port, transport, credentials, expected) in [
        ("wrong port", id, 8001, Http, edge(&http), Mismatch),
        ("wrong sandbox", other, PORT, Http, edge(&http), Mismatch),
        ("wrong kind", id, PORT, Websocket, edge(&http), Mismatch),
        ("wrong kind", id, PORT, Http, edge(&websocket), Mismatch),
        ("flipped", id, PORT, Http, edge(&flipped(&http)), Invalid),
        ("not a token", id, PORT, Http, edge("nsp_"), Invalid),
        ("a cookie in the query", id, PORT, Http, edge(&given), Mismatch),
        ("a token as cookie", id, PORT, Http, cookie(&http), Mismatch),
        ("another sandbox's cookie", other, PORT, Http, cookie(&given), Mismatch),
        ("a header's in the query", id, PORT, Http, edge(&proxy_http), Mismatch),
        ("a query's in the header", id, PORT, Http, proxy(&http), ProxyMismatch),
        ("wrong kind", id, PORT, Websocket, proxy(&proxy_http), ProxyMismatch),
        ("flipped", id, PORT, Http, proxy(&flipped(&proxy_http)), ProxyInvalid),
        ("no header", id, PORT, Http, marked, Code::PreviewProxyTokenMissing),
        ("a traffic token", id, PORT, Http, traffic(Some("nst_x")), Invalid),
        ("a reserved port", id, 22, Http, Credentials::default(), Code::UnsupportedPreviewPort),
        ("a sandbox's token at another", id, PORT, Http, edge(&unknown.1), Mismatch),
    ] {
        let answer = world.enter(to, port, transport, credentials).await;
        assert_eq!(codes(answer), expected, "{what}");
    }
    let nowhere = Destination::Host { port: PORT, label: "a".repeat(26) };
    let stray = Admission { destination: nowhere, transport: Http, credentials: edge(&http) };
    assert_eq!(codes(world.control.admit(stray).await), Code::SandboxNotFound);
    // A browser sends what whoever had the address before let it keep.
    world.enter_local(other, cookie(&given)).await.unwrap();
    assert_eq!(codes(world.enter_local(other, edge(&http)).await), Mismatch);

    world.control.sandbox_destroy(world.tenant, unknown.0).await.unwrap();
    let ended = world.enter(unknown.0, PORT, Http, edge(&unknown.1)).await;
    assert_eq!(codes(ended), Code::PreviewGrantDisabled);
    let bare = world.enter(unknown.0, PORT, Http, Credentials::default()).await;
    assert_eq!(codes(bare), Code::SandboxNotFound);
    assert_eq!(world.grants(unknown.0).await.items[0].status, GrantStatus::Disabled);
}

#[tokio::test]
async fn a_private_sandbox_needs_its_traffic_token_whatever_else_is_shown() {
    let world = World::start().await;
    let body = json!({"network": {"allow_public_traffic": false}});
    let key = |body: Value| {
        let request = serde_json::from_value(body).unwrap();
        world.control.sandbox_create(world.tenant, Some("k".into()), request)
    };
    let made = key(body.clone()).await.unwrap();
    let id = made.id;
    let secret = made.traffic_access_token.clone().unwrap();
    assert_eq!(key(body).await.unwrap(), made, "its repetition is told too");
    assert!(secret.starts_with("nst_") && world.get(id).unwrap().traffic_access_token.is_none());
    let child = world.fork(id, None, None).await.unwrap().remove(0);
    let others = child.traffic_access_token.unwrap();
    assert_ne!(others, secret);

    let url = world.url(id, PORT).await;
    let target = world.control.preview_proxy_target(
        world.caller,
        id,
        PORT.to_string(),
        ProxyTargetRequest { transports: Some(vec!["http".into()]), ..ProxyTargetRequest::default() },
    );
    let target = target.await.unwrap();
    assert_eq!((target.traffic_access_required, target.websocket_token), (Some(true), None));
    let both = Credentials { traffic_token: Some(secret.clone()), ..edge(&token(&url.url)) };
    assert_eq!(codes(world.enter(id, PORT, Http, Credentials::default()).await), Code::EdgeTokenMissing);
    assert_eq!(codes(world.enter(id, PORT, Http, edge(&token(&url.url))).await), Code::EdgeTokenMissing);
    assert_eq!(codes(world.enter(id, PORT, Http, traffic(Some(&others))).await), Code::EdgeTokenInvalid);
    world.enter(id, PORT, Http, traffic(Some(&secret))).await.unwrap();
    let kept = world.enter(id, PORT, Http, both).await.unwrap();

    // Once they are private, what was let in without the token is cut, and nothing else is.
    let set = |public: bool| {
        let change = json!({"allow_public_traffic": public}).as_object().unwrap().clone();
        world.control.network_update(world.caller, id, change)
    };
    set(true).await.unwrap();
    let bare = world.enter(id, PORT, Http, Credentials::default()).await.unwrap();
    let granted = world.enter(id, PORT, Http, edge(&token(&url.url))).await.unwrap();
    set(false).await.unwrap();
    assert!(bare.ended.is_cancelled() && granted.ended.is_cancelled() && !kept.ended.is_cancelled());
    set(true).await.unwrap();
    let again = world.enter(id, PORT, Http, edge(&token(&url.url))).await.unwrap();
    assert!(!again.ended.is_cancelled());
    world.control.sandbox_destroy(world.tenant, id).await.unwrap();
    assert!(again.ended.is_cancelled() && kept.ended.is_cancelled());
}

#[tokio::test]
async fn fifty_requests_at_once_wake_a_sandbox_once_and_who_may_not_pass_wakes_nothing() {
    let world = World::start().await;
    let body = json!({
        "timeout_action": "hibernate", "auto_resume": true, "network": {"allow_public_traffic": false},
    });
    let made = world.create(body).await.unwrap();
    let (id, secret) = (made.id, made.traffic_access_token.unwrap());
    let open = world.enter(id, PORT, Http, traffic(Some(&secret))).await.unwrap();
    world.hibernate(id).await.unwrap();
    assert!(open.ended.is_cancelled(), "the machine is gone");
    assert_eq!(codes(world.enter(id, PORT, Http, traffic(None)).await), Code::EdgeTokenMissing);
    assert_eq!(world.get(id).unwrap().status, SandboxStatus::Paused);
    let requests = (0..50).map(|_| world.enter(id, PORT, Http, traffic(Some(&secret))));
    for passed in join_all(requests).await {
        assert!(!passed.unwrap().ended.is_cancelled());
    }
    assert_eq!(world.node.with(|node| node.made.len()), 2, "one create and one resume");

    world.hibernate(id).await.unwrap();
    world.node.with(|node| node.room = Some(0));
    let refused = world.enter(id, PORT, Http, traffic(Some(&secret))).await.unwrap_err();
    assert_eq!(refused.error.code, Code::CapacityExceeded);
    assert_eq!(refused.retry_after, Some(Duration::from_secs(5)));
    world.node.with(|node| node.room = None);

    let asleep = world.create(json!({})).await.unwrap().id;
    world.hibernate(asleep).await.unwrap();
    let refused = world.enter(asleep, PORT, Http, Credentials::default()).await.unwrap_err();
    assert_eq!(refused.error.code, Code::SandboxPausedAutoResumeDisabled);
    assert!(refused.retry_after.is_some() && !refused.error.retryable());
}

#[tokio::test]
async fn revoking_a_grant_cuts_what_it_let_in_and_its_time_does_too() {
    let world = World::start().await;
    let id = world.create(json!({})).await.unwrap().id;
    let (one, two) = (world.url(id, PORT).await, world.url(id, PORT).await);
    let first = world.enter(id, PORT, Http, edge(&token(&one.url))).await.unwrap();
    let (given, _) = first.cookie.clone().unwrap();
    let socket = world.enter(id, PORT, Websocket, edge(&token(&one.websocket_url))).await.unwrap();
    let other = world.enter(id, PORT, Http, edge(&token(&two.url))).await.unwrap();
    let stranger = Principal { tenant_id: TenantId::new(), ..world.caller };
    let foreign = world.control.preview_grant_revoke(stranger, id, one.grant.id).await;
    assert_eq!(code(foreign), Code::SandboxNotFound);
    assert!(!first.ended.is_cancelled());
    world.revoke(id, one.grant.id).await;
    assert!(first.ended.is_cancelled() && socket.ended.is_cancelled() && !other.ended.is_cancelled());
    for credentials in [edge(&token(&one.url)), cookie(&given)] {
        assert_eq!(codes(world.enter(id, PORT, Http, credentials).await), Code::PreviewGrantRevoked);
    }
    world.revoke(id, one.grant.id).await;
    let missing = world.control.preview_grant_revoke(world.caller, id, PreviewGrantId::new()).await;
    assert_eq!(code(missing), Code::PreviewGrantNotFound);
    let listed = world.grants(id).await.items;
    assert_eq!(
        listed.iter().map(|g| g.status).collect::<Vec<_>>(),
        [GrantStatus::Active, GrantStatus::Revoked]
    );
    assert_eq!(listed[1].last_error_code.as_deref(), Some("preview_grant_revoked"));

    // As if the server's clock went on by an hour.
    let (world, clock) = crate::webhooks::start(false).await;
    let id = world.create(json!({})).await.unwrap().id;
    let old = world.url(id, PORT).await;
    let passed = world.enter(id, PORT, Http, edge(&token(&old.url))).await.unwrap();
    clock.forward(3600);
    let expired = world.enter(id, PORT, Http, edge(&token(&old.url))).await;
    assert_eq!(codes(expired), Code::EdgeTokenExpired);
    let fresh = world.url(id, PORT).await;
    world.enter(id, PORT, Http, edge(&token(&fresh.url))).await.unwrap();
    cut(&passed.ended).await;
    let statuses: Vec<_> = world.grants(id).await.items.into_iter().map(|grant| grant.status).collect();
    assert_eq!(statuses, [GrantStatus::Active, GrantStatus::Expired]);
}

#[tokio::test]
async fn what_passed_by_a_grant_is_counted_across_a_restart() {
    let mut world = World::start().await;
    let id = world.create(json!({})).await.unwrap().id;
    let url = world.url(id, PORT).await;
    let grant = url.grant.id;
    let passes = async |world: &World| {
        world.enter(id, PORT, Http, edge(&token(&url.url))).await.unwrap();
        world.enter(id, PORT, Websocket, edge(&token(&url.websocket_url))).await.unwrap();
        world.control.passed(grant, Traffic { bytes_in: 10, bytes_out: 100 });
        world.control.failed(grant, Code::PreviewServiceNotReady);
    };
    passes(&world).await;
    let before = world.grants(id).await.items.remove(0);
    assert_eq!((before.use_count, before.http_request_count, before.websocket_connection_count), (2, 1, 1));
    world.restart(Point::CaptureBefore).await;
    passes(&world).await;
    let after = world.grants(id).await.items.remove(0);
    assert_eq!((after.use_count, after.bytes_in_count, after.bytes_out_count), (4, 20, 200));
    assert!(after.first_used_at == before.first_used_at && after.last_used_at > before.last_used_at);
    assert_eq!(after.last_error_code.as_deref(), Some("preview_service_not_ready"));
    assert_eq!(after.principal_id, Some(world.caller.key_id.to_string()));
}

#[tokio::test]
async fn a_port_keeps_its_local_address_until_its_sandbox_is_gone() {
    let mut world = World::start().await;
    let id = world.create(json!({})).await.unwrap().id;
    let hosts = join_all((0..8).map(|_| world.host(id, 80))).await;
    let first = hosts[0].clone().unwrap();
    assert!(hosts.iter().all(|host| host.as_ref() == Ok(&first)), "{hosts:?}");
    let second = world.host(id, 81).await.unwrap();
    assert!(first != second && world.doors.with(|host| host.open.len()) == 2);
    let local = |host: &str| host.rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
    for (port, expected) in [(0, Code::UnsupportedPreviewPort), (-1, Code::InvalidRequest)] {
        assert_eq!(code(world.host(id, port).await), expected);
    }

    // After a restart they are listened on again. One that is somebody else's by then is replaced.
    world.doors.with(|doors| doors.foreign.insert(local(&second)));
    world.restart(Point::CaptureBefore).await;
    assert_eq!(world.doors.with(|host| host.open.keys().copied().collect::<Vec<_>>()), [local(&first)]);
    assert_eq!(world.host(id, 80).await.unwrap(), first);
    let third = world.host(id, 81).await.unwrap();
    assert!(third != second && third == world.host(id, 81).await.unwrap());

    // Nine can be given in all.
    for port in 82..89 {
        world.host(id, port).await.unwrap();
    }
    assert_eq!(code(world.host(id, 89).await), Code::CapacityExceeded);
    world.control.sandbox_destroy(world.tenant, id).await.unwrap();
    assert!(world.doors.with(|host| host.open.is_empty()));
    assert!(world.store.local_port_list().await.unwrap().is_empty());
    let next = world.create(json!({})).await.unwrap().id;
    world.host(next, 80).await.unwrap();
}

#[tokio::test]
async fn a_wait_for_a_service_ends_with_the_service_its_time_or_its_sandbox() {
    let world = World::start().await;
    let body = json!({"timeout_action": "hibernate", "auto_resume": true});
    let id = world.create(body).await.unwrap().id;
    let now = json!({"timeout_secs": 0});
    let none = world.ready(id, PORT, now.clone()).await;
    assert!(!none.ready && none.route_ready && !none.service_ready && none.attempts > 0);
    assert_eq!(none.code.as_deref(), Some("preview_service_not_ready"));
    let waiting = world.ready(id, PORT, json!({}));
    let start = async { world.node.with(|node| node.services.insert(PORT, 500)) };
    let (ready, _) = futures::join!(waiting, start);
    assert!(ready.ready && ready.code.is_none() && ready.kind == "tcp");
    let failing = world.ready(id, PORT, json!({"kind": "http", "path": "/health", "timeout_secs": 0})).await;
    assert!(!failing.ready && failing.error.unwrap().contains("status 500"));
    world.node.with(|node| node.services.insert(PORT, 404));
    world.hibernate(id).await.unwrap();
    let woken = world.ready(id, PORT, json!({"kind": "http"})).await;
    assert!(woken.ready && woken.path.as_deref() == Some("/"), "{woken:?}");

    let (gone, destroyed) = futures::join!(
        world.ready(id, 9000, json!({"timeout_secs": 300})),
        world.control.sandbox_destroy(world.tenant, id),
    );
    destroyed.unwrap();
    assert!(!gone.route_ready && gone.code.as_deref() == Some("preview_sandbox_disabled"), "{gone:?}");
    let asleep = world.create(json!({})).await.unwrap().id;
    world.hibernate(asleep).await.unwrap();
    let paused = world.ready(asleep, PORT, json!({})).await;
    assert_eq!((paused.attempts, paused.route_ready), (0, false));
    assert_eq!(paused.code.as_deref(), Some("sandbox_paused_auto_resume_disabled"));
    let request = ReadinessRequest::default();
    let unsupported = world.control.preview_readiness(world.caller, asleep, "22".into(), request).await;
    assert_eq!(code(unsupported), Code::UnsupportedPreviewPort);
}

//! Webhooks, against an endpoint that behaves as badly as it likes, with a clock that the tests set.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use futures::future::{BoxFuture, FutureExt as _};
use jiff::{SignedDuration, Timestamp};
use nullspace_control::Clock;
use nullspace_types::id::{DeliveryId, EventId, WebhookId};
use nullspace_types::webhook::{
    DeliveryStatus, Webhook, WebhookAttempt, WebhookDelivery, WebhookDeliveryQuery, WebhookUpdate,
};

use super::*;

const SECRET: &str = "a secret of 16 to 256 characters";

/// The system's clock, and what the test adds to it.
#[derive(Default)]
pub struct Ahead(AtomicI64);

impl Ahead {
    pub fn forward(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        nullspace_store::now() + SignedDuration::from_secs(self.0.load(Ordering::SeqCst))
    }
}

/// What an endpoint does with its n-th request, the first being 1.
type Behaviour = fn(usize) -> BoxFuture<'static, Response>;

/// An endpoint that keeps what it is sent.
struct Endpoint {
    url: String,
    requests: Arc<Mutex<Vec<(Uri, HeaderMap, Bytes)>>>,
}

impl Endpoint {
    async fn start(behaviour: Behaviour) -> Self {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = requests.clone();
        let take = move |uri: Uri, headers: HeaderMap, body: Bytes| {
            let count = {
                let mut kept = kept.lock().unwrap();
                kept.push((uri, headers, body));
                kept.len()
            };
            behaviour(count)
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(take)).await });
        Self { url, requests }
    }

    fn events(&self) -> Vec<EventId> {
        let requests = self.requests.lock().unwrap();
        let event = |body: &Bytes| serde_json::from_slice::<Value>(body).unwrap()["event"]["id"].clone();
        requests.iter().map(|(_, _, body)| serde_json::from_value(event(body)).unwrap()).collect()
    }
}

fn answer(status: StatusCode) -> BoxFuture<'static, Response> {
    async move { status.into_response() }.boxed()
}

fn taken(_: usize) -> BoxFuture<'static, Response> {
    answer(StatusCode::NO_CONTENT)
}

async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            match look().await {
                Some(found) => return found,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("it comes to that")
}

/// A world whose clock can be set.
pub async fn start(allow_private: bool) -> (World, Arc<Ahead>) {
    let world = World::start().await;
    world.control.stop().await;
    let (clock, (_, reports)) = (Arc::new(Ahead::default()), mpsc::channel(8));
    let config = WebhookConfig { allow_private, timeout_secs: 1, ..WebhookConfig::default() };
    let (store, node) = (world.store.clone(), Arc::new(world.node.clone()));
    let access = access(&*store, world.directory.path(), &world.doors).await;
    let control =
        Control::start(store, node, reports, clock.clone(), Limits::default(), config, access).await;
    (World { control: control.unwrap(), ..world }, clock)
}

impl World {
    async fn webhook(&self, url: &str, operations: &[&str]) -> Result<Webhook> {
        let request = json!({"url": url, "operations": operations, "signing_secret": SECRET});
        self.control.webhook_create(self.tenant, serde_json::from_value(request).unwrap()).await
    }

    /// Deliveries, oldest first.
    async fn deliveries(&self, id: WebhookId) -> Vec<WebhookDelivery> {
        let query = WebhookDeliveryQuery::default();
        let mut found = self.control.webhook_deliveries(self.tenant, id, query).await.unwrap();
        found.reverse();
        found
    }

    async fn statuses(&self, id: WebhookId) -> Vec<DeliveryStatus> {
        self.deliveries(id).await.into_iter().map(|delivery| delivery.delivery_status).collect()
    }

    async fn until_statuses(&self, id: WebhookId, wanted: &[DeliveryStatus]) {
        until(async || (self.statuses(id).await == wanted).then_some(())).await;
    }

    async fn attempts(&self, id: WebhookId, delivery: DeliveryId) -> Vec<WebhookAttempt> {
        self.control.webhook_delivery(self.tenant, id, delivery).await.unwrap().attempts
    }

    /// Lets time go by, and the server notice.
    async fn pass(&self, clock: &Ahead, id: WebhookId, seconds: i64) {
        clock.forward(seconds);
        self.control.webhook_update(self.tenant, id, WebhookUpdate::default()).await.unwrap();
    }
}

#[tokio::test]
async fn an_endpoint_that_fails_is_tried_again_and_what_is_behind_of_the_sandbox_waits() {
    use DeliveryStatus::{Queued, Succeeded};
    let (world, clock) = start(true).await;
    let endpoint = Endpoint::start(|count| match count {
        1 => answer(StatusCode::INTERNAL_SERVER_ERROR),
        _ => taken(count),
    })
    .await;
    let id = world.webhook(&format!("{}/hook?a=b", endpoint.url), &["create", "destroy"]).await.unwrap().id;
    let sandbox = world.create(json!({})).await.unwrap().id;
    until(async || (world.deliveries(id).await.first()?.attempt_count == 1).then_some(())).await;
    world.control.sandbox_destroy(world.tenant, sandbox).await.unwrap();
    world.until_statuses(id, &[Queued, Queued, Queued]).await;
    // Another sandbox's do not wait.
    world.create(json!({})).await.unwrap();
    world.until_statuses(id, &[Queued, Queued, Queued, Succeeded]).await;
    world.pass(&clock, id, 6).await;
    world.until_statuses(id, &[Succeeded; 4]).await;

    let log: Vec<EventId> = world.deliveries(id).await.iter().map(|delivery| delivery.event_id).collect();
    assert_eq!(endpoint.events(), [log[0], log[3], log[0], log[1], log[2]]);
    let first = world.deliveries(id).await.remove(0);
    let attempts = world.attempts(id, first.id).await;
    let seen: Vec<_> = attempts
        .iter()
        .map(|attempt| (attempt.attempt_number, attempt.response_status, attempt.error_code.as_deref()))
        .collect();
    assert_eq!(seen, [(1, Some(500), Some("status")), (2, Some(204), None)]);
    let shown = world.control.webhook_get(world.tenant, id).await.unwrap();
    assert_eq!((shown.last_delivery_status, shown.last_error), (Some(Succeeded), None));

    let requests = endpoint.requests.lock().unwrap();
    let (uri, headers, body) = &requests[2];
    assert!(uri == "/hook?a=b" && headers[header::CONTENT_TYPE] == "application/json");
    let told: Value = serde_json::from_slice(body).unwrap();
    for (header, value) in [
        ("x-nullspace-webhook-id", &told["webhook_id"]),
        ("x-nullspace-delivery-id", &told["id"]),
        ("x-nullspace-event-id", &told["event"]["id"]),
    ] {
        assert_eq!(headers[header].to_str().unwrap(), value.as_str().unwrap(), "{header}");
    }
    let now: i64 = headers["x-nullspace-timestamp"].to_str().unwrap().parse().unwrap();
    assert!((clock.now().as_second() - now).abs() < 60 && headers["x-nullspace-signature-version"] == "v1");
    // The parts are what is signed: the same event, sent later, has another signature.
    assert_ne!(headers["x-nullspace-signature"], requests[0].1["x-nullspace-signature"]);
}

#[tokio::test]
async fn a_delivery_is_given_up_after_a_day_and_then_it_is_the_turn_of_the_next() {
    use DeliveryStatus::{DeadLetter, Queued, Succeeded};
    let (world, clock) = start(true).await;
    let endpoint = Endpoint::start(|count| match count {
        1 | 2 => answer(StatusCode::SERVICE_UNAVAILABLE),
        _ => taken(count),
    })
    .await;
    let id = world.webhook(&endpoint.url, &["create", "timeout_updated"]).await.unwrap().id;
    let sandbox = world.create(json!({})).await.unwrap().id;
    until(async || (world.deliveries(id).await.first()?.attempt_count == 1).then_some(())).await;
    let window = SandboxTimeoutSet { timeout_ms: 1_800_000, timeout_action: None };
    world.control.sandbox_timeout_set(world.tenant, sandbox, window).await.unwrap();
    world.until_statuses(id, &[Queued, Queued, Queued]).await;
    world.pass(&clock, id, 24 * 60 * 60).await;
    world.until_statuses(id, &[DeadLetter, Succeeded, Succeeded]).await;
    let dead = world.deliveries(id).await.remove(0);
    assert!(dead.attempt_count == 2 && dead.next_attempt_at.is_none());
    assert!(dead.last_error.unwrap().contains("503"));

    let again = world.control.webhook_redeliver(world.tenant, id, dead.id).await.unwrap();
    assert_eq!(again.id, dead.id);
    world.until_statuses(id, &[Succeeded; 3]).await;
    assert_eq!(world.attempts(id, dead.id).await.len(), 3);
    let unknown = world.control.webhook_redeliver(world.tenant, id, DeliveryId::new()).await;
    assert_eq!(code(unknown), Code::DeliveryNotFound);
}

#[tokio::test]
async fn endpoints_that_hang_redirect_answer_without_end_or_are_not_there_keep_nobody_waiting() {
    let (world, _) = start(true).await;
    let hangs = Endpoint::start(|_| futures::future::pending().boxed()).await;
    let long = Endpoint::start(|_| async { Response::new(Body::from(vec![0; 10 << 20])) }.boxed()).await;
    let redirects = Endpoint::start(|_| {
        let answer = (StatusCode::FOUND, [(header::LOCATION, "http://127.0.0.1:1/inside")]).into_response();
        async move { answer }.boxed()
    })
    .await;
    let good = Endpoint::start(taken).await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let expected = [
        (hangs.url.clone(), None, Some("timeout")),
        (long.url.clone(), Some(200), None),
        (redirects.url.clone(), Some(302), Some("redirect")),
        (format!("http://{closed}"), None, Some("connection")),
        (good.url.clone(), Some(204), None),
    ];
    let mut webhooks = Vec::new();
    for (url, status, error) in expected {
        webhooks.push((world.webhook(&url, &["create"]).await.unwrap().id, status, error));
    }
    for _ in 0..30 {
        world.create(json!({})).await.unwrap();
    }
    for (id, status, error) in webhooks {
        let delivery =
            until(async || world.deliveries(id).await.into_iter().find(|one| one.last_attempt_at.is_some()));
        let attempt = world.attempts(id, delivery.await.id).await.remove(0);
        assert_eq!((attempt.response_status, attempt.error_code.as_deref()), (status, error));
    }
    until(async || (good.requests.lock().unwrap().len() == 30).then_some(())).await;
}

#[tokio::test]
async fn a_name_that_leads_into_a_private_network_is_not_connected_to() {
    let (world, _) = start(false).await;
    let endpoint = Endpoint::start(taken).await;
    assert_eq!(code(world.webhook(&endpoint.url, &["create"]).await), Code::InvalidRequest);
    let url = endpoint.url.replace("127.0.0.1", "localhost");
    let id = world.webhook(&url, &["create"]).await.unwrap().id;
    world.create(json!({})).await.unwrap();
    let tried =
        until(async || world.deliveries(id).await.into_iter().find(|one| one.attempt_count > 0)).await;
    let attempt = world.attempts(id, tried.id).await.remove(0);
    assert_eq!((attempt.error_code.as_deref(), attempt.response_status), (Some("address_refused"), None));
    assert!(endpoint.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_was_not_delivered_when_the_server_stopped_is_delivered_by_the_next() {
    let (world, _) = start(true).await;
    let endpoint = Endpoint::start(|count| match count {
        1 => futures::future::pending().boxed(),
        _ => taken(count),
    })
    .await;
    let id = world.webhook(&endpoint.url, &["create"]).await.unwrap().id;
    world.create(json!({})).await.unwrap();
    until(async || (!endpoint.requests.lock().unwrap().is_empty()).then_some(())).await;
    world.control.stop().await;
    let (_, reports) = mpsc::channel(8);
    let config = WebhookConfig { allow_private: true, ..WebhookConfig::default() };
    let (store, node) = (world.store.clone(), Arc::new(world.node.clone()));
    let access = access(&*store, world.directory.path(), &world.doors).await;
    let next = Control::start(store, node, reports, Arc::new(SystemClock), Limits::default(), config, access);
    let world = World { control: next.await.unwrap(), ..world };
    world.until_statuses(id, &[DeliveryStatus::Succeeded]).await;
    assert_eq!(endpoint.requests.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn webhooks_are_counted_and_each_tenant_sees_its_own() {
    let (world, _) = start(false).await;
    let url = "https://example.com/hook";
    let made = join_all((0..60).map(|_| world.webhook(url, &["create"]))).await;
    assert_eq!(made.iter().filter(|answer| answer.is_ok()).count(), 50);
    assert!(made.into_iter().filter_map(Result::err).all(|error| error.code == Code::QuotaExceeded));
    let listed = world.control.webhook_list(world.tenant).await.unwrap();
    assert!(listed.len() == 50 && listed[0].has_signing_secret);
    assert!(!serde_json::to_string(&listed).unwrap().contains(SECRET));
    let id = listed[0].id;
    let other = world.store.tenant_ensure("other", nullspace_store::now()).await.unwrap().id;
    assert!(world.control.webhook_list(other).await.unwrap().is_empty());
    let query = WebhookDeliveryQuery::default();
    let control = &world.control;
    assert_eq!(code(control.webhook_get(other, id).await), Code::WebhookNotFound);
    assert_eq!(
        code(control.webhook_update(other, id, WebhookUpdate::default()).await),
        Code::WebhookNotFound
    );
    assert_eq!(code(control.webhook_deliveries(other, id, query).await), Code::WebhookNotFound);
    assert_eq!(code(control.webhook_delete(other, id).await), Code::WebhookNotFound);
    control.webhook_delete(world.tenant, id).await.unwrap();
    assert_eq!(code(control.webhook_get(world.tenant, id).await), Code::WebhookNotFound);
    let none = WebhookUpdate { operations: Some(vec![]), ..WebhookUpdate::default() };
    assert_eq!(code(control.webhook_update(world.tenant, listed[1].id, none).await), Code::InvalidRequest);
}

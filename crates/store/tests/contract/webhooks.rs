//! Webhooks, and what is on its way to them.

use jiff::{Timestamp, ToSpan as _};
use nullspace_store::webhook::{DueDelivery, NewWebhook, WebhookChange};
use nullspace_store::{Error, now};
use nullspace_types::event::{EventStatus, Operation};
use nullspace_types::id::{AttemptId, DeliveryId, EventId, SandboxId, TenantId, WebhookId};
use nullspace_types::webhook::{DeliveryStatus, Webhook, WebhookAttempt, WebhookDelivery};

use crate::world::{World, event, new};

fn hook(tenant_id: TenantId) -> NewWebhook {
    NewWebhook {
        id: WebhookId::new(),
        tenant_id,
        url: "https://example.com/hook".into(),
        operations: vec![Operation::Create, Operation::TimeoutUpdated],
        signing_secret: "a secret of the caller".into(),
        enabled: true,
        created_at: now(),
    }
}

async fn made(world: &World, tenant: TenantId) -> Webhook {
    world.store.webhook_insert(&hook(tenant)).await.unwrap()
}

/// A sandbox with as many events that the webhook wants, and one that it does not.
async fn told(world: &World, tenant: TenantId, number: usize) -> (SandboxId, Vec<EventId>) {
    let mut events = vec![event(Operation::Destroy, EventStatus::Requested)];
    events.extend((0..number).map(|_| event(Operation::TimeoutUpdated, EventStatus::Succeeded)));
    let sandbox = new(tenant);
    world.insert(&sandbox, None, &events).await;
    (sandbox.id, events[1..].iter().map(|event| event.id).collect())
}

async fn due(world: &World, at: Timestamp) -> Vec<DueDelivery> {
    world.store.webhook_due(at, 100).await.unwrap()
}

fn events(due: &[DueDelivery]) -> Vec<EventId> {
    due.iter().map(|due| due.event.event.id).collect()
}

async fn attempted(
    world: &World,
    delivery: &WebhookDelivery,
    status: DeliveryStatus,
    next: Option<Timestamp>,
) -> WebhookAttempt {
    let failed = status != DeliveryStatus::Succeeded;
    let attempt = WebhookAttempt {
        id: AttemptId::new(),
        delivery_id: delivery.id,
        attempt_number: delivery.attempt_count + 1,
        attempted_at: now(),
        duration_ms: 12,
        response_status: Some(if failed { 500 } else { 204 }),
        error_code: failed.then(|| "status".into()),
        error_message: failed.then(|| "it answered\0 500".into()),
    };
    let after = WebhookDelivery {
        delivery_status: status,
        attempt_count: attempt.attempt_number,
        next_attempt_at: next,
        last_attempt_at: Some(attempt.attempted_at),
        last_response_status: attempt.response_status,
        last_error: failed.then(|| "it answered 500".into()),
        ..delivery.clone()
    };
    world.store.webhook_attempted(&after, &attempt).await.unwrap();
    attempt
}

pub async fn a_webhook_is_its_tenants_and_changes_what_is_named(world: &World) {
    let (one, two) = (world.tenant("one").await, world.tenant("two").await);
    let new = hook(one);
    let webhook = world.store.webhook_insert(&new).await.unwrap();
    assert_eq!((webhook.id, &webhook.url, &webhook.operations), (new.id, &new.url, &new.operations));
    assert!(webhook.enabled && webhook.has_signing_secret && webhook.last_delivery_at.is_none());
    assert_eq!((webhook.created_at, webhook.updated_at), (new.created_at, new.created_at));
    let second = made(world, one).await;
    assert_eq!(world.store.webhook_list(one).await.unwrap(), [webhook.clone(), second]);
    assert_eq!(world.store.webhook_list(two).await.unwrap(), []);

    let at = now();
    let change =
        WebhookChange { url: Some("https://other.example".into()), enabled: Some(false), ..<_>::default() };
    let changed = world.store.webhook_update(one, new.id, &change, at).await.unwrap();
    let expected = Webhook { url: "https://other.example".into(), enabled: false, updated_at: at, ..webhook };
    assert_eq!(changed, expected);
    assert_eq!(world.store.webhook_get(one, new.id).await.unwrap(), expected);

    let delivery = DeliveryId::new();
    assert!(matches!(world.store.webhook_get(two, new.id).await, Err(Error::NotFound("webhook"))));
    let update = world.store.webhook_update(two, new.id, &change, at).await;
    assert!(matches!(update, Err(Error::NotFound("webhook"))));
    assert!(matches!(world.store.webhook_delete(two, new.id).await, Err(Error::NotFound("webhook"))));
    let listed = world.store.webhook_deliveries(two, new.id, 0, 10).await;
    assert!(matches!(listed, Err(Error::NotFound("webhook"))));
    let got = world.store.webhook_delivery(two, new.id, delivery).await;
    assert!(matches!(got, Err(Error::NotFound("webhook"))));
    let again = world.store.webhook_redeliver(two, new.id, delivery, at).await;
    assert!(matches!(again, Err(Error::NotFound("webhook"))));
    let got = world.store.webhook_delivery(one, new.id, delivery).await;
    assert!(matches!(got, Err(Error::NotFound("delivery"))));
    world.store.webhook_delete(one, new.id).await.unwrap();
    assert!(matches!(world.store.webhook_delete(one, new.id).await, Err(Error::NotFound("webhook"))));
}

pub async fn a_webhook_hears_once_of_what_it_wants_and_of_nothing_before_it(world: &World) {
    let (one, two) = (world.tenant("one").await, world.tenant("two").await);
    told(world, one, 2).await;
    let webhook = made(world, one).await;
    let foreign = made(world, two).await;
    let off = NewWebhook { enabled: false, ..hook(one) };
    world.store.webhook_insert(&off).await.unwrap();
    let (sandbox, wanted) = told(world, one, 3).await;

    // However the log is cut, and however many do it at once.
    let at = now();
    let fans: Vec<_> = (0..8)
        .map(|_| {
            let store = world.store.clone();
            tokio::spawn(async move { store.webhook_fan_out(2, at).await.unwrap() })
        })
        .collect();
    let mut made = (0, 0);
    for fan in fans {
        let (events, deliveries) = fan.await.unwrap();
        made = (made.0 + events, made.1 + deliveries);
    }
    assert_eq!(made, (7, 3));
    assert_eq!(world.store.webhook_fan_out(100, at).await.unwrap(), (0, 0));
    assert_eq!(world.store.webhook_deliveries(two, foreign.id, 0, 10).await.unwrap(), []);
    assert_eq!(world.store.webhook_deliveries(one, off.id, 0, 10).await.unwrap(), []);
    let deliveries = world.store.webhook_deliveries(one, webhook.id, 0, 10).await.unwrap();
    let of: Vec<_> = deliveries.iter().rev().map(|delivery| delivery.event_id).collect();
    assert_eq!(of, wanted);
    let page = world.store.webhook_deliveries(one, webhook.id, 1, 1).await.unwrap();
    assert_eq!(page, [deliveries[1].clone()]);
    let [_, _, first] = &deliveries[..] else { panic!() };
    assert_eq!((first.operation, first.status), (Operation::TimeoutUpdated, EventStatus::Succeeded));
    assert_eq!((first.delivery_status, first.attempt_count), (DeliveryStatus::Queued, 0));
    assert_eq!((first.created_at, first.next_attempt_at), (at, Some(at)));
    let detail = world.store.webhook_delivery(one, webhook.id, first.id).await.unwrap();
    assert_eq!((detail.event.sandbox_id, detail.attempts), (Some(sandbox), vec![]));
}

pub async fn deliveries_of_one_sandbox_come_in_order_and_hold_up_no_other(world: &World) {
    let tenant = world.tenant("one").await;
    let webhook = made(world, tenant).await;
    let (_, a) = told(world, tenant, 3).await;
    let (_, b) = told(world, tenant, 2).await;
    let start = now();
    world.store.webhook_fan_out(100, start).await.unwrap();
    assert_eq!(world.store.webhook_next_due().await.unwrap(), Some(start));
    assert!(due(world, start - 1.second()).await.is_empty());
    let first = due(world, start).await;
    assert_eq!(events(&first), [a[0], b[0]]);
    assert_eq!((first[0].url.as_str(), first[0].delivery.webhook_id), (webhook.url.as_str(), webhook.id));
    assert_eq!(first[0].signing_secret, "a secret of the caller");
    assert_eq!(first[0].event.tenant_id, tenant);
    // What is in progress is handed out again: its attempt may have died with its process.
    assert!(first.iter().all(|due| due.delivery.delivery_status == DeliveryStatus::InProgress));
    assert!(due(world, start).await == first);
    assert_eq!(world.store.webhook_next_due().await.unwrap(), None);

    let later = start + 1.hour();
    attempted(world, &first[0].delivery, DeliveryStatus::Queued, Some(later)).await;
    attempted(world, &first[1].delivery, DeliveryStatus::Succeeded, None).await;
    let second = due(world, now()).await;
    assert_eq!(events(&second), [b[1]], "the one that failed holds up its own sandbox only");
    attempted(world, &second[0].delivery, DeliveryStatus::Succeeded, None).await;
    assert!(due(world, now()).await.is_empty());
    assert_eq!(world.store.webhook_next_due().await.unwrap(), Some(later));
    let third = due(world, later).await;
    assert_eq!(events(&third), [a[0]]);
    assert_eq!(third[0].delivery.attempt_count, 1);
    attempted(world, &third[0].delivery, DeliveryStatus::DeadLetter, None).await;
    assert_eq!(events(&due(world, now()).await), [a[1]]);

    // More events wait behind, and while the webhook is off all of them do.
    let (_, c) = told(world, tenant, 1).await;
    world.store.webhook_fan_out(100, now()).await.unwrap();
    let off = WebhookChange { enabled: Some(false), ..WebhookChange::default() };
    world.store.webhook_update(tenant, webhook.id, &off, now()).await.unwrap();
    assert!(due(world, now()).await.is_empty());
    assert_eq!(world.store.webhook_next_due().await.unwrap(), None);
    let on = WebhookChange { enabled: Some(true), ..WebhookChange::default() };
    world.store.webhook_update(tenant, webhook.id, &on, now()).await.unwrap();
    assert_eq!(events(&due(world, now()).await), [a[1], c[0]]);

    // A webhook with much to do lets the others come first.
    let other = made(world, tenant).await;
    let (_, d) = told(world, tenant, 1).await;
    world.store.webhook_fan_out(100, now()).await.unwrap();
    let two = world.store.webhook_due(now(), 2).await.unwrap();
    assert_eq!(events(&two), [a[1], d[0]]);
    assert_eq!(two[1].delivery.webhook_id, other.id);
}

pub async fn every_attempt_is_kept_with_its_delivery(world: &World) {
    let tenant = world.tenant("one").await;
    let webhook = made(world, tenant).await;
    told(world, tenant, 1).await;
    world.store.webhook_fan_out(100, now()).await.unwrap();
    let mut expected = vec![];
    for status in [DeliveryStatus::Queued, DeliveryStatus::Succeeded] {
        let [one] = &due(world, now()).await[..] else { panic!() };
        let next = (status == DeliveryStatus::Queued).then(now);
        let mut attempt = attempted(world, &one.delivery, status, next).await;
        attempt.error_message = attempt.error_message.map(|text| text.replace('\0', "\u{fffd}"));
        expected.push(attempt);
        let shown = world.store.webhook_get(tenant, webhook.id).await.unwrap();
        assert_eq!(shown.last_delivery_at, expected.last().map(|attempt| attempt.attempted_at));
        assert_eq!(shown.last_delivery_status, Some(status));
        assert_eq!(shown.last_error.is_some(), status == DeliveryStatus::Queued);
    }
    let [delivery] = &world.store.webhook_deliveries(tenant, webhook.id, 0, 9).await.unwrap()[..] else {
        panic!()
    };
    assert_eq!((delivery.attempt_count, delivery.next_attempt_at), (2, None));
    assert_eq!((delivery.last_response_status, &delivery.last_error), (Some(204), &None));
    let detail = world.store.webhook_delivery(tenant, webhook.id, delivery.id).await.unwrap();
    assert_eq!((&detail.delivery, &detail.attempts), (delivery, &expected));

    let undecided = WebhookDelivery { delivery_status: DeliveryStatus::InProgress, ..delivery.clone() };
    let attempt = WebhookAttempt { id: AttemptId::new(), ..expected[0].clone() };
    let refused = world.store.webhook_attempted(&undecided, &attempt).await;
    assert!(matches!(refused, Err(Error::Invalid(_))));

    // What belonged to a webhook goes with it, and an attempt that was under way changes nothing.
    world.store.webhook_delete(tenant, webhook.id).await.unwrap();
    let late = world.store.webhook_attempted(delivery, &attempt).await;
    assert!(matches!(late, Err(Error::NotFound("delivery"))));
    // Were any attempt left, this would write it twice.
    world.raw("INSERT INTO webhook_attempts SELECT * FROM webhook_attempts").await.unwrap();
}

pub async fn a_redelivery_comes_before_what_waits_and_is_counted_from_new(world: &World) {
    let tenant = world.tenant("one").await;
    let webhook = made(world, tenant).await;
    let (_, of) = told(world, tenant, 3).await;
    world.store.webhook_fan_out(100, now()).await.unwrap();
    let first = due(world, now()).await.remove(0).delivery;
    attempted(world, &first, DeliveryStatus::DeadLetter, None).await;
    let second = due(world, now()).await.remove(0);
    assert_eq!(second.event.event.id, of[1]);

    let at = now();
    let again = world.store.webhook_redeliver(tenant, webhook.id, first.id, at).await.unwrap();
    assert_eq!((again.delivery_status, again.attempt_count), (DeliveryStatus::Queued, 0));
    assert_eq!((again.next_attempt_at, again.created_at), (Some(at), at));
    // It is on its way already.
    let twice = world.store.webhook_redeliver(tenant, webhook.id, first.id, now()).await.unwrap();
    assert_eq!(twice, again);
    // The attempt that was under way ends; it is not its sandbox's turn any more.
    attempted(world, &second.delivery, DeliveryStatus::Queued, Some(at)).await;
    let [one] = &due(world, now()).await[..] else { panic!() };
    assert_eq!(one.delivery.id, first.id);
    attempted(world, &one.delivery, DeliveryStatus::Succeeded, None).await;
    assert_eq!(events(&due(world, now()).await), [of[1]]);
    let detail = world.store.webhook_delivery(tenant, webhook.id, first.id).await.unwrap();
    assert_eq!(detail.attempts.len(), 2);
}

pub async fn what_waits_and_what_is_over_is_bounded(world: &World) {
    let tenant = world.tenant("one").await;
    let webhook = made(world, tenant).await;
    // As many as may wait, of fifty sandboxes, as if of events long ago: the first of each has its turn.
    world
        .raw(
            "INSERT INTO webhook_deliveries (id, webhook_id, seq, event_id, sandbox_id, operation, status, \
             delivery_status, attempt_count, created_at, next_attempt_at) \
             WITH RECURSIVE n (i, name) AS (SELECT 1, '1' UNION ALL SELECT i + 1, '' || (i + 1) FROM n \
             WHERE i < 100000) \
             SELECT 'whd_' || substr('00000000000000000000000000000000', 1, 32 - length(name)) || name, w.id, \
             i - 1000000, 'evt_' || substr('00000000000000000000000000000000', 1, 32 - length(name)) || name, \
             'sb_' || (i % 50), 'create', 'succeeded', 'queued', 0, 0, CASE WHEN i <= 50 THEN 0 END \
             FROM n, webhooks w",
        )
        .await
        .unwrap();
    told(world, tenant, 1).await;
    assert_eq!(world.store.webhook_fan_out(100, now()).await.unwrap(), (2, 1));
    let at = async |offset| {
        let mut page = world.store.webhook_deliveries(tenant, webhook.id, offset, 1).await.unwrap();
        page.pop()
    };
    let given_up = at(100_000).await.unwrap();
    assert_eq!((given_up.delivery_status, given_up.next_attempt_at), (DeliveryStatus::DeadLetter, None));
    assert!(given_up.last_error.unwrap().contains("more than 100000"));
    let next_of_its_sandbox = at(99_950).await.unwrap();
    assert!(next_of_its_sandbox.next_attempt_at.is_some());
    let (waits, newest) = (at(99_949).await.unwrap(), at(0).await.unwrap());
    assert_eq!((waits.delivery_status, waits.next_attempt_at), (DeliveryStatus::Queued, None));

    // Of what is over the newest thousand are kept.
    world
        .raw(
            "UPDATE webhook_deliveries SET delivery_status = 'succeeded', next_attempt_at = NULL \
             WHERE seq <= 1500 - 1000000",
        )
        .await
        .unwrap();
    attempted(world, &newest, DeliveryStatus::Succeeded, None).await;
    assert_eq!(at(99_500).await, None);
    assert_eq!(at(99_499).await.unwrap().delivery_status, DeliveryStatus::Succeeded);
}

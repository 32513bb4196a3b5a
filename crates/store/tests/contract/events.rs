//! The log and its cursor.

use jiff::ToSpan as _;
use nullspace_store::event::{EventCursor, EventFilter, EventOrder};
use nullspace_store::now;
use nullspace_types::event::{EventStatus, Operation};
use nullspace_types::id::{EventId, SandboxId, SnapshotId};

use crate::world::{World, applied, event, new, object};

const WRITERS: usize = 8;
const EACH: usize = 25;

pub async fn a_reader_by_cursor_misses_nothing_of_many_writers(world: &World) {
    let tenant = world.tenant("one").await;
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let store = world.store.clone();
        writers.spawn(async move {
            for _ in 0..EACH {
                let two = [EventStatus::Requested, EventStatus::Succeeded];
                let events = two.map(|status| event(Operation::Create, status));
                store.sandbox_insert(&new(tenant), None, &events).await.unwrap();
            }
        });
    }
    let (mut read, mut cursor) = (vec![], EventCursor::START);
    loop {
        // Looked at before the read: what was written by then must be in it.
        while let Some(ended) = writers.try_join_next() {
            ended.unwrap();
        }
        let done = writers.is_empty();
        let page = world.store.events_after(cursor, 7).await.unwrap();
        if let Some(last) = page.last() {
            assert!(page.is_sorted_by(|earlier, later| earlier.cursor < later.cursor));
            assert!(cursor < page[0].cursor);
            cursor = last.cursor;
        } else if done {
            break;
        } else {
            // The writers share the few threads of the test.
            tokio::task::yield_now().await;
        }
        read.extend(page);
    }
    assert_eq!(read.len(), WRITERS * EACH * 2);
    assert_eq!(read, world.log().await);
    assert_eq!(world.store.event_cursor_latest().await.unwrap(), cursor);
    // What one transaction wrote stands together.
    assert!(read.chunks(2).all(|pair| pair[0].event.sandbox_id == pair[1].event.sandbox_id));
}

pub async fn events_are_listed_by_tenant_filter_and_order(world: &World) {
    assert_eq!(world.store.event_cursor_latest().await.unwrap(), EventCursor::START);
    let tenant = world.tenant("one").await;
    let start = now();
    let mut told = vec![];
    for (seconds, operation, status) in [
        (0, Operation::Create, EventStatus::Succeeded),
        (1, Operation::TimeoutUpdated, EventStatus::Requested),
        (2, Operation::TimeoutUpdated, EventStatus::Failed),
    ] {
        let mut event = event(operation, status);
        event.occurred_at = start + seconds.seconds();
        told.push(event);
    }
    told[2].error_code = Some("unavailable".into());
    told[2].error_message = Some("no\0answer".into());
    told[2].metadata = object(r#"{"timeout_action":"destroy","\u0000":[1,null]}"#);
    let first = world.insert(&new(tenant), None, &told).await;
    let destroyed = event(Operation::Destroy, EventStatus::Requested);
    let second = world.insert(&new(tenant), None, &[]).await;
    applied(
        world
            .store
            .sandbox_destroy_request(second.id, "manual", false, std::slice::from_ref(&destroyed))
            .await,
    );
    let [a, b, c, d] = [told[0].id, told[1].id, told[2].id, destroyed.id];

    let listed = async |filter: EventFilter| -> Vec<EventId> {
        let rows = world.store.event_list(tenant, &filter).await.unwrap();
        rows.into_iter().map(|row| row.event.id).collect()
    };
    let all = EventFilter { limit: 50, ..EventFilter::default() };
    assert_eq!(listed(all.clone()).await, [d, c, b, a]);
    let ascending = EventFilter { order: EventOrder::Ascending, ..all.clone() };
    assert_eq!(listed(ascending.clone()).await, [a, b, c, d]);
    assert_eq!(listed(EventFilter { offset: 1, limit: 2, ..ascending.clone() }).await, [b, c]);
    assert_eq!(listed(EventFilter { offset: 4, ..ascending }).await, []);
    let of = |operation| EventFilter { operation: Some(operation), ..all.clone() };
    assert_eq!(listed(of(Operation::TimeoutUpdated)).await, [c, b]);
    assert_eq!(listed(EventFilter { status: Some(EventStatus::Requested), ..all.clone() }).await, [d, b]);
    assert_eq!(listed(EventFilter { sandbox_id: Some(second.id), ..all.clone() }).await, [d]);
    let between = EventFilter {
        sandbox_id: Some(first.id),
        from: Some(start + 1.second()),
        until: Some(start + 2.seconds()),
        ..all
    };
    assert_eq!(listed(between).await, [b]);

    let log = world.log().await;
    let mut expected = told[2].clone();
    expected.sandbox_id = Some(first.id);
    expected.error_message = Some("no\u{fffd}answer".into());
    assert_eq!(log[2].event, expected);
    assert_eq!(world.store.event_cursor(tenant, c).await.unwrap(), Some(log[2].cursor));
    assert_eq!(world.store.events_after(log[2].cursor, 10).await.unwrap(), log[3..]);
}

pub async fn an_event_is_found_by_every_part_of_it_once(world: &World) {
    let tenant = world.tenant("one").await;
    let snapshot = SnapshotId::new();
    let parent = world.insert(&new(tenant), None, &[event(Operation::Create, EventStatus::Succeeded)]).await;
    let mut forked = event(Operation::Fork, EventStatus::Succeeded);
    let child = new(tenant);
    forked.source_sandbox_id = Some(parent.id);
    forked.target_sandbox_id = Some(child.id);
    world.insert(&child, None, std::slice::from_ref(&forked)).await;
    let mut resumed = event(Operation::ResumeFromSnapshot, EventStatus::Succeeded);
    resumed.snapshot_id = Some(snapshot);
    resumed.source_sandbox_id = Some(parent.id);
    resumed.target_sandbox_id = Some(parent.id);
    let destroyed = event(Operation::Destroy, EventStatus::Requested);
    let two = [resumed.clone(), destroyed.clone()];
    applied(world.store.sandbox_destroy_request(parent.id, "manual", false, &two).await);
    let log = world.log().await;
    assert_eq!(log[1].event, nullspace_types::event::LifecycleEvent { sandbox_id: Some(child.id), ..forked });
    let [a, b, c, d] = [0, 1, 2, 3].map(|place: usize| log[place].event.id);

    let listed = async |filter: EventFilter| -> Vec<EventId> {
        let rows = world.store.event_list(tenant, &filter).await.unwrap();
        rows.into_iter().map(|row| row.event.id).collect()
    };
    let all = EventFilter { limit: 50, ..EventFilter::default() };
    let of = |id| EventFilter { sandbox_id: Some(id), ..all.clone() };
    assert_eq!(listed(of(parent.id)).await, [d, c, b, a]);
    assert_eq!(listed(of(child.id)).await, [b]);
    assert_eq!(listed(of(SandboxId::new())).await, []);
    assert_eq!(listed(EventFilter { offset: 1, limit: 2, ..of(parent.id) }).await, [c, b]);
    let oldest = EventFilter { order: EventOrder::Ascending, limit: 3, ..of(parent.id) };
    assert_eq!(listed(oldest.clone()).await, [a, b, c]);
    assert_eq!(listed(EventFilter { operation: Some(Operation::Fork), ..oldest }).await, [b]);
    assert_eq!(listed(EventFilter { snapshot_id: Some(snapshot), ..all.clone() }).await, [c]);
    assert_eq!(listed(EventFilter { source_sandbox_id: Some(parent.id), ..all.clone() }).await, [c, b]);
    assert_eq!(listed(EventFilter { target_sandbox_id: Some(parent.id), ..all.clone() }).await, [c]);
    let both = EventFilter { target_sandbox_id: Some(child.id), ..of(parent.id) };
    assert_eq!(listed(both).await, [b]);
    let between = EventFilter { after: Some(log[0].cursor), up_to: Some(log[2].cursor), ..of(parent.id) };
    assert_eq!(listed(between).await, [c, b]);
}

pub async fn events_are_found_by_metadata_in_whatever_batch_they_are(world: &World) {
    const EVENTS: usize = 1300;
    let tenant = world.tenant("one").await;
    let told: Vec<_> = (0..EVENTS)
        .map(|number| {
            let mut event = event(Operation::TimeoutUpdated, EventStatus::Succeeded);
            let text =
                format!(r#"{{"hundred":{}.0,"even":{},"o":{{"a":1,"b":2}}}}"#, number / 100, number % 2 == 0);
            event.metadata = object(&text);
            event
        })
        .collect();
    world.insert(&new(tenant), None, &told).await;
    for (metadata, matching) in [
        (r#"{"hundred":3}"#, (300..400).collect::<Vec<_>>()),
        (r#"{"hundred":12,"even":true,"o":{"b":2.0,"a":1}}"#, (1200..1300).step_by(2).collect()),
        (r#"{"o":{"a":1}}"#, vec![]),
        (r#"{"hundred":"3"}"#, vec![]),
        (r#"{"even":false}"#, (1..EVENTS).step_by(2).collect()),
    ] {
        for order in [EventOrder::Ascending, EventOrder::Descending] {
            for (offset, limit) in [(0, 2000), (7, 20), (600, 100), (0, 0)] {
                let filter = EventFilter {
                    metadata: object(metadata),
                    order,
                    offset,
                    limit,
                    ..EventFilter::default()
                };
                let rows = world.store.event_list(tenant, &filter).await.unwrap();
                let found: Vec<_> = rows.into_iter().map(|row| row.event.id).collect();
                let mut expected: Vec<_> = matching.iter().map(|place| told[*place].id).collect();
                if order == EventOrder::Descending {
                    expected.reverse();
                }
                let expected: Vec<_> =
                    expected.into_iter().skip(offset as usize).take(limit as usize).collect();
                assert_eq!(found, expected, "{metadata} {order:?} {offset} {limit}");
            }
        }
    }
}

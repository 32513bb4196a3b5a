//! The log of events: lists, and subscribers that come while it is written.

use std::time::Duration;

use futures::stream::{BoxStream, StreamExt as _};
use nullspace_types::event::{LifecycleEventPage, LifecycleEventQuery, LifecycleSubscription};
use nullspace_types::id::{EventId, SnapshotId};

use super::*;

type Stream = BoxStream<'static, Result<LifecycleEvent>>;

impl World {
    /// Two events each time.
    async fn touch(&self, id: SandboxId, times: usize) {
        let window = SandboxTimeoutSet { timeout_ms: 1_800_000, timeout_action: None };
        for _ in 0..times {
            self.control.sandbox_timeout_set(self.tenant, id, window.clone()).await.unwrap();
        }
    }

    async fn subscribe(&self, json: Value) -> Result<Stream> {
        let subscription: LifecycleSubscription = serde_json::from_value(json).unwrap();
        self.control.lifecycle_subscribe(self.tenant, subscription).await
    }

    async fn list(&self, json: Value) -> Result<LifecycleEventPage> {
        let query: LifecycleEventQuery = serde_json::from_value(json).unwrap();
        self.control.lifecycle_list(self.tenant, query).await
    }

    /// All events, oldest first.
    async fn log(&self) -> Vec<EventId> {
        let filter = EventFilter { order: EventOrder::Ascending, limit: 100_000, ..EventFilter::default() };
        let rows = self.store.event_list(self.tenant, &filter).await.unwrap();
        rows.into_iter().map(|row| row.event.id).collect()
    }
}

async fn hear(stream: &mut Stream, count: usize) -> Vec<LifecycleEvent> {
    let heard = stream.take(count).map(|event| event.unwrap()).collect();
    tokio::time::timeout(Duration::from_secs(20), heard).await.expect("they come")
}

fn ids(events: &[LifecycleEvent]) -> Vec<EventId> {
    events.iter().map(|event| event.id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_and_what_happens_meanwhile_meet_without_a_gap_or_a_duplicate() {
    let world = World::start().await;
    let id = world.create(json!({})).await.unwrap().id;
    world.touch(id, 60).await;
    let past = world.log().await;
    // What each asks for, and the event that it must begin with at the latest.
    let asked = [
        (json!({"replay_limit": 1000}), Some(0)),
        (json!({"sandbox_id": id}), Some(past.len() - 100)),
        (json!({"replay_limit": 7, "metadata": {"timeout_action": "destroy"}}), Some(past.len() - 7)),
        (json!({"after_event_id": past[0], "replay_limit": 1, "live_only": true}), Some(1)),
        (json!({"live_only": true}), None),
        (json!({"replay_limit": 0}), None),
    ];
    let last = world.touch(id, 200);
    let follow = asked.into_iter().map(|(json, begin)| {
        let world = &world;
        async move {
            let mut stream = world.subscribe(json.clone()).await.unwrap();
            let mut heard = ids(&hear(&mut stream, 1).await);
            let whole = past_of(world, id, heard[0], 521).await;
            heard.extend(ids(&hear(&mut stream, whole.len() - 1).await));
            (json, begin, heard)
        }
    });
    let ((), told) = tokio::join!(last, join_all(follow));
    let log = world.log().await;
    assert_eq!(log.len(), 521);
    for (json, begin, heard) in told {
        let first = log.iter().position(|event| *event == heard[0]).unwrap();
        assert_eq!(heard, log[first..], "{json}");
        match begin {
            Some(0 | 1) => assert_eq!(Some(first), begin, "{json}"),
            // The newest of then, which may be later than those of before.
            _ => assert!(first >= begin.unwrap_or(past.len()), "{json}"),
        }
    }
}

/// The log from an event on, once it has so many events.
async fn past_of(world: &World, id: SandboxId, first: EventId, count: usize) -> Vec<EventId> {
    let mut all = world.subscribe(json!({"sandbox_id": id, "replay_limit": 1000})).await.unwrap();
    let all = ids(&hear(&mut all, count).await);
    let begin = all.iter().position(|event| *event == first).unwrap();
    all[begin..].to_vec()
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_for_long_is_told_everything_once_it_does() {
    let world = World::start().await;
    let id = world.create(json!({})).await.unwrap().id;
    let mut slow = world.subscribe(json!({"live_only": true})).await.unwrap();
    let mut picky = world.subscribe(json!({"live_only": true, "status": "requested"})).await.unwrap();
    // More than the feed keeps in memory.
    world.touch(id, 1100).await;
    let log = world.log().await;
    assert_eq!(ids(&hear(&mut slow, 2200).await), log[1..]);
    let requested = hear(&mut picky, 1100).await;
    assert!(requested.iter().all(|event| event.operation == Operation::TimeoutUpdated));
    world.control.sandbox_destroy(world.tenant, id).await.unwrap();
    let ends = ids(&hear(&mut slow, 2).await);
    assert_eq!(ends, world.log().await[2201..]);
    assert_eq!(ids(&hear(&mut picky, 1).await), ends[..1]);
}

#[tokio::test]
async fn a_list_can_be_read_page_by_page_also_when_its_sandbox_is_gone() {
    let world = World::start().await;
    let id = world.create(json!({})).await.unwrap().id;
    world.touch(id, 3).await;
    let child = world.fork(id, None, None).await.unwrap().remove(0).id;
    let snapshot = world.snapshot(child, None).await.unwrap().id;
    for gone in [id, child] {
        world.control.sandbox_destroy(world.tenant, gone).await.unwrap();
    }
    world.control.snapshot_delete(world.tenant, snapshot).await.unwrap();
    let all = world.list(json!({"sandbox_id": id, "order": "asc", "limit": "500"})).await.unwrap();
    assert_eq!((all.events.len(), all.has_more, all.limit), (10, false, 500));
    let page = world.list(json!({"sandbox_id": id, "limit": "4", "offset": "4"})).await.unwrap();
    assert_eq!((page.events.len(), page.has_more, page.offset), (4, true, 4));
    let newest_first: Vec<_> = ids(&all.events).into_iter().rev().collect();
    assert_eq!(ids(&page.events), newest_first[4..8]);
    assert!(!world.list(json!({"sandbox_id": id, "limit": "2", "offset": "8"})).await.unwrap().has_more);
    let forks = world.list(json!({"source_sandbox_id": id})).await.unwrap().events;
    assert!(forks.len() == 1 && forks[0].target_sandbox_id == Some(child) && all.events.contains(&forks[0]));
    assert_eq!(world.list(json!({"snapshot_id": snapshot})).await.unwrap().events.len(), 1);

    // What never was, and what is another tenant's, look alike; what had no such event is empty.
    assert!(world.list(json!({"sandbox_id": id, "operation": "hibernate"})).await.unwrap().events.is_empty());
    let stranger = World {
        tenant: world.store.tenant_ensure("other", nullspace_store::now()).await.unwrap().id,
        ..world
    };
    for unknown in [id, SandboxId::new()] {
        assert_eq!(code(stranger.list(json!({"sandbox_id": unknown})).await), Code::SandboxNotFound);
    }
    for unknown in [snapshot, SnapshotId::new()] {
        assert_eq!(code(stranger.list(json!({"snapshot_id": unknown})).await), Code::SnapshotNotFound);
    }
    assert!(stranger.list(json!({})).await.unwrap().events.is_empty());
    let theirs = stranger.subscribe(json!({"after_event_id": all.events[0].id})).await.map(drop);
    assert_eq!(code(theirs), Code::InvalidRequest);
}

//! A sandbox from its insert to its end.

use jiff::{Timestamp, ToSpan as _};
use nullspace_store::sandbox::{
    Change, DesiredState, Destruction, ObservedState, SandboxCounts, SandboxRow, Window,
};
use nullspace_store::{Error, now};
use nullspace_types::event::{EventStatus, Operation};
use nullspace_types::id::{IncarnationId, SandboxId, SnapshotId};
use nullspace_types::sandbox::TimeoutAction;

use crate::world::{World, applied, event, in_a_minute, new, object, seen};

fn end(reason: &str) -> Destruction {
    Destruction { reason: reason.into(), error_message: None, free_key: false, at: now() }
}

async fn read(world: &World, row: &SandboxRow) -> SandboxRow {
    world.store.sandbox_get(row.tenant_id, row.id).await.unwrap()
}

pub async fn a_new_sandbox_is_read_back_as_it_was_written(world: &World) {
    let mut asked = new(world.tenant("one").await);
    asked.vcpus = 8;
    asked.memory_mb = 65536;
    asked.disk_mb = Some(131_072);
    asked.envs = [("PATH".into(), "/bin:ünï".into()), ("NUL".into(), "a\0b".into())].into();
    asked.metadata =
        object(r#"{"z":[1,2.5,-0.0,1e300],"a":{"b":null,"":"\u0000\ud83e\udd80"},"n":9007199254740993}"#);
    asked.cwd = Some("/workspace".into());
    asked.internet_access = false;
    asked.timeout_ms = 2_592_000_000;
    asked.timeout_action = TimeoutAction::Hibernate;
    asked.auto_resume = true;
    asked.parent_id = Some(SandboxId::new());
    asked.origin_id = Some(SnapshotId::new());
    // Finer than what is stored.
    asked.created_at = Timestamp::from_nanosecond(1_700_000_000_123_456_789).unwrap();
    let row = world.insert(&asked, None, &[]).await;
    assert_eq!(read(world, &row).await, row);
    assert_eq!((row.desired.state, row.observed.state), (DesiredState::Running, ObservedState::None));
    assert_eq!((row.desired.generation, row.observed.generation), (1, 0));
    assert_eq!((row.desired.parent_id, row.desired.origin_id), (asked.parent_id, asked.origin_id));
    assert!(row.desired.auto_resume && row.desired.snapshot_id.is_none());
    assert_eq!((&row.desired.metadata, &row.desired.envs), (&asked.metadata, &asked.envs));
    assert_eq!(row.created_at.as_nanosecond(), 1_700_000_000_123_456_000);
    assert!(matches!(world.store.sandbox_insert(&asked, None, &[]).await, Err(Error::Conflict(_))));
}

pub async fn a_machine_that_runs_starts_the_window(world: &World) {
    let row = world.asked(world.tenant("one").await).await;
    let (observation, until) = (seen(&row, ObservedState::Running, 0), in_a_minute());
    let created = event(Operation::Create, EventStatus::Succeeded);
    let running = applied(
        world.store.sandbox_running(row.id, &observation, until, std::slice::from_ref(&created)).await,
    );
    assert_eq!(running.observed, observation.observed);
    assert_eq!((running.desired.timeout_at, running.desired.generation), (Some(until), 1));
    assert_eq!(read(world, &row).await, running);
    let log = world.log().await;
    assert_eq!((log.len(), log[0].event.id, log[0].event.sandbox_id), (1, created.id, Some(row.id)));
    assert_eq!(log[0].tenant_id, row.tenant_id);

    // A loss keeps what was known of the machine, and the window.
    let lost = applied(world.store.sandbox_observed(row.id, &seen(&row, ObservedState::Lost, 1), &[]).await);
    assert_eq!((lost.observed.state, lost.observed.generation), (ObservedState::Lost, 1));
    assert_eq!(lost.observed.disk_mb, Some(2048));
    assert_eq!(lost.observed.started_at, observation.observed.started_at);
    assert_eq!(lost.observed.error_message.as_deref(), Some("the machine went away"));
    assert_eq!(lost.desired, running.desired);
}

pub async fn stale_news_changes_nothing(world: &World) {
    let tenant = world.tenant("one").await;
    let row = world.running(tenant).await;
    let news = event(Operation::Reconcile, EventStatus::Succeeded);
    let lost = |generation| seen(&row, ObservedState::Lost, generation);
    let mut foreign = lost(9);
    foreign.incarnation = IncarnationId::new();
    for (why, observation) in [("same generation", lost(1)), ("older", lost(0)), ("another life", foreign)] {
        let change = world.store.sandbox_observed(row.id, &observation, std::slice::from_ref(&news)).await;
        assert_eq!(change.unwrap(), Change::Stale, "{why}");
    }
    // Once it is not wanted any more, only its end is news.
    let ending = applied(world.store.sandbox_destroy_request(row.id, "manual", false, &[]).await);
    let change = world.store.sandbox_observed(row.id, &lost(2), std::slice::from_ref(&news)).await;
    assert_eq!(change.unwrap(), Change::Stale);
    let again = seen(&row, ObservedState::Running, 3);
    let change =
        world.store.sandbox_running(row.id, &again, in_a_minute(), std::slice::from_ref(&news)).await;
    assert_eq!(change.unwrap(), Change::Stale);
    assert_eq!(read(world, &row).await, ending);
    assert_eq!(world.log().await, []);

    let nobody = SandboxId::new();
    assert!(matches!(world.store.sandbox_observed(nobody, &lost(2), &[]).await, Err(Error::NotFound(_))));
    let nothing = seen(&row, ObservedState::None, 4);
    assert!(matches!(world.store.sandbox_observed(row.id, &nothing, &[]).await, Err(Error::Invalid(_))));
    assert!(matches!(
        world.store.sandbox_running(row.id, &lost(4), now(), &[]).await,
        Err(Error::Invalid(_))
    ));
}

pub async fn a_destroy_is_asked_for_once_and_ends_once(world: &World) {
    let tenant = world.tenant("one").await;
    let row = world.running(tenant).await;
    let requests: Vec<_> = ["manual", "timeout", "manual", "timeout"]
        .into_iter()
        .map(|reason| {
            let (store, id) = (world.store.clone(), row.id);
            tokio::spawn(async move {
                let requested = event(Operation::Destroy, EventStatus::Requested);
                store.sandbox_destroy_request(id, reason, false, &[requested]).await.unwrap()
            })
        })
        .collect();
    let mut done = vec![];
    for request in requests {
        if let Change::Applied(row) = request.await.unwrap() {
            done.push(row);
        }
    }
    let [ending] = &done[..] else { panic!("{done:?}") };
    assert_eq!((ending.desired.state, ending.desired.generation), (DesiredState::Destroyed, 2));
    let counts = world.store.sandbox_counts(tenant).await.unwrap();
    assert_eq!(counts, SandboxCounts { destroying: 1, ..SandboxCounts::default() });

    let succeeded = event(Operation::Destroy, EventStatus::Succeeded);
    let gone = applied(world.store.sandbox_destroyed(row.id, &end("other"), &[succeeded]).await);
    assert!(gone.destroyed_at.is_some());
    assert_eq!(gone.desired, ending.desired, "the first reason stays");
    assert_eq!(gone.observed, row.observed);
    let late = event(Operation::Destroy, EventStatus::Succeeded);
    assert_eq!(world.store.sandbox_destroyed(row.id, &end("x"), &[late]).await.unwrap(), Change::Stale);
    assert_eq!(read(world, &row).await, gone);
    assert_eq!(world.store.sandbox_counts(tenant).await.unwrap(), SandboxCounts::default());
    let told: Vec<_> = world.log().await.into_iter().map(|row| row.event.status).collect();
    assert_eq!(told, [EventStatus::Requested, EventStatus::Succeeded]);
}

pub async fn a_failed_create_ends_without_being_asked_to(world: &World) {
    let row = world.asked(world.tenant("one").await).await;
    let failed =
        Destruction { error_message: Some("no memory\0for a machine".into()), ..end("create_failed") };
    let gone = applied(world.store.sandbox_destroyed(row.id, &failed, &[]).await);
    assert_eq!((gone.desired.state, gone.desired.generation), (DesiredState::Destroyed, 2));
    assert_eq!(gone.desired.destroy_reason.as_deref(), Some("create_failed"));
    assert_eq!(gone.observed.error_message.as_deref(), Some("no memory\u{fffd}for a machine"));
    assert_eq!(gone.destroyed_at, Some(failed.at));
}

pub async fn a_window_is_set_only_while_the_machine_runs(world: &World) {
    let (one, two) = (world.tenant("one").await, world.tenant("two").await);
    let (asked, running) = (world.asked(one).await, world.running(one).await);
    let window = Window {
        timeout_ms: 5000,
        timeout_action: TimeoutAction::Hibernate,
        timeout_at: now() + 5.seconds(),
    };
    assert_eq!(world.store.sandbox_timeout_set(one, asked.id, &window, &[]).await.unwrap(), Change::Stale);
    let foreign = world.store.sandbox_timeout_set(two, running.id, &window, &[]).await;
    assert!(matches!(foreign, Err(Error::NotFound("sandbox"))));
    let updated = event(Operation::TimeoutUpdated, EventStatus::Succeeded);
    let set = applied(world.store.sandbox_timeout_set(one, running.id, &window, &[updated]).await);
    assert_eq!(set.desired.timeout_at, Some(window.timeout_at));
    assert_eq!((set.desired.timeout_ms, set.desired.timeout_action), (5000, TimeoutAction::Hibernate));
    assert_eq!(set.desired.generation, 2);
    applied(world.store.sandbox_destroy_request(running.id, "manual", false, &[]).await);
    assert_eq!(world.store.sandbox_timeout_set(one, running.id, &window, &[]).await.unwrap(), Change::Stale);
    assert_eq!(world.log().await.len(), 1);
}

pub async fn windows_that_are_over_are_found_in_order(world: &World) {
    assert_eq!(world.store.sandbox_next_timeout().await.unwrap(), None);
    let (one, two) = (world.tenant("one").await, world.tenant("two").await);
    world.asked(one).await;
    let start = now();
    let mut rows = vec![];
    for (tenant, seconds) in [(one, 3), (two, 1), (one, 2), (two, 9)] {
        let row = world.asked(tenant).await;
        let running = seen(&row, ObservedState::Running, 1);
        rows.push(applied(
            world.store.sandbox_running(row.id, &running, start + seconds.seconds(), &[]).await,
        ));
    }
    let due = |limit| world.store.sandbox_expired(start + 3.seconds(), limit);
    let ids = |rows: Vec<SandboxRow>| rows.into_iter().map(|row| row.id).collect::<Vec<_>>();
    assert_eq!(ids(due(10).await.unwrap()), [rows[1].id, rows[2].id, rows[0].id]);
    assert_eq!(ids(due(2).await.unwrap()), [rows[1].id, rows[2].id]);
    assert_eq!(world.store.sandbox_next_timeout().await.unwrap(), Some(start + 1.second()));
    // A lost machine's window goes on; one that is not wanted any more has none.
    applied(world.store.sandbox_observed(rows[2].id, &seen(&rows[2], ObservedState::Lost, 2), &[]).await);
    applied(world.store.sandbox_destroy_request(rows[1].id, "timeout", false, &[]).await);
    assert_eq!(ids(due(10).await.unwrap()), [rows[2].id, rows[0].id]);
    assert_eq!(world.store.sandbox_next_timeout().await.unwrap(), Some(start + 2.seconds()));
}

pub async fn what_is_unfinished_is_found_in_pages(world: &World) {
    let (one, two) = (world.tenant("one").await, world.tenant("two").await);
    let asked = world.asked(one).await;
    let gone = world.running(one).await;
    let ending = world.running(two).await;
    let running = world.running(two).await;
    applied(world.store.sandbox_destroyed(gone.id, &end("manual"), &[]).await);
    applied(world.store.sandbox_destroy_request(ending.id, "manual", false, &[]).await);
    let (mut found, mut after) = (vec![], None);
    loop {
        let page = world.store.sandbox_unfinished(after, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        found.extend(page.into_iter().map(|row| row.id));
    }
    assert_eq!(found, [asked.id, ending.id, running.id]);
}

pub async fn a_failed_event_undoes_the_change(world: &World) {
    let tenant = world.tenant("one").await;
    let taken = event(Operation::Create, EventStatus::Requested);
    let row = world.insert(&new(tenant), None, std::slice::from_ref(&taken)).await;
    // The same event ID twice cannot be written.
    let change =
        world.store.sandbox_destroy_request(row.id, "manual", true, std::slice::from_ref(&taken)).await;
    assert!(matches!(change, Err(Error::Conflict(_))));
    let second = new(tenant);
    assert!(world.store.sandbox_insert(&second, None, &[taken]).await.is_err());
    assert_eq!(read(world, &row).await, row);
    assert!(matches!(world.store.sandbox_get(tenant, second.id).await, Err(Error::NotFound("sandbox"))));
    assert_eq!(world.log().await.len(), 1);
}

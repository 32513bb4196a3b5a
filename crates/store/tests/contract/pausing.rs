//! Hibernating and resuming, and what undoes either.

use nullspace_store::sandbox::{
    Change, DesiredState, Destruction, ObservedState, SandboxCounts, SandboxRow, Window,
};
use nullspace_store::snapshot::SnapshotFilter;
use nullspace_store::{Error, now};
use nullspace_types::event::{EventStatus, Operation};
use nullspace_types::id::{IncarnationId, SandboxId, SnapshotId};
use nullspace_types::sandbox::TimeoutAction;

use crate::world::{World, applied, event, hibernation, in_a_minute, seen, snapshot_of};

async fn snapshots(world: &World, row: &SandboxRow) -> Vec<SnapshotId> {
    let of = SnapshotFilter { sandbox_id: Some(row.id), ..SnapshotFilter::default() };
    let rows = world.store.snapshot_list(row.tenant_id, &of).await.unwrap();
    rows.into_iter().map(|row| row.snapshot.id).collect()
}

pub async fn a_sandbox_is_paused_and_runs_again_with_a_new_life(world: &World) {
    let tenant = world.tenant("one").await;
    let row = world.running(tenant).await;
    let snapshot = hibernation(&row);
    let requested = event(Operation::Hibernate, EventStatus::Requested);
    let going =
        applied(world.store.sandbox_pause_begin(row.id, snapshot.id, std::slice::from_ref(&requested)).await);
    assert_eq!((going.desired.state, going.desired.generation), (DesiredState::Paused, 2));
    assert_eq!((going.desired.snapshot_id, going.observed), (Some(snapshot.id), row.observed.clone()));
    assert_eq!(snapshots(world, &row).await, [], "nothing is captured yet");
    assert_eq!(world.store.sandbox_next_timeout().await.unwrap(), None, "no window ends on the way");

    let mut told = [Operation::Hibernate, Operation::SnapshotCreated]
        .map(|operation| event(operation, EventStatus::Succeeded));
    told.iter_mut().for_each(|event| event.snapshot_id = Some(snapshot.id));
    let paused = applied(world.store.sandbox_paused(row.id, &snapshot, &told).await);
    assert_eq!((paused.observed.state, paused.desired.timeout_at), (ObservedState::Paused, None));
    assert_eq!(world.store.sandbox_get(tenant, row.id).await.unwrap(), paused);
    let stored = world.store.snapshot_get(tenant, snapshot.id).await.unwrap();
    assert_eq!((&stored.snapshot, stored.ready), (&snapshot, true));
    let log: Vec<_> = world.log().await.into_iter().map(|row| row.event).collect();
    assert_eq!(log.iter().map(|event| event.id).collect::<Vec<_>>(), [requested.id, told[0].id, told[1].id]);
    assert!(log.iter().all(|event| event.sandbox_id == Some(row.id)));
    assert_eq!(log[2].snapshot_id, Some(snapshot.id));

    let life = IncarnationId::new();
    let resuming = applied(world.store.sandbox_resume_begin(row.id, life, &[]).await);
    assert_eq!((resuming.desired.state, resuming.desired.generation), (DesiredState::Running, 3));
    assert_eq!((resuming.desired.incarnation, resuming.observed.generation), (life, 0));
    assert_eq!(resuming.observed.state, ObservedState::Paused);
    let (running, until) = (seen(&resuming, ObservedState::Running, 0), in_a_minute());
    let running = applied(world.store.sandbox_running(row.id, &running, until, &[]).await);
    assert_eq!((running.observed.state, running.desired.timeout_at), (ObservedState::Running, Some(until)));
    assert_eq!(running.desired.snapshot_id, Some(snapshot.id), "it was last resumed from that");
    assert_eq!(snapshots(world, &row).await, [snapshot.id], "it stays after a resume");
}

pub async fn a_step_out_of_order_is_stale(world: &World) {
    let tenant = world.tenant("one").await;
    let (asked, running) = (world.asked(tenant).await, world.running(tenant).await);
    let (snapshot, life) = (hibernation(&running), IncarnationId::new());
    let (store, told) = (&world.store, [event(Operation::Hibernate, EventStatus::Requested)]);
    assert_eq!(store.sandbox_pause_begin(asked.id, snapshot.id, &told).await.unwrap(), Change::Stale);
    for change in [
        store.sandbox_paused(running.id, &snapshot, &told).await,
        store.sandbox_pause_undo(running.id, now(), &told).await,
        store.sandbox_resume_begin(running.id, life, &told).await,
        store.sandbox_resume_undo(running.id, &told).await,
    ] {
        assert_eq!(change.unwrap(), Change::Stale);
    }
    applied(store.sandbox_pause_begin(running.id, snapshot.id, &[]).await);
    let other = hibernation(&running);
    for change in [
        store.sandbox_pause_begin(running.id, other.id, &told).await,
        store.sandbox_paused(running.id, &other, &told).await,
        store.sandbox_resume_begin(running.id, life, &told).await,
        store.sandbox_resume_undo(running.id, &told).await,
    ] {
        assert_eq!(change.unwrap(), Change::Stale);
    }
    let paused = applied(store.sandbox_paused(running.id, &snapshot, &[]).await);
    // What is heard of the machine that was captured comes too late.
    let lost = seen(&paused, ObservedState::Lost, 9);
    let window = Window { timeout_ms: 1, timeout_action: TimeoutAction::Destroy, timeout_at: now() };
    for change in [
        store.sandbox_pause_begin(running.id, other.id, &told).await,
        store.sandbox_paused(running.id, &snapshot, &told).await,
        store.sandbox_pause_undo(running.id, now(), &told).await,
        store.sandbox_resume_undo(running.id, &told).await,
        store.sandbox_observed(running.id, &lost, &told).await,
        store.sandbox_running(running.id, &seen(&paused, ObservedState::Running, 9), now(), &told).await,
        store.sandbox_timeout_set(tenant, running.id, &window, &told).await,
    ] {
        assert_eq!(change.unwrap(), Change::Stale);
    }
    let resuming = applied(store.sandbox_resume_begin(running.id, life, &[]).await);
    let early = store.sandbox_observed(running.id, &seen(&resuming, ObservedState::Lost, 9), &told).await;
    assert_eq!(early.unwrap(), Change::Stale, "a failed resume is undone, not lost");
    assert_eq!(world.log().await, []);

    let nobody = SandboxId::new();
    let missing = store.sandbox_pause_begin(nobody, snapshot.id, &[]).await;
    assert!(matches!(missing, Err(Error::NotFound("sandbox"))));
    let manual = store.sandbox_paused(running.id, &snapshot_of(&running), &[]).await;
    assert!(matches!(manual, Err(Error::Invalid(_))));
}

pub async fn a_failed_step_is_undone(world: &World) {
    let tenant = world.tenant("one").await;
    let row = world.running(tenant).await;
    let until = in_a_minute();
    applied(world.store.sandbox_pause_begin(row.id, SnapshotId::new(), &[]).await);
    let undone = applied(world.store.sandbox_pause_undo(row.id, until, &[]).await);
    assert_eq!((undone.desired.state, undone.desired.timeout_at), (DesiredState::Running, Some(until)));
    assert_eq!((undone.desired.snapshot_id, undone.desired.generation), (None, 3));
    assert_eq!(undone.observed, row.observed);

    let (paused, first) = world.pause(&row).await;
    let resuming = applied(world.store.sandbox_resume_begin(row.id, IncarnationId::new(), &[]).await);
    let again = applied(world.store.sandbox_resume_undo(row.id, &[]).await);
    assert_eq!((again.desired.state, again.observed.state), (DesiredState::Paused, ObservedState::Paused));
    assert_eq!(again.desired.snapshot_id, paused.desired.snapshot_id);
    assert_eq!(again.desired.incarnation, resuming.desired.incarnation);

    // What it was resumed from is known again after the next hibernation failed.
    let running = world.resume(&again).await;
    applied(world.store.sandbox_pause_begin(row.id, SnapshotId::new(), &[]).await);
    let undone = applied(world.store.sandbox_pause_undo(row.id, until, &[]).await);
    assert_eq!(undone.desired.snapshot_id, Some(first.id));
    assert_eq!(undone.observed, running.observed);

    // A machine may be lost on the way, before it is captured or after.
    let last = hibernation(&row);
    applied(world.store.sandbox_pause_begin(row.id, last.id, &[]).await);
    let lost = seen(&running, ObservedState::Lost, 1);
    applied(world.store.sandbox_observed(row.id, &lost, &[]).await);
    let paused = applied(world.store.sandbox_paused(row.id, &last, &[]).await);
    assert_eq!((paused.observed.state, paused.observed.error_message), (ObservedState::Paused, None));
}

pub async fn a_hibernation_replaces_the_one_before_and_goes_with_the_sandbox(world: &World) {
    let tenant = world.tenant("one").await;
    let (row, first) = world.paused(tenant).await;
    let manual = snapshot_of(&row);
    world.store.snapshot_insert(&manual, None).await.unwrap();
    world.store.snapshot_ready(manual.id, 1, now(), &[]).await.unwrap();
    assert_eq!(snapshots(world, &row).await, [manual.id, first.id]);
    let running = world.resume(&row).await;
    let (_, second) = world.pause(&running).await;
    assert_eq!(snapshots(world, &row).await, [second.id, manual.id]);

    let ending = applied(world.store.sandbox_destroy_request(row.id, "manual", false, &[]).await);
    assert_eq!(
        (ending.desired.state, ending.observed.state),
        (DesiredState::Destroyed, ObservedState::Paused)
    );
    assert_eq!(snapshots(world, &row).await, [second.id, manual.id]);
    let end = Destruction { reason: "manual".into(), error_message: None, free_key: false, at: now() };
    let gone = applied(world.store.sandbox_destroyed(row.id, &end, &[]).await);
    assert_eq!(gone.desired.generation, ending.desired.generation);
    assert_eq!(snapshots(world, &row).await, [manual.id], "what somebody asked for outlives it");
}

pub async fn sandboxes_are_counted_by_what_they_are_on_the_way_to(world: &World) {
    let (one, two) = (world.tenant("one").await, world.tenant("two").await);
    world.asked(one).await;
    world.running(one).await;
    world.paused(one).await;
    let pausing = world.running(one).await;
    applied(world.store.sandbox_pause_begin(pausing.id, SnapshotId::new(), &[]).await);
    let (resuming, _) = world.paused(one).await;
    applied(world.store.sandbox_resume_begin(resuming.id, IncarnationId::new(), &[]).await);
    let (ending, _) = world.paused(one).await;
    applied(world.store.sandbox_destroy_request(ending.id, "manual", false, &[]).await);
    world.paused(two).await;
    let counts = SandboxCounts { creating: 1, running: 1, paused: 3, lost: 0, destroying: 1 };
    assert_eq!(world.store.sandbox_counts(one).await.unwrap(), counts);
    let all = SandboxCounts { paused: 4, ..counts };
    assert_eq!(world.store.sandbox_counts_all().await.unwrap(), all);
    assert_eq!(world.store.sandbox_unfinished(None, 10).await.unwrap().len(), 7);
}

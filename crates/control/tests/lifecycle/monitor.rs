//! Watching all sandboxes of a tenant, and the numbers for the operator.

use std::time::Duration;

use futures::stream::{BoxStream, StreamExt as _};
use nullspace_types::monitor::{MonitorNews, MonitorSpec};

use super::*;

async fn news(stream: &mut BoxStream<'static, Result<MonitorNews>>) -> MonitorNews {
    let next = tokio::time::timeout(Duration::from_secs(20), stream.next());
    next.await.expect("there is news").unwrap().unwrap()
}

#[tokio::test]
async fn a_monitor_tells_of_all_sandboxes_then_of_each_change_and_samples_those_that_run() {
    let world = World::start().await;
    let first = world.create(json!({"metadata": {"n": 1}})).await.unwrap();
    let asleep = world.create(json!({})).await.unwrap().id;
    world.hibernate(asleep).await.unwrap();
    let gone = world.create(json!({})).await.unwrap().id;
    world.control.sandbox_destroy(world.tenant, gone).await.unwrap();
    let spec = MonitorSpec { interval_ms: 250, include_processes: true };
    let mut stream = world.control.monitor(world.tenant, spec).await.unwrap();

    let MonitorNews::Snapshot(sandboxes) = news(&mut stream).await else { panic!("a snapshot comes first") };
    assert_eq!(sandboxes.iter().map(|one| one.id).collect::<Vec<_>>(), [asleep, first.id]);
    assert_eq!(sandboxes[1], Sandbox { traffic_access_token: None, ..first.clone() });
    let (mut metrics, mut processes) = (0, 0);
    while metrics < 2 || processes < 2 {
        match news(&mut stream).await {
            MonitorNews::Metrics(id, _) if id == first.id => metrics += 1,
            MonitorNews::Processes(id, told) if id == first.id && told[0].pid == 7 => processes += 1,
            other => panic!("nothing else runs: {other:?}"),
        }
    }
    let mut next_of = async |wanted: SandboxId| loop {
        match news(&mut stream).await {
            MonitorNews::Update(id, sandbox) if id == wanted => return sandbox.map(|one| one.status),
            MonitorNews::Update(id, sandbox) => panic!("{id}: {sandbox:?}"),
            MonitorNews::Snapshot(_) => panic!("there is one snapshot"),
            MonitorNews::Metrics(..) | MonitorNews::Processes(..) => {}
        }
    };
    world.resume(asleep).await.unwrap();
    assert_eq!(next_of(asleep).await, Some(SandboxStatus::Running));
    let child = world.fork(asleep, None, None).await.unwrap().remove(0).id;
    assert_eq!(next_of(child).await, Some(SandboxStatus::Running));
    world.control.sandbox_destroy(world.tenant, asleep).await.unwrap();
    assert_eq!(next_of(asleep).await, None);
    // That it is gone is told once.
    world.control.sandbox_destroy(world.tenant, child).await.unwrap();
    assert_eq!(next_of(child).await, None);
}

#[tokio::test]
async fn the_operators_numbers_count_what_happens() {
    let world = World::start().await;
    let id = world.create(json!({})).await.unwrap().id;
    world.snapshot(id, None).await.unwrap();
    world.fork(id, None, Some(2)).await.unwrap();
    world.hibernate(id).await.unwrap();
    world.resume(id).await.unwrap();
    world.hibernate(id).await.unwrap();
    let text = world.control.metrics().await.unwrap();
    for line in [
        "nullspace_sandbox_create_seconds_count{outcome=\"succeeded\"} 1",
        "nullspace_sandbox_fork_seconds_count{outcome=\"succeeded\"} 1",
        "nullspace_sandbox_hibernate_seconds_count{outcome=\"succeeded\"} 2",
        "nullspace_sandbox_resume_seconds_count{outcome=\"succeeded\"} 1",
        "nullspace_snapshot_create_seconds_count{outcome=\"succeeded\"} 1",
        "nullspace_sandboxes{status=\"running\"} 2",
        "nullspace_sandboxes{status=\"paused\"} 1",
        "# TYPE nullspace_sandbox_create_seconds histogram",
        "nullspace_machines 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

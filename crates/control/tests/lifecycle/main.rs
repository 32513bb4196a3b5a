//! The life of sandboxes, seen from control itself, with the real store and a node in memory.

mod doors;
mod events;
mod monitor;
mod network;
mod node;
mod preview;
mod ssh;
mod webhooks;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use nullspace_control::{Control, SystemClock};
use nullspace_domain::{Limits, WebhookConfig};
use nullspace_store::Store;
use nullspace_store::event::{EventFilter, EventOrder};
use nullspace_types::event::{LifecycleEvent, Operation};
use nullspace_types::id::{SandboxId, TenantId};
use nullspace_types::key::Principal;
use nullspace_types::process::ExecRequest;
use nullspace_types::sandbox::{
    Sandbox, SandboxGetQuery, SandboxListQuery, SandboxStatus, SandboxTimeoutSet, TimeoutAction,
};
use nullspace_types::snapshot::{SandboxDiffQuery, SandboxFork, SandboxForked, Snapshot, SnapshotListQuery};
use nullspace_types::{Code, Error, Result};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use doors::{TestDoors, access};
use node::{MemoryNode, Point};

struct World {
    directory: tempfile::TempDir,
    doors: TestDoors,
    store: Arc<dyn Store>,
    node: MemoryNode,
    control: Control,
    tenant: TenantId,
    caller: Principal,
}

async fn control(
    store: &Arc<dyn Store>,
    node: &MemoryNode,
    directory: &std::path::Path,
    doors: &TestDoors,
) -> Control {
    let (_, reports) = mpsc::channel(8);
    let access = access(&**store, directory, doors).await;
    let (store, node) = (store.clone(), Arc::new(node.clone()));
    let (clock, webhooks) = (Arc::new(SystemClock), WebhookConfig::default());
    Control::start(store, node, reports, clock, Limits::default(), webhooks, access).await.unwrap()
}

impl World {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("state.db").display());
        let store = nullspace_store::open(&url).await.unwrap();
        let tenant = store.tenant_ensure("default", nullspace_store::now()).await.unwrap().id;
        let key = nullspace_auth::keys::create(&*store, "default", "test").await.unwrap().key;
        let caller = Principal { tenant_id: tenant, key_id: key.id };
        let (node, doors) = (MemoryNode::default(), TestDoors::default());
        let control = control(&store, &node, directory.path(), &doors).await;
        Self { directory, doors, store, node, control, tenant, caller }
    }

    /// Ends control in the middle of whatever it does, and starts another on what is left.
    async fn restart(&mut self, point: Point) {
        self.control.stop().await;
        self.node.release(point);
        // What a server listens on ends with it.
        self.doors.with(|world| world.open.clear());
        self.control = control(&self.store, &self.node, self.directory.path(), &self.doors).await;
    }

    async fn create(&self, body: Value) -> Result<Sandbox> {
        self.control.sandbox_create(self.tenant, None, serde_json::from_value(body).unwrap()).await
    }

    fn get(&self, id: SandboxId) -> Result<Sandbox> {
        let shown = self.control.sandbox_get(self.tenant, id, &SandboxGetQuery::default())?;
        Ok(serde_json::from_value(shown).unwrap())
    }

    async fn until_status(&self, id: SandboxId, status: SandboxStatus) -> Sandbox {
        let wait = async {
            loop {
                match self.get(id) {
                    Ok(sandbox) if sandbox.status == status => return sandbox,
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("it comes to that status")
    }

    async fn exec(&self, id: SandboxId) -> Result<()> {
        let request = ExecRequest { command: "true".into(), ..ExecRequest::default() };
        self.control.process_exec(self.tenant, id, request).await.map(drop)
    }

    async fn hibernate(&self, id: SandboxId) -> Result<Snapshot> {
        self.control.sandbox_hibernate(self.tenant, id).await
    }

    async fn resume(&self, id: impl ToString) -> Result<Sandbox> {
        self.control.sandbox_resume(self.tenant, id.to_string()).await
    }

    async fn fork(&self, id: SandboxId, key: Option<&str>, count: Option<i64>) -> Result<Vec<Sandbox>> {
        let request = SandboxFork { count };
        let forked = self.control.sandbox_fork(self.tenant, key.map(str::to_owned), id, request).await?;
        Ok(match forked {
            SandboxForked::Many { items } => items,
            SandboxForked::One(child) => vec![*child],
        })
    }

    async fn snapshot(&self, id: SandboxId, key: Option<&str>) -> Result<Snapshot> {
        self.control.snapshot_create(self.tenant, key.map(str::to_owned), id).await
    }

    async fn listed(&self, state: &str) -> Vec<Value> {
        let query = SandboxListQuery { state: Some(state.to_owned()), ..SandboxListQuery::default() };
        let list = self.control.sandbox_list(self.tenant, query, true).await.unwrap();
        serde_json::to_value(list).unwrap()["items"].as_array().unwrap().clone()
    }

    async fn events(&self, id: SandboxId) -> Vec<LifecycleEvent> {
        let filter = EventFilter {
            sandbox_id: Some(id),
            order: EventOrder::Ascending,
            limit: 500,
            ..EventFilter::default()
        };
        let rows = self.store.event_list(self.tenant, &filter).await.unwrap();
        rows.into_iter().map(|row| row.event).collect()
    }

    async fn words(&self, id: SandboxId) -> Vec<String> {
        let word = |event: &LifecycleEvent| {
            let reason = event.reason.as_deref().unwrap_or("-");
            format!("{}/{} {reason}", event.operation.as_str(), event.status.as_str())
        };
        self.events(id).await.iter().map(word).collect()
    }

    fn checkpoints(&self) -> usize {
        self.node.with(|world| world.checkpoints.len())
    }

    fn check(&self) {
        self.node.with(|world| assert!(world.wrong.is_empty(), "{:?}", world.wrong));
    }

    fn machines(&self) -> usize {
        self.node.with(|world| world.machines.len())
    }
}

fn code<T: std::fmt::Debug>(answer: Result<T>) -> Code {
    answer.expect_err("it is refused").code
}

#[tokio::test]
async fn a_hibernated_sandbox_keeps_its_id_and_goes_on_with_a_new_window() {
    let world = World::start().await;
    let made = world.create(json!({"timeout_action": "hibernate", "metadata": {"a": 1}})).await.unwrap();
    let first = world.hibernate(made.id).await.unwrap();
    assert!(world.machines() == 0 && first.size_bytes > 0 && first.metadata["a"] == 1);
    let paused = world.get(made.id).unwrap();
    assert_eq!((paused.status, paused.snapshot_id), (SandboxStatus::Paused, Some(first.id)));
    assert!(paused.timeout_at.is_none() && paused.timeout_ms == made.timeout_ms);
    assert_eq!(world.listed("paused").await.len(), 1);
    assert_eq!(world.hibernate(made.id).await.unwrap(), first, "it is paused already");
    assert_eq!(code(world.exec(made.id).await), Code::SandboxNotReady);
    assert_eq!(code(world.control.snapshot_delete(world.tenant, first.id).await), Code::SnapshotInUse);

    let resumed = world.resume(first.id).await.unwrap();
    assert_eq!((resumed.id, resumed.status, resumed.snapshot_id), (made.id, SandboxStatus::Running, None));
    assert!(resumed.timeout_at > made.timeout_at && resumed.started_at > made.started_at);
    assert_eq!(resumed.timeout_action, Some(TimeoutAction::Hibernate));
    assert_eq!(world.resume(made.id).await.unwrap(), resumed, "it runs already");
    world.exec(made.id).await.unwrap();

    let second = world.hibernate(made.id).await.unwrap();
    world.node.until(|world| !world.checkpoints.contains_key(&first.id)).await;
    assert_eq!(code(world.control.snapshot_get(world.tenant, first.id).await), Code::SnapshotNotFound);
    assert_eq!(code(world.resume(first.id).await), Code::SnapshotNotFound);
    world.control.sandbox_destroy(world.tenant, made.id).await.unwrap();
    assert_eq!(world.checkpoints(), 0);
    assert_eq!(code(world.resume(second.id).await), Code::SandboxNotFound);
    let one =
        ["hibernate/requested manual", "hibernate/succeeded manual", "snapshot_created/succeeded manual"];
    let mut expected = vec!["create/succeeded api"];
    expected.extend(one);
    expected.push("resume_from_snapshot/succeeded api");
    expected.extend(one);
    expected.extend(["destroy/requested manual", "destroy/succeeded manual"]);
    assert_eq!(world.words(made.id).await, expected);
    let events = world.events(made.id).await;
    assert!([2, 3, 4].iter().all(|at| events[*at].snapshot_id == Some(first.id)), "{events:?}");
    assert_eq!(events[3].metadata["created_via"], "hibernate");
    assert_eq!((events[4].source_sandbox_id, events[4].target_sandbox_id), (Some(made.id), Some(made.id)));
}

#[tokio::test]
async fn many_calls_at_once_wake_a_sandbox_once_and_reading_never_does() {
    let world = World::start().await;
    let body = json!({"lifecycle": {"on_timeout": "pause"}, "auto_resume": true});
    let id = world.create(body).await.unwrap().id;
    world.hibernate(id).await.unwrap();
    world.get(id).unwrap();
    assert!(world.control.sandbox_metrics(world.tenant, id).await.unwrap().is_empty());
    let bad = ExecRequest { command: String::new(), ..ExecRequest::default() };
    let refused = world.control.process_exec(world.tenant, id, bad).await.map(drop);
    assert_eq!(code(refused), Code::InvalidRequest);
    assert_eq!(world.get(id).unwrap().status, SandboxStatus::Paused);
    assert!(join_all((0..20).map(|_| world.exec(id))).await.into_iter().all(|answer| answer.is_ok()));
    assert_eq!(world.node.with(|world| world.made.len()), 2, "one create and one resume");
    let window = SandboxTimeoutSet { timeout_ms: 1000, timeout_action: Some(TimeoutAction::Destroy) };
    let set = world.control.sandbox_timeout_set(world.tenant, id, window).await;
    assert_eq!(code(set), Code::InvalidRequest);

    // Calls that come while it is being hibernated wait for that, and wake it then.
    world.node.hold(Point::CaptureBefore);
    let calls = async {
        world.node.reached(Point::CaptureBefore).await;
        let calls = join_all((0..5).map(|_| world.exec(id)));
        let release = async {
            tokio::task::yield_now().await;
            world.node.release(Point::CaptureBefore);
        };
        futures::join!(calls, release).0
    };
    let (paused, calls) = futures::join!(world.hibernate(id), calls);
    assert!(paused.is_ok() && calls.iter().all(Result::is_ok), "{paused:?} {calls:?}");
    assert_eq!(world.get(id).unwrap().status, SandboxStatus::Running);
}

#[tokio::test]
async fn a_hibernation_that_fails_leaves_the_sandbox_running_and_says_so() {
    let world = World::start().await;
    let id = world.create(json!({})).await.unwrap().id;
    world.node.with(|node| node.capture_error = Some(Error::new(Code::CapacityExceeded, "the disk is full")));
    assert_eq!(code(world.hibernate(id).await), Code::CapacityExceeded);
    assert_eq!(world.get(id).unwrap().status, SandboxStatus::Running);
    world.exec(id).await.unwrap();
    let events = world.events(id).await;
    let failed = events.last().unwrap();
    assert_eq!(failed.error_code.as_deref(), Some("capacity_exceeded"));
    assert_eq!(world.words(id).await[1..], ["hibernate/requested manual", "hibernate/failed manual"]);

    // At the timeout it is tried again, later and later, and the sandbox goes on.
    let id = world.create(json!({"timeout_action": "hibernate", "timeout_ms": 20})).await.unwrap().id;
    let failed = async {
        loop {
            if world.events(id).await.iter().any(|event| event.error_code.is_some()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), failed).await.unwrap();
    let again = world.until_status(id, SandboxStatus::Running).await.timeout_at.unwrap();
    assert!(again.duration_since(nullspace_store::now()).as_secs() >= 20, "{again}");
    world.exec(id).await.unwrap();
}

#[tokio::test]
async fn a_sandbox_hibernates_at_its_timeout_and_a_failed_resume_leaves_it_paused() {
    let world = World::start().await;
    let made = world.create(json!({"timeout_action": "hibernate", "timeout_ms": 20})).await.unwrap();
    let paused = world.until_status(made.id, SandboxStatus::Paused).await;
    assert_eq!(
        world.words(made.id).await[1..],
        [
            "timeout_expired/succeeded timeout",
            "hibernate/requested timeout",
            "hibernate/succeeded timeout",
            "snapshot_created/succeeded timeout",
        ]
    );
    world.node.with(|node| node.room = Some(0));
    assert_eq!(code(world.resume(made.id).await), Code::CapacityExceeded);
    assert_eq!(world.get(made.id).unwrap(), paused);
    world.node.with(|node| node.room = None);
    assert_eq!(world.resume(made.id).await.unwrap().status, SandboxStatus::Running);
    let words = world.words(made.id).await;
    assert_eq!(words[5..7], ["resume_from_snapshot/failed api", "resume_from_snapshot/succeeded api"]);
}

#[tokio::test]
async fn any_number_of_sandboxes_begin_from_a_snapshot_that_outlives_its_own() {
    let world = World::start().await;
    let parent = world.create(json!({"vcpus": 2, "metadata": {"of": "parent"}})).await.unwrap();
    let (one, two) =
        futures::join!(world.snapshot(parent.id, Some("k")), world.snapshot(parent.id, Some("k")));
    let snapshot = one.unwrap();
    assert_eq!(snapshot, two.unwrap(), "a key makes one");
    assert_eq!(code(world.resume(snapshot.id).await), Code::InvalidRequest);
    world.control.sandbox_destroy(world.tenant, parent.id).await.unwrap();
    let from = |body: Value| async {
        let mut body = body;
        body["snapshot_id"] = json!(snapshot.id);
        world.create(body).await
    };
    let child = from(json!({"timeout_ms": 1000})).await.unwrap();
    assert_eq!((child.config.vcpus, child.parent_id), (2, Some(parent.id)));
    assert_eq!(child.metadata["of"], "parent");
    let other = from(json!({"metadata": {}})).await.unwrap();
    assert!(other.metadata.is_empty());
    assert_eq!(code(from(json!({"vcpus": 1})).await), Code::InvalidRequest);
    assert_eq!(world.events(child.id).await[0].snapshot_id, Some(snapshot.id));
    let tree = world.control.sandbox_tree(world.tenant, child.id).await.unwrap();
    assert_eq!(tree.root_id, parent.id);
    let depths: Vec<_> = tree.items.iter().map(|node| (node.id, node.depth, node.snapshot_id)).collect();
    let of = Some(snapshot.id);
    assert_eq!(depths, [(parent.id, 0, None), (child.id, 1, of), (other.id, 1, of)]);
    let diff = |against: String| {
        let query = SandboxDiffQuery { against: Some(against), limit: None };
        world.control.sandbox_diff(world.tenant, child.id, query)
    };
    assert!(diff(other.id.to_string()).await.is_ok() && diff(snapshot.id.to_string()).await.is_ok());
    let stranger = world.create(json!({})).await.unwrap();
    assert_eq!(code(diff(stranger.id.to_string()).await), Code::InvalidRequest);

    let listed = world.control.snapshot_list(world.tenant, SnapshotListQuery::default()).await.unwrap();
    assert_eq!(listed, std::slice::from_ref(&snapshot));
    world.control.snapshot_delete(world.tenant, snapshot.id).await.unwrap();
    assert_eq!(world.checkpoints(), 0);
    assert_eq!(code(world.control.snapshot_delete(world.tenant, snapshot.id).await), Code::SnapshotNotFound);
    assert_eq!(code(from(json!({})).await), Code::SnapshotNotFound);

    world.node.with(|node| node.capture_error = Some(Error::new(Code::CapacityExceeded, "the disk is full")));
    assert_eq!(code(world.snapshot(child.id, Some("n")).await), Code::CapacityExceeded);
    world.node.with(|node| node.capture_error = None);
    world.snapshot(child.id, Some("n")).await.expect("the key of a snapshot that failed is free");
    let words = world.words(child.id).await;
    assert_eq!(words[1..], ["snapshot_created/failed api", "snapshot_created/succeeded api"]);
}

#[tokio::test]
async fn a_fork_makes_all_children_or_none_and_a_key_makes_it_once() {
    let mut world = World::start().await;
    let body = json!({"metadata": {"a": 1}, "timeout_action": "hibernate", "auto_resume": true});
    let parent = world.create(body).await.unwrap();
    let children = world.fork(parent.id, Some("k"), Some(3)).await.unwrap();
    let ids: Vec<_> = children.iter().map(|child| child.id).collect();
    assert!(ids.is_sorted() && ids.len() == 3, "{ids:?}");
    for child in &children {
        assert_eq!((child.status, child.parent_id), (SandboxStatus::Running, Some(parent.id)));
        assert!(child.auto_resume && child.metadata == parent.metadata && child.config == parent.config);
        let events = world.events(child.id).await;
        let parts = (events[0].operation, events[0].target_sandbox_id, events[0].source_sandbox_id);
        assert_eq!(parts, (Operation::Fork, Some(child.id), Some(parent.id)));
        assert_eq!(events.len(), 1);
    }
    world.node.until(|node| node.checkpoints.is_empty()).await;
    assert_eq!(world.fork(parent.id, Some("k"), Some(3)).await.unwrap(), children);
    assert_eq!(code(world.fork(parent.id, Some("k"), None).await), Code::Conflict);
    world.restart(Point::CaptureBefore).await;
    assert_eq!(world.fork(parent.id, Some("k"), Some(3)).await.unwrap(), children, "after a restart too");
    world.node.until(|node| node.checkpoints.is_empty() && node.machines.len() == 4).await;

    // There is room for two of three.
    world.node.with(|node| node.room = Some(6));
    assert_eq!(code(world.fork(parent.id, Some("n"), Some(3)).await), Code::CapacityExceeded);
    world.node.until(|node| node.checkpoints.is_empty() && node.machines.len() == 4).await;
    assert_eq!(world.listed("creating,running").await.len(), 4);
    let failed = |words: Vec<String>| words.iter().filter(|word| word.starts_with("fork/failed")).count();
    assert_eq!(failed(world.words(parent.id).await), 1);
    world.node.with(|node| node.room = None);
    assert_eq!(world.fork(parent.id, Some("n"), Some(3)).await.unwrap().len(), 3, "its key is free");
    let grandchild = world.fork(ids[0], None, None).await.unwrap();
    let tree = world.control.sandbox_tree(world.tenant, grandchild[0].id).await.unwrap();
    assert_eq!(tree.items.iter().map(|node| node.depth).max(), Some(2));
}

#[tokio::test]
async fn whatever_was_under_way_when_the_server_ended_is_brought_to_an_end_by_the_next() {
    for point in [Point::CaptureBefore, Point::CaptureAfter, Point::CreateBefore, Point::CreateAfter] {
        let capture = matches!(point, Point::CaptureBefore | Point::CaptureAfter);
        let mut world = World::start().await;
        let id = world.create(json!({"metadata": {"n": 1}})).await.unwrap().id;

        // A hibernation, or a resume.
        if !capture {
            world.hibernate(id).await.unwrap();
        }
        world.node.hold(point);
        let call = {
            let (control, tenant) = (world.control.clone(), world.tenant);
            tokio::spawn(async move {
                match capture {
                    true => control.sandbox_hibernate(tenant, id).await.map(drop),
                    false => control.sandbox_resume(tenant, id.to_string()).await.map(drop),
                }
            })
        };
        world.node.reached(point).await;
        world.restart(point).await;
        assert!(call.await.unwrap().is_err());
        let status = if capture { SandboxStatus::Paused } else { SandboxStatus::Running };
        world.until_status(id, status).await;
        assert_eq!(world.checkpoints(), 1, "{point:?}");
        assert_eq!(world.resume(id).await.unwrap().status, SandboxStatus::Running);

        // A snapshot, or a fork.
        world.node.hold(point);
        let (control, tenant) = (world.control.clone(), world.tenant);
        let snapshot = tokio::spawn(async move {
            match capture {
                true => control.snapshot_create(tenant, None, id).await.map(drop),
                false => {
                    control.sandbox_fork(tenant, None, id, SandboxFork { count: Some(2) }).await.map(drop)
                }
            }
        });
        world.node.reached(point).await;
        world.restart(point).await;
        assert!(snapshot.await.unwrap().is_err());
        world.node.until(|node| node.machines.len() == 1).await;
        let query = SnapshotListQuery { metadata: Some("{\"n\": 1}".into()), ..SnapshotListQuery::default() };
        let listed = world.control.snapshot_list(world.tenant, query).await.unwrap().len();
        assert_eq!(listed, if point == Point::CaptureAfter { 2 } else { 1 }, "{point:?}");
        world.node.until(|node| node.checkpoints.len() == listed).await;
        world.control.sandbox_destroy(world.tenant, id).await.unwrap();
        world.node.until(|node| node.machines.is_empty()).await;
        assert_eq!(world.checkpoints(), listed - 1, "only what a user named outlives the sandbox");
        world.check();
    }
}

/// Every request is followed by its outcome before the next, and a hibernation by its snapshot.
fn check_order(words: &[String]) {
    let mut open: Option<&str> = None;
    for word in words {
        let (operation, status) = word.split_whitespace().next().unwrap().split_once('/').unwrap();
        match (status, open) {
            ("requested", None) => open = Some(operation),
            ("requested", Some(other)) => panic!("{other} is still open: {words:?}"),
            (_, Some(other)) if other == operation => open = None,
            (_, _) => {}
        }
    }
    assert_eq!(open, None, "{words:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_calls_at_once_on_one_sandbox_leave_one_order_and_nothing_else() {
    for round in 0..10u32 {
        let world = World::start().await;
        let body = json!({"timeout_action": "hibernate", "auto_resume": round % 2 == 0});
        let id = world.create(body).await.unwrap().id;
        let calls = (0..50).map(|number| {
            let world = &world;
            async move {
                match number % 6 {
                    0 => world.hibernate(id).await.map(drop),
                    1 => world.resume(id).await.map(drop),
                    2 => world.fork(id, None, Some(2)).await.map(drop),
                    3 => world.snapshot(id, None).await.map(drop),
                    4 if number > 30 => world.control.sandbox_destroy(world.tenant, id).await.map(drop),
                    _ => world.exec(id).await,
                }
            }
        });
        for answer in join_all(calls).await {
            if let Err(error) = answer {
                assert!(
                    matches!(error.code, Code::SandboxNotFound | Code::SandboxNotReady),
                    "{error:?} {:?}",
                    error.context
                );
            }
        }
        world.check();
        assert_eq!(code(world.get(id)), Code::SandboxNotFound);
        let own = |event: &LifecycleEvent| {
            event.sandbox_id == Some(id) && event.operation != Operation::SnapshotCreated
        };
        let events: Vec<_> = world.events(id).await.into_iter().filter(own).collect();
        let words: Vec<_> = events
            .iter()
            .map(|event| format!("{}/{}", event.operation.as_str(), event.status.as_str()))
            .collect();
        check_order(&words);
        // What is left is what was made of it on purpose: children, and snapshots that a user named.
        let children = world.listed("creating,running,paused,error").await.len();
        let query = SnapshotListQuery::default();
        let snapshots = world.control.snapshot_list(world.tenant, query).await.unwrap().len();
        world.node.until(|node| node.machines.len() == children && node.checkpoints.len() == snapshots).await;
        world.control.stop().await;
    }
}

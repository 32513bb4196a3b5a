//! A full disk under the store, seen from control itself: new work is refused, what runs goes on, and what
//! ends is written when there is room again.

use std::sync::Arc;
use std::time::Duration;

use nullspace_control::{Control, SystemClock};
use nullspace_domain::{Limits, WebhookConfig};
use nullspace_store::Store;
use nullspace_store::event::{EventFilter, EventOrder};
use nullspace_tests_api::{FakeHost, FullStore, Point, access};
use nullspace_types::Code;
use nullspace_types::id::TenantId;
use nullspace_types::process::ExecRequest;
use nullspace_types::sandbox::{SandboxCreate, SandboxGetQuery, SandboxTimeoutSet};
use tokio::sync::mpsc;

struct World {
    _directory: tempfile::TempDir,
    store: Arc<FullStore>,
    host: FakeHost,
    control: Control,
    tenant: TenantId,
}

impl World {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("state.db").display());
        let store = Arc::new(FullStore::new(nullspace_store::open(&url).await.unwrap()));
        let tenant = nullspace_store::KeyStore::tenant_ensure(&*store, "default", nullspace_store::now())
            .await
            .unwrap();
        let host = FakeHost::default();
        let (reports, news) = mpsc::channel(8);
        let node = host.node(reports);
        let access = access(&*store, directory.path()).await;
        let control = Control::start(
            store.clone() as Arc<dyn Store>,
            node,
            news,
            Arc::new(SystemClock),
            Limits::default(),
            WebhookConfig::default(),
            access,
        );
        Self { _directory: directory, control: control.await.unwrap(), store, host, tenant: tenant.id }
    }

    async fn words(&self, count: usize) -> Vec<String> {
        let filter = EventFilter { order: EventOrder::Ascending, limit: 100, ..EventFilter::default() };
        let read = async {
            loop {
                let rows = nullspace_store::EventStore::event_list(&*self.store, self.tenant, &filter)
                    .await
                    .unwrap();
                if rows.len() >= count {
                    let event = |row: &nullspace_store::event::EventRow| {
                        format!("{}/{}", row.event.operation.as_str(), row.event.status.as_str())
                    };
                    return rows.iter().map(event).collect();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), read).await.expect("the events are written")
    }
}

#[tokio::test]
async fn a_create_that_cannot_be_written_is_refused_and_leaves_no_machine() {
    let world = World::start().await;
    world.store.set_full(true);
    let create = || world.control.sandbox_create(world.tenant, Some("k".into()), SandboxCreate::default());
    assert_eq!(create().await.unwrap_err().code, Code::CapacityExceeded);
    world.host.empty().await;
    world.store.set_full(false);

    // It fills up while the machine is being made.
    world.host.hold(Point::CreateAfter);
    let fill = async {
        world.host.reached(Point::CreateAfter).await;
        world.store.set_full(true);
        world.host.release(Point::CreateAfter);
    };
    let (refused, ()) = futures::join!(create(), fill);
    assert_eq!(refused.unwrap_err().code, Code::CapacityExceeded);
    world.host.empty().await;
    world.store.set_full(false);
    assert_eq!(world.words(1).await, ["create/failed"]);
    let made = world
        .control
        .sandbox_create(world.tenant, Some("k2".into()), SandboxCreate::default())
        .await
        .unwrap();
    assert_eq!(world.host.machines(), [made.id]);
}

#[tokio::test]
async fn what_runs_goes_on_and_can_be_destroyed_which_is_written_when_there_is_room() {
    let world = World::start().await;
    let (control, tenant) = (&world.control, world.tenant);
    let made = control.sandbox_create(tenant, None, SandboxCreate::default()).await.unwrap();
    world.store.set_full(true);
    let request = ExecRequest { command: "true".into(), ..ExecRequest::default() };
    assert!(control.process_exec(tenant, made.id, request).await.is_ok());
    let window = SandboxTimeoutSet { timeout_ms: 1000, timeout_action: None };
    let refused = control.sandbox_timeout_set(tenant, made.id, window).await.unwrap_err();
    assert_eq!(refused.code, Code::CapacityExceeded);
    let shown = control.sandbox_get(tenant, made.id, &SandboxGetQuery::default()).unwrap();
    assert_eq!(shown["timeout_ms"], 300_000, "a window that could not be written is not in force");

    control.sandbox_destroy(tenant, made.id).await.unwrap();
    assert!(world.host.machines().is_empty());
    assert!(control.sandbox_get(tenant, made.id, &SandboxGetQuery::default()).is_err());
    world.store.set_full(false);
    assert_eq!(world.words(3).await, ["create/succeeded", "destroy/requested", "destroy/succeeded"]);
}

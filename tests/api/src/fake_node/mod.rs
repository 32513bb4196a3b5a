//! A host of machines that exist in memory only, for tests of everything above the node. The
//! [`FakeHost`] is the world: it outlives a server that is killed, as real machines do. A [`FakeNode`]
//! is one server's door to it. On demand it hangs at a named point, fails, lies, or loses a machine.

mod checkpoint;
mod file;
mod network;
mod node;
mod process;
mod terminal;
mod upload;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use jiff::Timestamp;
use nullspace_node_api::{Machine, MachineSpec, Node, Origin, Report};
use nullspace_types::file::FileChange;
use nullspace_types::id::{IncarnationId, SandboxId, SessionId, SnapshotId, UploadId};
use nullspace_types::network::EgressPolicy;
use nullspace_types::{Error, Result};
use tokio::sync::{mpsc, watch};

use checkpoint::FakeCheckpoint;
use node::FakeNode;
use process::FakeProcess;
use terminal::FakeTerminal;
use upload::FakeUpload;

/// Where a call to the node can be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// Asked for a machine; there is none yet.
    CreateBefore,
    /// The machine is made; the caller does not know yet.
    CreateAfter,
    /// Asked to end a machine; it is still there.
    DestroyBefore,
    /// The machine is ended; the caller does not know yet.
    DestroyAfter,
    /// Asked for a checkpoint; there is none yet.
    CaptureBefore,
    /// The checkpoint is there; the caller does not know yet.
    CaptureAfter,
    /// Asked to remove a checkpoint; it is still there.
    RemoveBefore,
}

#[derive(Debug, Default)]
struct World {
    machines: BTreeMap<SandboxId, FakeMachine>,
    checkpoints: BTreeMap<SnapshotId, FakeCheckpoint>,
    /// Every machine ever made, in order.
    made: Vec<IncarnationId>,
    /// Creates under way, and whether an end was asked for.
    creating: BTreeMap<SandboxId, bool>,
    /// Ports that something listens on in every machine.
    services: BTreeSet<u16>,
    held: BTreeSet<Point>,
    /// How many calls have come to each point since it was held.
    reached: BTreeMap<Point, usize>,
    create_error: Option<Error>,
    capture_error: Option<Error>,
    destroy_errors: u32,
    ready_error: Option<Error>,
    reports: Option<mpsc::Sender<Report>>,
}

#[derive(Debug, Clone)]
struct FakeMachine {
    machine: Machine,
    spec: MachineSpec,
    files: BTreeMap<String, Vec<u8>>,
    /// Every change of a file, for whoever watches.
    changes: Vec<FileChange>,
    processes: BTreeMap<u32, FakeProcess>,
    next_pid: u32,
    terminals: BTreeMap<SessionId, FakeTerminal>,
    uploads: BTreeMap<UploadId, FakeUpload>,
}

/// The world of fake machines.
#[derive(Debug, Clone)]
pub struct FakeHost {
    world: Arc<watch::Sender<World>>,
}

impl Default for FakeHost {
    fn default() -> Self {
        Self { world: Arc::new(watch::Sender::new(World::default())) }
    }
}

impl FakeHost {
    fn with<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let mut answer = None;
        self.world.send_modify(|world| answer = Some(change(world)));
        answer.expect("send_modify calls its argument once")
    }

    /// A server's door to this world.
    pub fn node(&self, reports: mpsc::Sender<Report>) -> Arc<dyn Node> {
        self.with(|world| {
            world.reports = Some(reports);
            world.creating.clear();
            world.forget_transient();
        });
        Arc::new(FakeNode { host: self.clone() })
    }

    /// Holds every call that comes to the point.
    pub fn hold(&self, point: Point) {
        self.with(|world| {
            world.held.insert(point);
            world.reached.insert(point, 0);
        });
    }

    /// Lets the held calls go on.
    pub fn release(&self, point: Point) {
        self.with(|world| world.held.remove(&point));
    }

    /// Waits until a call has come to the held point.
    pub async fn reached(&self, point: Point) {
        self.wait_until(|world| world.reached.get(&point).is_some_and(|count| *count > 0)).await;
    }

    async fn wait_until(&self, what: impl FnMut(&World) -> bool) {
        let mut world = self.world.subscribe();
        let waiting = world.wait_for(what);
        tokio::time::timeout(Duration::from_secs(20), waiting)
            .await
            .expect("the fake host comes to the awaited state")
            .expect("the fake host owns the sender");
    }

    /// Every create fails with this from now on; none does with `None`.
    pub fn fail_creates(&self, error: Option<Error>) {
        self.with(|world| world.create_error = error);
    }

    /// The next so many destroys fail.
    pub fn fail_destroys(&self, count: u32) {
        self.with(|world| world.destroy_errors = count);
    }

    /// What [`Node::ready`] answers.
    pub fn set_ready(&self, error: Option<Error>) {
        self.with(|world| world.ready_error = error);
    }

    /// The sandboxes that have a machine.
    pub fn machines(&self) -> Vec<SandboxId> {
        self.world.borrow().machines.keys().copied().collect()
    }

    /// How many machines were ever made.
    pub fn made(&self) -> usize {
        self.world.borrow().made.len()
    }

    /// What a machine was asked to be.
    pub fn spec(&self, id: SandboxId) -> Option<MachineSpec> {
        self.world.borrow().machines.get(&id).map(|machine| machine.spec.clone())
    }

    /// Waits until no machine is left.
    pub async fn empty(&self) {
        self.wait_until(|world| world.machines.is_empty()).await;
    }

    /// Puts a machine there that no server asked for.
    pub fn stray(&self) -> SandboxId {
        let spec = MachineSpec {
            sandbox_id: SandboxId::new(),
            incarnation: IncarnationId::new(),
            template: "base".into(),
            shape: nullspace_node_api::Shape { vcpus: 1, memory_mb: 256 },
            disk_mb: None,
            envs: BTreeMap::new(),
            cwd: None,
            egress: EgressPolicy::default(),
            origin: Origin::Template,
        };
        let made = self.with(|world| world.make(spec));
        made.expect("a machine of a template can be made").sandbox_id
    }

    /// Ends a machine without a word: what a kill of the monitor does while no server runs.
    pub fn lose_silently(&self, id: SandboxId) {
        self.with(|world| world.machines.remove(&id));
    }

    /// Ends a machine and reports it.
    pub async fn lose(&self, id: SandboxId, reason: &str) {
        let machine = self.with(|world| world.machines.remove(&id)).expect("the machine is there");
        let machine = Machine { generation: machine.machine.generation + 1, ..machine.machine };
        self.report(machine, reason).await;
    }

    /// Reports the loss of a machine of another life, and one of the same life but older.
    pub async fn report_stale_losses(&self, id: SandboxId) {
        let machine = self.world.borrow().machines.get(&id).expect("the machine is there").machine.clone();
        let other =
            Machine { incarnation: IncarnationId::new(), generation: u64::MAX >> 1, ..machine.clone() };
        let older = Machine { generation: machine.generation - 1, ..machine };
        self.report(other, "of another life").await;
        self.report(older, "older than what is known").await;
    }

    async fn report(&self, machine: Machine, reason: &str) {
        let reports = self.world.borrow().reports.clone().expect("a server is attached");
        let report = Report::MachineLost { machine, reason: reason.to_owned() };
        reports.send(report).await.expect("the server takes reports");
    }

    /// What comes of a machine: `news` says what is new behind a cursor, and whether that was the last. Ends
    /// with an error when the machine is gone.
    fn follow<T, C, N>(&self, id: SandboxId, cursor: C, news: N) -> BoxStream<'static, Result<T>>
    where
        T: Send + 'static,
        C: Send + 'static,
        N: Fn(&FakeMachine, &mut C) -> (Vec<T>, bool) + Send + 'static,
    {
        struct State<T, C, N> {
            world: watch::Receiver<World>,
            cursor: C,
            news: N,
            waiting: VecDeque<Result<T>>,
            over: bool,
        }
        let world = self.world.subscribe();
        let state = State { world, cursor, news, waiting: VecDeque::new(), over: false };
        let next = move |mut state: State<T, C, N>| async move {
            loop {
                if let Some(item) = state.waiting.pop_front() {
                    return Some((item, state));
                }
                if state.over {
                    return None;
                }
                match state.world.borrow_and_update().machines.get(&id) {
                    Some(machine) => {
                        let (items, over) = (state.news)(machine, &mut state.cursor);
                        state.waiting.extend(items.into_iter().map(Ok));
                        state.over = over;
                    }
                    None => {
                        state.waiting.push_back(Err(nullspace_node_api::no_such_machine(id)));
                        state.over = true;
                    }
                }
                if state.waiting.is_empty() && !state.over && state.world.changed().await.is_err() {
                    return None;
                }
            }
        };
        stream::unfold(state, next).boxed()
    }

    async fn pass(&self, point: Point, id: SandboxId) {
        self.with(|world| {
            if let Some(count) = world.reached.get_mut(&point) {
                *count += 1;
            }
        });
        let mut world = self.world.subscribe();
        let cancellable = matches!(point, Point::CreateBefore | Point::CreateAfter);
        let open = world.wait_for(|world| {
            !world.held.contains(&point) || (cancellable && world.creating.get(&id) == Some(&true))
        });
        open.await.expect("the fake host owns the sender");
    }
}

impl World {
    fn make(&mut self, spec: MachineSpec) -> Result<Machine> {
        if let Some(there) = self.machines.get(&spec.sandbox_id) {
            return Ok(there.machine.clone());
        }
        let machine = Machine {
            sandbox_id: spec.sandbox_id,
            incarnation: spec.incarnation,
            generation: 1,
            disk_mb: spec.disk_mb.unwrap_or(0).max(2048),
            started_at: Timestamp::now(),
        };
        let fake = match spec.origin {
            Origin::Template => FakeMachine {
                machine: machine.clone(),
                spec,
                files: BTreeMap::new(),
                changes: Vec::new(),
                processes: BTreeMap::new(),
                next_pid: 100,
                terminals: BTreeMap::new(),
                uploads: BTreeMap::new(),
            },
            Origin::Checkpoint(id) => {
                FakeMachine { machine: machine.clone(), ..self.checkpoint(id)?.restored(spec)? }
            }
        };
        self.made.push(machine.incarnation);
        self.machines.insert(machine.sandbox_id, fake);
        Ok(machine)
    }

    fn machine(&mut self, id: SandboxId) -> Result<&mut FakeMachine> {
        self.machines.get_mut(&id).ok_or_else(|| nullspace_node_api::no_such_machine(id))
    }
}

/// Forgets a create that ended or whose caller is gone.
struct Creating<'a> {
    host: &'a FakeHost,
    id: SandboxId,
}

impl Drop for Creating<'_> {
    fn drop(&mut self) {
        self.host.with(|world| world.creating.remove(&self.id));
    }
}

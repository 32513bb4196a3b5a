//! A node of machines and checkpoints in memory that outlives control, as a real one outlives a killed
//! server. It keeps account of what must never happen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;
use nullspace_node_api::*;
use nullspace_types::file::*;
use nullspace_types::id::*;
use nullspace_types::network::EgressPolicy;
use nullspace_types::process::ProcessInfo;
use nullspace_types::sandbox::SandboxMetrics;
use nullspace_types::terminal::TerminalInfo;
use nullspace_types::{Code, Error, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

/// Where a call can be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    CreateBefore,
    CreateAfter,
    CaptureBefore,
    CaptureAfter,
}

#[derive(Debug, Default)]
pub struct World {
    pub machines: BTreeMap<SandboxId, Machine>,
    pub checkpoints: BTreeMap<SnapshotId, Checkpoint>,
    /// Every machine that was ever made.
    pub made: Vec<IncarnationId>,
    /// More machines than this are refused.
    pub room: Option<usize>,
    /// Captures fail with this.
    pub capture_error: Option<Error>,
    /// What every machine was last told that it may reach.
    pub policies: BTreeMap<SandboxId, EgressPolicy>,
    /// The next changes of a policy fail with these.
    pub egress_errors: Vec<Error>,
    /// Services in every machine: port, and the HTTP status that is answered.
    pub services: BTreeMap<u16, u16>,
    /// Programs that were started with the caller's streams.
    pub piped: Vec<Piped>,
    held: BTreeSet<Point>,
    reached: BTreeSet<Point>,
    /// What must not happen.
    pub wrong: Vec<String>,
}

/// The node; clones are the same one.
#[derive(Debug, Clone)]
pub struct MemoryNode {
    world: Arc<watch::Sender<World>>,
}

impl Default for MemoryNode {
    fn default() -> Self {
        Self { world: Arc::new(watch::Sender::new(World::default())) }
    }
}

impl MemoryNode {
    pub fn with<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let mut answer = None;
        self.world.send_modify(|world| answer = Some(change(world)));
        answer.expect("send_modify calls its argument once")
    }

    pub async fn until(&self, what: impl FnMut(&World) -> bool) {
        let mut world = self.world.subscribe();
        let waiting = world.wait_for(what);
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("it comes to that").unwrap();
    }

    pub fn hold(&self, point: Point) {
        self.with(|world| {
            world.held.insert(point);
            world.reached.remove(&point);
        });
    }

    pub fn release(&self, point: Point) {
        self.with(|world| world.held.remove(&point));
    }

    pub async fn reached(&self, point: Point) {
        self.until(|world| world.reached.contains(&point)).await;
    }

    async fn pass(&self, point: Point) {
        self.with(|world| world.reached.insert(point));
        let mut world = self.world.subscribe();
        let open = world.wait_for(|world| !world.held.contains(&point)).await;
        drop(open.expect("the node owns the sender"));
        tokio::task::yield_now().await;
    }
}

fn not_here<T>() -> Result<T> {
    Err(Error::not_implemented("this"))
}

fn make(world: &mut World, spec: &MachineSpec) -> Result<Machine> {
    if let Some(there) = world.machines.get(&spec.sandbox_id) {
        if there.incarnation != spec.incarnation {
            world.wrong.push(format!("two machines of {}", spec.sandbox_id));
        }
        return Ok(there.clone());
    }
    if let Origin::Checkpoint(id) = spec.origin
        && !world.checkpoints.contains_key(&id)
    {
        return Err(Error::new(Code::SnapshotNotFound, format!("snapshot {id} does not exist")));
    }
    if world.room.is_some_and(|room| world.machines.len() >= room) {
        return Err(Error::new(Code::CapacityExceeded, "no room for another machine"));
    }
    let machine = Machine {
        sandbox_id: spec.sandbox_id,
        incarnation: spec.incarnation,
        generation: 1,
        disk_mb: spec.disk_mb.unwrap_or(2048),
        started_at: Timestamp::now(),
    };
    world.made.push(spec.incarnation);
    world.policies.insert(spec.sandbox_id, spec.egress.clone());
    world.machines.insert(spec.sandbox_id, machine.clone());
    Ok(machine)
}

/// A service that answers one request, and an echo of nothing.
fn serve(status: u16) -> Stream {
    let (outside, mut inside) = tokio::io::duplex(4096);
    tokio::spawn(async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match inside.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
        // Whoever asked may be gone.
        let _ = inside.write_all(answer.as_bytes()).await;
    });
    Box::new(outside)
}

fn capture(world: &mut World, of: SandboxId, id: SnapshotId, mode: CheckpointMode) -> Result<Checkpoint> {
    if let Some(there) = world.checkpoints.get(&id) {
        return Ok(there.clone());
    }
    let machine = world.machines.get(&of).cloned().ok_or_else(|| no_such_machine(of))?;
    if let Some(error) = world.capture_error.clone() {
        return Err(error);
    }
    let checkpoint = Checkpoint {
        id,
        sandbox_id: of,
        incarnation: machine.incarnation,
        shape: Shape { vcpus: 1, memory_mb: 256 },
        disk_mb: machine.disk_mb,
        size_bytes: 4096,
        created_at: Timestamp::now(),
        mode,
    };
    world.checkpoints.insert(id, checkpoint.clone());
    if mode == CheckpointMode::Hibernate {
        world.machines.remove(&of);
    }
    Ok(checkpoint)
}

#[async_trait]
#[rustfmt::skip]
impl Node for MemoryNode {
    async fn ready(&self) -> Result<()> { Ok(()) }

    async fn template_list(&self) -> Result<Vec<NodeTemplate>> {
        let base = NodeTemplate { name: "base".into(), description: String::new(), disk_mb: 2048, created_at: None };
        Ok(vec![base])
    }

    async fn machine_create(&self, spec: MachineSpec) -> Result<Machine> {
        self.pass(Point::CreateBefore).await;
        let machine = self.with(|world| make(world, &spec))?;
        self.pass(Point::CreateAfter).await;
        Ok(machine)
    }

    async fn machine_list(&self) -> Result<Vec<Machine>> {
        Ok(self.world.borrow().machines.values().cloned().collect())
    }

    async fn machine_destroy(&self, id: SandboxId) -> Result<()> {
        self.with(|world| world.machines.remove(&id));
        Ok(())
    }

    async fn checkpoint_create(&self, of: SandboxId, id: SnapshotId, mode: CheckpointMode) -> Result<Checkpoint> {
        self.pass(Point::CaptureBefore).await;
        let checkpoint = self.with(|world| capture(world, of, id, mode))?;
        self.pass(Point::CaptureAfter).await;
        Ok(checkpoint)
    }

    async fn checkpoint_list(&self) -> Result<Vec<Checkpoint>> {
        Ok(self.world.borrow().checkpoints.values().cloned().collect())
    }

    async fn checkpoint_delete(&self, id: SnapshotId) -> Result<()> {
        self.with(|world| world.checkpoints.remove(&id));
        Ok(())
    }

    async fn disk_diff(&self, _: DiskOf, _: DiskOf, _: u32) -> Result<DiskDiff> {
        Ok(DiskDiff { items: vec![], truncated: false })
    }

    async fn garbage_collect(&self, _: bool) -> Result<Vec<Garbage>> { Ok(vec![]) }

    async fn usage(&self) -> Result<NodeUsage> { Ok(NodeUsage::default()) }

    async fn machine_metrics(&self, id: SandboxId) -> Result<Vec<SandboxMetrics>> {
        self.with(|world| world.machines.get(&id).map(drop).ok_or_else(|| no_such_machine(id)))?;
        Ok(vec![SandboxMetrics {
            timestamp: Timestamp::now(), cpu_percent: 1.0, cpu_count: 1, mem_used_bytes: 1, mem_total_bytes: 2,
            disk_used_bytes: 1, disk_total_bytes: 2, network_rx_bytes: None, network_tx_bytes: None,
        }])
    }

    async fn process_run(&self, id: SandboxId, _: Command) -> Result<Finished> {
        self.with(|world| world.machines.get(&id).map(drop).ok_or_else(|| no_such_machine(id)))?;
        let output = Captured::Inline { stdout: vec![], stderr: vec![] };
        Ok(Finished { pid: 1, exit_code: 0, timed_out: false, guest_us: 0, output })
    }

    async fn connect(&self, id: SandboxId, to: Door, _: Duration) -> Result<Stream> {
        self.with(|world| world.machines.get(&id).map(drop).ok_or_else(|| no_such_machine(id)))?;
        let Door::Port(port) = to else { return not_here() };
        let status = self.with(|world| world.services.get(&port).copied());
        let refused = || Error::new(Code::PreviewServiceNotReady, format!("nothing listens on port {port}"));
        status.map(serve).ok_or_else(refused)
    }

    async fn egress_set(&self, id: SandboxId, policy: EgressPolicy) -> Result<()> {
        self.with(|world| {
            world.machines.get(&id).map(drop).ok_or_else(|| no_such_machine(id))?;
            world.policies.remove(&id);
            if !world.egress_errors.is_empty() {
                return Err(world.egress_errors.remove(0));
            }
            world.policies.insert(id, policy);
            Ok(())
        })
    }

    async fn process_pipe(&self, _: SandboxId, program: Piped) -> Result<PipedProcess> {
        self.with(|world| world.piped.push(program));
        let exit = Box::pin(async { Ok(0) });
        Ok(PipedProcess { pid: 1, stdio: serve(200), stderr: serve(200), exit })
    }

    async fn listen(&self, _: SandboxId, _: String, _: u16) -> Result<Listening> { not_here() }
    async fn process_signal(&self, _: SandboxId, _: u32, _: i32) -> Result<()> { not_here() }

    async fn shutdown(&self) {}

    async fn process_start(&self, _: SandboxId, _: Command) -> Result<u32> { not_here() }
    async fn process_stream(&self, _: SandboxId, _: Command) -> Result<ProcessEvents> { not_here() }
    async fn process_attach(&self, _: SandboxId, _: u32, _: u64, _: u64) -> Result<ProcessEvents> { not_here() }
    async fn process_list(&self, _: SandboxId) -> Result<Vec<ProcessState>> {
        let info = ProcessInfo { pid: 7, command: "sleep 1".into(), running: true };
        Ok(vec![ProcessState { info, exit_code: None }])
    }
    async fn process_kill(&self, _: SandboxId, _: u32) -> Result<()> { not_here() }
    async fn process_stdin(&self, _: SandboxId, _: u32, _: Bytes, _: bool) -> Result<()> { not_here() }
    async fn process_log(&self, _: SandboxId, _: u32, _: LogStream) -> Result<ByteStream> { not_here() }
    async fn terminal_start(&self, _: SandboxId, _: TerminalSpec) -> Result<TerminalInfo> { not_here() }
    async fn terminal_attach(&self, _: SandboxId, _: SessionId) -> Result<TerminalEvents> { not_here() }
    async fn terminal_write(&self, _: SandboxId, _: SessionId, _: Bytes) -> Result<()> { not_here() }
    async fn terminal_resize(&self, _: SandboxId, _: SessionId, _: u32, _: u32) -> Result<()> { not_here() }
    async fn terminal_kill(&self, _: SandboxId, _: SessionId) -> Result<()> { not_here() }
    async fn terminal_list(&self, _: SandboxId) -> Result<Vec<TerminalInfo>> { not_here() }
    async fn file_read(&self, _: SandboxId, _: String, _: Option<String>, _: FileRange) -> Result<FileBody> { not_here() }
    async fn file_write(&self, _: SandboxId, _: String, _: Option<String>, _: ByteStream) -> Result<FileInfo> { not_here() }
    async fn file_list(&self, _: SandboxId, _: String, _: Option<String>, _: u32) -> Result<Vec<FileInfo>> { not_here() }
    async fn file_info(&self, _: SandboxId, _: String, _: Option<String>) -> Result<FileInfo> { not_here() }
    async fn file_exists(&self, _: SandboxId, _: String, _: Option<String>) -> Result<bool> { not_here() }
    async fn file_remove(&self, _: SandboxId, _: String, _: Option<String>) -> Result<()> { not_here() }
    async fn file_mkdir(&self, _: SandboxId, _: String, _: Option<String>) -> Result<()> { not_here() }
    async fn file_rename(&self, _: SandboxId, _: String, _: String, _: Option<String>) -> Result<FileInfo> { not_here() }
    async fn file_permissions(&self, _: SandboxId, _: String, _: u32, _: Option<String>) -> Result<()> { not_here() }
    async fn file_write_batch(&self, _: SandboxId, _: Option<String>, _: BoxStream<'static, Result<BatchPart>>) -> Result<Vec<Result<FileInfo>>> { not_here() }
    async fn file_find(&self, _: SandboxId, _: String, _: Option<String>, _: String, _: u64) -> Result<Found<FileMatch>> { not_here() }
    async fn file_search(&self, _: SandboxId, _: String, _: Option<String>, _: String, _: u64) -> Result<Found<String>> { not_here() }
    async fn file_replace(&self, _: SandboxId, _: FileReplace) -> Result<FileReplaced> { not_here() }
    async fn file_watch(&self, _: SandboxId, _: String, _: Option<String>, _: bool) -> Result<BoxStream<'static, Result<FileChange>>> { not_here() }
    async fn upload_create(&self, _: SandboxId, _: UploadSpec) -> Result<UploadState> { not_here() }
    async fn upload_get(&self, _: SandboxId, _: UploadId) -> Result<UploadState> { not_here() }
    async fn upload_part(&self, _: SandboxId, _: UploadId, _: u32, _: [u8; 32], _: ByteStream) -> Result<UploadState> { not_here() }
    async fn upload_complete(&self, _: SandboxId, _: UploadId, _: Option<[u8; 32]>) -> Result<Published> { not_here() }
    async fn upload_abort(&self, _: SandboxId, _: UploadId) -> Result<UploadState> { not_here() }
}

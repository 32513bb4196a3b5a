//! A host of machines that exist in memory only, for tests of everything above the node. The
//! [`FakeHost`] is the world: it outlives a server that is killed, as real machines do. A [`FakeNode`]
//! is one server's door to it. On demand it hangs at a named point, fails, lies, or loses a machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use jiff::Timestamp;
use nullspace_node_api::{
    ByteStream, Captured, Command, Finished, LogStream, Machine, MachineSpec, Node, NodeTemplate,
    ProcessState, Report,
};
use nullspace_types::file::{FileInfo, FileType};
use nullspace_types::id::{IncarnationId, SandboxId};
use nullspace_types::process::ProcessInfo;
use nullspace_types::sandbox::SandboxMetrics;
use nullspace_types::{Code, Error, Result};
use tokio::sync::{mpsc, watch};

/// What is captured inline; more is left in the log.
const INLINE_MAX: usize = 1024 * 1024;

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
}

#[derive(Debug, Default)]
struct World {
    machines: BTreeMap<SandboxId, FakeMachine>,
    /// Every machine ever made, in order.
    made: Vec<IncarnationId>,
    /// Creates under way, and whether an end was asked for.
    creating: BTreeMap<SandboxId, bool>,
    held: BTreeSet<Point>,
    /// How many calls have come to each point since it was held.
    reached: BTreeMap<Point, usize>,
    create_error: Option<Error>,
    destroy_errors: u32,
    ready_error: Option<Error>,
    reports: Option<mpsc::Sender<Report>>,
}

#[derive(Debug)]
struct FakeMachine {
    machine: Machine,
    spec: MachineSpec,
    files: BTreeMap<String, Vec<u8>>,
    processes: BTreeMap<u32, FakeProcess>,
    next_pid: u32,
}

#[derive(Debug, Clone)]
struct FakeProcess {
    command: String,
    exit_code: Option<i32>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
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
            internet_access: true,
        };
        self.with(|world| world.make(spec)).sandbox_id
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
    fn make(&mut self, spec: MachineSpec) -> Machine {
        if let Some(there) = self.machines.get(&spec.sandbox_id) {
            return there.machine.clone();
        }
        let machine = Machine {
            sandbox_id: spec.sandbox_id,
            incarnation: spec.incarnation,
            generation: 1,
            disk_mb: spec.disk_mb.unwrap_or(0).max(2048),
            started_at: Timestamp::now(),
        };
        self.made.push(spec.incarnation);
        let fake = FakeMachine {
            machine: machine.clone(),
            spec,
            files: BTreeMap::new(),
            processes: BTreeMap::new(),
            next_pid: 100,
        };
        self.machines.insert(machine.sandbox_id, fake);
        machine
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

struct FakeNode {
    host: FakeHost,
}

/// The few commands that fake machines know: exit status, standard output, standard error.
fn interpret(command: &Command) -> Result<(i32, Vec<u8>, Vec<u8>)> {
    let line = std::iter::once(&command.command).chain(&command.args).cloned().collect::<Vec<_>>().join(" ");
    let (name, rest) = line.split_once(' ').unwrap_or((&line, ""));
    match name {
        "true" | "cat" | "sleep" => Ok((0, vec![], vec![])),
        "false" => Ok((1, vec![], b"it failed\n".to_vec())),
        "echo" => Ok((0, format!("{rest}\n").into_bytes(), vec![])),
        "latin1" => Ok((0, b"caf\xe9\n".to_vec(), vec![])),
        "yes" => Ok((0, vec![b'y'; rest.parse().unwrap_or(0)], vec![])),
        _ => Err(Error::new(Code::ExecFailed, format!("{name}: no such file or directory"))),
    }
}

fn info(path: &str, content: &[u8], kind: FileType) -> FileInfo {
    FileInfo {
        name: path.rsplit('/').next().unwrap_or_default().to_owned(),
        path: path.to_owned(),
        is_dir: kind == FileType::Dir,
        size: content.len() as u64,
        kind,
        mode: "0644".into(),
        permissions: "0644".into(),
        owner: "root".into(),
        group: "root".into(),
        modified_time: Timestamp::UNIX_EPOCH,
        symlink_target: None,
    }
}

fn no_file(path: &str) -> Error {
    Error::new(Code::FileNotFound, format!("{path} does not exist"))
}

fn no_process(pid: u32) -> Error {
    Error::new(Code::ProcessNotFound, format!("process {pid} does not exist"))
}

#[async_trait]
impl Node for FakeNode {
    async fn ready(&self) -> Result<()> {
        self.host.world.borrow().ready_error.clone().map_or(Ok(()), Err)
    }

    async fn template_list(&self) -> Result<Vec<NodeTemplate>> {
        Ok(vec![NodeTemplate {
            name: "base".into(),
            description: "A fake.".into(),
            disk_mb: 2048,
            created_at: Some(Timestamp::UNIX_EPOCH),
        }])
    }

    async fn machine_create(&self, spec: MachineSpec) -> Result<Machine> {
        let id = spec.sandbox_id;
        self.host.with(|world| world.creating.insert(id, false));
        let _creating = Creating { host: &self.host, id };
        self.host.pass(Point::CreateBefore, id).await;
        let machine =
            self.host.with(|world| match (world.creating.get(&id), world.create_error.clone()) {
                (Some(true), _) => Err(Error::new(Code::Unavailable, "the making was cancelled")),
                (_, Some(error)) => Err(error),
                (_, None) => Ok(world.make(spec)),
            })?;
        self.host.pass(Point::CreateAfter, id).await;
        Ok(machine)
    }

    async fn machine_list(&self) -> Result<Vec<Machine>> {
        Ok(self.host.world.borrow().machines.values().map(|fake| fake.machine.clone()).collect())
    }

    async fn machine_destroy(&self, id: SandboxId) -> Result<()> {
        self.host.pass(Point::DestroyBefore, id).await;
        self.host.with(|world| {
            if world.destroy_errors > 0 {
                world.destroy_errors -= 1;
                return Err(Error::internal("the fake host refuses to end a machine"));
            }
            if let Some(cancelled) = world.creating.get_mut(&id) {
                *cancelled = true;
            }
            world.machines.remove(&id);
            Ok(())
        })?;
        self.host.pass(Point::DestroyAfter, id).await;
        Ok(())
    }

    async fn machine_metrics(&self, id: SandboxId) -> Result<Vec<SandboxMetrics>> {
        self.host.with(|world| world.machine(id).map(|_| ()))?;
        Ok(vec![SandboxMetrics {
            timestamp: Timestamp::now(),
            cpu_percent: 1.5,
            cpu_count: 1,
            mem_used_bytes: 1,
            mem_total_bytes: 2,
            disk_used_bytes: 3,
            disk_total_bytes: 4,
            network_rx_bytes: None,
            network_tx_bytes: None,
        }])
    }

    async fn process_run(&self, id: SandboxId, command: Command) -> Result<Finished> {
        let (mut exit_code, stdout, stderr) = interpret(&command)?;
        let timed_out = command.command == "sleep";
        let pid = self.host.with(|world| {
            let machine = world.machine(id)?;
            machine.next_pid += 1;
            Ok::<_, Error>(machine.next_pid)
        })?;
        if timed_out {
            let limit = command.timeout_ms.expect("a foreground command has a limit");
            tokio::time::sleep(Duration::from_millis(limit)).await;
            exit_code = 137;
        }
        let process = FakeProcess {
            command: command.command,
            exit_code: Some(exit_code),
            stdout: stdout.clone(),
            stderr: stderr.clone(),
        };
        self.host.with(|world| world.machine(id).map(|machine| machine.processes.insert(pid, process)))?;
        let output = match stdout.len() + stderr.len() > INLINE_MAX {
            true => Captured::Log,
            false => Captured::Inline { stdout, stderr },
        };
        Ok(Finished { pid, exit_code, timed_out, guest_us: 10, output })
    }

    async fn process_start(&self, id: SandboxId, command: Command) -> Result<u32> {
        let (_, stdout, stderr) = interpret(&command)?;
        let running = matches!(command.command.as_str(), "cat" | "sleep");
        self.host.with(|world| {
            let machine = world.machine(id)?;
            machine.next_pid += 1;
            let exit_code = (!running).then_some(0);
            let process = FakeProcess { command: command.command, exit_code, stdout, stderr };
            machine.processes.insert(machine.next_pid, process);
            Ok(machine.next_pid)
        })
    }

    async fn process_list(&self, id: SandboxId) -> Result<Vec<ProcessState>> {
        self.host.with(|world| {
            let states = world.machine(id)?.processes.iter().map(|(pid, process)| ProcessState {
                info: ProcessInfo {
                    pid: *pid,
                    command: process.command.clone(),
                    running: process.exit_code.is_none(),
                },
                exit_code: process.exit_code,
            });
            Ok(states.collect())
        })
    }

    async fn process_kill(&self, id: SandboxId, pid: u32) -> Result<()> {
        self.host.with(|world| {
            let process = world.machine(id)?.processes.get_mut(&pid).ok_or_else(|| no_process(pid))?;
            process.exit_code.get_or_insert(137);
            Ok(())
        })
    }

    async fn process_stdin(&self, id: SandboxId, pid: u32, data: Bytes) -> Result<()> {
        self.host.with(|world| {
            let process = world.machine(id)?.processes.get_mut(&pid).ok_or_else(|| no_process(pid))?;
            process.stdout.extend_from_slice(&data);
            Ok(())
        })
    }

    async fn process_log(&self, id: SandboxId, pid: u32, stream: LogStream) -> Result<ByteStream> {
        let process = self
            .host
            .with(|world| world.machine(id)?.processes.get(&pid).cloned().ok_or_else(|| no_process(pid)))?;
        let bytes = match stream {
            LogStream::Stdout => process.stdout,
            LogStream::Stderr => process.stderr,
            LogStream::Interleaved => [process.stdout, process.stderr].concat(),
        };
        let pieces: Vec<_> = bytes.chunks(64 * 1024).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Ok(stream::iter(pieces).boxed())
    }

    async fn file_read(
        &self,
        id: SandboxId,
        path: String,
        _user: Option<String>,
    ) -> Result<(u64, ByteStream)> {
        let content = self
            .host
            .with(|world| world.machine(id)?.files.get(&path).cloned().ok_or_else(|| no_file(&path)))?;
        Ok((content.len() as u64, stream::iter([Ok(Bytes::from(content))]).boxed()))
    }

    async fn file_write(
        &self,
        id: SandboxId,
        path: String,
        _user: Option<String>,
        mut body: ByteStream,
    ) -> Result<FileInfo> {
        let mut content = Vec::new();
        while let Some(piece) = body.next().await {
            content.extend_from_slice(&piece?);
        }
        self.host.with(|world| {
            let info = info(&path, &content, FileType::File);
            world.machine(id)?.files.insert(path, content);
            Ok(info)
        })
    }

    async fn file_list(
        &self,
        id: SandboxId,
        path: String,
        _user: Option<String>,
        _depth: u32,
    ) -> Result<Vec<FileInfo>> {
        self.host.with(|world| {
            let files = &world.machine(id)?.files;
            let inside = files.iter().filter(|(name, _)| name.starts_with(&path));
            Ok(inside.map(|(name, content)| info(name, content, FileType::File)).collect())
        })
    }

    async fn file_info(&self, id: SandboxId, path: String, _user: Option<String>) -> Result<FileInfo> {
        self.host.with(|world| {
            let content = world.machine(id)?.files.get(&path).ok_or_else(|| no_file(&path))?;
            Ok(info(&path, content, FileType::File))
        })
    }

    async fn file_exists(&self, id: SandboxId, path: String, _user: Option<String>) -> Result<bool> {
        self.host.with(|world| Ok(world.machine(id)?.files.contains_key(&path)))
    }

    async fn file_remove(&self, id: SandboxId, path: String, _user: Option<String>) -> Result<()> {
        self.host
            .with(|world| world.machine(id)?.files.remove(&path).map(|_| ()).ok_or_else(|| no_file(&path)))
    }

    async fn file_mkdir(&self, id: SandboxId, path: String, _user: Option<String>) -> Result<()> {
        self.host.with(|world| {
            world.machine(id)?.files.insert(format!("{path}/"), vec![]);
            Ok(())
        })
    }

    async fn file_rename(
        &self,
        id: SandboxId,
        old_path: String,
        new_path: String,
        _user: Option<String>,
    ) -> Result<FileInfo> {
        self.host.with(|world| {
            let files = &mut world.machine(id)?.files;
            let content = files.remove(&old_path).ok_or_else(|| no_file(&old_path))?;
            let info = info(&new_path, &content, FileType::File);
            files.insert(new_path, content);
            Ok(info)
        })
    }

    async fn file_permissions(
        &self,
        id: SandboxId,
        path: String,
        _mode: u32,
        _user: Option<String>,
    ) -> Result<()> {
        self.host.with(|world| match world.machine(id)?.files.contains_key(&path) {
            true => Ok(()),
            false => Err(no_file(&path)),
        })
    }

    async fn shutdown(&self) {}
}

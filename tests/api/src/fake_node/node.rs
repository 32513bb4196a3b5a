//! A server's door to the fake machines: the trait, call by call.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use jiff::Timestamp;
use nullspace_node_api::{
    ByteStream, Checkpoint, CheckpointMode, Command, DiskDiff, DiskOf, Door, FileBody, Finished, Garbage,
    Listening, LogStream, Machine, MachineSpec, Node, NodeTemplate, NodeUsage, Piped, PipedProcess,
    ProcessEvents, ProcessState, Published, Stream, TerminalEvents, TerminalSpec, UploadSpec, UploadState,
};
use nullspace_types::file::{
    BatchPart, FileChange, FileInfo, FileMatch, FileRange, FileReplace, FileReplaced, FileType, Found,
};
use nullspace_types::id::{SandboxId, SessionId, SnapshotId, UploadId};
use nullspace_types::network::EgressPolicy;
use nullspace_types::sandbox::SandboxMetrics;
use nullspace_types::socket::FileEventKind;
use nullspace_types::terminal::TerminalInfo;
use nullspace_types::{Code, Error, Result};

use super::file::{body, info, no_file};
use super::{Creating, FakeHost, Point};

pub(super) struct FakeNode {
    pub(super) host: FakeHost,
}

/// All that a stream brings.
async fn whole(mut body: ByteStream) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    while let Some(piece) = body.next().await {
        content.extend_from_slice(&piece?);
    }
    Ok(content)
}

fn found<T>(mut items: Vec<T>, limit: u64) -> Found<T> {
    let limited = items.len() as u64 > limit;
    items.truncate(limit as usize);
    Found { items, limited }
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
                (_, None) => world.make(spec),
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

    async fn checkpoint_create(
        &self,
        of: SandboxId,
        id: SnapshotId,
        mode: CheckpointMode,
    ) -> Result<Checkpoint> {
        self.host.pass(Point::CaptureBefore, of).await;
        let checkpoint = self.host.with(|world| world.capture(of, id, mode))?;
        self.host.pass(Point::CaptureAfter, of).await;
        Ok(checkpoint)
    }

    async fn checkpoint_list(&self) -> Result<Vec<Checkpoint>> {
        Ok(self.host.world.borrow().checkpoint_list())
    }

    async fn checkpoint_delete(&self, id: SnapshotId) -> Result<()> {
        let of = self.host.world.borrow().checkpoint_list().into_iter().find(|kept| kept.id == id);
        if let Some(of) = of {
            self.host.pass(Point::RemoveBefore, of.sandbox_id).await;
        }
        self.host.with(|world| world.checkpoints.remove(&id));
        Ok(())
    }

    async fn disk_diff(&self, of: DiskOf, against: DiskOf, limit: u32) -> Result<DiskDiff> {
        self.host.world.borrow().diff(of, against, limit)
    }

    async fn garbage_collect(&self, _apply: bool) -> Result<Vec<Garbage>> {
        Ok(vec![])
    }

    async fn usage(&self) -> Result<NodeUsage> {
        let world = self.host.world.borrow();
        let (machines, checkpoints) = (world.machines.len() as u64, world.checkpoints.len() as u64);
        Ok(NodeUsage { machines, checkpoints, disk_free_bytes: 1 << 40, ..NodeUsage::default() })
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
        self.host.run(id, command).await
    }

    async fn process_start(&self, id: SandboxId, command: Command) -> Result<u32> {
        self.host.start(id, command, true)
    }

    async fn process_stream(&self, id: SandboxId, command: Command) -> Result<ProcessEvents> {
        self.host.stream(id, command)
    }

    async fn process_attach(
        &self,
        id: SandboxId,
        pid: u32,
        stdout_offset: u64,
        stderr_offset: u64,
    ) -> Result<ProcessEvents> {
        self.host.with(|world| world.machine(id)?.process(pid).map(|_| ()))?;
        Ok(self.host.events(id, pid, (stdout_offset, stderr_offset)))
    }

    async fn process_list(&self, id: SandboxId) -> Result<Vec<ProcessState>> {
        self.host.with(|world| {
            Ok(world.machine(id)?.processes.iter().map(|(pid, process)| process.state(*pid)).collect())
        })
    }

    async fn process_kill(&self, id: SandboxId, pid: u32) -> Result<()> {
        self.host.with(|world| {
            world.machine(id)?.process(pid)?.exit.get_or_insert((137, false));
            Ok(())
        })
    }

    async fn process_stdin(&self, id: SandboxId, pid: u32, data: Bytes, close: bool) -> Result<()> {
        self.host.with(|world| {
            let process = world.machine(id)?.process(pid)?;
            process.stdout.extend_from_slice(&data);
            if close {
                process.exit.get_or_insert((0, false));
            }
            Ok(())
        })
    }

    async fn process_log(&self, id: SandboxId, pid: u32, stream: LogStream) -> Result<ByteStream> {
        let process = self.host.with(|world| world.machine(id)?.process(pid).cloned())?;
        let bytes = match stream {
            LogStream::Stdout => process.stdout,
            LogStream::Stderr => process.stderr,
            LogStream::Interleaved => [process.stdout, process.stderr].concat(),
        };
        let pieces: Vec<_> = bytes.chunks(64 * 1024).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Ok(stream::iter(pieces).boxed())
    }

    async fn terminal_start(&self, id: SandboxId, spec: TerminalSpec) -> Result<TerminalInfo> {
        self.host.start_terminal(id, spec)
    }

    async fn terminal_attach(&self, id: SandboxId, session: SessionId) -> Result<TerminalEvents> {
        self.host.view(id, session)
    }

    async fn terminal_write(&self, id: SandboxId, session: SessionId, data: Bytes) -> Result<()> {
        self.host.with(|world| world.machine(id)?.terminal(session)?.write(&data))
    }

    async fn terminal_resize(&self, id: SandboxId, session: SessionId, cols: u32, rows: u32) -> Result<()> {
        self.host.with(|world| {
            let info = &mut world.machine(id)?.terminal(session)?.info;
            (info.cols, info.rows) = (cols, rows);
            Ok(())
        })
    }

    async fn terminal_kill(&self, id: SandboxId, session: SessionId) -> Result<()> {
        self.host.with(|world| {
            world.machine(id)?.terminal(session)?.exit_code.get_or_insert(137);
            Ok(())
        })
    }

    async fn terminal_list(&self, id: SandboxId) -> Result<Vec<TerminalInfo>> {
        self.host.with(|world| {
            let terminals = world.machine(id)?.terminals.values();
            let running = terminals.filter(|terminal| terminal.exit_code.is_none());
            Ok(running.map(|terminal| terminal.info.clone()).collect())
        })
    }

    async fn file_read(
        &self,
        id: SandboxId,
        path: String,
        _user: Option<String>,
        range: FileRange,
    ) -> Result<FileBody> {
        let content = self.host.with(|world| world.machine(id)?.content(&path))?;
        Ok(body(&content, range))
    }

    async fn file_write(
        &self,
        id: SandboxId,
        path: String,
        _user: Option<String>,
        body: ByteStream,
    ) -> Result<FileInfo> {
        let content = whole(body).await?;
        self.host.with(|world| Ok(world.machine(id)?.write(path, content)))
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
        self.host.with(|world| {
            let machine = world.machine(id)?;
            machine.files.remove(&path).ok_or_else(|| no_file(&path))?;
            machine.tell(FileEventKind::Remove, &path);
            Ok(())
        })
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

    async fn file_write_batch(
        &self,
        id: SandboxId,
        _user: Option<String>,
        mut parts: BoxStream<'static, Result<BatchPart>>,
    ) -> Result<Vec<Result<FileInfo>>> {
        let mut outcomes = Vec::new();
        let mut open: Option<(String, Vec<u8>)> = None;
        let mut close = |file: Option<(String, Vec<u8>)>| {
            let Some((path, content)) = file else { return Ok(()) };
            outcomes.push(match path.starts_with("/proc/") {
                true => Err(Error::new(Code::FileError, format!("{path} cannot be written"))),
                false => {
                    Ok(self.host.with(|world| Ok::<_, Error>(world.machine(id)?.write(path, content)))?)
                }
            });
            Ok::<_, Error>(())
        };
        while let Some(part) = parts.next().await {
            match part? {
                BatchPart::Start { path } => close(open.replace((path, Vec::new())))?,
                BatchPart::Data(data) => {
                    open.as_mut().expect("content follows a start").1.extend_from_slice(&data);
                }
            }
        }
        close(open)?;
        Ok(outcomes)
    }

    async fn file_find(
        &self,
        id: SandboxId,
        path: String,
        _user: Option<String>,
        pattern: String,
        limit: u64,
    ) -> Result<Found<FileMatch>> {
        let items = self.host.with(|world| Ok::<_, Error>(world.machine(id)?.find(&path, &pattern)))?;
        Ok(found(items, limit))
    }

    async fn file_search(
        &self,
        id: SandboxId,
        path: String,
        _user: Option<String>,
        pattern: String,
        limit: u64,
    ) -> Result<Found<String>> {
        let tail = pattern.trim_start_matches('*').to_owned();
        let paths = self.host.with(|world| {
            let names = world.machine(id)?.files.keys();
            Ok::<_, Error>(
                names.filter(|name| name.starts_with(&path) && name.ends_with(&tail)).cloned().collect(),
            )
        })?;
        Ok(found(paths, limit))
    }

    async fn file_replace(&self, id: SandboxId, request: FileReplace) -> Result<FileReplaced> {
        self.host.with(|world| world.machine(id)?.replace(&request))
    }

    async fn file_watch(
        &self,
        id: SandboxId,
        path: String,
        _user: Option<String>,
        recursive: bool,
    ) -> Result<BoxStream<'static, Result<FileChange>>> {
        let now = self.host.with(|world| Ok::<_, Error>(world.machine(id)?.changes.len()))?;
        Ok(self.host.follow(id, now, move |machine, at| {
            let new = machine.changes[*at..].iter().filter_map(|change| {
                let name = change.path.strip_prefix(&path)?.strip_prefix('/')?;
                let seen = recursive || !name.contains('/');
                seen.then(|| FileChange { name: name.to_owned(), ..change.clone() })
            });
            let new = new.collect();
            *at = machine.changes.len();
            (new, false)
        }))
    }

    async fn upload_create(&self, id: SandboxId, spec: UploadSpec) -> Result<UploadState> {
        self.host.with(|world| world.machine(id)?.upload_create(spec))
    }

    async fn upload_get(&self, id: SandboxId, upload: UploadId) -> Result<UploadState> {
        self.host.with(|world| world.machine(id)?.upload_get(upload))
    }

    async fn upload_part(
        &self,
        id: SandboxId,
        upload: UploadId,
        part: u32,
        sha256: [u8; 32],
        body: ByteStream,
    ) -> Result<UploadState> {
        let content = whole(body).await?;
        self.host.with(|world| world.machine(id)?.upload_part(upload, part, sha256, content))
    }

    async fn upload_complete(
        &self,
        id: SandboxId,
        upload: UploadId,
        whole_sha256: Option<[u8; 32]>,
    ) -> Result<Published> {
        self.host.with(|world| world.machine(id)?.upload_complete(upload, whole_sha256))
    }

    async fn upload_abort(&self, id: SandboxId, upload: UploadId) -> Result<UploadState> {
        self.host.with(|world| world.machine(id)?.upload_abort(upload))
    }

    async fn process_pipe(&self, id: SandboxId, _program: Piped) -> Result<PipedProcess> {
        self.host.echo(id)
    }

    async fn process_signal(&self, id: SandboxId, _pid: u32, _signal: i32) -> Result<()> {
        self.host.with(|world| world.machine(id).map(drop))
    }

    async fn connect(&self, id: SandboxId, to: Door, _patience: Duration) -> Result<Stream> {
        self.host.dial(id, &to)
    }

    async fn listen(&self, id: SandboxId, _host: String, port: u16) -> Result<Listening> {
        self.host.quiet(id, port)
    }

    async fn egress_set(&self, id: SandboxId, policy: EgressPolicy) -> Result<()> {
        self.host.set_egress(id, policy)
    }

    async fn shutdown(&self) {}
}

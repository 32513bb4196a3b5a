//! The node in this process, behind the trait that control calls.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;
use nullspace_node_api::{
    ByteStream, Checkpoint, CheckpointMode, Command, DiskDiff, DiskOf, Door, FileBody, Finished, Garbage,
    Listening, LogStream, Machine, MachineSpec, Node as Api, NodeTemplate, NodeUsage, Piped, PipedProcess,
    ProcessEvents, ProcessState, Published, Report, Stream, TerminalEvents, TerminalSpec, UploadSpec,
    UploadState,
};
use nullspace_types::file::{
    BatchPart, FileChange, FileInfo, FileMatch, FileRange, FileReplace, FileReplaced, Found,
};
use nullspace_types::id::{SandboxId, SessionId, SnapshotId, UploadId};
use nullspace_types::network::EgressPolicy;
use nullspace_types::sandbox::SandboxMetrics;
use nullspace_types::terminal::TerminalInfo;
use nullspace_types::{Code, Error, Result};
use tokio::sync::mpsc;

use crate::create::TEMPLATE;
use crate::start::Settings;
use crate::template::vmm_error;
use crate::{
    Config, Entry, NetworkConfig, Node, diff, door, egress, file, garbage, process, sample, search, start,
    terminal, upload,
};

/// A node on this host.
#[derive(Clone)]
pub struct LocalNode(Arc<Node>);

impl LocalNode {
    /// Starts it; machines that still run from before are taken up again. `reports` takes its news.
    pub async fn start(
        node: Config,
        network: NetworkConfig,
        data_dir: std::path::PathBuf,
        image_dir: std::path::PathBuf,
        reports: mpsc::Sender<Report>,
    ) -> Result<Self> {
        start::start(Settings { node, network, data_dir, image_dir }, reports).await.map(Self)
    }
}

#[async_trait]
impl Api for LocalNode {
    async fn ready(&self) -> Result<()> {
        if let Some(reason) = &*self.0.unprepared.borrow() {
            return Err(Error::new(Code::Unavailable, reason.clone()));
        }
        if self.0.stopping.is_cancelled() {
            return Err(Error::new(Code::Unavailable, "the server is stopping"));
        }
        self.0.capacity.check(nullspace_node_api::Shape { vcpus: 1, memory_mb: 256 })
    }

    async fn template_list(&self) -> Result<Vec<NodeTemplate>> {
        let image = self.0.templates.image();
        Ok(vec![NodeTemplate {
            name: TEMPLATE.into(),
            description: "Debian with Python, Node.js, git and the usual tools".into(),
            disk_mb: image.root_size_mb,
            created_at: image.created_at.and_then(|time| Timestamp::try_from(time).ok()),
        }])
    }

    async fn machine_create(&self, spec: MachineSpec) -> Result<Machine> {
        self.0.create(spec).await.map(|running| running.record.machine.clone())
    }

    async fn machine_list(&self) -> Result<Vec<Machine>> {
        let entries = self.0.entries.lock().expect("no panic under it");
        let running = entries.values().filter_map(|entry| match entry {
            Entry::Running(running) => Some(running.record.machine.clone()),
            Entry::Making { .. } => None,
        });
        Ok(running.collect())
    }

    async fn machine_destroy(&self, id: SandboxId) -> Result<()> {
        self.0.destroy(id).await
    }

    async fn checkpoint_create(
        &self,
        of: SandboxId,
        id: SnapshotId,
        mode: CheckpointMode,
    ) -> Result<Checkpoint> {
        self.0.checkpoint(of, id, mode).await
    }

    async fn checkpoint_list(&self) -> Result<Vec<Checkpoint>> {
        let all = self.0.checkpoints.list();
        Ok(all.iter().map(|captured| captured.record.checkpoint.clone()).collect())
    }

    async fn checkpoint_delete(&self, id: SnapshotId) -> Result<()> {
        self.0.checkpoints.remove(id, &self.0.layers).await
    }

    async fn disk_diff(&self, of: DiskOf, against: DiskOf, limit: u32) -> Result<DiskDiff> {
        diff::diff(&self.0, of, against, limit).await
    }

    async fn garbage_collect(&self, apply: bool) -> Result<Vec<Garbage>> {
        garbage::collect(&self.0, apply).await
    }

    async fn usage(&self) -> Result<NodeUsage> {
        let machines = {
            let entries = self.0.entries.lock().expect("no panic under it");
            entries.values().filter(|entry| matches!(entry, Entry::Running(_))).count()
        };
        Ok(NodeUsage {
            machines: machines as u64,
            spares: self.0.spares.count() as u64,
            ready_slots: self.0.slots.ready() as u64,
            checkpoints: self.0.checkpoints.list().len() as u64,
            layers: self.0.layers.count() as u64,
            disk_free_bytes: self.0.capacity.free_disk_mb()? << 20,
        })
    }

    async fn machine_metrics(&self, id: SandboxId) -> Result<Vec<SandboxMetrics>> {
        sample::history(&*self.0.running(id)?).await
    }

    async fn process_run(&self, id: SandboxId, command: Command) -> Result<Finished> {
        process::run(self.0.running(id)?, command).await
    }

    async fn process_start(&self, id: SandboxId, command: Command) -> Result<u32> {
        process::start(self.0.running(id)?, command).await
    }

    async fn process_stream(&self, id: SandboxId, command: Command) -> Result<ProcessEvents> {
        process::stream(self.0.running(id)?, command).await
    }

    async fn process_attach(
        &self,
        id: SandboxId,
        pid: u32,
        stdout_offset: u64,
        stderr_offset: u64,
    ) -> Result<ProcessEvents> {
        process::attach(self.0.running(id)?, pid, stdout_offset, stderr_offset).await
    }

    async fn process_list(&self, id: SandboxId) -> Result<Vec<ProcessState>> {
        process::list(&*self.0.running(id)?).await
    }

    async fn process_kill(&self, id: SandboxId, pid: u32) -> Result<()> {
        process::kill(&*self.0.running(id)?, pid).await
    }

    async fn process_stdin(&self, id: SandboxId, pid: u32, data: Bytes, close: bool) -> Result<()> {
        process::stdin(&*self.0.running(id)?, pid, data, close).await
    }

    async fn process_log(&self, id: SandboxId, pid: u32, stream: LogStream) -> Result<ByteStream> {
        process::log(&*self.0.running(id)?, pid, stream).await
    }

    async fn process_pipe(&self, id: SandboxId, program: Piped) -> Result<PipedProcess> {
        door::pipe(self.0.running(id)?, program).await
    }

    async fn process_signal(&self, id: SandboxId, pid: u32, signal: i32) -> Result<()> {
        process::signal(&*self.0.running(id)?, pid, signal).await
    }

    async fn connect(&self, id: SandboxId, to: Door, patience: Duration) -> Result<Stream> {
        door::connect(self.0.running(id)?, to, patience).await
    }

    async fn listen(&self, id: SandboxId, host: String, port: u16) -> Result<Listening> {
        door::listen(self.0.running(id)?, host, port).await
    }

    async fn egress_set(&self, id: SandboxId, policy: EgressPolicy) -> Result<()> {
        // A caller who goes away must not leave a machine between two policies.
        let running = self.0.running(id)?;
        tokio::spawn(async move { egress::set(&running, policy).await }).await.map_err(Error::internal)?
    }

    async fn terminal_start(&self, id: SandboxId, spec: TerminalSpec) -> Result<TerminalInfo> {
        terminal::start(&*self.0.running(id)?, spec).await
    }

    async fn terminal_attach(&self, id: SandboxId, session: SessionId) -> Result<TerminalEvents> {
        terminal::attach(&*self.0.running(id)?, session).await
    }

    async fn terminal_write(&self, id: SandboxId, session: SessionId, data: Bytes) -> Result<()> {
        terminal::write(&*self.0.running(id)?, session, data).await
    }

    async fn terminal_resize(&self, id: SandboxId, session: SessionId, cols: u32, rows: u32) -> Result<()> {
        terminal::resize(&*self.0.running(id)?, session, cols, rows).await
    }

    async fn terminal_kill(&self, id: SandboxId, session: SessionId) -> Result<()> {
        terminal::kill(&*self.0.running(id)?, session).await
    }

    async fn terminal_list(&self, id: SandboxId) -> Result<Vec<TerminalInfo>> {
        terminal::list(&*self.0.running(id)?).await
    }

    async fn file_read(
        &self,
        id: SandboxId,
        path: String,
        user: Option<String>,
        range: FileRange,
    ) -> Result<FileBody> {
        file::read(self.0.running(id)?, path, user, range).await
    }

    async fn file_write(
        &self,
        id: SandboxId,
        path: String,
        user: Option<String>,
        body: ByteStream,
    ) -> Result<FileInfo> {
        file::write(self.0.running(id)?, path, user, body).await
    }

    async fn file_list(
        &self,
        id: SandboxId,
        path: String,
        user: Option<String>,
        depth: u32,
    ) -> Result<Vec<FileInfo>> {
        file::list(&*self.0.running(id)?, path, user, depth).await
    }

    async fn file_info(&self, id: SandboxId, path: String, user: Option<String>) -> Result<FileInfo> {
        file::stat(&*self.0.running(id)?, path, user).await
    }

    async fn file_exists(&self, id: SandboxId, path: String, user: Option<String>) -> Result<bool> {
        file::exists(&*self.0.running(id)?, path, user).await
    }

    async fn file_remove(&self, id: SandboxId, path: String, user: Option<String>) -> Result<()> {
        file::remove(&*self.0.running(id)?, path, user).await
    }

    async fn file_mkdir(&self, id: SandboxId, path: String, user: Option<String>) -> Result<()> {
        file::mkdir(&*self.0.running(id)?, path, user).await
    }

    async fn file_rename(
        &self,
        id: SandboxId,
        old: String,
        new: String,
        user: Option<String>,
    ) -> Result<FileInfo> {
        file::rename(&*self.0.running(id)?, old, new, user).await
    }

    async fn file_permissions(
        &self,
        id: SandboxId,
        path: String,
        mode: u32,
        user: Option<String>,
    ) -> Result<()> {
        file::permissions(&*self.0.running(id)?, path, mode, user).await
    }

    async fn file_write_batch(
        &self,
        id: SandboxId,
        user: Option<String>,
        parts: BoxStream<'static, Result<BatchPart>>,
    ) -> Result<Vec<Result<FileInfo>>> {
        file::write_batch(self.0.running(id)?, user, parts).await
    }

    async fn file_find(
        &self,
        id: SandboxId,
        path: String,
        user: Option<String>,
        pattern: String,
        limit: u64,
    ) -> Result<Found<FileMatch>> {
        search::find(&*self.0.running(id)?, path, user, pattern, limit).await
    }

    async fn file_search(
        &self,
        id: SandboxId,
        path: String,
        user: Option<String>,
        pattern: String,
        limit: u64,
    ) -> Result<Found<String>> {
        search::search(&*self.0.running(id)?, path, user, pattern, limit).await
    }

    async fn file_replace(&self, id: SandboxId, request: FileReplace) -> Result<FileReplaced> {
        search::replace(&*self.0.running(id)?, request).await
    }

    async fn file_watch(
        &self,
        id: SandboxId,
        path: String,
        user: Option<String>,
        recursive: bool,
    ) -> Result<BoxStream<'static, Result<FileChange>>> {
        search::watch(&*self.0.running(id)?, path, user, recursive).await
    }

    async fn upload_create(&self, id: SandboxId, spec: UploadSpec) -> Result<UploadState> {
        upload::create(&*self.0.running(id)?, spec).await
    }

    async fn upload_get(&self, id: SandboxId, upload: UploadId) -> Result<UploadState> {
        upload::get(&*self.0.running(id)?, upload).await
    }

    async fn upload_part(
        &self,
        id: SandboxId,
        upload: UploadId,
        part: u32,
        sha256: [u8; 32],
        body: ByteStream,
    ) -> Result<UploadState> {
        upload::part(self.0.running(id)?, upload, part, sha256, body).await
    }

    async fn upload_complete(
        &self,
        id: SandboxId,
        upload: UploadId,
        whole_sha256: Option<[u8; 32]>,
    ) -> Result<Published> {
        upload::complete(&*self.0.running(id)?, upload, whole_sha256).await
    }

    async fn upload_abort(&self, id: SandboxId, upload: UploadId) -> Result<UploadState> {
        upload::abort(&*self.0.running(id)?, upload).await
    }

    async fn shutdown(&self) {
        self.0.stopping.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        let drained = self.0.spares.drain(&self.0.layers).await;
        let stopped = self.0.slots.shutdown().await;
        let closed = self.0.vmm.close().await.map_err(vmm_error);
        if let Err(error) = drained.and(stopped).and(closed) {
            tracing::error!(%error, context = error.context, "something of the node's was left behind");
        }
    }
}

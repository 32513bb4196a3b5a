//! An implementation that answers at once, and says what it was asked.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use nullspace_api::file::{BatchParts, FileChanges, FileDownloadReply, FileReadReply, FileWatch, SignedUrl};
use nullspace_api::process::{ExecReply, LogsReply, ProcessEvents};
use nullspace_api::terminal::{TerminalEvents, TerminalStart, TerminalTarget};
use nullspace_api::{
    Authenticate, ByteStream, FileApi, HealthApi, ProcessApi, SandboxApi, TemplateApi, TerminalApi, UploadApi,
};
use nullspace_types::file::*;
use nullspace_types::id::{KeyId, SandboxId, SessionId, TenantId, UploadId};
use nullspace_types::key::Principal;
use nullspace_types::process::*;
use nullspace_types::sandbox::*;
use nullspace_types::template::Template;
use nullspace_types::terminal::*;
use nullspace_types::upload::*;
use nullspace_types::{Code, Error, Result};
use serde_json::Value;

/// The one good key.
pub const KEY: &str = "Bearer good";

#[derive(Clone)]
pub struct Fake {
    pub principal: Principal,
    /// The one sandbox, whose digits the IDs of everything else have that there is one of.
    pub id: SandboxId,
    /// What was asked, in order.
    pub asked: Arc<Mutex<Vec<String>>>,
    /// Why it is not healthy.
    pub unhealthy: Arc<Mutex<Option<Error>>>,
    /// How many events have been taken out of streams, and how many streams were let go.
    pub taken: Arc<AtomicUsize>,
    pub dropped: Arc<AtomicUsize>,
    /// The routes over it, made once.
    pub router: Arc<OnceLock<axum::Router>>,
}

impl Fake {
    pub fn new() -> Self {
        Self {
            principal: Principal { tenant_id: TenantId::new(), key_id: KeyId::new() },
            id: SandboxId::new(),
            asked: Arc::default(),
            unhealthy: Arc::default(),
            taken: Arc::default(),
            dropped: Arc::default(),
            router: Arc::default(),
        }
    }

    pub fn ask(&self, caller: Principal, id: Option<SandboxId>, what: impl std::fmt::Debug) -> Result<()> {
        assert_eq!(caller, self.principal);
        self.asked.lock().unwrap().push(format!("{what:?}"));
        match id {
            Some(id) if id != self.id => Err(Error::sandbox_not_found(id)),
            _ => Ok(()),
        }
    }
}

/// A stream that counts what is taken of it, and its own end.
struct Counted<T> {
    items: Box<dyn Iterator<Item = T> + Send>,
    /// Whether it has an end.
    ends: bool,
    fake: Fake,
}

impl<T> Drop for Counted<T> {
    fn drop(&mut self) {
        self.fake.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

impl Fake {
    pub fn events<T: Send + 'static>(
        &self,
        items: impl Iterator<Item = T> + Send + 'static,
        ends: bool,
    ) -> futures::stream::BoxStream<'static, Result<T>> {
        let counted = Counted { items: Box::new(items), ends, fake: self.clone() };
        stream::unfold(counted, |mut counted| async move {
            match counted.items.next() {
                Some(item) => {
                    counted.fake.taken.fetch_add(1, Ordering::SeqCst);
                    Some((Ok(item), counted))
                }
                None if counted.ends => None,
                None => std::future::pending().await,
            }
        })
        .boxed()
    }
}

fn output(data: &'static [u8]) -> ProcessEvent {
    ProcessEvent::Output { stderr: false, data: Bytes::from_static(data) }
}

pub fn pieces(pieces: &[&'static [u8]]) -> ByteStream {
    stream::iter(pieces.iter().map(|piece| Ok(Bytes::from_static(piece))).collect::<Vec<_>>()).boxed()
}

fn info(path: &str) -> FileInfo {
    FileInfo {
        name: path.rsplit('/').next().unwrap_or_default().into(),
        path: path.into(),
        is_dir: false,
        size: 0,
        kind: FileType::File,
        mode: "0644".into(),
        permissions: "0644".into(),
        owner: "root".into(),
        group: "root".into(),
        modified_time: Timestamp::UNIX_EPOCH,
        symlink_target: None,
    }
}

#[async_trait]
impl Authenticate for Fake {
    async fn authenticate(&self, authorization: Option<&str>) -> Result<Principal> {
        match authorization {
            Some(KEY) => Ok(self.principal),
            _ => Err(Error::new(Code::Unauthorized, "no good API key").suggest("set NULLSPACE_API_KEY")),
        }
    }

    async fn authenticate_grant(
        &self,
        method: &http::Method,
        sandbox_id: &str,
        query: &str,
    ) -> Result<Principal> {
        let good = sandbox_id == self.id.to_string() && query.ends_with("grant=good");
        assert!(["GET", "HEAD", "PUT", "POST"].contains(&method.as_str()), "{method}");
        good.then_some(self.principal)
            .ok_or_else(|| Error::new(Code::EdgeTokenInvalid, "the signature does not fit"))
    }
}

#[async_trait]
impl HealthApi for Fake {
    async fn health(&self) -> Result<()> {
        self.unhealthy.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

#[async_trait]
impl TemplateApi for Fake {
    async fn template_list(&self, caller: Principal) -> Result<Vec<Template>> {
        self.ask(caller, None, "template_list")?;
        Ok(Vec::new())
    }
}

pub fn sandbox(id: SandboxId) -> Sandbox {
    Sandbox {
        id,
        status: SandboxStatus::Running,
        config: SandboxConfig { vcpus: 1, memory_mb: 256, disk_mb: 2048 },
        template: "base".into(),
        metadata: serde_json::Map::new(),
        created_at: Timestamp::UNIX_EPOCH,
        started_at: None,
        timeout_at: None,
        expires_at: None,
        timeout_ms: None,
        timeout_action: None,
        cwd: None,
        snapshot_id: None,
        parent_id: None,
        auto_resume: false,
        error_message: None,
        traffic_access_token: None,
    }
}

#[async_trait]
impl SandboxApi for Fake {
    async fn sandbox_create(
        &self,
        caller: Principal,
        key: Option<String>,
        request: SandboxCreate,
    ) -> Result<Sandbox> {
        self.ask(caller, None, (&key, request.vcpus, &request.template))?;
        match request.template.as_deref() {
            Some("full") => Err(Error::new(Code::CapacityExceeded, "no room")),
            Some("fault") => Err(Error::internal("the secret cause")),
            Some("panic") => panic!("the secret panic"),
            _ => Ok(sandbox(self.id)),
        }
    }

    async fn sandbox_list(
        &self,
        caller: Principal,
        query: SandboxListQuery,
        any_query: bool,
    ) -> Result<SandboxList> {
        self.ask(caller, None, (query.metadata, query.limit, any_query))?;
        Ok(SandboxList::All(Vec::new()))
    }

    async fn sandbox_get(&self, caller: Principal, id: SandboxId, query: SandboxGetQuery) -> Result<Value> {
        self.ask(caller, Some(id), query)?;
        Ok(serde_json::json!({ "id": id }))
    }

    async fn sandbox_destroy(&self, caller: Principal, id: SandboxId) -> Result<SandboxDestroyed> {
        self.ask(caller, Some(id), "destroy")?;
        Ok(SandboxDestroyed { id, status: SandboxStatus::Destroyed })
    }

    async fn sandbox_timeout_set(
        &self,
        caller: Principal,
        id: SandboxId,
        request: SandboxTimeoutSet,
    ) -> Result<SandboxTimeout> {
        self.ask(caller, Some(id), &request)?;
        Ok(SandboxTimeout {
            timeout_ms: 1,
            timeout_action: TimeoutAction::Destroy,
            timeout_at: Timestamp::UNIX_EPOCH,
            remaining_ms: 1,
        })
    }

    async fn sandbox_metrics(&self, caller: Principal, id: SandboxId) -> Result<Vec<SandboxMetrics>> {
        self.ask(caller, Some(id), "metrics")?;
        Ok(Vec::new())
    }
}

#[async_trait]
impl ProcessApi for Fake {
    async fn process_exec(
        &self,
        caller: Principal,
        id: SandboxId,
        request: ExecRequest,
    ) -> Result<ExecReply> {
        self.ask(caller, Some(id), &request.command)?;
        Ok(match request.command.as_str() {
            "sleep" => ExecReply::Started(ExecStarted { pid: 7 }),
            "spill" => ExecReply::Spilled {
                exit_code: 3,
                pid: 7,
                guest_us: 1500,
                stdout: pieces(&[b"a\"\xe2\x82", b"\xac", b"\xff\n"]),
                stderr: pieces(&[]),
            },
            "break" => ExecReply::Spilled {
                exit_code: 0,
                pid: 7,
                guest_us: 0,
                stdout: stream::iter(0..100)
                    .then(async |n| {
                        // Lets the connection send what it has.
                        tokio::task::yield_now().await;
                        if n < 99 { Ok(Bytes::from(vec![b'x'; 4096])) } else { Err(Error::internal("lost")) }
                    })
                    .boxed(),
                stderr: pieces(&[]),
            },
            _ => ExecReply::Finished {
                result: ExecResult { exit_code: 0, stdout: String::new(), stderr: String::new(), pid: 7 },
                guest_us: 1500,
            },
        })
    }

    async fn process_stream(
        &self,
        caller: Principal,
        id: SandboxId,
        request: ExecRequest,
    ) -> Result<ProcessEvents> {
        self.ask(caller, Some(id), (&request.command, request.timeout_secs))?;
        let started = std::iter::once(ProcessEvent::Started { pid: 7 });
        let exited = std::iter::once(ProcessEvent::Exited { exit_code: 3, timed_out: false, guest_us: 1 });
        Ok(match request.command.as_str() {
            "none" => return Err(Error::new(Code::ExecFailed, "command not found: none")),
            "split" => {
                let err = ProcessEvent::Output { stderr: true, data: Bytes::from_static(b"err\xff") };
                let parts = [output(b"a\xc3"), err, output(b"\xbc"), output(b"\xf0\x9f")];
                self.events(started.chain(parts).chain(exited), true)
            }
            "control" => {
                let flood = (0..3).map(|_| output(&[1; 1 << 20]));
                self.events(started.chain(flood).chain(exited), true)
            }
            "flood" => self.events(started.chain((0..10_000).map(|_| output(&[b'x'; 64 << 10]))), false),
            "broken" => self.events(started.chain([output(b"half")]), true),
            _ => self.events(started, false),
        })
    }

    async fn process_attach(
        &self,
        caller: Principal,
        id: SandboxId,
        pid: u32,
        stdout_offset: u64,
        stderr_offset: u64,
    ) -> Result<ProcessEvents> {
        self.ask(caller, Some(id), ("attach", pid, stdout_offset, stderr_offset))?;
        Ok(self.events(std::iter::once(ProcessEvent::Started { pid }), false))
    }

    async fn process_stdin_close(&self, caller: Principal, id: SandboxId, pid: u32) -> Result<()> {
        self.ask(caller, Some(id), ("close", pid))
    }

    async fn process_list(&self, caller: Principal, id: SandboxId) -> Result<Vec<ProcessInfo>> {
        self.ask(caller, Some(id), "process_list")?;
        Ok(Vec::new())
    }

    async fn process_kill(&self, caller: Principal, id: SandboxId, pid: u32) -> Result<()> {
        self.ask(caller, Some(id), pid)
    }

    async fn process_stdin(
        &self,
        caller: Principal,
        id: SandboxId,
        pid: u32,
        request: ProcessStdin,
    ) -> Result<()> {
        self.ask(caller, Some(id), (pid, &request.data))?;
        match request.data.as_str() {
            // As if the process did not read it.
            "stuck" => std::future::pending().await,
            _ => Ok(()),
        }
    }

    async fn process_logs(&self, caller: Principal, id: SandboxId, pid: u32) -> Result<LogsReply> {
        self.ask(caller, Some(id), pid)?;
        Ok(LogsReply {
            stdout: pieces(&[b"out"]),
            stderr: pieces(&[b"err"]),
            output: pieces(&[b"out", b"err"]),
            exit_code: None,
        })
    }
}

#[async_trait]
impl FileApi for Fake {
    async fn file_list(
        &self,
        caller: Principal,
        id: SandboxId,
        query: FileListQuery,
    ) -> Result<Vec<FileInfo>> {
        self.ask(caller, Some(id), (query.path, query.depth, query.user))?;
        Ok(Vec::new())
    }

    async fn file_read(&self, caller: Principal, id: SandboxId, request: FileRead) -> Result<FileReadReply> {
        self.ask(caller, Some(id), &request.path)?;
        let content = pieces(&[b"a\xff", b"b"]);
        Ok(FileReadReply { encoding: request.encoding.unwrap_or_default(), content })
    }

    async fn file_write(&self, caller: Principal, id: SandboxId, request: FileWrite) -> Result<FileInfo> {
        self.ask(caller, Some(id), (&request.path, request.content.len()))?;
        Ok(info(&request.path))
    }

    async fn file_info(&self, caller: Principal, id: SandboxId, request: FilePath) -> Result<FileInfo> {
        self.ask(caller, Some(id), &request.path)?;
        Ok(info(&request.path))
    }

    async fn file_exists(&self, caller: Principal, id: SandboxId, request: FilePath) -> Result<FileExists> {
        self.ask(caller, Some(id), &request.path)?;
        Ok(FileExists { exists: true })
    }

    async fn file_remove(&self, caller: Principal, id: SandboxId, request: FilePath) -> Result<()> {
        self.ask(caller, Some(id), &request.path)
    }

    async fn file_mkdir(&self, caller: Principal, id: SandboxId, request: FilePath) -> Result<()> {
        self.ask(caller, Some(id), &request.path)
    }

    async fn file_rename(&self, caller: Principal, id: SandboxId, request: FileRename) -> Result<FileInfo> {
        self.ask(caller, Some(id), &request.old_path)?;
        Ok(info(&request.new_path))
    }

    async fn file_permissions(
        &self,
        caller: Principal,
        id: SandboxId,
        request: FilePermissions,
    ) -> Result<()> {
        self.ask(caller, Some(id), &request.permissions)
    }

    async fn file_download(
        &self,
        caller: Principal,
        id: SandboxId,
        query: FileRawQuery,
        range: FileRange,
    ) -> Result<FileDownloadReply> {
        self.ask(caller, Some(id), &query.path)?;
        let whole: &'static [u8] = b"\x00\xffab";
        let (first, end) = match range {
            FileRange::Whole => (0, 4),
            FileRange::From { offset, length } => {
                let first = offset.min(4);
                (first, first.saturating_add(length.unwrap_or(4)).min(4))
            }
            FileRange::Last(count) => (4 - count.min(4), 4),
        };
        let content = pieces(&[&whole[first as usize..end as usize]]);
        Ok(FileDownloadReply { size: 4, modified: Timestamp::UNIX_EPOCH, content })
    }

    async fn file_find(
        &self,
        caller: Principal,
        id: SandboxId,
        request: FileFind,
    ) -> Result<Found<FileMatch>> {
        self.ask(caller, Some(id), &request.pattern)?;
        let found = FileMatch { file: "/f".into(), line: 1, content: request.pattern };
        Ok(Found { items: vec![found], limited: request.limit == Some(1) })
    }

    async fn file_search(
        &self,
        caller: Principal,
        id: SandboxId,
        request: FileSearch,
    ) -> Result<Found<String>> {
        self.ask(caller, Some(id), &request.pattern)?;
        Ok(Found { items: vec!["/f".into()], limited: false })
    }

    async fn file_replace(
        &self,
        caller: Principal,
        id: SandboxId,
        request: FileReplace,
    ) -> Result<FileReplaced> {
        self.ask(caller, Some(id), &request.files)?;
        Ok(FileReplaced { replacements: 2, ..FileReplaced::default() })
    }

    async fn file_batch_write(
        &self,
        caller: Principal,
        id: SandboxId,
        user: Option<String>,
        mut parts: BatchParts,
    ) -> Result<Vec<Result<FileInfo>>> {
        let mut written: Vec<(String, Vec<u8>)> = Vec::new();
        let mut whole = Ok(());
        while let Some(part) = parts.next().await {
            match part {
                Ok(BatchPart::Start { path }) => written.push((path, Vec::new())),
                Ok(BatchPart::Data(data)) => written.last_mut().unwrap().1.extend_from_slice(&data),
                Err(error) => whole = Err(error),
            }
        }
        self.ask(caller, Some(id), (user, &written))?;
        whole?;
        let outcome = |(path, _): (String, Vec<u8>)| match path.as_str() {
            "/bad" => Err(Error::new(Code::FileError, "/bad cannot be written")),
            path => Ok(info(path)),
        };
        Ok(written.into_iter().map(outcome).collect())
    }

    async fn file_watch(&self, caller: Principal, id: SandboxId, request: FileWatch) -> Result<FileChanges> {
        self.ask(caller, Some(id), &request)?;
        if request.path == "/none" {
            return Err(Error::new(Code::FileNotFound, "/none does not exist"));
        }
        let event = nullspace_types::socket::FileEventKind::Create;
        let change = FileChange { event, name: "a".into(), path: format!("{}/a", request.path) };
        Ok(self.events(std::iter::once(change), false))
    }

    async fn file_download_url(
        &self,
        caller: Principal,
        id: SandboxId,
        request: FileSign,
    ) -> Result<SignedUrl> {
        self.ask(caller, Some(id), &request.path)?;
        Ok(SignedUrl { base: None, query: "path=/x&grant=good".into(), token: "good".into() })
    }

    async fn file_upload_url(
        &self,
        caller: Principal,
        id: SandboxId,
        request: FileSign,
    ) -> Result<SignedUrl> {
        self.ask(caller, Some(id), &request.path)?;
        let base = Some("https://files.example/base/".into());
        Ok(SignedUrl { base, query: "path=/x&grant=good".into(), token: "good".into() })
    }

    async fn file_upload(
        &self,
        caller: Principal,
        id: SandboxId,
        query: FileRawQuery,
        mut body: ByteStream,
    ) -> Result<()> {
        let mut whole = BytesMut::new();
        while let Some(bytes) = body.next().await {
            whole.extend_from_slice(&bytes?);
        }
        self.ask(caller, Some(id), (&query.path, whole))
    }
}

#[async_trait]
impl TerminalApi for Fake {
    async fn terminal_start(
        &self,
        caller: Principal,
        id: SandboxId,
        start: TerminalStart,
    ) -> Result<TerminalEvents> {
        self.ask(caller, Some(id), &start)?;
        if start.cols == Some(0) {
            return Err(Error::invalid("cols must be between 1 and 1000, got 0"));
        }
        let attached = TerminalEvent::Attached(self.terminal(id));
        let output = TerminalEvent::Output(Bytes::from(vec![b'x'; 100 << 10]));
        match start.cols {
            Some(1) => {
                let exited = TerminalEvent::Exited { exit_code: 5 };
                Ok(self.events([attached, output, exited].into_iter(), true))
            }
            _ => Ok(self.events([attached, output].into_iter(), false)),
        }
    }

    async fn terminal_attach(
        &self,
        caller: Principal,
        id: SandboxId,
        target: TerminalTarget,
    ) -> Result<TerminalEvents> {
        self.ask(caller, Some(id), target)?;
        Ok(self.events(std::iter::once(TerminalEvent::Attached(self.terminal(id))), false))
    }

    async fn terminal_write(
        &self,
        caller: Principal,
        id: SandboxId,
        _: SessionId,
        data: Bytes,
    ) -> Result<()> {
        self.ask(caller, Some(id), data)
    }

    async fn terminal_resize(
        &self,
        caller: Principal,
        id: SandboxId,
        _: SessionId,
        size: TerminalResize,
    ) -> Result<()> {
        self.ask(caller, Some(id), size)?;
        if size.cols == 0 { Err(Error::invalid("cols must be between 1 and 1000, got 0")) } else { Ok(()) }
    }

    async fn terminal_kill(&self, caller: Principal, id: SandboxId, _: SessionId) -> Result<()> {
        self.ask(caller, Some(id), "terminal_kill")
    }

    async fn terminal_list(&self, caller: Principal, id: SandboxId) -> Result<Vec<TerminalInfo>> {
        self.ask(caller, Some(id), "terminal_list")?;
        Ok(vec![self.terminal(id)])
    }

    async fn terminal_get(&self, caller: Principal, id: SandboxId, _: SessionId) -> Result<TerminalInfo> {
        self.ask(caller, Some(id), "terminal_get")?;
        Ok(self.terminal(id))
    }
}

impl Fake {
    /// The ID of another kind of thing, with the sandbox's digits.
    pub fn named<I: std::str::FromStr<Err: std::fmt::Debug>>(&self, prefix: &str) -> I {
        self.id.to_string().replace(SandboxId::PREFIX, prefix).parse().unwrap()
    }

    /// The one session.
    pub fn terminal(&self, id: SandboxId) -> TerminalInfo {
        let session_id = id.to_string().replace(SandboxId::PREFIX, SessionId::PREFIX).parse().unwrap();
        TerminalInfo { session_id, pid: 9, cols: 80, rows: 24 }
    }
}

pub fn upload(upload_id: UploadId) -> UploadSession {
    UploadSession {
        upload_id,
        kind: UploadKind::File,
        source_kind: UploadSource::RestartableFile,
        target_path: "/x".into(),
        user: None,
        content_length: 1,
        accepted_bytes: 0,
        reserved_staging_bytes: 1,
        part_size: 1,
        part_count: 1,
        max_concurrency: 1,
        next_part: None,
        status: UploadStatus::Created,
        conflict: UploadConflict::Merge,
        archive_format: None,
        checksum_algorithm: UploadChecksum::Sha256,
        whole_checksum_sha256: None,
        limits: UploadLimits {
            max_upload_bytes: 1,
            max_part_bytes: 1,
            max_concurrency: 1,
            sandbox_staging_quota_bytes: 1,
        },
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
        expires_at: Timestamp::UNIX_EPOCH,
    }
}

#[async_trait]
impl UploadApi for Fake {
    async fn upload_create(
        &self,
        caller: Principal,
        id: SandboxId,
        idempotency_key: Option<String>,
        request: UploadCreate,
    ) -> Result<UploadCreated> {
        self.ask(caller, Some(id), (idempotency_key, request.content_length))?;
        Ok(UploadCreated { session: upload(UploadId::new()) })
    }

    async fn upload_get(&self, caller: Principal, id: SandboxId, of: UploadId) -> Result<UploadSession> {
        self.ask(caller, Some(id), "upload_get")?;
        Ok(upload(of))
    }

    async fn upload_part(
        &self,
        caller: Principal,
        id: SandboxId,
        of: UploadId,
        part: u32,
        sha256: [u8; 32],
        mut body: ByteStream,
    ) -> Result<UploadSession> {
        let mut whole = BytesMut::new();
        while let Some(bytes) = body.next().await {
            whole.extend_from_slice(&bytes?);
        }
        self.ask(caller, Some(id), (part, sha256[0], whole))?;
        let failure = |reason| UploadFailure {
            reason,
            message: "refused".into(),
            retryable: false,
            upload_id: Some(of),
            request_id: None,
            path: None,
            part_number: Some(part),
        };
        match part {
            0 => Ok(upload(of)),
            1 => Err(Error::upload(failure(UploadReason::InvalidPartChecksum))),
            2 => Err(Error::upload(failure(UploadReason::UploadExpired))),
            _ => Err(Error::upload(failure(UploadReason::TargetConflict))),
        }
    }

    async fn upload_complete(
        &self,
        caller: Principal,
        id: SandboxId,
        of: UploadId,
        request: UploadComplete,
    ) -> Result<UploadCompleted> {
        self.ask(caller, Some(id), request.whole_checksum_sha256)?;
        Ok(UploadCompleted { session: upload(of), published_bytes: 1, published_file_count: 1 })
    }

    async fn upload_abort(&self, caller: Principal, id: SandboxId, _: UploadId) -> Result<()> {
        self.ask(caller, Some(id), "upload_abort")
    }
}

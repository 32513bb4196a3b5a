//! An implementation that answers at once, and says what it was asked.

use std::sync::{Arc, Mutex, OnceLock};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use nullspace_api::file::{FileDownloadReply, FileReadReply};
use nullspace_api::process::{ExecReply, LogsReply};
use nullspace_api::{Authenticate, ByteStream, FileApi, HealthApi, ProcessApi, SandboxApi, TemplateApi};
use nullspace_types::file::*;
use nullspace_types::id::{KeyId, SandboxId, TenantId};
use nullspace_types::key::Principal;
use nullspace_types::process::*;
use nullspace_types::sandbox::*;
use nullspace_types::template::Template;
use nullspace_types::{Code, Error, Result};
use serde_json::Value;

/// The one good key.
pub const KEY: &str = "Bearer good";

#[derive(Clone)]
pub struct Fake {
    pub principal: Principal,
    /// The one sandbox.
    pub id: SandboxId,
    /// What was asked, in order.
    pub asked: Arc<Mutex<Vec<String>>>,
    /// Why it is not healthy.
    pub unhealthy: Arc<Mutex<Option<Error>>>,
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
            router: Arc::default(),
        }
    }

    fn ask(&self, caller: Principal, id: Option<SandboxId>, what: impl std::fmt::Debug) -> Result<()> {
        assert_eq!(caller, self.principal);
        self.asked.lock().unwrap().push(format!("{what:?}"));
        match id {
            Some(id) if id != self.id => Err(Error::sandbox_not_found(id)),
            _ => Ok(()),
        }
    }
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
            _ => Ok(Sandbox {
                id: self.id,
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
                error_message: None,
            }),
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
        self.ask(caller, Some(id), (pid, request.data))
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
    ) -> Result<FileDownloadReply> {
        self.ask(caller, Some(id), &query.path)?;
        Ok(FileDownloadReply { size: 4, content: pieces(&[b"\x00\xff", b"ab"]) })
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

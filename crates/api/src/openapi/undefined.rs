//! An implementation that cannot exist: routes can be described over it, never served.

use async_trait::async_trait;
use bytes::Bytes;
use http::Method;
use nullspace_types::Result;
use nullspace_types::event::{LifecycleEventPage, LifecycleEventQuery, LifecycleSubscription};
use nullspace_types::file::{
    FileExists, FileFind, FileInfo, FileListQuery, FileMatch, FilePath, FilePermissions, FileRange,
    FileRawQuery, FileRead, FileRename, FileReplace, FileReplaced, FileSearch, FileSign, FileWrite, Found,
};
use nullspace_types::id::{DeliveryId, SandboxId, SessionId, SnapshotId, UploadId, WebhookId};
use nullspace_types::key::Principal;
use nullspace_types::monitor::MonitorSpec;
use nullspace_types::process::{ExecRequest, ProcessInfo, ProcessStdin};
use nullspace_types::sandbox::{
    Sandbox, SandboxCreate, SandboxDestroyed, SandboxGetQuery, SandboxList, SandboxListQuery, SandboxMetrics,
    SandboxTimeout, SandboxTimeoutSet,
};
use nullspace_types::snapshot::{
    SandboxDiff, SandboxDiffQuery, SandboxFork, SandboxForked, SandboxTree, Snapshot, SnapshotListQuery,
};
use nullspace_types::template::Template;
use nullspace_types::terminal::{TerminalInfo, TerminalResize};
use nullspace_types::upload::{UploadComplete, UploadCompleted, UploadCreate, UploadCreated, UploadSession};
use nullspace_types::webhook::{
    Webhook, WebhookCreate, WebhookDelivery, WebhookDeliveryDetail, WebhookDeliveryQuery, WebhookUpdate,
};
use serde_json::Value;

use crate::file::{BatchParts, FileChanges, FileDownloadReply, FileReadReply, FileWatch, SignedUrl};
use crate::lifecycle::LifecycleEvents;
use crate::monitor::MonitorStream;
use crate::process::{ExecReply, LogsReply, ProcessEvents};
use crate::terminal::{TerminalEvents, TerminalStart, TerminalTarget};
use crate::{
    Authenticate, ByteStream, FileApi, HealthApi, LifecycleApi, MonitorApi, ProcessApi, SandboxApi,
    SnapshotApi, TemplateApi, TerminalApi, UploadApi, WebhookApi,
};

/// An implementation of the API of which there is no value.
#[derive(Clone)]
pub(super) enum Undefined {}

#[async_trait]
impl SandboxApi for Undefined {
    async fn sandbox_create(&self, _: Principal, _: Option<String>, _: SandboxCreate) -> Result<Sandbox> {
        match *self {}
    }

    async fn sandbox_list(&self, _: Principal, _: SandboxListQuery, _: bool) -> Result<SandboxList> {
        match *self {}
    }

    async fn sandbox_get(&self, _: Principal, _: SandboxId, _: SandboxGetQuery) -> Result<Value> {
        match *self {}
    }

    async fn sandbox_destroy(&self, _: Principal, _: SandboxId) -> Result<SandboxDestroyed> {
        match *self {}
    }

    async fn sandbox_timeout_set(
        &self,
        _: Principal,
        _: SandboxId,
        _: SandboxTimeoutSet,
    ) -> Result<SandboxTimeout> {
        match *self {}
    }

    async fn sandbox_metrics(&self, _: Principal, _: SandboxId) -> Result<Vec<SandboxMetrics>> {
        match *self {}
    }
}

#[async_trait]
impl ProcessApi for Undefined {
    async fn process_exec(&self, _: Principal, _: SandboxId, _: ExecRequest) -> Result<ExecReply> {
        match *self {}
    }

    async fn process_stream(&self, _: Principal, _: SandboxId, _: ExecRequest) -> Result<ProcessEvents> {
        match *self {}
    }

    async fn process_attach(
        &self,
        _: Principal,
        _: SandboxId,
        _: u32,
        _: u64,
        _: u64,
    ) -> Result<ProcessEvents> {
        match *self {}
    }

    async fn process_list(&self, _: Principal, _: SandboxId) -> Result<Vec<ProcessInfo>> {
        match *self {}
    }

    async fn process_stdin_close(&self, _: Principal, _: SandboxId, _: u32) -> Result<()> {
        match *self {}
    }

    async fn process_kill(&self, _: Principal, _: SandboxId, _: u32) -> Result<()> {
        match *self {}
    }

    async fn process_stdin(&self, _: Principal, _: SandboxId, _: u32, _: ProcessStdin) -> Result<()> {
        match *self {}
    }

    async fn process_logs(&self, _: Principal, _: SandboxId, _: u32) -> Result<LogsReply> {
        match *self {}
    }
}

#[async_trait]
impl FileApi for Undefined {
    async fn file_list(&self, _: Principal, _: SandboxId, _: FileListQuery) -> Result<Vec<FileInfo>> {
        match *self {}
    }

    async fn file_read(&self, _: Principal, _: SandboxId, _: FileRead) -> Result<FileReadReply> {
        match *self {}
    }

    async fn file_write(&self, _: Principal, _: SandboxId, _: FileWrite) -> Result<FileInfo> {
        match *self {}
    }

    async fn file_info(&self, _: Principal, _: SandboxId, _: FilePath) -> Result<FileInfo> {
        match *self {}
    }

    async fn file_exists(&self, _: Principal, _: SandboxId, _: FilePath) -> Result<FileExists> {
        match *self {}
    }

    async fn file_remove(&self, _: Principal, _: SandboxId, _: FilePath) -> Result<()> {
        match *self {}
    }

    async fn file_mkdir(&self, _: Principal, _: SandboxId, _: FilePath) -> Result<()> {
        match *self {}
    }

    async fn file_rename(&self, _: Principal, _: SandboxId, _: FileRename) -> Result<FileInfo> {
        match *self {}
    }

    async fn file_permissions(&self, _: Principal, _: SandboxId, _: FilePermissions) -> Result<()> {
        match *self {}
    }

    async fn file_download(
        &self,
        _: Principal,
        _: SandboxId,
        _: FileRawQuery,
        _: FileRange,
    ) -> Result<FileDownloadReply> {
        match *self {}
    }

    async fn file_upload(&self, _: Principal, _: SandboxId, _: FileRawQuery, _: ByteStream) -> Result<()> {
        match *self {}
    }

    async fn file_find(&self, _: Principal, _: SandboxId, _: FileFind) -> Result<Found<FileMatch>> {
        match *self {}
    }

    async fn file_search(&self, _: Principal, _: SandboxId, _: FileSearch) -> Result<Found<String>> {
        match *self {}
    }

    async fn file_replace(&self, _: Principal, _: SandboxId, _: FileReplace) -> Result<FileReplaced> {
        match *self {}
    }

    async fn file_batch_write(
        &self,
        _: Principal,
        _: SandboxId,
        _: Option<String>,
        _: BatchParts,
    ) -> Result<Vec<Result<FileInfo>>> {
        match *self {}
    }

    async fn file_watch(&self, _: Principal, _: SandboxId, _: FileWatch) -> Result<FileChanges> {
        match *self {}
    }

    async fn file_download_url(&self, _: Principal, _: SandboxId, _: FileSign) -> Result<SignedUrl> {
        match *self {}
    }

    async fn file_upload_url(&self, _: Principal, _: SandboxId, _: FileSign) -> Result<SignedUrl> {
        match *self {}
    }
}

#[async_trait]
impl TerminalApi for Undefined {
    async fn terminal_start(&self, _: Principal, _: SandboxId, _: TerminalStart) -> Result<TerminalEvents> {
        match *self {}
    }

    async fn terminal_attach(&self, _: Principal, _: SandboxId, _: TerminalTarget) -> Result<TerminalEvents> {
        match *self {}
    }

    async fn terminal_write(&self, _: Principal, _: SandboxId, _: SessionId, _: Bytes) -> Result<()> {
        match *self {}
    }

    async fn terminal_resize(
        &self,
        _: Principal,
        _: SandboxId,
        _: SessionId,
        _: TerminalResize,
    ) -> Result<()> {
        match *self {}
    }

    async fn terminal_kill(&self, _: Principal, _: SandboxId, _: SessionId) -> Result<()> {
        match *self {}
    }

    async fn terminal_list(&self, _: Principal, _: SandboxId) -> Result<Vec<TerminalInfo>> {
        match *self {}
    }

    async fn terminal_get(&self, _: Principal, _: SandboxId, _: SessionId) -> Result<TerminalInfo> {
        match *self {}
    }
}

#[async_trait]
impl UploadApi for Undefined {
    async fn upload_create(
        &self,
        _: Principal,
        _: SandboxId,
        _: Option<String>,
        _: UploadCreate,
    ) -> Result<UploadCreated> {
        match *self {}
    }

    async fn upload_get(&self, _: Principal, _: SandboxId, _: UploadId) -> Result<UploadSession> {
        match *self {}
    }

    async fn upload_part(
        &self,
        _: Principal,
        _: SandboxId,
        _: UploadId,
        _: u32,
        _: [u8; 32],
        _: ByteStream,
    ) -> Result<UploadSession> {
        match *self {}
    }

    async fn upload_complete(
        &self,
        _: Principal,
        _: SandboxId,
        _: UploadId,
        _: UploadComplete,
    ) -> Result<UploadCompleted> {
        match *self {}
    }

    async fn upload_abort(&self, _: Principal, _: SandboxId, _: UploadId) -> Result<()> {
        match *self {}
    }
}

#[async_trait]
impl TemplateApi for Undefined {
    async fn template_list(&self, _: Principal) -> Result<Vec<Template>> {
        match *self {}
    }
}

#[async_trait]
impl HealthApi for Undefined {
    async fn health(&self) -> Result<()> {
        match *self {}
    }
}

#[async_trait]
impl Authenticate for Undefined {
    async fn authenticate(&self, _: Option<&str>) -> Result<Principal> {
        match *self {}
    }

    async fn authenticate_grant(&self, _: &Method, _: &str, _: &str) -> Result<Principal> {
        match *self {}
    }
}

#[async_trait]
impl SnapshotApi for Undefined {
    async fn sandbox_hibernate(&self, _: Principal, _: SandboxId) -> Result<Snapshot> {
        match *self {}
    }

    async fn sandbox_resume(&self, _: Principal, _: String) -> Result<Sandbox> {
        match *self {}
    }

    async fn snapshot_create(&self, _: Principal, _: Option<String>, _: SandboxId) -> Result<Snapshot> {
        match *self {}
    }

    async fn sandbox_fork(
        &self,
        _: Principal,
        _: Option<String>,
        _: SandboxId,
        _: SandboxFork,
    ) -> Result<SandboxForked> {
        match *self {}
    }

    async fn sandbox_tree(&self, _: Principal, _: SandboxId) -> Result<SandboxTree> {
        match *self {}
    }

    async fn sandbox_diff(&self, _: Principal, _: SandboxId, _: SandboxDiffQuery) -> Result<SandboxDiff> {
        match *self {}
    }

    async fn snapshot_list(&self, _: Principal, _: SnapshotListQuery) -> Result<Vec<Snapshot>> {
        match *self {}
    }

    async fn snapshot_get(&self, _: Principal, _: SnapshotId) -> Result<Snapshot> {
        match *self {}
    }

    async fn snapshot_delete(&self, _: Principal, _: SnapshotId) -> Result<()> {
        match *self {}
    }
}

#[async_trait]
impl LifecycleApi for Undefined {
    async fn lifecycle_list(&self, _: Principal, _: LifecycleEventQuery) -> Result<LifecycleEventPage> {
        match *self {}
    }

    async fn lifecycle_subscribe(&self, _: Principal, _: LifecycleSubscription) -> Result<LifecycleEvents> {
        match *self {}
    }
}

#[async_trait]
impl WebhookApi for Undefined {
    async fn webhook_create(&self, _: Principal, _: WebhookCreate) -> Result<Webhook> {
        match *self {}
    }

    async fn webhook_list(&self, _: Principal) -> Result<Vec<Webhook>> {
        match *self {}
    }

    async fn webhook_get(&self, _: Principal, _: WebhookId) -> Result<Webhook> {
        match *self {}
    }

    async fn webhook_update(&self, _: Principal, _: WebhookId, _: WebhookUpdate) -> Result<Webhook> {
        match *self {}
    }

    async fn webhook_delete(&self, _: Principal, _: WebhookId) -> Result<()> {
        match *self {}
    }

    async fn webhook_deliveries(
        &self,
        _: Principal,
        _: WebhookId,
        _: WebhookDeliveryQuery,
    ) -> Result<Vec<WebhookDelivery>> {
        match *self {}
    }

    async fn webhook_delivery(
        &self,
        _: Principal,
        _: WebhookId,
        _: DeliveryId,
    ) -> Result<WebhookDeliveryDetail> {
        match *self {}
    }

    async fn webhook_redeliver(&self, _: Principal, _: WebhookId, _: DeliveryId) -> Result<WebhookDelivery> {
        match *self {}
    }
}

#[async_trait]
impl MonitorApi for Undefined {
    async fn monitor(&self, _: Principal, _: MonitorSpec) -> Result<MonitorStream> {
        match *self {}
    }

    async fn metrics(&self) -> Result<String> {
        match *self {}
    }
}

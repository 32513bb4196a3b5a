//! The calls of the protocol.
//!
//! Here is what a call means and which module does it; `process`, `file` and `terminal` hold the large
//! groups, and `adoption` what the machine is. Who may call has been settled before a call comes here (`serve`).

pub mod adoption;
mod file;
mod piped;
mod process;
mod terminal;
mod upload;

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use nullspace_guest_proto as pb;
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status, Streaming};

use crate::bulk::Tickets;
use crate::door::Doors;
use crate::file::list::Listing;
use crate::file::stream::{Messages, Told};
use crate::file::watch::Watches;
use crate::freezer::Freezer;
use crate::metrics::Metrics;
use crate::mounts::Mounts;
use crate::power::{self, Stop};
use crate::process::follow::{Events, Follow, Record};
use crate::process::signal::Signal;
use crate::process::table::Table;
use crate::serve::Arrived;
use crate::terminal::sessions::Sessions;
use crate::terminal::viewer::Viewer;
use crate::upload::Uploads;
use adoption::{Adopted, Adoption, Caller};

/// Bytes of the name of a freeze.
const FREEZE_ID_BYTES: usize = 64;

/// Whether the agent has the machine to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// PID 1 of a machine.
    Machine,
    /// A process among others, for tests: it changes nothing of the system it runs on.
    Hosted,
}

/// See the module.
pub struct Service {
    adoption: Arc<Adoption>,
    table: Arc<Table>,
    sessions: Arc<Sessions>,
    mounts: Arc<Mounts>,
    tickets: Arc<Tickets>,
    freezer: Arc<Freezer>,
    doors: Doors,
    watches: Watches,
    uploads: Arc<Uploads>,
    metrics: Metrics,
    stop: mpsc::Sender<Stop>,
    agent_start_us: u64,
    /// The agent's own program, which is its SFTP server too. Its file has no name any more.
    own: File,
}

impl Service {
    /// Serves now: the time since the kernel's start is taken here.
    pub fn new(
        adoption: Arc<Adoption>,
        table: Arc<Table>,
        sessions: Arc<Sessions>,
        mounts: Arc<Mounts>,
        tickets: Arc<Tickets>,
        freezer: Arc<Freezer>,
        stop: mpsc::Sender<Stop>,
    ) -> std::io::Result<Self> {
        let up = std::time::Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?);
        Ok(Self {
            adoption,
            table,
            sessions,
            mounts,
            doors: Doors::new(Arc::clone(&tickets)),
            tickets,
            freezer,
            watches: Watches::default(),
            uploads: Arc::default(),
            metrics: Metrics::default(),
            stop,
            agent_start_us: up.as_micros() as u64,
            own: File::open("/proc/self/exe")?,
        })
    }

    fn adopted(&self) -> Result<Arc<Adopted>, Status> {
        let adopted = self.adoption.current();
        adopted.ok_or_else(|| Status::failed_precondition("this machine has not been adopted yet"))
    }
}

/// Names and values that the kernel can hand to a program.
pub fn check_environment(envs: &HashMap<String, String>) -> Result<(), Status> {
    for (name, value) in envs {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Status::invalid_argument(format!("{name:?} is no name of an environment variable")));
        }
        if value.contains('\0') {
            return Err(Status::invalid_argument(format!("the environment variable {name} has a NUL byte")));
        }
    }
    Ok(())
}

#[tonic::async_trait]
impl pb::agent_server::Agent for Service {
    async fn hello(&self, _: Request<pb::HelloRequest>) -> Result<Response<pb::HelloReply>, Status> {
        let release = nix::sys::utsname::uname().map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(pb::HelloReply {
            generation: pb::GENERATION,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            sandbox_id: self.adoption.current().map(|own| own.sandbox_id.clone()).unwrap_or_default(),
            kernel_release: release.release().to_string_lossy().into_owned(),
            agent_start_us: self.agent_start_us,
        }))
    }

    async fn adopt(&self, request: Request<pb::AdoptRequest>) -> Result<Response<pb::AdoptReply>, Status> {
        let caller = Caller::of(&request)?;
        let adopted = Arc::clone(&self.adoption).adopt(request.into_inner(), caller);
        // Completed whatever becomes of its caller, who may ask again and is then answered the same.
        let answer = tokio::spawn(adopted).await;
        answer.unwrap_or_else(|error| Err(Status::internal(error.to_string()))).map(Response::new)
    }

    async fn sync(&self, _: Request<pb::SyncRequest>) -> Result<Response<pb::SyncReply>, Status> {
        power::flush().await;
        Ok(Response::new(pb::SyncReply {}))
    }

    async fn freeze(&self, request: Request<pb::FreezeRequest>) -> Result<Response<pb::FreezeReply>, Status> {
        let id = request.into_inner().freeze_id;
        if id.len() > FREEZE_ID_BYTES {
            let message = format!("freeze_id has {} bytes; it must have at most {FREEZE_ID_BYTES}", id.len());
            return Err(Status::invalid_argument(message));
        }
        let reason = self.freezer.freeze(id).await.err();
        let reply = pb::FreezeReply { frozen: reason.is_none(), reason: reason.unwrap_or_default() };
        Ok(Response::new(reply))
    }

    async fn thaw(&self, request: Request<pb::ThawRequest>) -> Result<Response<pb::ThawReply>, Status> {
        let arrived = request.extensions().get::<Arrived>().map_or_else(Instant::now, |arrived| arrived.0);
        let pb::ThawRequest { freeze_id, unix_time_ns } = request.into_inner();
        self.adoption.catch_up(unix_time_ns, arrived);
        self.freezer.thaw(&freeze_id).await;
        Ok(Response::new(pb::ThawReply {}))
    }

    async fn shutdown(&self, _: Request<pb::ShutdownRequest>) -> Result<Response<pb::ShutdownReply>, Status> {
        let (done, told) = oneshot::channel();
        let ending = || Status::failed_precondition("the machine is being shut down already");
        self.stop.try_send(Stop(Some(done))).map_err(|_| ending())?;
        told.await.map_err(|_| ending())?;
        Ok(Response::new(pb::ShutdownReply {}))
    }

    async fn metrics(&self, _: Request<pb::MetricsRequest>) -> Result<Response<pb::MetricsReply>, Status> {
        self.metrics
            .read()
            .map(Response::new)
            .map_err(|error| Status::internal(format!("the machine's counters cannot be read: {error}")))
    }

    type RunStream = Events;
    async fn run(&self, request: Request<pb::RunRequest>) -> Result<Response<Events>, Status> {
        let arrived = request.extensions().get::<Arrived>().map_or_else(Instant::now, |arrived| arrived.0);
        self.do_run(request.into_inner(), arrived).await.map(Response::new)
    }

    type AttachStream = Follow;
    async fn attach(&self, request: Request<pb::AttachRequest>) -> Result<Response<Follow>, Status> {
        self.do_attach(&request.into_inner()).map(Response::new)
    }

    type ReadLogStream = Record;
    async fn read_log(&self, request: Request<pb::ReadLogRequest>) -> Result<Response<Record>, Status> {
        self.do_read_log(&request.into_inner()).map(Response::new)
    }

    async fn list_processes(
        &self,
        _: Request<pb::ListProcessesRequest>,
    ) -> Result<Response<pb::ListProcessesReply>, Status> {
        self.do_list_processes().await.map(Response::new)
    }

    async fn kill_process(
        &self,
        request: Request<pb::KillProcessRequest>,
    ) -> Result<Response<pb::KillProcessReply>, Status> {
        let pb::KillProcessRequest { pid, signal } = request.into_inner();
        self.do_kill_process(pid, Signal::of_request(signal)?)?;
        Ok(Response::new(pb::KillProcessReply {}))
    }

    async fn write_stdin(
        &self,
        request: Request<pb::WriteStdinRequest>,
    ) -> Result<Response<pb::WriteStdinReply>, Status> {
        let request = request.into_inner();
        self.table.find(request.pid)?.write_stdin(&request.data, request.close).await?;
        Ok(Response::new(pb::WriteStdinReply {}))
    }

    type RunPipedStream = piped::Events;
    async fn run_piped(
        &self,
        request: Request<pb::RunPipedRequest>,
    ) -> Result<Response<piped::Events>, Status> {
        let arrived = request.extensions().get::<Arrived>().map_or_else(Instant::now, |arrived| arrived.0);
        self.do_run_piped(request.into_inner(), arrived).await.map(Response::new)
    }

    async fn connect(
        &self,
        request: Request<pb::ConnectRequest>,
    ) -> Result<Response<pb::ConnectReply>, Status> {
        self.doors.connect(request.into_inner()).await?;
        Ok(Response::new(pb::ConnectReply {}))
    }

    type ListenStream = Told<pb::ListenEvent>;
    async fn listen(
        &self,
        request: Request<pb::ListenRequest>,
    ) -> Result<Response<Told<pb::ListenEvent>>, Status> {
        self.doors.listen(request.into_inner()).await.map(Response::new)
    }

    async fn take_connection(
        &self,
        request: Request<pb::TakeConnectionRequest>,
    ) -> Result<Response<pb::ConnectReply>, Status> {
        self.doors.take(request.into_inner()).await?;
        Ok(Response::new(pb::ConnectReply {}))
    }

    async fn set_authority(
        &self,
        request: Request<pb::SetAuthorityRequest>,
    ) -> Result<Response<pb::SetAuthorityReply>, Status> {
        self.adoption.authority().set(&request.into_inner().certificate_pem).await?;
        Ok(Response::new(pb::SetAuthorityReply {}))
    }

    type ReadFileStream = file::Content;
    async fn read_file(
        &self,
        request: Request<pb::ReadFileRequest>,
    ) -> Result<Response<file::Content>, Status> {
        self.do_read_file(request.into_inner()).await.map(Response::new)
    }

    async fn write_file(
        &self,
        request: Request<Streaming<pb::WriteFileRequest>>,
    ) -> Result<Response<pb::FileInfo>, Status> {
        self.do_write_file(request.into_inner()).await.map(Response::new)
    }

    type ListFilesStream = Messages<Listing>;
    async fn list_files(
        &self,
        request: Request<pb::ListFilesRequest>,
    ) -> Result<Response<Messages<Listing>>, Status> {
        self.do_list_files(request.into_inner()).await.map(Response::new)
    }

    async fn stat_file(&self, request: Request<pb::PathRequest>) -> Result<Response<pb::FileInfo>, Status> {
        self.do_stat(request.into_inner()).await.map(Response::new)
    }

    async fn file_exists(
        &self,
        request: Request<pb::PathRequest>,
    ) -> Result<Response<pb::FileExistsReply>, Status> {
        let exists = self.do_exists(request.into_inner()).await?;
        Ok(Response::new(pb::FileExistsReply { exists }))
    }

    async fn remove_file(
        &self,
        request: Request<pb::PathRequest>,
    ) -> Result<Response<pb::RemoveFileReply>, Status> {
        self.do_remove(request.into_inner()).await?;
        Ok(Response::new(pb::RemoveFileReply {}))
    }

    async fn make_directory(
        &self,
        request: Request<pb::PathRequest>,
    ) -> Result<Response<pb::MakeDirectoryReply>, Status> {
        self.do_make_directory(request.into_inner()).await?;
        Ok(Response::new(pb::MakeDirectoryReply {}))
    }

    async fn rename_file(
        &self,
        request: Request<pb::RenameFileRequest>,
    ) -> Result<Response<pb::FileInfo>, Status> {
        self.do_rename(request.into_inner()).await.map(Response::new)
    }

    async fn set_permissions(
        &self,
        request: Request<pb::SetPermissionsRequest>,
    ) -> Result<Response<pb::SetPermissionsReply>, Status> {
        self.do_set_permissions(request.into_inner()).await?;
        Ok(Response::new(pb::SetPermissionsReply {}))
    }

    type WriteFilesStream = file::Outcomes;
    async fn write_files(
        &self,
        request: Request<Streaming<pb::WriteFileRequest>>,
    ) -> Result<Response<Self::WriteFilesStream>, Status> {
        self.do_write_files(request.into_inner()).await.map(Response::new)
    }

    type FindInFilesStream = Told<pb::FindInFilesReply>;
    async fn find_in_files(
        &self,
        request: Request<pb::FindInFilesRequest>,
    ) -> Result<Response<Self::FindInFilesStream>, Status> {
        self.do_find_in_files(request.into_inner()).await.map(Response::new)
    }

    type SearchFilesStream = Told<pb::SearchFilesReply>;
    async fn search_files(
        &self,
        request: Request<pb::SearchFilesRequest>,
    ) -> Result<Response<Self::SearchFilesStream>, Status> {
        self.do_search_files(request.into_inner()).await.map(Response::new)
    }

    async fn replace_in_files(
        &self,
        request: Request<pb::ReplaceInFilesRequest>,
    ) -> Result<Response<pb::ReplaceInFilesReply>, Status> {
        self.do_replace_in_files(request.into_inner()).await.map(Response::new)
    }

    type WatchFilesStream = Told<pb::WatchEvent>;
    async fn watch_files(
        &self,
        request: Request<pb::WatchFilesRequest>,
    ) -> Result<Response<Self::WatchFilesStream>, Status> {
        self.do_watch_files(request.into_inner()).await.map(Response::new)
    }

    async fn start_terminal(
        &self,
        request: Request<pb::StartTerminalRequest>,
    ) -> Result<Response<pb::Terminal>, Status> {
        self.do_start_terminal(request.into_inner()).await.map(Response::new)
    }

    type AttachTerminalStream = Viewer;
    async fn attach_terminal(
        &self,
        request: Request<pb::TerminalRequest>,
    ) -> Result<Response<Viewer>, Status> {
        self.do_attach_terminal(&request.into_inner()).map(Response::new)
    }

    async fn write_terminal(
        &self,
        request: Request<pb::WriteTerminalRequest>,
    ) -> Result<Response<pb::WriteTerminalReply>, Status> {
        self.do_write_terminal(request.into_inner()).await?;
        Ok(Response::new(pb::WriteTerminalReply {}))
    }

    async fn resize_terminal(
        &self,
        request: Request<pb::ResizeTerminalRequest>,
    ) -> Result<Response<pb::ResizeTerminalReply>, Status> {
        self.do_resize_terminal(&request.into_inner())?;
        Ok(Response::new(pb::ResizeTerminalReply {}))
    }

    async fn kill_terminal(
        &self,
        request: Request<pb::TerminalRequest>,
    ) -> Result<Response<pb::KillTerminalReply>, Status> {
        self.do_kill_terminal(&request.into_inner()).await?;
        Ok(Response::new(pb::KillTerminalReply {}))
    }

    async fn list_terminals(
        &self,
        _: Request<pb::ListTerminalsRequest>,
    ) -> Result<Response<pb::ListTerminalsReply>, Status> {
        Ok(Response::new(self.do_list_terminals()))
    }

    async fn create_upload(
        &self,
        request: Request<pb::CreateUploadRequest>,
    ) -> Result<Response<pb::Upload>, Status> {
        self.do_create_upload(request.into_inner()).await.map(Response::new)
    }

    async fn get_upload(&self, request: Request<pb::UploadRequest>) -> Result<Response<pb::Upload>, Status> {
        self.do_get_upload(&request.into_inner()).map(Response::new)
    }

    async fn write_upload_part(
        &self,
        request: Request<Streaming<pb::WriteUploadPartRequest>>,
    ) -> Result<Response<pb::Upload>, Status> {
        self.do_write_upload_part(request.into_inner()).await.map(Response::new)
    }

    async fn complete_upload(
        &self,
        request: Request<pb::CompleteUploadRequest>,
    ) -> Result<Response<pb::CompleteUploadReply>, Status> {
        self.do_complete_upload(request.into_inner()).await.map(Response::new)
    }

    async fn abort_upload(
        &self,
        request: Request<pb::UploadRequest>,
    ) -> Result<Response<pb::Upload>, Status> {
        self.do_abort_upload(&request.into_inner()).await.map(Response::new)
    }
}

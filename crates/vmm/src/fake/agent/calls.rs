//! The protocol's calls.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nullspace_guest_proto as proto;
use nullspace_guest_proto::agent_server::Agent;
use nullspace_guest_proto::run_event::Event;
use nullspace_guest_proto::write_file_request::Part;
use nullspace_guest_proto::write_files_reply::Outcome;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::files::resolve;
use super::processes::{Follower, Work, work};
use super::{FakeAgent, Fault, Standing, search};

type Answers<T> = ReceiverStream<Result<T, Status>>;
type Answer<T> = Result<Response<T>, Status>;

/// A machine in memory has no lanes.
fn no_lanes() -> Status {
    Status::unimplemented("a fake machine has no lane for bytes")
}

/// A stream of what is there already.
fn all<T: Send + 'static>(items: Vec<T>) -> Answers<T> {
    let (send, receive) = mpsc::channel(1);
    tokio::spawn(async move {
        for item in items {
            if send.send(Ok(item)).await.is_err() {
                break;
            }
        }
    });
    ReceiverStream::new(receive)
}

/// The next message of a call. One that was given up looks to the library like one that has ended, until it
/// has had a turn to notice: then the call is dropped here.
async fn next<M>(messages: &mut Streaming<M>) -> Result<Option<M>, Status> {
    let message = messages.message().await?;
    if message.is_none() {
        tokio::task::yield_now().await;
    }
    Ok(message)
}

pub fn pieces(data: &Bytes) -> Vec<Bytes> {
    let starts = (0..data.len()).step_by(proto::CHUNK_BYTES);
    starts.map(|start| data.slice(start..data.len().min(start + proto::CHUNK_BYTES))).collect()
}

impl FakeAgent {
    fn path(&self, path: &str, user: &str) -> Result<String, Status> {
        let state = self.state();
        let base = match (state.own.as_ref().is_some_and(|own| !own.cwd.is_empty()), user) {
            (true, _) | (false, "") => state.cwd().to_owned(),
            (false, user) => format!("/home/{user}"),
        };
        resolve(path, &base)
    }

    /// A follower of a command, and what it hears.
    fn follower(&self) -> (Follower, Answers<proto::RunEvent>) {
        let (send, receive) = mpsc::channel(16);
        let left = self.state().breaks.pop_front();
        (Follower::new(send, left, self.links.clone()), ReceiverStream::new(receive))
    }
}

#[tonic::async_trait]
impl Agent for FakeAgent {
    async fn hello(&self, _: Request<proto::HelloRequest>) -> Answer<proto::HelloReply> {
        let state = self.state();
        let sandbox_id = state.own.as_ref().map(|own| own.sandbox_id.clone()).unwrap_or_default();
        Ok(Response::new(proto::HelloReply {
            generation: proto::GENERATION,
            agent_version: "fake".into(),
            sandbox_id,
            kernel_release: "fake".into(),
            agent_start_us: 1,
        }))
    }

    async fn adopt(&self, request: Request<proto::AdoptRequest>) -> Answer<proto::AdoptReply> {
        let by_own = request.extensions().get() == Some(&Standing::Own);
        let request = request.into_inner();
        let fault = self.state().fault;
        if fault == Some(Fault::HangOnAdopt) {
            std::future::pending::<()>().await;
        }
        self.state().adopt(request, by_own)?;
        Ok(Response::new(proto::AdoptReply {
            clock: true,
            entropy: fault != Some(Fault::RefuseEntropy),
            hostname: true,
            machine_id: true,
            boot_id: true,
            environment: true,
            token: true,
            disk: true,
            ssh_host_key: true,
            authority: true,
            duration_us: 1,
            hooks: Vec::new(),
        }))
    }

    async fn sync(&self, _: Request<proto::SyncRequest>) -> Answer<proto::SyncReply> {
        Ok(Response::new(proto::SyncReply {}))
    }

    async fn freeze(&self, request: Request<proto::FreezeRequest>) -> Answer<proto::FreezeReply> {
        let mut state = self.state();
        state.frozen.send_replace(Some(request.into_inner().freeze_id));
        state.freezes += 1;
        Ok(Response::new(proto::FreezeReply { frozen: true, reason: String::new() }))
    }

    async fn thaw(&self, request: Request<proto::ThawRequest>) -> Answer<proto::ThawReply> {
        let id = request.into_inner().freeze_id;
        self.state()
            .frozen
            .send_if_modified(|frozen| frozen.take_if(|frozen| id.is_empty() || *frozen == id).is_some());
        Ok(Response::new(proto::ThawReply {}))
    }

    async fn shutdown(&self, _: Request<proto::ShutdownRequest>) -> Answer<proto::ShutdownReply> {
        Ok(Response::new(proto::ShutdownReply {}))
    }

    async fn metrics(&self, _: Request<proto::MetricsRequest>) -> Answer<proto::MetricsReply> {
        Ok(Response::new(proto::MetricsReply {
            cpu_percent: 1.0,
            cpu_count: 1,
            mem_used_bytes: 32 << 20,
            mem_total_bytes: 256 << 20,
            disk_used_bytes: 1 << 30,
            disk_total_bytes: 2 << 30,
            network_rx_bytes: 0,
            network_tx_bytes: 0,
        }))
    }

    type RunStream = Answers<proto::RunEvent>;
    async fn run(&self, request: Request<proto::RunRequest>) -> Answer<Self::RunStream> {
        let request = request.into_inner();
        let mut words = vec![request.command.clone()];
        if request.shell {
            let first = request.command.split(['&', '|', ';']).next().unwrap_or_default();
            words = first.split_ascii_whitespace().map(str::to_owned).collect();
        }
        words.extend(request.args);
        let (started, fresh) = {
            let mut state = self.state();
            let cwd = if request.cwd.is_empty() { state.cwd().to_owned() } else { request.cwd.clone() };
            match state.processes.named(&request.run_id) {
                Some(process) => (Some(process), false),
                None => {
                    let work = work(&words, &state.environment(&request.envs), &cwd);
                    let started = work.map(|work| {
                        // Without a pipe standard input is empty, and its copy as short.
                        let empty = matches!(work, Work::Copy) && !request.background && !request.stdin;
                        let work = if empty { Work::Done(Vec::new(), Vec::new(), 0) } else { work };
                        let timeout =
                            (request.timeout_ms > 0).then(|| Duration::from_millis(request.timeout_ms));
                        state.processes.start(words.join(" "), work, timeout, &request.run_id)
                    });
                    (started, true)
                }
            }
        };
        let Some(process) = started else {
            // A shell says so itself, with a status of its own.
            let message = format!("command not found: {}", words.first().cloned().unwrap_or_default());
            let failed = proto::Failed { reason: proto::failed::Reason::CommandNotFound.into(), message };
            return Ok(Response::new(all(vec![proto::RunEvent { event: Some(Event::Failed(failed)) }])));
        };
        if fresh {
            let process = process.clone();
            tokio::spawn(async move { process.work().await });
        }
        let (mut follower, events) = self.follower();
        tokio::spawn(async move {
            let started = Event::Started(proto::Started { pid: process.pid });
            if follower.tell(started).await && !request.background {
                process.tell(&mut follower, (0, 0), request.inline_limit).await;
            }
        });
        Ok(Response::new(events))
    }

    type AttachStream = Answers<proto::RunEvent>;
    async fn attach(&self, request: Request<proto::AttachRequest>) -> Answer<Self::AttachStream> {
        let request = request.into_inner();
        let process = self.state().processes.find(request.pid)?;
        let (mut follower, events) = self.follower();
        tokio::spawn(async move {
            let started = Event::Started(proto::Started { pid: request.pid });
            if follower.tell(started).await {
                process.tell(&mut follower, (request.stdout_offset, request.stderr_offset), 0).await;
            }
        });
        Ok(Response::new(events))
    }

    type ReadLogStream = Answers<proto::LogChunk>;
    async fn read_log(&self, request: Request<proto::ReadLogRequest>) -> Answer<Self::ReadLogStream> {
        let request = request.into_inner();
        let process = self.state().processes.find(request.pid)?;
        let said = process.said.borrow();
        let data = match request.stream() {
            proto::Stream::Stdout => said.stdout.clone(),
            proto::Stream::Stderr => said.stderr.clone(),
            _ => [&*said.stdout, &*said.stderr].concat(),
        };
        let data = Bytes::copy_from_slice(data.get(request.offset as usize..).unwrap_or_default());
        Ok(Response::new(all(pieces(&data).into_iter().map(|data| proto::LogChunk { data }).collect())))
    }

    async fn list_processes(
        &self,
        _: Request<proto::ListProcessesRequest>,
    ) -> Answer<proto::ListProcessesReply> {
        let state = self.state();
        let processes = state.processes.all().map(|process| {
            let exit = process.said.borrow().exit.map(|(code, _)| code);
            proto::Process {
                pid: process.pid,
                command: process.command.clone(),
                running: exit.is_none(),
                has_exit_code: exit.is_some(),
                exit_code: exit.unwrap_or(0),
                from_api: true,
            }
        });
        Ok(Response::new(proto::ListProcessesReply { processes: processes.collect() }))
    }

    async fn kill_process(
        &self,
        request: Request<proto::KillProcessRequest>,
    ) -> Answer<proto::KillProcessReply> {
        self.state().processes.find(request.into_inner().pid)?.kill();
        Ok(Response::new(proto::KillProcessReply {}))
    }

    async fn write_stdin(
        &self,
        request: Request<proto::WriteStdinRequest>,
    ) -> Answer<proto::WriteStdinReply> {
        let request = request.into_inner();
        let process = self.state().processes.find(request.pid)?;
        if process.said.borrow().exit.is_some() {
            return Err(Status::failed_precondition("the process has ended"));
        }
        process.said.send_modify(|said| said.stdout.extend_from_slice(&request.data));
        if request.close {
            process.end(0, false);
        }
        Ok(Response::new(proto::WriteStdinReply {}))
    }

    type RunPipedStream = Answers<proto::RunEvent>;
    async fn run_piped(&self, _: Request<proto::RunPipedRequest>) -> Answer<Self::RunPipedStream> {
        Err(no_lanes())
    }

    async fn connect(&self, _: Request<proto::ConnectRequest>) -> Answer<proto::ConnectReply> {
        Err(no_lanes())
    }

    type ListenStream = Answers<proto::ListenEvent>;
    async fn listen(&self, _: Request<proto::ListenRequest>) -> Answer<Self::ListenStream> {
        Err(no_lanes())
    }

    async fn take_connection(&self, _: Request<proto::TakeConnectionRequest>) -> Answer<proto::ConnectReply> {
        Err(no_lanes())
    }

    async fn set_authority(
        &self,
        _: Request<proto::SetAuthorityRequest>,
    ) -> Answer<proto::SetAuthorityReply> {
        Ok(Response::new(proto::SetAuthorityReply {}))
    }

    type ReadFileStream = Answers<proto::FileChunk>;
    async fn read_file(&self, request: Request<proto::ReadFileRequest>) -> Answer<Self::ReadFileStream> {
        let request = request.into_inner();
        let path = self.path(&request.path, &request.user)?;
        let (info, data) = {
            let state = self.state();
            (state.files.info(&path)?, state.files.read(&path)?)
        };
        let size = data.len() as u64;
        let (from, length) = match request.suffix {
            0 => (request.offset.min(size), if request.length == 0 { u64::MAX } else { request.length }),
            suffix => (size.saturating_sub(suffix), suffix),
        };
        let data = data.slice(from as usize..size.min(from.saturating_add(length)) as usize);
        let chunk = |data| proto::FileChunk { data, ..Default::default() };
        let mut chunks: Vec<_> = pieces(&data).into_iter().map(chunk).collect();
        if chunks.is_empty() {
            chunks.push(proto::FileChunk::default());
        }
        (chunks[0].size, chunks[0].modified_ns) = (size, info.modified_ns);
        Ok(Response::new(all(chunks)))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<proto::WriteFileRequest>>,
    ) -> Answer<proto::FileInfo> {
        let mut parts = request.into_inner();
        let start = match next(&mut parts).await?.and_then(|message| message.part) {
            Some(Part::Start(start)) => start,
            _ => return Err(Status::invalid_argument("a write begins with its path")),
        };
        let path = self.path(&start.path, &start.user)?;
        let mut data = BytesMut::new();
        while let Some(message) = next(&mut parts).await? {
            if let Some(Part::Data(piece)) = message.part {
                data.extend_from_slice(&piece);
            }
        }
        self.state().files.write(&path, &start.user, data.freeze()).map(Response::new)
    }

    type ListFilesStream = Answers<proto::FileInfo>;
    async fn list_files(&self, request: Request<proto::ListFilesRequest>) -> Answer<Self::ListFilesStream> {
        let request = request.into_inner();
        let path = self.path(&request.path, &request.user)?;
        let found = self.state().files.list(&path, request.depth)?;
        Ok(Response::new(all(found)))
    }

    async fn stat_file(&self, request: Request<proto::PathRequest>) -> Answer<proto::FileInfo> {
        let request = request.into_inner();
        let path = self.path(&request.path, &request.user)?;
        self.state().files.info(&path).map(Response::new)
    }

    async fn file_exists(&self, request: Request<proto::PathRequest>) -> Answer<proto::FileExistsReply> {
        let request = request.into_inner();
        let path = self.path(&request.path, &request.user)?;
        let exists = self.state().files.exists(&path);
        Ok(Response::new(proto::FileExistsReply { exists }))
    }

    async fn remove_file(&self, request: Request<proto::PathRequest>) -> Answer<proto::RemoveFileReply> {
        let request = request.into_inner();
        let path = self.path(&request.path, &request.user)?;
        self.state().files.remove(&path)?;
        Ok(Response::new(proto::RemoveFileReply {}))
    }

    async fn make_directory(
        &self,
        request: Request<proto::PathRequest>,
    ) -> Answer<proto::MakeDirectoryReply> {
        let request = request.into_inner();
        let path = self.path(&request.path, &request.user)?;
        self.state().files.make_directories(&path, &request.user)?;
        Ok(Response::new(proto::MakeDirectoryReply {}))
    }

    async fn rename_file(&self, request: Request<proto::RenameFileRequest>) -> Answer<proto::FileInfo> {
        let request = request.into_inner();
        let (old, new) =
            (self.path(&request.old_path, &request.user)?, self.path(&request.new_path, &request.user)?);
        self.state().files.rename(&old, &new).map(Response::new)
    }

    async fn set_permissions(
        &self,
        request: Request<proto::SetPermissionsRequest>,
    ) -> Answer<proto::SetPermissionsReply> {
        let request = request.into_inner();
        let path = self.path(&request.path, &request.user)?;
        self.state().files.set_mode(&path, request.mode)?;
        Ok(Response::new(proto::SetPermissionsReply {}))
    }

    type WriteFilesStream = Answers<proto::WriteFilesReply>;
    async fn write_files(
        &self,
        request: Request<Streaming<proto::WriteFileRequest>>,
    ) -> Answer<Self::WriteFilesStream> {
        let mut parts = request.into_inner();
        let mut files: Vec<(proto::WriteFileStart, BytesMut)> = Vec::new();
        while let Some(message) = next(&mut parts).await? {
            match (message.part, files.last_mut()) {
                (Some(Part::Start(start)), _) => files.push((start, BytesMut::new())),
                (Some(Part::Data(piece)), Some((_, data))) => data.extend_from_slice(&piece),
                (Some(Part::Data(_)), None) => {
                    return Err(Status::invalid_argument("a write begins with its path"));
                }
                (Some(Part::BulkBytes(_)) | None, _) => {}
            }
        }
        let write = |(start, data): (proto::WriteFileStart, BytesMut)| {
            let path = self.path(&start.path, &start.user)?;
            self.state().files.write(&path, &start.user, data.freeze())
        };
        let outcome = |written: Result<proto::FileInfo, Status>| proto::WriteFilesReply {
            outcome: Some(match written {
                Ok(info) => Outcome::Written(info),
                Err(status) => Outcome::Failed(proto::FileFailure {
                    code: status.code().into(),
                    message: status.message().into(),
                }),
            }),
        };
        Ok(Response::new(all(files.into_iter().map(write).map(outcome).collect())))
    }

    type FindInFilesStream = Answers<proto::FindInFilesReply>;
    async fn find_in_files(
        &self,
        request: Request<proto::FindInFilesRequest>,
    ) -> Answer<Self::FindInFilesStream> {
        let request = request.into_inner();
        let path = self.path(&request.path, &request.user)?;
        let found = search::find(&self.state().files, &path, &request.pattern, request.limit)?;
        Ok(Response::new(all(vec![found])))
    }

    type SearchFilesStream = Answers<proto::SearchFilesReply>;
    async fn search_files(
        &self,
        request: Request<proto::SearchFilesRequest>,
    ) -> Answer<Self::SearchFilesStream> {
        let request = request.into_inner();
        let path = self.path(&request.path, &request.user)?;
        let found = search::search(&self.state().files, &path, &request.pattern, request.limit)?;
        Ok(Response::new(all(vec![found])))
    }

    async fn replace_in_files(
        &self,
        request: Request<proto::ReplaceInFilesRequest>,
    ) -> Answer<proto::ReplaceInFilesReply> {
        let request = request.into_inner();
        let paths = request.paths.iter().map(|path| self.path(path, &request.user));
        let paths = paths.collect::<Result<Vec<_>, _>>()?;
        search::replace(&mut self.state().files, &paths, &request).map(Response::new)
    }

    type WatchFilesStream = Answers<proto::WatchEvent>;
    async fn watch_files(
        &self,
        request: Request<proto::WatchFilesRequest>,
    ) -> Answer<Self::WatchFilesStream> {
        let request = request.into_inner();
        let path = self.path(&request.path, &request.user)?;
        let changes = {
            let state = self.state();
            state.files.info(&path)?;
            state.files.watch()
        };
        let (send, receive) = mpsc::channel(16);
        tokio::spawn(search::watch(changes, (path, request.recursive), send));
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn start_terminal(&self, request: Request<proto::StartTerminalRequest>) -> Answer<proto::Terminal> {
        Ok(Response::new(self.state().terminals.start(request.into_inner())))
    }

    type AttachTerminalStream = Answers<proto::TerminalEvent>;
    async fn attach_terminal(
        &self,
        request: Request<proto::TerminalRequest>,
    ) -> Answer<Self::AttachTerminalStream> {
        let terminal = self.state().terminals.find(&request.into_inner().session_id)?;
        let (send, receive) = mpsc::channel(16);
        tokio::spawn(async move { terminal.tell(send).await });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn write_terminal(
        &self,
        request: Request<proto::WriteTerminalRequest>,
    ) -> Answer<proto::WriteTerminalReply> {
        let request = request.into_inner();
        self.state().terminals.find(&request.session_id)?.write(&request.data)?;
        Ok(Response::new(proto::WriteTerminalReply {}))
    }

    async fn resize_terminal(
        &self,
        request: Request<proto::ResizeTerminalRequest>,
    ) -> Answer<proto::ResizeTerminalReply> {
        let request = request.into_inner();
        self.state().terminals.find(&request.session_id)?.resize(request.cols, request.rows);
        Ok(Response::new(proto::ResizeTerminalReply {}))
    }

    async fn kill_terminal(
        &self,
        request: Request<proto::TerminalRequest>,
    ) -> Answer<proto::KillTerminalReply> {
        self.state().terminals.find(&request.into_inner().session_id)?.end(137);
        Ok(Response::new(proto::KillTerminalReply {}))
    }

    async fn list_terminals(
        &self,
        _: Request<proto::ListTerminalsRequest>,
    ) -> Answer<proto::ListTerminalsReply> {
        Ok(Response::new(proto::ListTerminalsReply { terminals: self.state().terminals.running() }))
    }

    async fn create_upload(&self, request: Request<proto::CreateUploadRequest>) -> Answer<proto::Upload> {
        let request = request.into_inner();
        let target = self.path(&request.target_path, &request.user)?;
        self.state().uploads.create(request, target).map(Response::new)
    }

    async fn get_upload(&self, request: Request<proto::UploadRequest>) -> Answer<proto::Upload> {
        self.state().uploads.get(&request.into_inner().upload_id).map(Response::new)
    }

    async fn write_upload_part(
        &self,
        request: Request<Streaming<proto::WriteUploadPartRequest>>,
    ) -> Answer<proto::Upload> {
        use proto::write_upload_part_request::Part;
        let mut parts = request.into_inner();
        let start = match next(&mut parts).await?.and_then(|message| message.part) {
            Some(Part::Start(start)) => start,
            _ => return Err(Status::invalid_argument("a part begins with its number")),
        };
        let mut data = BytesMut::new();
        while let Some(message) = next(&mut parts).await? {
            match message.part {
                Some(Part::Data(piece)) => data.extend_from_slice(&piece),
                Some(Part::End(_)) => {
                    let state = &mut *self.state();
                    return state.uploads.part(&start.upload_id, start.part, data).map(Response::new);
                }
                Some(Part::Start(_)) | None => {}
            }
        }
        Err(Status::cancelled("the part was broken off"))
    }

    async fn complete_upload(
        &self,
        request: Request<proto::CompleteUploadRequest>,
    ) -> Answer<proto::CompleteUploadReply> {
        let state = &mut *self.state();
        let completed = state.uploads.complete(&request.into_inner().upload_id, &mut state.files);
        completed.map(Response::new)
    }

    async fn abort_upload(&self, request: Request<proto::UploadRequest>) -> Answer<proto::Upload> {
        self.state().uploads.abort(&request.into_inner().upload_id).map(Response::new)
    }
}

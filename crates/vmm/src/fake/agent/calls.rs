//! The protocol's calls.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use nullspace_guest_proto as proto;
use nullspace_guest_proto::agent_server::Agent;
use nullspace_guest_proto::run_event::Event;
use nullspace_guest_proto::write_file_request::Part;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::files::resolve;
use super::processes::{Work, work};
use super::{FakeAgent, Fault};

type Answers<T> = ReceiverStream<Result<T, Status>>;
type Answer<T> = Result<Response<T>, Status>;

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

fn pieces(data: &Bytes) -> Vec<Bytes> {
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
        let request = request.into_inner();
        let fault = self.state().fault;
        if fault == Some(Fault::HangOnAdopt) {
            std::future::pending::<()>().await;
        }
        let mut state = self.state();
        match &state.own {
            Some(own) if own.token != request.token || own.sandbox_id != request.sandbox_id => {
                return Err(Status::failed_precondition("already adopted"));
            }
            _ => state.own = Some(request),
        }
        state.processes.forget();
        Ok(Response::new(proto::AdoptReply {
            clock: true,
            entropy: fault != Some(Fault::RefuseEntropy),
            hostname: true,
            machine_id: true,
            boot_id: true,
            environment: true,
            token: true,
            disk: true,
            duration_us: 1,
        }))
    }

    async fn sync(&self, _: Request<proto::SyncRequest>) -> Answer<proto::SyncReply> {
        Ok(Response::new(proto::SyncReply {}))
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
        let begun = Instant::now();
        let request = request.into_inner();
        let mut words = vec![request.command.clone()];
        if request.shell {
            let first = request.command.split(['&', '|', ';']).next().unwrap_or_default();
            words = first.split_ascii_whitespace().map(str::to_owned).collect();
        }
        words.extend(request.args);
        let (send, receive) = mpsc::channel(16);
        let event = |event| Ok(proto::RunEvent { event: Some(event) });
        let started = {
            let mut state = self.state();
            let cwd = if request.cwd.is_empty() { state.cwd().to_owned() } else { request.cwd.clone() };
            work(&words, &state.environment(&request.envs), &cwd).map(|work| {
                // In the foreground standard input is empty, and its copy as short.
                let empty = matches!(work, Work::Copy) && !request.background;
                let work = if empty { Work::Done(Vec::new(), Vec::new(), 0) } else { work };
                state.processes.start(words.join(" "), work)
            })
        };
        let Some(process) = started else {
            // A shell says so itself, with a status of its own.
            let message = format!("command not found: {}", words.first().cloned().unwrap_or_default());
            let failed = proto::Failed { reason: proto::failed::Reason::CommandNotFound.into(), message };
            return Ok(Response::new(all(vec![proto::RunEvent { event: Some(Event::Failed(failed)) }])));
        };
        tokio::spawn(async move {
            let told = send.send(event(Event::Started(proto::Started { pid: process.pid }))).await.is_ok();
            if request.background {
                drop(send);
                process.work(request.timeout_ms).await;
                return;
            }
            let timed_out = process.work(request.timeout_ms).await;
            if told {
                process.tell(&send, (0, 0), request.inline_limit, (timed_out, begun)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    type AttachStream = Answers<proto::RunEvent>;
    async fn attach(&self, request: Request<proto::AttachRequest>) -> Answer<Self::AttachStream> {
        let begun = Instant::now();
        let proto::AttachRequest { pid, stdout_offset, stderr_offset } = request.into_inner();
        let process = self.state().processes.find(pid)?;
        let (send, receive) = mpsc::channel(16);
        tokio::spawn(async move {
            let started = proto::RunEvent { event: Some(Event::Started(proto::Started { pid })) };
            if send.send(Ok(started)).await.is_ok() {
                process.tell(&send, (stdout_offset, stderr_offset), 0, (false, begun)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    type ReadLogStream = Answers<proto::LogChunk>;
    async fn read_log(&self, request: Request<proto::ReadLogRequest>) -> Answer<Self::ReadLogStream> {
        let request = request.into_inner();
        let process = self.state().processes.find(request.pid)?;
        let log = |data: &std::sync::Mutex<Vec<u8>>| data.lock().expect("no holder panics").clone();
        let data = match request.stream() {
            proto::Stream::Stdout => log(&process.stdout),
            proto::Stream::Stderr => log(&process.stderr),
            _ => [log(&process.stdout), log(&process.stderr)].concat(),
        };
        let data = Bytes::from(data.get(request.offset as usize..).unwrap_or_default().to_vec());
        Ok(Response::new(all(pieces(&data).into_iter().map(|data| proto::LogChunk { data }).collect())))
    }

    async fn list_processes(
        &self,
        _: Request<proto::ListProcessesRequest>,
    ) -> Answer<proto::ListProcessesReply> {
        let state = self.state();
        let processes = state.processes.all().map(|process| {
            let exit = *process.exit.borrow();
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
        if process.exit.borrow().is_some() {
            return Err(Status::failed_precondition("the process has ended"));
        }
        process.stdout.lock().expect("no holder panics").extend_from_slice(&request.data);
        if request.close {
            process.exit.send_if_modified(|exit| exit.is_none() && exit.replace(0).is_none());
        }
        Ok(Response::new(proto::WriteStdinReply {}))
    }

    type ReadFileStream = Answers<proto::FileChunk>;
    async fn read_file(&self, request: Request<proto::ReadFileRequest>) -> Answer<Self::ReadFileStream> {
        let request = request.into_inner();
        let path = self.path(&request.path, &request.user)?;
        let data = self.state().files.read(&path)?;
        let size = data.len() as u64;
        let mut chunks: Vec<_> =
            pieces(&data).into_iter().map(|data| proto::FileChunk { data, size: 0 }).collect();
        match chunks.first_mut() {
            Some(first) => first.size = size,
            None => chunks.push(proto::FileChunk::default()),
        }
        Ok(Response::new(all(chunks)))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<proto::WriteFileRequest>>,
    ) -> Answer<proto::FileInfo> {
        let mut parts = request.into_inner();
        let start = match parts.message().await?.and_then(|message| message.part) {
            Some(Part::Start(start)) => start,
            _ => return Err(Status::invalid_argument("a write begins with its path")),
        };
        let path = self.path(&start.path, &start.user)?;
        let mut data = BytesMut::new();
        while let Some(message) = parts.message().await? {
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
}

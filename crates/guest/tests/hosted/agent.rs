//! An agent to test, and short forms of its calls.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nullspace_guest_proto as pb;
use pb::agent_client::AgentClient;
use pb::run_event::Event;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

pub const CHECKPOINT_TOKEN: &str = "checkpoint-token-checkpoint-token";
pub const TOKEN: &str = "own-token-own-token-own-token-own";

pub type Client = AgentClient<InterceptedService<Channel, Bearer>>;

#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// A running agent; it ends with this.
pub struct Agent {
    child: Child,
    pub address: SocketAddr,
    pub client: Client,
    /// Where its bulk lane begins.
    pub bulk: SocketAddr,
    /// Where its hooks are looked for; made by whoever has some.
    pub hooks: PathBuf,
    /// The machine's directory, which does not exist until it is used.
    pub cwd: PathBuf,
    _directory: tempfile::TempDir,
}

impl Agent {
    /// Not adopted yet.
    pub async fn bare(logs: Option<PathBuf>) -> Self {
        Self::bare_in(logs, None).await
    }

    async fn bare_in(logs: Option<PathBuf>, groups: Option<&Path>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let logs = logs.unwrap_or_else(|| directory.path().join("logs"));
        let hooks = logs.join("after-restore.d");
        let mut child = Command::new(env!("CARGO_BIN_EXE_nullspace-guest"))
            .args(["--hosted", "127.0.0.1:0", CHECKPOINT_TOKEN])
            .arg(logs)
            .args(groups)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).await.unwrap();
        let (address, bulk) = line.trim().split_once(' ').unwrap();
        let (address, bulk) = (address.parse().unwrap(), bulk.parse().unwrap());
        let client = connect(address, Some(CHECKPOINT_TOKEN)).await;
        // Not in /tmp's temporary directory itself, so that other users may go there.
        let cwd = directory.path().join("machine/cwd");
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        Self { child, address, bulk, client, hooks, cwd, _directory: directory }
    }

    /// Adopted, with a directory of its own.
    pub async fn start() -> Self {
        Self::with_logs(None).await
    }

    pub async fn with_logs(logs: Option<PathBuf>) -> Self {
        Self::bare(logs).await.adopted().await
    }

    /// Adopted, and what it starts is in control groups below this directory.
    pub async fn in_groups(groups: &Path) -> Self {
        Self::bare_in(None, Some(groups)).await.adopted().await
    }

    async fn adopted(mut self) -> Self {
        let request = self.adopt_request();
        self.client.adopt(request).await.unwrap();
        self.client = connect(self.address, Some(TOKEN)).await;
        self
    }

    pub fn adopt_request(&self) -> pb::AdoptRequest {
        pb::AdoptRequest {
            sandbox_id: "sb_1".into(),
            token: TOKEN.into(),
            hostname: "sb-1".into(),
            entropy: vec![1; 64].into(),
            machine_id: "0".repeat(32),
            boot_id: "00000000-0000-0000-0000-000000000000".into(),
            ssh_host_key: "private".into(),
            ssh_host_key_public: "public".into(),
            envs: [("MACHINE".to_string(), "of the machine".to_string())].into(),
            cwd: self.cwd.to_str().unwrap().into(),
            ..Default::default()
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Runs to the end.
    pub async fn run(&mut self, request: pb::RunRequest) -> Outcome {
        let events = self.client.run(request).await.unwrap().into_inner();
        Outcome::collect(events).await
    }

    pub async fn shell(&mut self, line: &str) -> Outcome {
        self.run(shell(line)).await
    }

    pub async fn log(&mut self, pid: u32, stream: pb::Stream, offset: u64) -> Vec<u8> {
        let request = pb::ReadLogRequest { pid, stream: stream.into(), offset };
        let mut chunks = self.client.read_log(request).await.unwrap().into_inner();
        let mut all = Vec::new();
        while let Some(chunk) = chunks.message().await.unwrap() {
            assert!(chunk.data.len() <= pb::CHUNK_BYTES);
            all.extend_from_slice(&chunk.data);
        }
        all
    }

    /// Starts a background process.
    pub async fn start_process(&mut self, line: &str) -> u32 {
        let request = pb::RunRequest { background: true, ..shell(line) };
        let mut events = self.client.run(request).await.unwrap().into_inner();
        let Some(Event::Started(started)) = events.message().await.unwrap().unwrap().event else {
            panic!("not started");
        };
        assert!(events.message().await.unwrap().is_none(), "the stream ends after Started");
        started.pid
    }

    /// Follows a process to its end.
    pub async fn attach(&mut self, pid: u32, stdout_offset: u64, stderr_offset: u64) -> Outcome {
        let request = pb::AttachRequest { pid, stdout_offset, stderr_offset, ..Default::default() };
        Outcome::collect(self.client.attach(request).await.unwrap().into_inner()).await
    }
}

pub async fn connect(address: SocketAddr, token: Option<&str>) -> Client {
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let bearer = Bearer(token.map(|token| format!("Bearer {token}").parse().unwrap()));
    AgentClient::with_interceptor(channel, bearer)
}

pub fn shell(line: &str) -> pb::RunRequest {
    pb::RunRequest { command: line.into(), shell: true, ..Default::default() }
}

/// What the events of a process said.
#[derive(Debug, Default)]
pub struct Outcome {
    pub pid: Option<u32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub interleaved: Vec<u8>,
    pub cut: bool,
    pub exited: Option<pb::Exited>,
    pub failed: Option<pb::Failed>,
}

impl Outcome {
    pub async fn collect(events: tonic::Streaming<pb::RunEvent>) -> Self {
        Self::default().follow(events).await
    }

    /// Takes what is still to come.
    pub async fn follow(self, mut events: tonic::Streaming<pb::RunEvent>) -> Self {
        let mut outcome = self;
        while let Some(event) = events.message().await.unwrap() {
            assert!(outcome.exited.is_none() && outcome.failed.is_none(), "nothing follows the end");
            match event.event.unwrap() {
                Event::Started(started) => {
                    assert!(outcome.pid.replace(started.pid).is_none());
                }
                Event::Output(output) => {
                    assert!(outcome.pid.is_some() && !outcome.cut && !output.data.is_empty());
                    assert!(output.data.len() <= pb::CHUNK_BYTES);
                    match output.stream() {
                        pb::Stream::Stdout => outcome.stdout.extend_from_slice(&output.data),
                        pb::Stream::Stderr => outcome.stderr.extend_from_slice(&output.data),
                        other => panic!("{other:?}"),
                    }
                    outcome.interleaved.extend_from_slice(&output.data);
                }
                Event::OutputCut(_) => assert!(!std::mem::replace(&mut outcome.cut, true)),
                Event::Exited(exited) => outcome.exited = Some(exited),
                Event::Failed(failed) => {
                    assert!(outcome.pid.is_none());
                    outcome.failed = Some(failed);
                }
            }
        }
        outcome
    }

    pub fn code(&self) -> i32 {
        self.exited.unwrap_or_else(|| panic!("did not exit: {self:?}")).exit_code
    }

    pub fn reason(&self) -> pb::failed::Reason {
        self.failed.as_ref().unwrap_or_else(|| panic!("did not fail: {self:?}")).reason()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

//! What control asks of a node, and what a node reports back. Types and one trait; no behaviour.
//!
//! Control calls [`Node`]; the node never calls control: news goes up as [`Report`]s, each with the
//! incarnation and generation it speaks of, so that a late one changes nothing.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use jiff::Timestamp;
use nullspace_types::file::{
    BatchPart, FileChange, FileInfo, FileMatch, FileRange, FileReplace, FileReplaced, Found,
};
use nullspace_types::id::{IncarnationId, SandboxId, SessionId, SnapshotId, UploadId};
use nullspace_types::network::{Denial, EgressPolicy};
use nullspace_types::process::{ProcessEvent, ProcessInfo};
use nullspace_types::sandbox::{Envs, SandboxMetrics};
use nullspace_types::snapshot::DiffEntry;
use nullspace_types::terminal::{TerminalEvent, TerminalInfo};
use nullspace_types::upload::{UploadConflict, UploadKind, UploadStatus};
use nullspace_types::{Error, Result};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes that come in pieces.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// The size of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shape {
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
}

/// What a machine begins from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The template's checkpoint of the machine's shape.
    #[default]
    Template,
    /// A checkpoint that this node has: of the same shape, or it does not fit.
    Checkpoint(SnapshotId),
}

/// A machine to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// For which sandbox.
    pub sandbox_id: SandboxId,
    /// Which life of it.
    pub incarnation: IncarnationId,
    /// The template's name.
    pub template: String,
    /// Processors and memory.
    pub shape: Shape,
    /// Root disk in MiB; the template's own size when absent or smaller.
    pub disk_mb: Option<u32>,
    /// Environment of every process.
    pub envs: Envs,
    /// Default working directory.
    pub cwd: Option<String>,
    /// What it may reach. In force before its first instruction.
    pub egress: EgressPolicy,
    /// What it begins from.
    #[serde(default)]
    pub origin: Origin,
}

/// A machine as the node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// For which sandbox.
    pub sandbox_id: SandboxId,
    /// Which life of it.
    pub incarnation: IncarnationId,
    /// Grows with every change of state.
    pub generation: u64,
    /// Root disk in MiB.
    pub disk_mb: u32,
    /// When it began to run.
    pub started_at: Timestamp,
}

/// What becomes of a checkpoint and of the machine that is captured in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointMode {
    /// The machine goes on; the checkpoint is held in memory, for children that are made right away, until
    /// it is deleted or the node stops.
    Transient,
    /// The machine goes on; the checkpoint is kept on the disk.
    Keep,
    /// The machine is ended; the checkpoint is kept on the disk.
    Hibernate,
}

/// A machine frozen at one instant: memory, devices and disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its ID.
    pub id: SnapshotId,
    /// The sandbox whose machine it was.
    pub sandbox_id: SandboxId,
    /// Which life of it.
    pub incarnation: IncarnationId,
    /// Processors and memory.
    pub shape: Shape,
    /// Root disk in MiB.
    pub disk_mb: u32,
    /// Bytes that are its own: changed memory, devices, the disk layer that it froze.
    pub size_bytes: u64,
    /// When the machine stood still.
    pub created_at: Timestamp,
    /// Whether and where it is kept.
    pub mode: CheckpointMode,
}

/// A disk to look into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskOf {
    /// That of a running machine, all that was written so far.
    Machine(SandboxId),
    /// That of a checkpoint.
    Checkpoint(SnapshotId),
}

/// Which files differ between two disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskDiff {
    /// By path.
    pub items: Vec<DiffEntry>,
    /// Whether there is more than was asked for.
    pub truncated: bool,
}

/// Something on the node's disk that nobody needs any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Garbage {
    /// Its kind: `layer`, `checkpoint`, `template`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Bytes on the disk.
    pub bytes: u64,
    /// Why it is not needed.
    pub reason: String,
}

/// How full a node is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeUsage {
    /// Machines that run.
    pub machines: u64,
    /// Restored machines that wait for a create.
    pub spares: u64,
    /// Network slots that wait for a machine.
    pub ready_slots: u64,
    /// Checkpoints on the disk, templates not counted.
    pub checkpoints: u64,
    /// Frozen disk layers.
    pub layers: u64,
    /// Bytes free on the node's disk.
    pub disk_free_bytes: u64,
}

/// News from a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The machine is gone without having been asked to, and what it held is freed.
    MachineLost {
        /// The machine as it was; its generation is that of this news.
        machine: Machine,
        /// Why, for people.
        reason: String,
    },
    /// What machines tried and may not do, since the last such report: equal denials are one.
    Denied(Vec<(SandboxId, Denial)>),
}

/// A two-way stream of bytes. Shutting the writing side down leaves the reading side open.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// See [`Duplex`].
pub type Stream = Box<dyn Duplex>;

/// Where a connection into a machine goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// A port of the machine's address on its link: what listens on all addresses.
    Port(u16),
    /// What a program inside would reach under this name or address, its loopback included.
    Inside {
        /// A name or an address.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket inside.
    Socket(String),
}

/// A port inside on which the node listens.
pub struct Listening {
    /// The port: the one asked for, or the one chosen where that was 0.
    pub port: u16,
    /// Connections as they come. The port is closed when this is dropped.
    pub connections: BoxStream<'static, Result<Incoming>>,
}

/// A connection that something inside made to such a port.
pub struct Incoming {
    /// From which address.
    pub host: String,
    /// From which port.
    pub port: u16,
    /// Its bytes.
    pub stream: Stream,
}

/// A program whose standard streams are the caller's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piped {
    /// A command. `timeout_ms` does not count.
    Command(Command),
    /// The agent's own file transfer server (SFTP version 3), as this user; root when absent.
    Sftp(Option<String>),
}

/// Such a program, running.
pub struct PipedProcess {
    /// Its process ID.
    pub pid: u32,
    /// Standard input and output; shutting it down is the end of the input.
    pub stdio: Stream,
    /// Standard error; only ever read.
    pub stderr: Stream,
    /// Its exit status, once. Dropping it before hangs the process group up.
    pub exit: BoxFuture<'static, Result<i32>>,
}

/// A template that the node can make machines from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTemplate {
    /// Its name.
    pub name: String,
    /// A line about it.
    pub description: String,
    /// Root disk in MiB.
    pub disk_mb: u32,
    /// When its image was made.
    pub created_at: Option<Timestamp>,
}

/// A command to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// Executable, or a line for the shell.
    pub command: String,
    /// Exact arguments.
    pub args: Vec<String>,
    /// Through `/bin/sh -c`.
    pub shell: bool,
    /// Working directory.
    pub cwd: Option<String>,
    /// Over the sandbox's environment.
    pub envs: Envs,
    /// User; root when absent.
    pub user: Option<String>,
    /// Milliseconds until the group is killed.
    pub timeout_ms: Option<u64>,
}

/// Which log of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Both in order of arrival.
    Interleaved,
}

/// How a foreground command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Its PID.
    pub pid: u32,
    /// Exit status.
    pub exit_code: i32,
    /// Whether its time ran out.
    pub timed_out: bool,
    /// Microseconds that the guest took.
    pub guest_us: u64,
    /// What it wrote.
    pub output: Captured,
}

/// The output of a finished command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Captured {
    /// All of it.
    Inline {
        /// Standard output.
        stdout: Vec<u8>,
        /// Standard error.
        stderr: Vec<u8>,
    },
    /// Too much to hold: read it with [`Node::process_log`].
    Log,
}

/// Events of one process. A reader that is slow holds the process back; one that is dropped does not.
pub type ProcessEvents = BoxStream<'static, Result<ProcessEvent>>;

/// A terminal session to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TerminalSpec {
    /// Its ID. The same again answers the same session.
    pub session_id: SessionId,
    /// Columns.
    pub cols: u32,
    /// Rows.
    pub rows: u32,
    /// Working directory.
    pub cwd: Option<String>,
    /// Over the sandbox's environment.
    pub envs: Envs,
    /// Whose; root's when absent.
    pub user: Option<String>,
    /// A line for the shell in place of an interactive one.
    pub command: Option<String>,
}

/// Events of one session, for one viewer.
pub type TerminalEvents = BoxStream<'static, Result<TerminalEvent>>;

/// A file that is read.
pub struct FileBody {
    /// Bytes of the whole file.
    pub size: u64,
    /// When it last changed.
    pub modified: Timestamp,
    /// The part that was asked for; empty if that lies behind the end.
    pub content: ByteStream,
}

/// An upload to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadSpec {
    /// Its ID, unless there is one with the same key.
    pub upload_id: UploadId,
    /// The caller's: two creates with the same one make one upload.
    pub key: Option<String>,
    /// What it is.
    pub kind: UploadKind,
    /// Where it shall be.
    pub target_path: String,
    /// Who shall own it.
    pub user: Option<String>,
    /// Bytes.
    pub content_length: u64,
    /// What happens if there is something at the target.
    pub conflict: UploadConflict,
    /// SHA-256 of the whole, if it is known.
    pub whole_sha256: Option<[u8; 32]>,
    /// Bytes of every part but the last.
    pub part_size: u64,
    /// Bytes of all unfinished uploads of the sandbox.
    pub staging_quota_bytes: u64,
    /// When it is dropped.
    pub expires_at: Timestamp,
    /// Given back as it is.
    pub label: String,
}

/// An upload as the machine has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadState {
    /// Its ID.
    pub upload_id: UploadId,
    /// What it is.
    pub kind: UploadKind,
    /// Where it will be, absolute.
    pub target_path: String,
    /// Who will own it.
    pub user: Option<String>,
    /// Bytes.
    pub content_length: u64,
    /// Bytes of the parts that are there.
    pub accepted_bytes: u64,
    /// Bytes kept free for it.
    pub reserved_bytes: u64,
    /// Bytes of every part but the last.
    pub part_size: u64,
    /// How many parts.
    pub part_count: u32,
    /// The lowest part that is missing.
    pub next_part: Option<u32>,
    /// How far it is.
    pub status: UploadStatus,
    /// What happens if there is something at the target.
    pub conflict: UploadConflict,
    /// SHA-256 of the whole, if it is known.
    pub whole_sha256: Option<[u8; 32]>,
    /// When it began.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it is dropped.
    pub expires_at: Timestamp,
    /// As the spec had it.
    pub label: String,
}

/// An upload that is in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The upload.
    pub upload: UploadState,
    /// Bytes of the files.
    pub bytes: u64,
    /// How many files.
    pub files: u64,
}

/// A process, and its exit status if it has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessState {
    /// As listed.
    pub info: ProcessInfo,
    /// Exit status.
    pub exit_code: Option<i32>,
}

/// A host of machines. Every call on a sandbox that the node does not hold answers
/// [`Code::SandboxNotFound`](nullspace_types::Code::SandboxNotFound).
#[async_trait]
pub trait Node: Send + Sync + 'static {
    /// Ok when a machine could be made now; otherwise why not.
    async fn ready(&self) -> Result<()>;

    /// What machines can be made from.
    async fn template_list(&self) -> Result<Vec<NodeTemplate>>;

    /// Makes a machine, or finds it made: the same spec again answers the same machine. If this
    /// fails, nothing of the machine is left.
    async fn machine_create(&self, spec: MachineSpec) -> Result<Machine>;

    /// Every machine that runs.
    async fn machine_list(&self) -> Result<Vec<Machine>>;

    /// Ends a machine and frees all it held. Idempotent; legal in every state, during a create too.
    async fn machine_destroy(&self, id: SandboxId) -> Result<()>;

    /// Captures a running machine: memory, devices and disk at one instant. It stands still for some
    /// milliseconds. If this fails the machine goes on and there is no such checkpoint. The same ID again
    /// answers the same checkpoint. With [`CheckpointMode::Hibernate`] the machine is ended once the
    /// checkpoint is on the disk, and nothing of it is left but that.
    async fn checkpoint_create(
        &self,
        of: SandboxId,
        id: SnapshotId,
        mode: CheckpointMode,
    ) -> Result<Checkpoint>;

    /// Every checkpoint that is kept or held.
    async fn checkpoint_list(&self) -> Result<Vec<Checkpoint>>;

    /// Removes a checkpoint. Machines that began from it do not need it. Idempotent.
    async fn checkpoint_delete(&self, id: SnapshotId) -> Result<()>;

    /// Which files differ between two disks, read without waking anything. At most `limit` files.
    async fn disk_diff(&self, of: DiskOf, against: DiskOf, limit: u32) -> Result<DiskDiff>;

    /// What lies on the disk and nobody needs; and removes it if `apply`.
    async fn garbage_collect(&self, apply: bool) -> Result<Vec<Garbage>>;

    /// How full it is.
    async fn usage(&self) -> Result<NodeUsage>;

    /// What the machine has used lately, newest last.
    async fn machine_metrics(&self, id: SandboxId) -> Result<Vec<SandboxMetrics>>;

    /// Runs a command to its end.
    async fn process_run(&self, id: SandboxId, command: Command) -> Result<Finished>;

    /// Starts a command and answers its PID.
    async fn process_start(&self, id: SandboxId, command: Command) -> Result<u32>;

    /// Starts a command and follows it; `timeout_ms` counts. The first event has been heard when this
    /// answers: a command that cannot be started is an error. Standard input is open.
    async fn process_stream(&self, id: SandboxId, command: Command) -> Result<ProcessEvents>;

    /// Follows a process from the given offsets of its two streams.
    async fn process_attach(
        &self,
        id: SandboxId,
        pid: u32,
        stdout_offset: u64,
        stderr_offset: u64,
    ) -> Result<ProcessEvents>;

    /// Every process in the machine.
    async fn process_list(&self, id: SandboxId) -> Result<Vec<ProcessState>>;

    /// Kills the process group.
    async fn process_kill(&self, id: SandboxId, pid: u32) -> Result<()>;

    /// Writes to standard input, and closes it where asked to.
    async fn process_stdin(&self, id: SandboxId, pid: u32, data: Bytes, close: bool) -> Result<()>;

    /// All that was recorded of a process's output, from the start, as far as it goes now.
    async fn process_log(&self, id: SandboxId, pid: u32, stream: LogStream) -> Result<ByteStream>;

    /// Starts a program whose standard streams are not recorded but passed through, in both directions and
    /// without bound.
    async fn process_pipe(&self, id: SandboxId, program: Piped) -> Result<PipedProcess>;

    /// Sends a signal to the process group.
    async fn process_signal(&self, id: SandboxId, pid: u32, signal: i32) -> Result<()>;

    /// Connects to something in the machine.
    /// [`Code::PreviewServiceNotReady`](nullspace_types::Code::PreviewServiceNotReady) if nothing listens
    /// there, [`Code::EdgeRuntimeHostUnreachable`](nullspace_types::Code::EdgeRuntimeHostUnreachable) if the
    /// machine does not answer within `patience`.
    async fn connect(&self, id: SandboxId, to: Door, patience: Duration) -> Result<Stream>;

    /// Listens on a port inside, on the address `host` (all addresses when empty).
    async fn listen(&self, id: SandboxId, host: String, port: u16) -> Result<Listening>;

    /// Changes what the machine may reach, all at once and before this answers; connections that are no longer
    /// allowed are cut. If this fails, the machine reaches nothing until it is called again.
    async fn egress_set(&self, id: SandboxId, policy: EgressPolicy) -> Result<()>;

    /// Starts a terminal session.
    async fn terminal_start(&self, id: SandboxId, spec: TerminalSpec) -> Result<TerminalInfo>;

    /// Watches a session.
    async fn terminal_attach(&self, id: SandboxId, session: SessionId) -> Result<TerminalEvents>;

    /// Types into a session.
    async fn terminal_write(&self, id: SandboxId, session: SessionId, data: Bytes) -> Result<()>;

    /// Sets a session's size.
    async fn terminal_resize(&self, id: SandboxId, session: SessionId, cols: u32, rows: u32) -> Result<()>;

    /// Ends a session.
    async fn terminal_kill(&self, id: SandboxId, session: SessionId) -> Result<()>;

    /// The sessions that run.
    async fn terminal_list(&self, id: SandboxId) -> Result<Vec<TerminalInfo>>;

    /// A file's content.
    async fn file_read(
        &self,
        id: SandboxId,
        path: String,
        user: Option<String>,
        range: FileRange,
    ) -> Result<FileBody>;

    /// Writes a file whole. A body that fails half-way changes nothing.
    async fn file_write(
        &self,
        id: SandboxId,
        path: String,
        user: Option<String>,
        body: ByteStream,
    ) -> Result<FileInfo>;

    /// What a directory holds, `depth` levels down (1: its children).
    async fn file_list(
        &self,
        id: SandboxId,
        path: String,
        user: Option<String>,
        depth: u32,
    ) -> Result<Vec<FileInfo>>;

    /// About one path, not following a last link.
    async fn file_info(&self, id: SandboxId, path: String, user: Option<String>) -> Result<FileInfo>;

    /// Whether there is anything at the path.
    async fn file_exists(&self, id: SandboxId, path: String, user: Option<String>) -> Result<bool>;

    /// Removes a file or a whole directory.
    async fn file_remove(&self, id: SandboxId, path: String, user: Option<String>) -> Result<()>;

    /// Makes a directory and those above it.
    async fn file_mkdir(&self, id: SandboxId, path: String, user: Option<String>) -> Result<()>;

    /// Moves a file or directory.
    async fn file_rename(
        &self,
        id: SandboxId,
        old_path: String,
        new_path: String,
        user: Option<String>,
    ) -> Result<FileInfo>;

    /// Sets permission bits.
    async fn file_permissions(
        &self,
        id: SandboxId,
        path: String,
        mode: u32,
        user: Option<String>,
    ) -> Result<()>;

    /// Writes many files, each whole or not at all; one outcome for each `Start`, in order. If `parts` ends
    /// in an error, so does this, and the file that was being written is not.
    async fn file_write_batch(
        &self,
        id: SandboxId,
        user: Option<String>,
        parts: BoxStream<'static, Result<BatchPart>>,
    ) -> Result<Vec<Result<FileInfo>>>;

    /// Lines that match a regular expression, or a text if the pattern is none. Ends when dropped.
    async fn file_find(
        &self,
        id: SandboxId,
        path: String,
        user: Option<String>,
        pattern: String,
        limit: u64,
    ) -> Result<Found<FileMatch>>;

    /// Paths whose last part matches a glob. Ends when dropped.
    async fn file_search(
        &self,
        id: SandboxId,
        path: String,
        user: Option<String>,
        pattern: String,
        limit: u64,
    ) -> Result<Found<String>>;

    /// Replaces a text in files.
    async fn file_replace(&self, id: SandboxId, request: FileReplace) -> Result<FileReplaced>;

    /// Watches a path. What happens after this has answered is seen. The stream ends only with an error.
    async fn file_watch(
        &self,
        id: SandboxId,
        path: String,
        user: Option<String>,
        recursive: bool,
    ) -> Result<BoxStream<'static, Result<FileChange>>>;

    /// Begins an upload, or finds the one with the same key.
    async fn upload_create(&self, id: SandboxId, spec: UploadSpec) -> Result<UploadState>;

    /// An upload.
    async fn upload_get(&self, id: SandboxId, upload: UploadId) -> Result<UploadState>;

    /// Takes a part. One whose checksum or length is wrong, or that breaks off, changes nothing.
    async fn upload_part(
        &self,
        id: SandboxId,
        upload: UploadId,
        part: u32,
        sha256: [u8; 32],
        body: ByteStream,
    ) -> Result<UploadState>;

    /// Puts an upload in place, in one step. Again answers the same.
    async fn upload_complete(
        &self,
        id: SandboxId,
        upload: UploadId,
        whole_sha256: Option<[u8; 32]>,
    ) -> Result<Published>;

    /// Gives an upload up and frees what it held.
    async fn upload_abort(&self, id: SandboxId, upload: UploadId) -> Result<UploadState>;

    /// Stops the node's own work. Machines keep running.
    async fn shutdown(&self);
}

/// The answer for a sandbox that a node does not hold.
pub fn no_such_machine(id: SandboxId) -> Error {
    Error::sandbox_not_found(id)
}

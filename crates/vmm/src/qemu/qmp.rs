//! QMP, QEMU's machine protocol: one JSON object a line over a Unix socket. Only the commands that
//! are used exist, each a type. QEMU may be under a guest's control: lines are bounded.
//!
//! Source: QEMU, "QEMU Machine Protocol Specification" (docs/interop/qmp-spec).

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

use crate::Error;

/// The longest line that is taken from QEMU.
const LINE_LIMIT: u64 = 1 << 20;

/// How long QEMU may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A command and the type of its answer.
pub trait Command: Serialize {
    /// As QEMU calls it.
    const NAME: &'static str;
    /// What it answers.
    type Answer: DeserializeOwned;
}

macro_rules! command {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* } = $text:literal -> $answer:ty) => {
        $(#[$doc])*
        #[derive(Debug, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct $name { $(pub $field: $type,)* }
        impl Command for $name {
            const NAME: &'static str = $text;
            type Answer = $answer;
        }
    };
}

/// An answer that holds nothing.
#[derive(Debug, Deserialize)]
pub struct Nothing {}

/// A set of descriptors, which QEMU opens as a file: see [`passed_name`].
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DescriptorSet {
    /// Its number.
    pub fdset_id: u32,
}

/// A device that has a disk, if there is one in it.
#[derive(Debug, Deserialize)]
pub struct BlockDevice {
    /// The disk's top.
    pub inserted: Option<BlockNode>,
}

/// A layer of a disk.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockNode {
    /// As it was called when it was made.
    pub node_name: String,
    /// What it shows.
    pub image: BlockImage,
    /// How many nodes are below it.
    #[serde(rename = "backing_file_depth")]
    pub below: usize,
}

/// Any block node.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NamedNode {
    /// As it was called when it was made.
    pub node_name: Option<String>,
}

/// Something that QEMU does in the background.
#[derive(Debug, Deserialize)]
pub struct Job {
    /// As it was called when it was begun.
    pub id: String,
    /// `running`, `paused`, …, in the end `concluded`.
    pub status: String,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

impl Job {
    /// Whether it has ended, and waits for its dismissal.
    pub fn is_over(&self) -> bool {
        self.status == "concluded"
    }
}

/// What a block node shows to what is above it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockImage {
    /// Its size in bytes.
    pub virtual_size: u64,
}

/// What the machine is doing.
#[derive(Debug, Deserialize)]
pub struct Status {
    /// `running`, `paused`, `inmigrate`, `io-error`, …
    pub status: String,
}

command!(
    /// Ends the greeting.
    Capabilities {} = "qmp_capabilities" -> Nothing
);
command!(
    /// Lets the machine run.
    Continue {} = "cont" -> Nothing
);
command!(
    /// Stops it, its disk writes completed.
    Stop {} = "stop" -> Nothing
);
command!(
    /// What it is doing.
    QueryStatus {} = "query-status" -> Status
);
command!(
    /// Writes the state of all devices but memory. The name is historic; it needs no Xen. `live` is about
    /// what comes after: unless it is off, QEMU gives up the disks of a machine that stands still.
    SaveDevices { filename: String, live: bool } = "xen-save-devices-state" -> Nothing
);
command!(
    /// Begins to read the device state that a machine which was started for one waits for.
    ReadDevices { uri: String } = "migrate-incoming" -> Nothing
);
command!(
    /// Makes a descriptor set, with a number that no other has, of the descriptor that comes with the
    /// command.
    AddDescriptor {} = "add-fd" -> DescriptorSet
);
command!(
    /// Forgets a descriptor set: closes what was passed, as soon as the machine runs, and the set is gone
    /// with the last that was opened of it.
    RemoveDescriptor { fdset_id: u32 } = "remove-fd" -> Nothing
);
command!(
    /// Gives a disk another size.
    ResizeBlock { node_name: String, size: u64 } = "block_resize" -> Nothing
);
command!(
    /// The devices with disks.
    QueryBlock {} = "query-block" -> Vec<BlockDevice>
);
command!(
    /// Opens a file as a block node.
    AddFileNode { driver: &'static str, node_name: String, filename: String, discard: &'static str }
        = "blockdev-add" -> Nothing
);
command!(
    /// Opens the layer in a file's node, with nothing below it yet.
    AddLayerNode {
        driver: &'static str,
        node_name: String,
        file: String,
        backing: (),
        discard: &'static str,
        detect_zeroes: &'static str
    } = "blockdev-add" -> Nothing
);
command!(
    /// Closes a block node that nothing uses.
    DeleteNode { node_name: String } = "blockdev-del" -> Nothing
);
command!(
    /// Puts a layer with nothing below it on top of a disk, which is only read from then on.
    Snapshot { node: String, overlay: String } = "blockdev-snapshot" -> Nothing
);
command!(
    /// All block nodes; `flat`: each without what is below it.
    QueryNodes { flat: bool } = "query-named-block-nodes" -> Vec<NamedNode>
);
command!(
    /// Begins a job that copies into the layer `device` what is in those between it and `base_node`, and
    /// then takes these out; `backing_file` is what the layer's header says of what is below. At most so
    /// many bytes a second.
    Stream {
        job_id: &'static str,
        device: String,
        base_node: String,
        backing_file: String,
        speed: u64,
        auto_dismiss: bool
    } = "block-stream" -> Nothing
);
command!(
    /// All jobs.
    QueryJobs {} = "query-jobs" -> Vec<Job>
);
command!(
    /// Has a job end, as soon as it notices.
    CancelJob { id: &'static str } = "job-cancel" -> Nothing
);
command!(
    /// Forgets a job that has ended.
    DismissJob { id: &'static str } = "job-dismiss" -> Nothing
);
command!(
    /// Reads and takes what a ring buffer holds.
    ReadRing { device: String, size: u32, format: String } = "ringbuf-read" -> String
);

/// Something that QEMU tells unasked.
#[derive(Debug, Clone, Deserialize)]
pub struct Event {
    /// `STOP`, `RESUME`, `BLOCK_IO_ERROR`, `SHUTDOWN`, …; not `JOB_STATUS_CHANGE`.
    pub event: String,
    /// More, by event.
    #[serde(default)]
    pub data: Value,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Answer {
        id: u64,
        r#return: Value,
    },
    Refusal {
        id: u64,
        error: Refusal,
    },
    Event(Event),
    Greeting {
        #[serde(rename = "QMP")]
        _greeting: Value,
    },
}

type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Result<Value, String>>>>>>;

/// A dialogue with one QEMU.
pub struct Dialogue {
    writer: tokio::sync::Mutex<(u64, OwnedWriteHalf)>,
    waiting: Waiting,
    /// Descriptor sets that QEMU still holds.
    passed: Mutex<Vec<u32>>,
    /// Changes whenever a job's state does, and ends with QEMU.
    jobs: watch::Receiver<()>,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// What QEMU calls the file in a descriptor set.
pub fn passed_name(set: u32) -> String {
    format!("/dev/fdset/{set}")
}

/// The socket's path in a machine's directory.
pub fn socket_path(directory: &Path) -> PathBuf {
    directory.join("qmp.sock")
}

/// Listens on behalf of a QEMU that is yet to be started, so that nobody waits for its socket.
pub fn listen(directory: &Path) -> Result<(OwnedFd, PathBuf), Error> {
    let socket = socket_path(directory);
    let listener = short(&socket, |path| std::os::unix::net::UnixListener::bind(path))
        .map_err(|source| Error::File { what: format!("{} cannot be made", socket.display()), source })?;
    Ok((listener.into(), socket))
}

/// A socket's path may have 107 bytes only: its directory is named through a descriptor.
fn short<T>(socket: &Path, with: impl FnOnce(&Path) -> std::io::Result<T>) -> std::io::Result<T> {
    let directory = fs_err::File::open(socket.parent().unwrap_or(Path::new("/")))?;
    let name = socket.file_name().unwrap_or_default();
    with(&PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name))
}

impl Dialogue {
    /// Connects and ends the greeting. Events go to `events`; when QEMU ends, so do they.
    pub async fn open(socket: &Path, events: mpsc::Sender<Event>) -> Result<Self, Error> {
        let lost = |source| Error::File { what: format!("{} does not answer", socket.display()), source };
        let stream = short(socket, |path| std::os::unix::net::UnixStream::connect(path)).map_err(lost)?;
        stream.set_nonblocking(true).map_err(lost)?;
        let (read, write) = UnixStream::from_std(stream).map_err(lost)?.into_split();
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let (changed, jobs) = watch::channel(());
        let reader = tokio::spawn(read_lines(read, Arc::clone(&waiting), events, changed));
        let (writer, passed) = (tokio::sync::Mutex::new((0, write)), Mutex::default());
        let dialogue = Self { writer, waiting, passed, jobs, reader };
        dialogue.run(&Capabilities {}).await?;
        Ok(dialogue)
    }

    /// Runs a command and waits for its answer.
    pub async fn run<C: Command>(&self, command: &C) -> Result<C::Answer, Error> {
        self.run_with(command, None).await
    }

    /// Passes a file on, and answers the number of its descriptor set. QEMU opens it only with the very
    /// access that it was opened with here.
    pub async fn pass(&self, file: File) -> Result<u32, Error> {
        let set = self.run_with(&AddDescriptor {}, Some(file.into())).await?.fdset_id;
        self.passed.lock().expect("no panic under it").push(set);
        Ok(set)
    }

    /// Has QEMU close what was passed; what it has opened of that, it keeps. The machine must run: as long
    /// as it stands still QEMU closes none, and forgets that it was asked to.
    pub async fn close_passed(&self) -> Result<(), Error> {
        let passed = std::mem::take(&mut *self.passed.lock().expect("no panic under it"));
        for fdset_id in passed {
            self.run(&RemoveDescriptor { fdset_id }).await?;
        }
        Ok(())
    }

    /// Tells of every change of a job's state from now on; fails once QEMU has ended.
    pub fn job_changes(&self) -> watch::Receiver<()> {
        let mut jobs = self.jobs.clone();
        jobs.mark_unchanged();
        jobs
    }

    /// Runs a command that a descriptor goes with.
    async fn run_with<C: Command>(&self, command: &C, fd: Option<OwnedFd>) -> Result<C::Answer, Error> {
        let gone = |what: &str| Error::Monitor(format!("{}: {what}", C::NAME));
        let (send, receive) = oneshot::channel();
        {
            let mut writer = self.writer.lock().await;
            writer.0 += 1;
            let id = writer.0;
            match self.waiting.lock().expect("never poisoned: no panic under it").as_mut() {
                Some(waiting) => waiting.insert(id, send),
                None => return Err(gone("QEMU has ended")),
            };
            let line = serde_json::json!({ "execute": C::NAME, "arguments": command, "id": id });
            let line = format!("{line}\n");
            match fd {
                None => writer.1.write_all(line.as_bytes()).await,
                Some(fd) => send_with(&writer.1, line.as_bytes(), &fd).await,
            }
            .map_err(|error| gone(&error.to_string()))?;
        }
        match tokio::time::timeout(PATIENCE, receive).await {
            Ok(Ok(Ok(answer))) => serde_json::from_value(answer).map_err(|error| gone(&error.to_string())),
            Ok(Ok(Err(reason))) => Err(Error::Refused { command: C::NAME, reason }),
            Ok(Err(_)) => Err(gone("QEMU has ended")),
            Err(_) => Err(gone("no answer in 30 s")),
        }
    }
}

/// Sends a line that fits into the socket's buffer, with a descriptor beside it.
async fn send_with(stream: &OwnedWriteHalf, line: &[u8], fd: &OwnedFd) -> std::io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let fds = [fd.as_raw_fd()];
    let sent = stream
        .as_ref()
        .async_io(tokio::io::Interest::WRITABLE, || {
            let rights = [ControlMessage::ScmRights(&fds)];
            let pieces = [std::io::IoSlice::new(line)];
            Ok(sendmsg::<()>(stream.as_ref().as_raw_fd(), &pieces, &rights, MsgFlags::empty(), None)?)
        })
        .await?;
    if sent == line.len() { Ok(()) } else { Err(std::io::Error::from(std::io::ErrorKind::WriteZero)) }
}

async fn read_lines(
    read: OwnedReadHalf,
    waiting: Waiting,
    events: mpsc::Sender<Event>,
    jobs: watch::Sender<()>,
) {
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut read).take(LINE_LIMIT).read_until(b'\n', &mut line).await {
            Ok(n) if n > 0 && line.ends_with(b"\n") => {}
            _ => break,
        }
        let (id, answer) = match serde_json::from_slice(&line) {
            Ok(Line::Answer { id, r#return }) => (id, Ok(r#return)),
            Ok(Line::Refusal { id, error }) => (id, Err(error.desc)),
            Ok(Line::Event(event)) if event.event == "JOB_STATUS_CHANGE" => {
                jobs.send_replace(());
                continue;
            }
            Ok(Line::Event(event)) => {
                // Whoever does not read events any more needs none.
                if events.try_send(event).is_err() {
                    tracing::debug!("an event of a monitor was not taken");
                }
                continue;
            }
            Ok(Line::Greeting { .. }) => continue,
            Err(error) => {
                tracing::warn!(%error, "a monitor said something that is not QMP");
                break;
            }
        };
        let waiter = waiting.lock().expect("never poisoned").as_mut().and_then(|map| map.remove(&id));
        if let Some(waiter) = waiter {
            // A caller that has gone away needs no answer.
            drop(waiter.send(answer));
        }
    }
    // Everyone who still waits learns that there will be no answer.
    waiting.lock().expect("never poisoned").take();
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    async fn qemu_that_says(script: Vec<(&'static str, &'static str)>) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let socket = socket_path(dir.path());
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (read, mut write) = stream.into_split();
            let mut lines = BufReader::new(read).lines();
            write.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n").await.unwrap();
            for (expected, answer) in script {
                let line = lines.next_line().await.unwrap().unwrap();
                assert!(line.contains(expected), "{line}");
                write.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (dir, socket)
    }

    const GREETED: (&str, &str) = ("qmp_capabilities", "{\"return\": {}, \"id\": 1}\n");

    #[tokio::test]
    async fn commands_are_answered_by_their_id_with_events_in_between() {
        let (_dir, socket) = qemu_that_says(vec![
            GREETED,
            ("stop", "{\"event\": \"STOP\", \"timestamp\": {}}\n{\"return\": {}, \"id\": 2}\n"),
            ("query-status", "{\"return\": {\"status\": \"paused\", \"running\": false}, \"id\": 3}\n"),
        ])
        .await;
        let (events, mut heard) = mpsc::channel(8);
        let dialogue = Dialogue::open(&socket, events).await.unwrap();
        dialogue.run(&Stop {}).await.unwrap();
        assert_eq!(dialogue.run(&QueryStatus {}).await.unwrap().status, "paused");
        assert_eq!(heard.recv().await.unwrap().event, "STOP");
    }

    #[tokio::test]
    async fn a_refusal_names_the_command_and_an_end_is_not_waited_for() {
        let (_dir, socket) = qemu_that_says(vec![
            GREETED,
            (
                "block_resize",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no room\"}, \"id\": 2}\n",
            ),
        ])
        .await;
        let dialogue = Dialogue::open(&socket, mpsc::channel(1).0).await.unwrap();
        let refused = dialogue.run(&ResizeBlock { node_name: "top".into(), size: 1 }).await.unwrap_err();
        assert_eq!(refused.to_string(), "the monitor refused block_resize: no room");
        assert!(matches!(dialogue.run(&Continue {}).await, Err(Error::Monitor(_))));
    }
}

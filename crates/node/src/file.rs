//! Files of a machine, as calls on its agent. Nothing here touches a file of the host's: what the
//! guest says of its paths is passed on, never used.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use nullspace_guest_proto as proto;
use nullspace_guest_proto::write_file_request::Part;
use nullspace_guest_proto::write_files_reply::Outcome;
use nullspace_node_api::{ByteStream, FileBody};
use nullspace_types::file::{BatchPart, FileInfo, FileRange, FileType};
use nullspace_types::{Code, Error, Result};
use tonic::Status;

use crate::bulk::{self, Body, Lane};
use crate::feed;
use crate::guest::{PATIENCE, answered, file_error, patient, repeated, silent};
use crate::running::Running;

/// The most entries that one list answers.
const LIST_LIMIT: usize = 100_000;

fn path(path: String, user: Option<String>) -> proto::PathRequest {
    proto::PathRequest { path, user: user.unwrap_or_default() }
}

/// What the public API says of a file.
fn info(found: proto::FileInfo) -> Result<FileInfo> {
    let kind = match found.r#type() {
        proto::FileType::File => FileType::File,
        proto::FileType::Directory => FileType::Dir,
        proto::FileType::Symlink => FileType::Symlink,
        proto::FileType::Other | proto::FileType::Unspecified => FileType::Other,
    };
    let mode = format!("{:04o}", found.mode & 0o7777);
    let name = found.path.rsplit('/').find(|part| !part.is_empty()).unwrap_or("/").to_owned();
    let modified_time = time(found.modified_ns)?;
    Ok(FileInfo {
        name,
        path: found.path,
        is_dir: kind == FileType::Dir,
        size: found.size,
        kind,
        permissions: mode.clone(),
        mode,
        owner: found.owner,
        group: found.group,
        modified_time,
        symlink_target: (kind == FileType::Symlink).then_some(found.symlink_target),
    })
}

/// A time as the agent tells it.
pub fn time(nanoseconds: i64) -> Result<Timestamp> {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).map_err(Error::internal)
}

/// A file's content, or a part of it. A large one comes over the bulk lane, if there is one.
pub async fn read(
    machine: Arc<Running>,
    file: String,
    user: Option<String>,
    range: FileRange,
) -> Result<FileBody> {
    let (offset, length, suffix) = match range {
        FileRange::Whole => (0, 0, 0),
        FileRange::From { offset, length } => (offset, length.unwrap_or(0), 0),
        FileRange::Last(count) => (0, 0, count),
    };
    let nothing = matches!(range, FileRange::From { length: Some(0), .. } | FileRange::Last(0));
    let ticket = if machine.guest().has_bulk() { bulk::ticket() } else { Bytes::new() };
    let read = proto::ReadFileRequest {
        path: file,
        user: user.unwrap_or_default(),
        offset,
        length,
        suffix,
        ticket: ticket.clone(),
    };
    let place = machine.place()?;
    let client = machine.client()?;
    let opened = repeated(|| async { client.clone().read_file(read.clone()).await }).await;
    let mut chunks = Box::pin(patient(opened.map_err(|status| file_error(&status))?));
    let first = chunks.next().await.transpose().map_err(|status| file_error(&status))?.unwrap_or_default();
    let (size, modified) = (first.size, time(first.modified_ns)?);
    // To the agent a length of 0 means all.
    if nothing {
        return Ok(FileBody { size, modified, content: stream::empty().boxed() });
    }
    let content = if first.bulk {
        over_lane(&machine, &ticket, size, chunks).await?
    } else {
        let rest = chunks.map(|chunk| chunk.map(|chunk| chunk.data).map_err(|status| file_error(&status)));
        stream::iter([Ok(first.data)]).chain(rest).boxed()
    };
    Ok(FileBody { size, modified, content: machine.stream(place, content) })
}

/// What comes over a lane, and then the agent's word that it was all. At most so many bytes.
async fn over_lane(
    machine: &Running,
    ticket: &[u8],
    most: u64,
    mut told: impl Stream<Item = Result<proto::FileChunk, Status>> + Send + Unpin + 'static,
) -> Result<ByteStream> {
    let lane = Lane::open(machine, ticket).await.map_err(|error| lane_broke(&error))?;
    let received = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&received);
    let content = lane.receive(most).map(move |piece| {
        let piece = piece.map_err(|error| lane_broke(&error))?;
        count.fetch_add(piece.len() as u64, Ordering::Relaxed);
        Ok(piece)
    });
    let end = async move {
        let last = told.next().await.transpose().map_err(|status| file_error(&status))?.unwrap_or_default();
        match last.bulk_bytes == received.load(Ordering::Relaxed) {
            true => Ok(Bytes::new()),
            false => Err(silent(&Status::aborted("the bulk connection ended before the file did"))),
        }
    };
    Ok(content.chain(stream::once(end)).boxed())
}

fn lane_broke(error: &std::io::Error) -> Error {
    silent(&Status::unavailable(format!("the bulk connection broke: {error}")))
}

/// Writes a file whole. If the body fails, the agent publishes nothing.
pub async fn write(
    machine: Arc<Running>,
    file: String,
    user: Option<String>,
    body: ByteStream,
) -> Result<FileInfo> {
    let mut client = machine.client()?;
    let start = proto::WriteFileStart { path: file, user: user.unwrap_or_default(), ticket: Bytes::new() };
    let call = move |messages| async move { Ok(client.write_file(messages).await?.into_inner()) };
    let first = |start| stream::iter([Ok(Part::Start(start))]);
    let written = match bulk::look(body).await? {
        Body::Large(pieces, rest) if machine.guest().has_bulk() => {
            let ticket = bulk::ticket();
            let start = proto::WriteFileStart { ticket: ticket.clone(), ..start };
            let body = stream::iter(pieces.into_iter().map(Ok)).chain(rest).boxed();
            let sent = stream::once(into_lane(Arc::clone(&machine), ticket, body));
            feed::send(machine, first(start).chain(sent).map(message), call, file_error).await?
        }
        Body::Large(head, rest) => {
            let body = stream::iter(head.into_iter().map(Ok)).chain(rest);
            feed::send(machine, first(start).chain(body.flat_map(pieces)).map(message), call, file_error)
                .await?
        }
        Body::Small(body) => {
            let body = stream::iter(body.into_iter().map(Ok));
            feed::send(machine, first(start).chain(body.flat_map(pieces)).map(message), call, file_error)
                .await?
        }
    };
    info(written)
}

/// Sends a body over a lane; then what is to be said of it. If the lane breaks, the agent knows why, and
/// the call is answered with that, as soon as it comes.
async fn into_lane(machine: Arc<Running>, ticket: Bytes, mut body: ByteStream) -> Result<Part> {
    let sent = async {
        let mut lane = Lane::open(&machine, &ticket).await.map_err(Ok)?;
        let mut sent = 0;
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(Err)?;
            lane.send(&piece).await.map_err(Ok)?;
            sent += piece.len() as u64;
        }
        lane.end().await.map_err(Ok)?;
        Ok(Part::BulkBytes(sent))
    };
    match sent.await {
        Ok(part) => Ok(part),
        Err(Err(error)) => Err(error),
        Err(Ok(broken)) => {
            tokio::time::sleep(PATIENCE).await;
            Err(lane_broke(&broken))
        }
    }
}

/// Content as parts of a write.
fn pieces(data: Result<Bytes>) -> impl Stream<Item = Result<Part>> {
    match data {
        Ok(data) => stream::iter(feed::cut(data).map(Part::Data).map(Ok)).left_stream(),
        Err(error) => stream::iter([Err(error)]).right_stream(),
    }
}

fn message(part: Result<Part>) -> Result<proto::WriteFileRequest> {
    Ok(proto::WriteFileRequest { part: Some(part?) })
}

/// Writes many files in one call. The agent answers when everything has come.
pub async fn write_batch(
    machine: Arc<Running>,
    user: Option<String>,
    parts: BoxStream<'static, Result<BatchPart>>,
) -> Result<Vec<Result<FileInfo>>> {
    let mut client = machine.client()?;
    let user = user.unwrap_or_default();
    let begun = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&begun);
    let messages = parts.flat_map(move |part| match part {
        Ok(BatchPart::Start { path }) => {
            count.fetch_add(1, Ordering::Relaxed);
            stream::iter([Ok(Part::Start(proto::WriteFileStart {
                path,
                user: user.clone(),
                ticket: Bytes::new(),
            }))])
            .left_stream()
        }
        Ok(BatchPart::Data(data)) => pieces(Ok(data)).right_stream(),
        Err(error) => stream::iter([Err(error)]).left_stream(),
    });
    let call = move |messages| async move {
        let mut replies = client.write_files(messages).await?.into_inner();
        let mut outcomes = Vec::new();
        while let Some(reply) = replies.message().await? {
            if outcomes.len() == begun.load(Ordering::Relaxed) {
                return Err(Status::internal("the agent answered for more files than were sent"));
            }
            outcomes.push(outcome(reply));
        }
        match outcomes.len() == begun.load(Ordering::Relaxed) {
            true => Ok(outcomes),
            false => Err(Status::internal("the agent did not answer for every file")),
        }
    };
    feed::send(machine, messages.map(message), call, file_error).await
}

fn outcome(reply: proto::WriteFilesReply) -> Result<FileInfo> {
    match reply.outcome {
        Some(Outcome::Written(written)) => info(written),
        Some(Outcome::Failed(failed)) => {
            Err(file_error(&Status::new(tonic::Code::from(failed.code), failed.message)))
        }
        None => Err(file_error(&Status::internal("the agent did not say what came of a file"))),
    }
}

/// What a directory holds.
pub async fn list(machine: &Running, dir: String, user: Option<String>, depth: u32) -> Result<Vec<FileInfo>> {
    let client = machine.client()?;
    let list = proto::ListFilesRequest { path: dir, user: user.unwrap_or_default(), depth };
    let opened = repeated(|| async { client.clone().list_files(list.clone()).await }).await;
    let mut entries = Box::pin(patient(opened.map_err(|status| file_error(&status))?));
    let mut found = Vec::new();
    while let Some(entry) = entries.next().await {
        let entry = entry.map_err(|status| file_error(&status))?;
        if found.len() == LIST_LIMIT {
            let message = format!("the directory has more than {LIST_LIMIT} entries");
            return Err(
                Error::new(Code::FileError, message).suggest("list a directory below it, or less depth")
            );
        }
        found.push(info(entry)?);
    }
    Ok(found)
}

/// About one path.
pub async fn stat(machine: &Running, file: String, user: Option<String>) -> Result<FileInfo> {
    let (client, path) = (machine.client()?, path(file, user));
    let stat = || async { client.clone().stat_file(path.clone()).await };
    info(repeated(stat).await.map_err(|status| file_error(&status))?)
}

/// Whether there is anything.
pub async fn exists(machine: &Running, file: String, user: Option<String>) -> Result<bool> {
    let (client, path) = (machine.client()?, path(file, user));
    let exists = || async { client.clone().file_exists(path.clone()).await };
    Ok(repeated(exists).await.map_err(|status| file_error(&status))?.exists)
}

/// Removes a file or a whole directory.
pub async fn remove(machine: &Running, file: String, user: Option<String>) -> Result<()> {
    let mut client = machine.client()?;
    answered(client.remove_file(path(file, user))).await.map(drop).map_err(|status| file_error(&status))
}

/// Makes a directory.
pub async fn mkdir(machine: &Running, file: String, user: Option<String>) -> Result<()> {
    let (client, path) = (machine.client()?, path(file, user));
    let make = || async { client.clone().make_directory(path.clone()).await };
    repeated(make).await.map(drop).map_err(|status| file_error(&status))
}

/// Moves a file.
pub async fn rename(machine: &Running, from: String, to: String, user: Option<String>) -> Result<FileInfo> {
    let mut client = machine.client()?;
    let rename = proto::RenameFileRequest { old_path: from, new_path: to, user: user.unwrap_or_default() };
    info(answered(client.rename_file(rename)).await.map_err(|status| file_error(&status))?)
}

/// Sets permission bits.
pub async fn permissions(machine: &Running, file: String, mode: u32, user: Option<String>) -> Result<()> {
    let client = machine.client()?;
    let set = proto::SetPermissionsRequest { path: file, mode, user: user.unwrap_or_default() };
    let set = || async { client.clone().set_permissions(set.clone()).await };
    repeated(set).await.map(drop).map_err(|status| file_error(&status))
}

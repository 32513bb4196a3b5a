//! Files of a machine, as calls on its agent. Nothing here touches a file of the host's: what the
//! guest says of its paths is passed on, never used.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use nullspace_guest_proto as proto;
use nullspace_guest_proto::write_file_request::Part;
use nullspace_node_api::ByteStream;
use nullspace_types::file::{FileInfo, FileType};
use nullspace_types::{Code, Error, Result};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::guest::{answered, file_error};
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
    let time = Timestamp::from_nanosecond(i128::from(found.modified_ns));
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
        modified_time: time.map_err(Error::internal)?,
        symlink_target: (kind == FileType::Symlink).then_some(found.symlink_target),
    })
}

/// Size and content.
pub async fn read(machine: &Running, file: String, user: Option<String>) -> Result<(u64, ByteStream)> {
    let mut client = machine.client()?;
    let read = proto::ReadFileRequest { path: file, user: user.unwrap_or_default(), offset: 0, length: 0 };
    let mut chunks = answered(client.read_file(read)).await.map_err(|status| file_error(&status))?;
    let first = chunks.message().await.map_err(|status| file_error(&status))?.unwrap_or_default();
    let rest = chunks.map(|chunk| chunk.map(|chunk| chunk.data).map_err(|status| file_error(&status)));
    Ok((first.size, stream::iter([Ok(first.data)]).chain(rest).boxed()))
}

/// Writes a file whole. If the body fails, the call is dropped rather than ended, and the agent
/// publishes nothing.
pub async fn write(
    machine: Arc<Running>,
    file: String,
    user: Option<String>,
    body: ByteStream,
) -> Result<FileInfo> {
    let mut client = machine.client()?;
    let start = proto::WriteFileStart { path: file, user: user.unwrap_or_default() };
    let (send, requests) = mpsc::channel(4);
    let feed = feed(start, body, send);
    tokio::select! {
        written = client.write_file(ReceiverStream::new(requests)) => {
            info(written.map_err(|status| file_error(&status))?.into_inner())
        }
        // The sender comes back with the error: the call is dropped before it is, so that the end
        // of the stream is never taken for the end of the file.
        Err((error, _sender)) = feed => Err(error),
        () = machine.gone() => Err(Running::lost()),
    }
}

type Requests = mpsc::Sender<proto::WriteFileRequest>;

/// Sends the messages of a write. A call that ended takes no more, and is answered by itself.
async fn feed(
    start: proto::WriteFileStart,
    mut body: ByteStream,
    send: Requests,
) -> Result<(), (Error, Requests)> {
    if send.send(proto::WriteFileRequest { part: Some(Part::Start(start)) }).await.is_err() {
        return Ok(());
    }
    while let Some(piece) = body.next().await {
        let data = match piece {
            Ok(data) => data,
            Err(error) => return Err((error, send)),
        };
        for data in cut(&data) {
            if send.send(proto::WriteFileRequest { part: Some(Part::Data(data)) }).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn cut(data: &Bytes) -> impl Iterator<Item = Bytes> + '_ {
    let starts = (0..data.len()).step_by(proto::CHUNK_BYTES);
    starts.map(|start| data.slice(start..data.len().min(start + proto::CHUNK_BYTES)))
}

/// What a directory holds.
pub async fn list(machine: &Running, dir: String, user: Option<String>, depth: u32) -> Result<Vec<FileInfo>> {
    let mut client = machine.client()?;
    let list = proto::ListFilesRequest { path: dir, user: user.unwrap_or_default(), depth };
    let mut entries = answered(client.list_files(list)).await.map_err(|status| file_error(&status))?;
    let mut found = Vec::new();
    while let Some(entry) = entries.message().await.map_err(|status| file_error(&status))? {
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
    let mut client = machine.client()?;
    info(answered(client.stat_file(path(file, user))).await.map_err(|status| file_error(&status))?)
}

/// Whether there is anything.
pub async fn exists(machine: &Running, file: String, user: Option<String>) -> Result<bool> {
    let mut client = machine.client()?;
    let reply = answered(client.file_exists(path(file, user))).await;
    Ok(reply.map_err(|status| file_error(&status))?.exists)
}

/// Removes a file or a whole directory.
pub async fn remove(machine: &Running, file: String, user: Option<String>) -> Result<()> {
    let mut client = machine.client()?;
    answered(client.remove_file(path(file, user))).await.map(drop).map_err(|status| file_error(&status))
}

/// Makes a directory.
pub async fn mkdir(machine: &Running, file: String, user: Option<String>) -> Result<()> {
    let mut client = machine.client()?;
    answered(client.make_directory(path(file, user))).await.map(drop).map_err(|status| file_error(&status))
}

/// Moves a file.
pub async fn rename(machine: &Running, from: String, to: String, user: Option<String>) -> Result<FileInfo> {
    let mut client = machine.client()?;
    let rename = proto::RenameFileRequest { old_path: from, new_path: to, user: user.unwrap_or_default() };
    info(answered(client.rename_file(rename)).await.map_err(|status| file_error(&status))?)
}

/// Sets permission bits.
pub async fn permissions(machine: &Running, file: String, mode: u32, user: Option<String>) -> Result<()> {
    let mut client = machine.client()?;
    let set = proto::SetPermissionsRequest { path: file, mode, user: user.unwrap_or_default() };
    answered(client.set_permissions(set)).await.map(drop).map_err(|status| file_error(&status))
}

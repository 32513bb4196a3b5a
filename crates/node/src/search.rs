//! Looking through a machine's files, and watching them, as calls on its agent.

use futures::stream::{self, BoxStream};
use nullspace_guest_proto as proto;
use nullspace_guest_proto::watch_event::Kind;
use nullspace_types::file::{FileChange, FileMatch, FileReplace, FileReplaced, Found};
use nullspace_types::socket::FileEventKind;
use nullspace_types::{Code, Error, Result};
use tonic::{Status, Streaming};

use crate::guest::{PATIENCE, answered, file_error, repeated, silent};
use crate::running::Running;

/// Most bytes of what one search finds: more than an agent as it should be ever sends.
const FOUND_BYTES: usize = 64 << 20;
/// How long the guest may look before it has found something more.
const LOOK_PATIENCE: std::time::Duration = std::time::Duration::from_secs(600);

/// Gathers what is found, up to a limit. `take` opens a message: items, and whether there was more.
async fn gather<M, T>(
    mut messages: Streaming<M>,
    limit: u64,
    bytes: impl Fn(&T) -> usize,
    take: impl Fn(M) -> (Vec<T>, bool),
) -> Result<Found<T>> {
    let limit = usize::try_from(limit).map_err(Error::internal)?;
    let mut found = Found { items: Vec::new(), limited: false };
    let mut size = 0;
    loop {
        let message = tokio::time::timeout(LOOK_PATIENCE, messages.message()).await;
        let message = message.unwrap_or_else(|_| Err(Status::deadline_exceeded("the guest finds no end")));
        let Some(message) = message.map_err(|status| file_error(&status))? else { return Ok(found) };
        let (items, limited) = take(message);
        found.limited |= limited;
        for item in items {
            size += bytes(&item);
            if found.items.len() == limit || size > FOUND_BYTES {
                found.limited = true;
                return Ok(found);
            }
            found.items.push(item);
        }
    }
}

/// Lines that match.
pub async fn find(
    machine: &Running,
    path: String,
    user: Option<String>,
    pattern: String,
    limit: u64,
) -> Result<Found<FileMatch>> {
    let client = machine.client()?;
    let request = proto::FindInFilesRequest { path, user: user.unwrap_or_default(), pattern, limit };
    let matched =
        |found: proto::FileMatch| FileMatch { file: found.path, line: found.line, content: found.content };
    let find = async {
        let opened = repeated(|| async { client.clone().find_in_files(request.clone()).await }).await;
        let messages = opened.map_err(|status| file_error(&status))?;
        let bytes = |found: &FileMatch| found.file.len() + found.content.len();
        let take = |reply: proto::FindInFilesReply| {
            (reply.matches.into_iter().map(matched).collect(), reply.limited)
        };
        gather(messages, limit, bytes, take).await
    };
    machine.while_there(find).await
}

/// Paths whose last part matches.
pub async fn search(
    machine: &Running,
    path: String,
    user: Option<String>,
    pattern: String,
    limit: u64,
) -> Result<Found<String>> {
    let client = machine.client()?;
    let request = proto::SearchFilesRequest { path, user: user.unwrap_or_default(), pattern, limit };
    let search = async {
        let opened = repeated(|| async { client.clone().search_files(request.clone()).await }).await;
        let messages = opened.map_err(|status| file_error(&status))?;
        let take = |reply: proto::SearchFilesReply| (reply.paths, reply.limited);
        gather(messages, limit, String::len, take).await
    };
    machine.while_there(search).await
}

/// Replaces a text in files. Never sent twice: again it would find nothing, and count nothing.
pub async fn replace(machine: &Running, request: FileReplace) -> Result<FileReplaced> {
    let mut client = machine.client()?;
    let request = proto::ReplaceInFilesRequest {
        paths: request.files,
        user: request.user.unwrap_or_default(),
        pattern: request.pattern,
        replacement: request.replacement,
        dry_run: request.dry_run.unwrap_or(false),
    };
    let replace = async {
        let reply = tokio::time::timeout(LOOK_PATIENCE, client.replace_in_files(request)).await;
        let reply = reply.unwrap_or_else(|_| Err(Status::deadline_exceeded("the guest finds no end")));
        reply.map_err(|status| file_error(&status))
    };
    let reply = machine.while_there(replace).await?.into_inner();
    Ok(FileReplaced {
        replacements: reply.replacements,
        files_modified: reply.files_modified,
        files_skipped: reply.files_skipped,
        binary_files_skipped: reply.binary_files_skipped,
    })
}

/// Watches a path: what happens after this has answered is seen.
pub async fn watch(
    machine: &Running,
    path: String,
    user: Option<String>,
    recursive: bool,
) -> Result<BoxStream<'static, Result<FileChange>>> {
    let place = machine.place()?;
    let mut client = machine.client()?;
    let request = proto::WatchFilesRequest { path: path.clone(), user: user.unwrap_or_default(), recursive };
    let started = async {
        let mut events = answered(client.watch_files(request)).await?;
        let first = tokio::time::timeout(PATIENCE, events.message()).await;
        match first.unwrap_or_else(|_| Err(Status::deadline_exceeded("the guest does not answer")))? {
            Some(event) if event.kind() == Kind::Started => Ok(events),
            _ => Err(Status::internal("the agent did not say whether it watches")),
        }
    };
    let started = async { started.await.map_err(|status: Status| file_error(&status)) };
    let events = machine.while_there(started).await?;
    let changes = stream::try_unfold((events, path), |(mut events, path)| async {
        loop {
            let message = events.message().await.map_err(|status| file_error(&status))?;
            let ended = || silent(&Status::unavailable("the stream ended, and the watch with it"));
            let event = message.ok_or_else(ended)?;
            let kind = match event.kind() {
                Kind::Create => FileEventKind::Create,
                Kind::Write => FileEventKind::Write,
                Kind::Rename => FileEventKind::Rename,
                Kind::Chmod => FileEventKind::Chmod,
                Kind::Remove => FileEventKind::Remove,
                Kind::Overflow => FileEventKind::Overflow,
                Kind::Gone => {
                    let message = format!("{path} is gone, and the watch with it");
                    return Err(Error::new(Code::FileNotFound, message));
                }
                Kind::Started | Kind::Unspecified => continue,
            };
            let change = FileChange { event: kind, name: event.name, path: event.path };
            return Ok(Some((change, (events, path))));
        }
    });
    Ok(machine.stream(place, changes))
}

//! Calls about files.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use nullspace_guest_proto as pb;
use pb::write_file_request::Part;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::Service;
use crate::account::{Account, Accounts};
use crate::bulk;
use crate::file::batch::Batch;
use crate::file::find::Find;
use crate::file::list::Listing;
use crate::file::read::{Range, Reader};
use crate::file::replace::{self, Replace};
use crate::file::search::Search;
use crate::file::stream::{Messages, Told, tell};
use crate::file::write::Writer;
use crate::file::{SMALL_BYTES, change, owner, stat};
use crate::mounts::elsewhere;
use crate::path;

/// How much of what a caller sends goes to another thread at once: messages, and bytes of them. A
/// thread that waited for the caller would be lost for others.
const GATHERED: usize = 256;
const GATHERED_BYTES: usize = 256 << 10;

/// What became of each file of a batch.
pub type Outcomes = tokio_stream::Iter<
    std::iter::Map<
        std::vec::IntoIter<pb::WriteFilesReply>,
        fn(pb::WriteFilesReply) -> Result<pb::WriteFilesReply, Status>,
    >,
>;

impl Service {
    fn resolve(&self, path: &str, owner: Option<&Account>) -> Result<PathBuf, Status> {
        path::resolve(path, path::base(self.adopted()?.cwd.as_deref(), owner))
    }

    /// A path and a user as a call names them.
    pub(super) fn path(&self, path: &str, user: &str) -> Result<(PathBuf, Option<Account>), Status> {
        let owner = owner(user)?;
        Ok((self.resolve(path, owner.as_ref())?, owner))
    }

    pub(super) async fn do_read_file(&self, request: pb::ReadFileRequest) -> Result<Content, Status> {
        let (path, _) = self.path(&request.path, &request.user)?;
        let range = match request.suffix {
            0 => Range::From { offset: request.offset, length: request.length },
            suffix => Range::Last(suffix),
        };
        let shown = path.clone();
        let mut reader = self.mounts.run(false, move || Reader::open(&path, range)).await?;
        if !request.ticket.is_empty() {
            reader = match reader.into_bulk() {
                Ok(bulk) => return Ok(Content::Told(self.send_bulk(request.ticket, bulk, shown))),
                Err(reader) => reader,
            };
        }
        let elsewhere = !reader.is_small() || self.mounts.may_hang();
        Ok(Content::Messages(Messages::new(reader, elsewhere)))
    }

    /// Tells of a file, and sends it to whoever shows the ticket.
    fn send_bulk(
        &self,
        ticket: Bytes,
        (file, offset, left, mut chunk): (File, u64, u64, pb::FileChunk),
        path: PathBuf,
    ) -> Told<pb::FileChunk> {
        let tickets = Arc::clone(&self.tickets);
        let (replies, receiver) = mpsc::channel(2);
        tokio::spawn(async move {
            chunk.bulk = true;
            // A call that is dropped drops its lane, and that ends the thread.
            if replies.send(Ok(chunk)).await.is_err() {
                return;
            }
            let sent = async {
                let lane = tickets.wait(&ticket).await?;
                let handle = lane.handle()?;
                let sent = elsewhere(move || bulk::send(&handle, &file, offset, left)).await?;
                sent.map_err(|failure| moved_badly(failure, &path))
            };
            let last = tokio::select! {
                sent = sent => sent.map(|bulk_bytes| pb::FileChunk { bulk_bytes, ..Default::default() }),
                () = replies.closed() => return,
            };
            // Nobody may be left.
            let _ = replies.send(last).await;
        });
        ReceiverStream::new(receiver)
    }

    /// A small file is written here as it comes. The rest of a larger one goes to other threads, as much
    /// at once as there is.
    pub(super) async fn do_write_file(
        &self,
        mut parts: Streaming<pb::WriteFileRequest>,
    ) -> Result<pb::FileInfo, Status> {
        let Some(Part::Start(start)) = parts.message().await?.and_then(|message| message.part) else {
            return Err(Status::invalid_argument("the first message of a write must be start"));
        };
        let (path, owner) = self.path(&start.path, &start.user)?;
        let mut writer = self.mounts.run(false, move || Writer::create(&path, owner.as_ref())).await?;
        if !start.ticket.is_empty() {
            self.receive_bulk(&mut parts, &writer, &start.ticket).await?;
            return self.mounts.run(false, move || writer.finish(&Accounts::load())).await;
        }
        let mut written = 0;
        loop {
            let gathered = gather(&mut parts).await?;
            written += gathered.bytes as u64;
            let write = move || {
                for part in gathered.parts {
                    let Some(Part::Data(data)) = part else {
                        return Err(Status::invalid_argument("start may come only once, then data"));
                    };
                    writer.append(&data)?;
                }
                Ok(writer)
            };
            writer = self.mounts.run(written > SMALL_BYTES, write).await?;
            if gathered.ended {
                return self.mounts.run(false, move || writer.finish(&Accounts::load())).await;
            }
        }
    }

    /// Writes what comes over the lane with this ticket, until the caller has said how much that was.
    async fn receive_bulk(
        &self,
        parts: &mut Streaming<pb::WriteFileRequest>,
        writer: &Writer,
        ticket: &[u8],
    ) -> Result<(), Status> {
        let lane = self.tickets.wait(ticket).await?;
        let handle = lane.handle()?;
        let (file, path) = writer.content().map_err(|error| Status::internal(error.to_string()))?;
        let receiving = elsewhere(move || bulk::receive(&handle, &file, 0, u64::MAX));
        let mut receiving = std::pin::pin!(receiving);
        let mut received = None;
        // Whichever comes first; a write that fails is told at once.
        let told = loop {
            tokio::select! {
                message = parts.message() => break message?,
                outcome = &mut receiving, if received.is_none() => {
                    received = Some(outcome?.map_err(|failure| moved_badly(failure, &path))?);
                }
            }
        };
        let Some(Part::BulkBytes(told)) = told.and_then(|message| message.part) else {
            return Err(Status::invalid_argument("behind a start with a ticket only bulk_bytes may come"));
        };
        let received = match received {
            Some(received) => received,
            None => receiving.await?.map_err(|failure| moved_badly(failure, &path))?,
        };
        if received != told {
            return Err(Status::aborted(format!("{told} bytes were sent, and {received} came")));
        }
        Ok(())
    }

    /// Answers when everything has come. A caller that has heard nothing yet can drop the call, and a
    /// file that is under way then leaves nothing; with an answer begun, its end could not be told from
    /// that of the last file.
    pub(super) async fn do_write_files(
        &self,
        mut parts: Streaming<pb::WriteFileRequest>,
    ) -> Result<Outcomes, Status> {
        let mut batch = Batch::new(self.adopted()?.cwd.clone());
        loop {
            let gathered = gather(&mut parts).await?;
            let work = move || {
                gathered.parts.into_iter().try_for_each(|part| batch.take(part))?;
                Ok::<_, Status>(batch)
            };
            batch = elsewhere(work).await??;
            if gathered.ended {
                let outcomes = elsewhere(move || batch.end()).await?;
                return Ok(tokio_stream::iter(outcomes.into_iter().map(Ok as fn(_) -> _)));
            }
        }
    }

    pub(super) async fn do_find_in_files(
        &self,
        request: pb::FindInFilesRequest,
    ) -> Result<Told<pb::FindInFilesReply>, Status> {
        let (path, _) = self.path(&request.path, &request.user)?;
        let open = move || Find::open(&path, &request.pattern, request.limit);
        let find = self.mounts.run(true, open).await?;
        Ok(tell(move |replies| find.run(replies)))
    }

    pub(super) async fn do_search_files(
        &self,
        request: pb::SearchFilesRequest,
    ) -> Result<Told<pb::SearchFilesReply>, Status> {
        let (path, _) = self.path(&request.path, &request.user)?;
        let open = move || Search::open(&path, &request.pattern, request.limit);
        let search = self.mounts.run(true, open).await?;
        Ok(tell(move |replies| search.run(replies)))
    }

    pub(super) async fn do_replace_in_files(
        &self,
        request: pb::ReplaceInFilesRequest,
    ) -> Result<pb::ReplaceInFilesReply, Status> {
        if request.paths.len() > replace::FILES {
            return Err(Status::invalid_argument(format!(
                "there are {} paths; at most {}",
                request.paths.len(),
                replace::FILES
            )));
        }
        let owner = owner(&request.user)?;
        let mut paths = Vec::with_capacity(request.paths.len());
        let mut known = HashSet::new();
        for path in &request.paths {
            let path = self.resolve(path, owner.as_ref())?;
            // A file that is named twice is changed once.
            if known.insert(path.clone()) {
                paths.push(path);
            }
        }
        let work = move || Replace::new(&request.pattern, &request.replacement)?.run(&paths, request.dry_run);
        self.mounts.run(true, work).await
    }

    pub(super) async fn do_watch_files(
        &self,
        request: pb::WatchFilesRequest,
    ) -> Result<Told<pb::WatchEvent>, Status> {
        let (path, _) = self.path(&request.path, &request.user)?;
        self.watches.open(path, request.recursive).await
    }

    pub(super) async fn do_list_files(
        &self,
        request: pb::ListFilesRequest,
    ) -> Result<Messages<Listing>, Status> {
        let (path, _) = self.path(&request.path, &request.user)?;
        let listing = self.mounts.run(false, move || Listing::open(&path, request.depth)).await?;
        let elsewhere = !listing.is_small() || self.mounts.may_hang();
        Ok(Messages::new(listing, elsewhere))
    }

    pub(super) async fn do_stat(&self, request: pb::PathRequest) -> Result<pb::FileInfo, Status> {
        let (path, _) = self.path(&request.path, &request.user)?;
        self.mounts
            .run(false, move || {
                path::refuse_reserved_links(&path)?;
                stat(&path)
            })
            .await
    }

    /// A part of the path that is missing, or is no directory, means that there is nothing.
    pub(super) async fn do_exists(&self, request: pb::PathRequest) -> Result<bool, Status> {
        let (path, _) = self.path(&request.path, &request.user)?;
        self.mounts
            .run(false, move || {
                path::refuse_reserved_links(&path)?;
                match path.symlink_metadata() {
                    Ok(_) => Ok(true),
                    Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                        Ok(false)
                    }
                    Err(error) => Err(crate::file::status(&error, &path)),
                }
            })
            .await
    }

    /// A whole tree may take long, and whether it is one is seen only there.
    pub(super) async fn do_remove(&self, request: pb::PathRequest) -> Result<(), Status> {
        let (path, _) = self.path(&request.path, &request.user)?;
        self.mounts.run(true, move || change::remove(&path)).await
    }

    pub(super) async fn do_make_directory(&self, request: pb::PathRequest) -> Result<(), Status> {
        let (path, owner) = self.path(&request.path, &request.user)?;
        self.mounts.run(false, move || change::make_directory(&path, owner.as_ref())).await
    }

    pub(super) async fn do_rename(&self, request: pb::RenameFileRequest) -> Result<pb::FileInfo, Status> {
        let owner = owner(&request.user)?;
        let old = self.resolve(&request.old_path, owner.as_ref())?;
        let new = self.resolve(&request.new_path, owner.as_ref())?;
        // Onto another file system it is a copy.
        self.mounts.run(true, move || change::rename(&old, &new, owner.as_ref())).await
    }

    pub(super) async fn do_set_permissions(&self, request: pb::SetPermissionsRequest) -> Result<(), Status> {
        let (path, _) = self.path(&request.path, &request.user)?;
        self.mounts.run(false, move || change::set_permissions(&path, request.mode)).await
    }
}

/// What to tell when bytes could not be moved.
fn moved_badly(failure: bulk::Failure, path: &Path) -> Status {
    match failure {
        bulk::Failure::File(error) => crate::file::status(&error, path),
        bulk::Failure::Connection(error) => Status::aborted(format!("the bulk connection broke: {error}")),
    }
}

/// A file's content: as messages, or told of while it goes over the bulk lane.
pub enum Content {
    Messages(Messages<Reader>),
    Told(Told<pb::FileChunk>),
}

impl Stream for Content {
    type Item = Result<pb::FileChunk, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.get_mut() {
            Content::Messages(messages) => Pin::new(messages).poll_next(context),
            Content::Told(told) => Pin::new(told).poll_next(context),
        }
    }
}

/// Messages of a caller.
struct Gathered {
    parts: Vec<Option<Part>>,
    bytes: usize,
    /// They were the last.
    ended: bool,
}

/// Waits for a message, and takes with it what has come by then, up to a bound.
async fn gather(parts: &mut Streaming<pb::WriteFileRequest>) -> Result<Gathered, Status> {
    let mut gathered = Gathered { parts: Vec::new(), bytes: 0, ended: false };
    while gathered.parts.len() < GATHERED && gathered.bytes < GATHERED_BYTES {
        let message = tokio::select! {
            biased;
            message = parts.message() => message?,
            () = std::future::ready(()), if !gathered.parts.is_empty() => break,
        };
        let Some(message) = message else {
            gathered.ended = true;
            break;
        };
        if let Some(Part::Data(data)) = &message.part {
            gathered.bytes += data.len();
        }
        gathered.parts.push(message.part);
    }
    Ok(gathered)
}

//! Watching a path for changes, by the kernel's notifications (inotify).
//!
//! A task owns each watch. It waits for the kernel to have something, has another thread read it and
//! look at the directories it speaks of (`tree`), and gives what came of it to the stream, whose reader
//! may be slow: meanwhile nothing is read, the kernel's own queue fills up, and that it overflowed is
//! told in its place. So nothing here grows with the pace of changes. The task ends with its stream.

mod names;
mod tree;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use nullspace_guest_proto as pb;
use pb::watch_event::Kind;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::stream::Told;
use crate::mounts::elsewhere;
use tree::{Step, Tree};

/// Watches at once.
const WATCHES: usize = 64;
/// Events that wait for their reader.
const WAITING: usize = 64;

/// How many more watches there may be.
pub struct Watches(Arc<Semaphore>);

impl Default for Watches {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(WATCHES)))
    }
}

impl Watches {
    /// Begins; what happens from now on is seen.
    pub async fn open(&self, path: PathBuf, recursive: bool) -> Result<Told<pb::WatchEvent>, Status> {
        let permit = Arc::clone(&self.0).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("there are {WATCHES} watches already; end one of them first"))
        })?;
        let shown = path.to_string_lossy().into_owned();
        let (mut tree, notifications) = elsewhere(move || Tree::open(path, recursive)).await??;
        let notifications = crate::watch::watch(notifications, Interest::READABLE).map_err(lost)?;
        while tree.is_looking() {
            let ended;
            (tree, ended) = elsewhere(move || {
                let looked = tree.look();
                (tree, looked)
            })
            .await?;
            ended?;
        }
        let (events, receiver) = mpsc::channel(WAITING);
        let started = pb::WatchEvent { kind: Kind::Started.into(), name: String::new(), path: shown };
        // There is room: it is the first.
        let _ = events.try_send(Ok(started));
        tokio::spawn(async move {
            if let Err(error) = follow(tree, notifications, &events, permit).await {
                // Nobody may be left.
                let _ = events.send(Err(error)).await;
            }
        });
        Ok(ReceiverStream::new(receiver))
    }
}

/// Tells everything, until the path is gone or nobody wants to know.
async fn follow(
    mut tree: Tree,
    notifications: AsyncFd<OwnedFd>,
    events: &mpsc::Sender<Result<pb::WatchEvent, Status>>,
    _permit: OwnedSemaphorePermit,
) -> Result<(), Status> {
    loop {
        let mut ready = tokio::select! {
            ready = notifications.readable() => ready.map_err(lost)?,
            () = events.closed() => return Ok(()),
        };
        loop {
            let (after, told) = elsewhere(move || {
                let told = tree.advance();
                (tree, told)
            })
            .await?;
            tree = after;
            let (told, step) = told?;
            for event in told {
                if events.send(Ok(event)).await.is_err() {
                    return Ok(());
                }
            }
            match step {
                Step::More if events.is_closed() => return Ok(()),
                Step::More => {}
                Step::Empty => break,
                Step::Gone => return Ok(()),
            }
        }
        ready.clear_ready();
    }
}

fn lost(error: io::Error) -> Status {
    Status::internal(format!("the kernel's notifications cannot be read: {error}"))
}

//! Looking for files by name.

use std::path::{Path, PathBuf};

use globset::{Glob, GlobMatcher};
use nullspace_guest_proto as pb;
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::check_pattern;
use super::walk::Walk;

/// Most paths of one search.
const PATHS: u64 = 100_000;
/// Paths in one message, and bytes of them.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 64 << 10;

/// A search that has not begun yet.
pub struct Search {
    walk: Walk,
    glob: GlobMatcher,
    limit: u64,
}

impl Search {
    /// Prepares. `limit` 0: as much as there may be.
    pub fn open(path: &Path, pattern: &str, limit: u64) -> Result<Self, Status> {
        check_pattern(pattern)?;
        let glob = Glob::new(pattern)
            .map_err(|error| {
                Status::invalid_argument(format!("pattern {pattern:?} is no glob: {}", error.kind()))
            })?
            .compile_matcher();
        let limit = if limit == 0 { PATHS } else { limit.min(PATHS) };
        Ok(Self { walk: Walk::search(path)?, glob, limit })
    }

    /// Tells the paths in order, until there are no more or nobody wants them.
    pub fn run(mut self, replies: &mpsc::Sender<Result<pb::SearchFilesReply, Status>>) {
        let mut reply = pb::SearchFilesReply::default();
        let mut bytes = 0;
        while let Some(found) = self.next() {
            if replies.is_closed() {
                return;
            }
            match found {
                Ok(None) => {}
                Ok(Some(_)) if self.limit == 0 => {
                    reply.limited = true;
                    break;
                }
                Ok(Some(path)) => {
                    self.limit -= 1;
                    let path = path.to_string_lossy().into_owned();
                    bytes += path.len();
                    reply.paths.push(path);
                }
                // Told last, in place of the end.
                Err(error) => {
                    if replies.blocking_send(Ok(reply)).is_ok() {
                        let _ = replies.blocking_send(Err(error));
                    }
                    return;
                }
            }
            if reply.paths.len() == BATCH || bytes >= BATCH_BYTES {
                bytes = 0;
                if replies.blocking_send(Ok(std::mem::take(&mut reply))).is_err() {
                    return;
                }
            }
        }
        // Whoever has left does not miss the last ones.
        let _ = replies.blocking_send(Ok(reply));
    }

    /// The next entry: its path, if its name is one that is looked for.
    fn next(&mut self) -> Option<Result<Option<PathBuf>, Status>> {
        Some(match self.walk.next()? {
            Ok(entry) => {
                let matches = entry.path.file_name().is_some_and(|name| self.glob.is_match(name));
                Ok(matches.then_some(entry.path))
            }
            // A directory that is too large must not look searched; one that cannot be read is passed over.
            Err(error) if error.code() == Code::ResourceExhausted => Err(error),
            Err(_) => Ok(None),
        })
    }
}

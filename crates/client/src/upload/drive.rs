//! An upload from its beginning, or from where another client stopped, to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{StreamExt, TryStreamExt};
use nullspace_types::upload::{
    UploadArchive, UploadChecksum, UploadConflict, UploadCreate, UploadKind, UploadSession, UploadStatus,
};

use super::{UploadContent, UploadPart, refuse_if_over};
use crate::error::{Error, Result};
use crate::transport::Client;

/// Parts at once, where neither the caller nor the server wants fewer.
const CONCURRENCY: usize = 4;

/// Where an upload goes, and how.
#[derive(Debug, Clone, Default)]
pub struct UploadTarget {
    /// Absolute, or relative as in `FilePath`.
    pub path: String,
    /// What happens if there is something at the path; `merge` when absent.
    pub conflict: Option<UploadConflict>,
    /// Who shall own what is made.
    pub user: Option<String>,
}

/// Hears how an upload goes on.
pub trait UploadWatcher: Send + Sync {
    /// The upload has begun, or is found again: from now on it can be resumed.
    fn began(&self, _session: &UploadSession) {}

    /// So many bytes are there or on their way. Fewer than before when a part has to be sent again.
    fn moved(&self, _bytes: u64) {}
}

impl UploadWatcher for () {}

/// An upload that is in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadDone {
    /// The upload.
    pub session: UploadSession,
    /// How many files were put in place; unknown when somebody else completed it.
    pub files: Option<u64>,
    /// Whether it was begun by somebody else.
    pub resumed: bool,
}

impl Client {
    /// Uploads a content. At most `concurrency` parts are sent at once, 4 when absent, and never more
    /// than the server allows. Dropped in the midst it can be resumed.
    ///
    /// # Errors
    /// `file_upload_error`, with [`Error::upload_failure`]; see [`crate::Error`].
    pub async fn upload_content(
        &self,
        sandbox: &str,
        content: &UploadContent,
        target: &UploadTarget,
        concurrency: Option<usize>,
        watcher: Arc<dyn UploadWatcher>,
    ) -> Result<UploadDone> {
        let request = UploadCreate {
            kind: content.kind(),
            source_kind: content.source(),
            target_path: target.path.clone(),
            content_length: content.length(),
            conflict: target.conflict,
            archive_format: Some(UploadArchive::Tar).filter(|_| content.kind() == UploadKind::DirectoryTar),
            checksum_algorithm: Some(UploadChecksum::Sha256),
            whole_checksum_sha256: content.checksum().map(str::to_owned),
            metadata: None,
            user: target.user.clone(),
        };
        let session = self.upload_create(sandbox, &request).await?;
        watcher.began(&session);
        self.carry_on(sandbox, session, content, concurrency, watcher, false).await
    }

    /// Takes an upload up again where it stopped. One that is in place already is a success.
    ///
    /// # Errors
    /// `invalid_request` when `content` is not what the upload was begun with; otherwise as
    /// [`Client::upload_content`].
    pub async fn upload_resume(
        &self,
        sandbox: &str,
        upload: &str,
        content: &UploadContent,
        concurrency: Option<usize>,
        watcher: Arc<dyn UploadWatcher>,
    ) -> Result<UploadDone> {
        let session = self.upload_get(sandbox, upload).await?;
        watcher.began(&session);
        if session.status == UploadStatus::Completed {
            watcher.moved(session.content_length);
            return Ok(UploadDone { session, files: None, resumed: true });
        }
        refuse_if_over(&session)?;
        refuse_other_content(&session, content)?;
        self.carry_on(sandbox, session, content, concurrency, watcher, true).await
    }

    async fn carry_on(
        &self,
        sandbox: &str,
        session: UploadSession,
        content: &UploadContent,
        concurrency: Option<usize>,
        watcher: Arc<dyn UploadWatcher>,
        resumed: bool,
    ) -> Result<UploadDone> {
        let parts = missing_parts(&session)?;
        let id = session.upload_id.to_string();
        let allowed = usize::try_from(session.max_concurrency).unwrap_or(usize::MAX);
        let at_once = concurrency.unwrap_or(CONCURRENCY).min(allowed).max(1);
        let missing: u64 = parts.iter().map(|part| part.length).sum();
        let sent = Arc::new(AtomicU64::new(session.content_length - missing));
        let moved: Arc<dyn Fn() + Send + Sync> = {
            let (sent, watcher) = (sent.clone(), watcher.clone());
            Arc::new(move || watcher.moved(sent.load(Ordering::Relaxed)))
        };
        moved();
        // The whole is hashed beside the sending, unless it is known.
        let whole = async {
            match content.checksum() {
                Some(checksum) => Ok(checksum.to_owned()),
                None => content.hash(0, content.length()).await,
            }
        };
        let sending = futures::stream::iter(parts)
            .map(|part| {
                let (sent, moved) = (&sent, moved.clone());
                let id = &id;
                async move { self.upload_part_counted(sandbox, id, content, part, sent, moved).await }
            })
            .buffer_unordered(at_once)
            .try_for_each(|_| std::future::ready(Ok(())));
        let (checksum, ()) = futures::try_join!(whole, sending)?;
        let completed = self.upload_complete(sandbox, &id, Some(&checksum)).await?;
        watcher.moved(content.length());
        let (session, files) = (completed.session, Some(completed.published_file_count));
        Ok(UploadDone { session, files, resumed })
    }
}

fn refuse_other_content(session: &UploadSession, content: &UploadContent) -> Result<()> {
    let id = session.upload_id;
    if session.kind != content.kind() {
        return Err(Error::invalid_request(format!(
            "upload {id} is one of {:?}, and this is {:?}",
            session.kind,
            content.kind()
        )));
    }
    if session.content_length != content.length() {
        return Err(Error::invalid_request(format!(
            "upload {id} was begun with {} bytes, and this has {}",
            session.content_length,
            content.length()
        ))
        .suggest("begin a new upload"));
    }
    match (&session.whole_checksum_sha256, content.checksum()) {
        (Some(begun), Some(now)) if begun != now => {
            Err(Error::invalid_request(format!("what upload {id} was begun with has changed since"))
                .suggest("begin a new upload"))
        }
        _ => Ok(()),
    }
}

/// The parts from the lowest that is missing on: whether the server has one above it is not told.
fn missing_parts(session: &UploadSession) -> Result<Vec<UploadPart>> {
    let UploadSession { content_length, part_size, part_count, next_part, .. } = *session;
    let held = u64::from(part_count).saturating_mul(part_size);
    let last_begins = u64::from(part_count.saturating_sub(1)).saturating_mul(part_size);
    if held < content_length || (content_length > 0 && last_begins >= content_length) {
        return Err(Error::invalid_response(format!(
            "{part_count} parts of {part_size} bytes cannot be those of {content_length} bytes"
        )));
    }
    let part = |number: u32| {
        let offset = u64::from(number) * part_size;
        UploadPart { number, offset, length: part_size.min(content_length.saturating_sub(offset)) }
    };
    Ok((next_part.unwrap_or(part_count)..part_count).map(part).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(
        content_length: u64,
        part_size: u64,
        part_count: u32,
        next_part: Option<u32>,
    ) -> UploadSession {
        let json = serde_json::json!({
            "upload_id": "up_019a0000000070008000000000000001", "kind": "file",
            "source_kind": "restartable_file", "target_path": "/a", "user": null,
            "content_length": content_length, "accepted_bytes": 0, "reserved_staging_bytes": 0,
            "part_size": part_size, "part_count": part_count, "max_concurrency": 4, "next_part": next_part,
            "status": "created", "conflict": "merge", "archive_format": null, "checksum_algorithm": "sha256",
            "whole_checksum_sha256": null, "limits": {"max_upload_bytes": 1, "max_part_bytes": 1,
            "max_concurrency": 4, "sandbox_staging_quota_bytes": 1}, "created_at": "2026-01-02T03:04:05Z",
            "updated_at": "2026-01-02T03:04:05Z", "expires_at": "2026-01-02T03:04:05Z",
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn parts_are_those_from_the_lowest_that_is_missing() {
        let lengths = |content, size, count, next| {
            let parts = missing_parts(&session(content, size, count, next)).unwrap();
            parts.iter().map(|part| (part.number, part.offset, part.length)).collect::<Vec<_>>()
        };
        assert_eq!(lengths(10, 4, 3, Some(0)), [(0, 0, 4), (1, 4, 4), (2, 8, 2)]);
        assert_eq!(lengths(10, 4, 3, Some(2)), [(2, 8, 2)]);
        assert_eq!(lengths(10, 4, 3, None), []);
        assert_eq!(lengths(0, 4, 1, Some(0)), [(0, 0, 0)]);
        assert_eq!(lengths(0, 4, 0, None), []);
    }

    #[test]
    fn parts_that_do_not_make_the_whole_are_refused() {
        for (content, size, count) in [(10, 4, 2), (10, 0, 3), (8, 4, 3), (10, 4, 0)] {
            let error = missing_parts(&session(content, size, count, Some(0))).unwrap_err();
            assert_eq!(error.code(), "invalid_response");
        }
    }
}

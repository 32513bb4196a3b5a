//! Resumable uploads: the calls of one, each of which may be made again, and what drives them from the
//! beginning to the end, or from where another client stopped.
//!
//! What is uploaded stands in a file of this host until it is done ([`UploadContent`]), so that every
//! part can be sent again; a directory is packed first ([`archive`]). Parts are read as they are sent:
//! however large they are, they are not held in memory.
//!
//! A call is made again after a broken connection, a rate limit, or a server that is just starting, a
//! few times with growing waits; a create and a complete keep their idempotency key.

pub mod archive;

mod content;
mod drive;

pub use content::UploadContent;
pub use drive::{UploadDone, UploadTarget, UploadWatcher};

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nullspace_types::upload::{
    UploadComplete, UploadCompleted, UploadCreate, UploadCreated, UploadReason, UploadSession, UploadStatus,
};
use reqwest::Method;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use tokio::time::Instant;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::sandbox::path;
use crate::transport::{Call, Client, read_json, segment};

/// A call of an upload may stay so long without a byte moving.
const CALL_TIMEOUT: Duration = Duration::from_secs(300);
/// A complete that is under way with the same key is waited for so long.
const COMPLETE_PATIENCE: Duration = Duration::from_secs(600);

/// One part: the bytes `[offset, offset + length)` of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadPart {
    /// Its number, from 0.
    pub number: u32,
    /// Where it begins.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

impl Client {
    /// Begins an upload.
    ///
    /// # Errors
    /// `file_upload_error`, with [`Error::upload_failure`]; see [`crate::Error`].
    pub async fn upload_create(&self, sandbox: &str, request: &UploadCreate) -> Result<UploadSession> {
        let call = call(Method::POST, path(sandbox, "/uploads")?).body(request)?;
        let call = call.idempotency_key(&Uuid::new_v4().to_string())?;
        Ok(self.persistently(|| self.json::<UploadCreated>(call.clone())).await?.session)
    }

    /// How far an upload is.
    ///
    /// # Errors
    /// `upload_not_found`; see [`crate::Error`].
    pub async fn upload_get(&self, sandbox: &str, upload: &str) -> Result<UploadSession> {
        let call = call(Method::GET, below(sandbox, upload, "")?);
        self.persistently(|| self.json(call.clone())).await
    }

    /// Sends one part. One that the server has already is no error.
    ///
    /// # Errors
    /// `file_upload_error`, with [`Error::upload_failure`]; see [`crate::Error`].
    pub async fn upload_part(
        &self,
        sandbox: &str,
        upload: &str,
        content: &UploadContent,
        part: UploadPart,
    ) -> Result<UploadSession> {
        self.upload_part_counted(sandbox, upload, content, part, &Arc::default(), Arc::new(|| {})).await
    }

    /// As [`Client::upload_part`]. `sent` counts the bytes that are on their way or there, and `moved` is
    /// called when it changes.
    async fn upload_part_counted(
        &self,
        sandbox: &str,
        upload: &str,
        content: &UploadContent,
        part: UploadPart,
        sent: &Arc<AtomicU64>,
        moved: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<UploadSession> {
        let hash = content.hash(part.offset, part.length).await?;
        let hash = HeaderValue::try_from(hash).map_err(|error| Error::invalid_request(error.to_string()))?;
        let call = call(Method::PUT, below(sandbox, upload, &format!("/parts/{}", part.number))?)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
            .header(CONTENT_LENGTH, part.length)
            .header(HeaderName::from_static("x-nullspace-part-sha256"), hash);
        let mut retries = Retries::new(self);
        loop {
            let attempt = Arc::new(AtomicU64::new(0));
            let told = {
                let (attempt, sent, moved) = (attempt.clone(), sent.clone(), moved.clone());
                move |bytes| {
                    attempt.fetch_add(bytes, Ordering::Relaxed);
                    sent.fetch_add(bytes, Ordering::Relaxed);
                    moved();
                }
            };
            let body = content.read(part.offset, part.length);
            let error = match self.upload(&call, body, told).await {
                Ok(answer) => return read_json(&self.url(&call), &answer),
                Err(error) => error,
            };
            sent.fetch_sub(attempt.load(Ordering::Relaxed), Ordering::Relaxed);
            let broken = error.is_transport();
            retries.wait_after(error).await?;
            if broken {
                // The part may have come, and with it the end.
                let session = self.upload_get(sandbox, upload).await?;
                if session.status == UploadStatus::Completed {
                    return Ok(session);
                }
                refuse_if_over(&session)?;
            }
        }
    }

    /// Puts what was uploaded in place. `checksum` is the SHA-256 of the whole content, as 64
    /// hexadecimal digits.
    ///
    /// # Errors
    /// `file_upload_error`, with [`Error::upload_failure`]; see [`crate::Error`].
    pub async fn upload_complete(
        &self,
        sandbox: &str,
        upload: &str,
        checksum: Option<&str>,
    ) -> Result<UploadCompleted> {
        let request = UploadComplete { whole_checksum_sha256: checksum.map(str::to_owned) };
        let call = call(Method::POST, below(sandbox, upload, "/complete")?).body(&request)?;
        let call = call.idempotency_key(&Uuid::new_v4().to_string())?;
        self.persistently(|| self.json(call.clone())).await
    }

    /// Gives an upload up. Nothing of it stays.
    ///
    /// # Errors
    /// `upload_not_found`; see [`crate::Error`].
    pub async fn upload_abort(&self, sandbox: &str, upload: &str) -> Result<()> {
        let call = call(Method::DELETE, below(sandbox, upload, "")?);
        self.persistently(|| self.empty(call.clone())).await
    }

    async fn persistently<T, F: Future<Output = Result<T>>>(&self, attempt: impl Fn() -> F) -> Result<T> {
        let mut retries = Retries::new(self);
        loop {
            match attempt().await {
                Ok(answer) => return Ok(answer),
                Err(error) => retries.wait_after(error).await?,
            }
        }
    }
}

fn call(method: Method, path: String) -> Call {
    Call::new(method, path).at_least(CALL_TIMEOUT).one_attempt()
}

fn below(sandbox: &str, upload: &str, rest: &str) -> Result<String> {
    path(sandbox, &format!("/uploads/{}{rest}", segment("upload ID", upload)?))
}

/// An upload that can no longer be completed.
fn refuse_if_over(session: &UploadSession) -> Result<()> {
    let (reason, what) = match session.status {
        UploadStatus::Aborted => (UploadReason::UploadAborted, "was given up"),
        UploadStatus::Expired => (UploadReason::UploadExpired, "is too old"),
        UploadStatus::Failed => (UploadReason::UploadAborted, "could not be put in place"),
        _ => return Ok(()),
    };
    Err(Error::upload_over(session.upload_id, reason, format!("upload {} {what}", session.upload_id)))
}

/// The attempts at one call.
struct Retries<'a> {
    client: &'a Client,
    used: u32,
    busy: u32,
    patience_ends: Instant,
}

impl<'a> Retries<'a> {
    fn new(client: &'a Client) -> Self {
        Self { client, used: 0, busy: 0, patience_ends: Instant::now() + COMPLETE_PATIENCE }
    }

    /// Waits until the call is to be made again; the error comes back if it is not.
    async fn wait_after(&mut self, error: Error) -> Result<()> {
        let policy = self.client.retry_policy();
        let delay = if error.code() == "transition_in_progress" && Instant::now() < self.patience_ends {
            // The same call is being carried out; asking again gives its outcome.
            self.busy += 1;
            policy.resume_delay(self.busy - 1)
        } else if error.is_passing() && self.used < policy.resume_retries {
            self.used += 1;
            policy.resume_delay(self.used - 1)
        } else if let Some(seconds) = error.rate_limited()
            && self.used < policy.resume_retries
            && let Ok(wait) = Duration::try_from_secs_f64(seconds)
            && wait <= policy.rate_limit_wait_max
        {
            self.used += 1;
            wait
        } else {
            return Err(error);
        };
        tokio::time::sleep(delay).await;
        Ok(())
    }
}

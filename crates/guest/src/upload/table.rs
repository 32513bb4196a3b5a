//! All uploads of the machine: their names, their bounds, and their time.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nullspace_guest_proto as pb;
use pb::UploadFailure as Reason;
use tokio::sync::{Notify, Semaphore};
use tonic::Status;

use super::session::{Begun, PartWriter, Upload};
use super::{Digest, Failure, Spec, now_ns, publish};
use crate::mounts::elsewhere;

/// Uploads that have not ended.
const UNFINISHED: usize = 256;
/// Uploads that have ended and are still known.
const ENDED: usize = 1000;
/// Parts that are written at once. Each holds what has come of it and is not written.
const WRITERS: usize = 64;
/// How long the machine's clock is trusted not to have been set.
const CLOCK_TRUST: Duration = Duration::from_secs(60);

/// See the module.
pub struct Uploads {
    records: Mutex<Records>,
    writers: Arc<Semaphore>,
    /// Something may be due earlier than the timer thinks.
    earlier: Notify,
}

#[derive(Default)]
struct Records {
    uploads: HashMap<String, Arc<Upload>>,
    /// From the callers' keys to IDs.
    keys: HashMap<String, String>,
    /// In the order of their ends.
    ended: VecDeque<String>,
    /// Whether the timer runs.
    timed: bool,
}

impl Default for Uploads {
    fn default() -> Self {
        let writers = Arc::new(Semaphore::new(WRITERS));
        Self { records: Mutex::default(), writers, earlier: Notify::new() }
    }
}

impl Uploads {
    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().expect("no holder panics")
    }

    /// Begins an upload, or finds the one that the same wish has begun before.
    pub async fn create(self: &Arc<Self>, spec: Spec) -> Result<pb::Upload, Failure> {
        let now = now_ns();
        self.expire(now);
        let (upload, gate) = {
            let mut records = self.records();
            match records.find(&spec) {
                Some(known) if known.spec.is_same_wish(&spec) => (known, None),
                Some(_) => {
                    let message = "the key or the ID belongs to an upload that was begun with other values";
                    return Err(Status::already_exists(message).into());
                }
                None => {
                    if spec.expires_ns <= now {
                        let message = "expires_ns lies in the past, by the sandbox's clock";
                        return Err(Status::invalid_argument(message).into());
                    }
                    records.check_room(&spec)?;
                    let upload = Arc::new(Upload::new(spec, now)?);
                    let gate = Arc::clone(&upload.gate).try_lock_owned();
                    records.insert(&upload);
                    (upload, gate.ok())
                }
            }
        };
        let Some(gate) = gate else {
            // Perhaps it is just being begun.
            drop(upload.gate.lock().await);
            return if upload.is_staged() { Ok(upload.describe()) } else { Err(upload.failed()) };
        };
        let this = Arc::clone(self);
        detached(async move {
            let staging = Arc::clone(&upload);
            let staged = elsewhere(move || publish::stage(&staging.spec)).await;
            let begun = upload.staged(staged.map_err(Failure::from).and_then(|staged| staged));
            if begun.is_err() {
                this.records().forget(&upload);
            } else {
                this.keep_time();
            }
            drop(gate);
            begun.map(|()| upload.describe())
        })
        .await
    }

    /// An upload as it is.
    pub fn get(&self, id: &str) -> Result<pb::Upload, Failure> {
        Ok(self.find(id)?.describe())
    }

    /// Takes up the writing of a part.
    pub fn write_part(&self, id: &str, part: u32) -> Result<PartWriter, Failure> {
        let upload = self.find(id)?;
        let permit = Arc::clone(&self.writers).try_acquire_owned().map_err(|_| {
            Failure::Other(Status::unavailable(format!("{WRITERS} parts are being written; try again")))
        })?;
        upload.write_part(part, permit)
    }

    /// Puts an upload in place; goes on when its caller does not wait for it. Again it answers the same.
    pub async fn complete(
        self: &Arc<Self>,
        id: &str,
        wanted: Option<Digest>,
    ) -> Result<pb::CompleteUploadReply, Failure> {
        let upload = self.find(id)?;
        let this = Arc::clone(self);
        detached(async move {
            // Somebody else may be about it; then the outcome counts for both.
            let _gate = upload.gate.lock().await;
            let (content, wanted) = match upload.begin(wanted)? {
                Begun::Already => return upload.outcome(),
                Begun::Now(content, wanted) => (content, wanted),
            };
            let publishing = Arc::clone(&upload);
            let outcome = elsewhere(move || {
                publish::publish(&publishing.spec, &content, wanted.as_ref(), &publishing.stop)
            });
            let outcome = outcome.await.map_err(Failure::from).and_then(|outcome| outcome);
            let (result, content) = upload.finish(outcome, wanted);
            if upload.has_ended() {
                this.retire(&upload, content);
            } else {
                this.earlier.notify_one();
            }
            result?;
            upload.outcome()
        })
        .await
    }

    /// Gives an upload up and frees what it holds; one that is being put in place is stopped.
    pub async fn abort(self: &Arc<Self>, id: &str) -> Result<pb::Upload, Failure> {
        let upload = self.find(id)?;
        let this = Arc::clone(self);
        detached(async move {
            upload.stop.store(true, Ordering::Relaxed);
            let _gate = upload.gate.lock().await;
            let ended = upload.has_ended();
            let content = upload.abort()?;
            if !ended {
                this.retire(&upload, content);
            }
            Ok(upload.describe())
        })
        .await
    }

    fn find(&self, id: &str) -> Result<Arc<Upload>, Failure> {
        self.expire(now_ns());
        let found = self.records().uploads.get(id).filter(|upload| upload.is_staged()).cloned();
        found.ok_or_else(|| Status::not_found(format!("there is no upload {id}")).into())
    }

    /// Ends those whose time is over.
    fn expire(&self, now: i64) {
        let open: Vec<_> = self.records().open().cloned().collect();
        for upload in open {
            if let Some(content) = upload.expire(now) {
                self.retire(&upload, content);
            }
        }
    }

    /// Has expiry free what nobody asks for any more.
    fn keep_time(self: &Arc<Self>) {
        if std::mem::replace(&mut self.records().timed, true) {
            self.earlier.notify_one();
            return;
        }
        let this = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(next) = this.next_due() {
                let left = Duration::from_nanos(next.saturating_sub(now_ns()).max(0) as u64);
                tokio::select! {
                    () = tokio::time::sleep(left.min(CLOCK_TRUST)) => this.expire(now_ns()),
                    () = this.earlier.notified() => {}
                }
            }
        });
    }

    /// When the timer has to look next; none where it has nothing to wait for, and ends.
    fn next_due(&self) -> Option<i64> {
        let mut records = self.records();
        if records.open().next().is_none() {
            records.timed = false;
            return None;
        }
        let waiting = records.open().filter(|upload| upload.is_waiting());
        Some(waiting.map(|upload| upload.spec.expires_ns).min().unwrap_or(i64::MAX))
    }

    /// An upload has ended: it is known for a while, and what it held is freed, which may take long.
    fn retire(&self, upload: &Upload, content: Option<Arc<File>>) {
        if let Some(content) = content {
            tokio::task::spawn_blocking(move || drop(content));
        }
        let mut records = self.records();
        records.ended.push_back(upload.spec.upload_id.clone());
        while records.ended.len() > ENDED {
            let oldest = records.ended.pop_front().and_then(|id| records.uploads.get(&id).cloned());
            if let Some(oldest) = oldest {
                records.forget(&oldest);
            }
        }
    }
}

impl Records {
    /// Those that have not ended.
    fn open(&self) -> impl Iterator<Item = &Arc<Upload>> {
        self.uploads.values().filter(|upload| !upload.has_ended())
    }

    fn find(&self, spec: &Spec) -> Option<Arc<Upload>> {
        let keyed = spec.key.as_ref().and_then(|key| self.keys.get(key));
        self.uploads.get(keyed.unwrap_or(&spec.upload_id)).cloned()
    }

    fn insert(&mut self, upload: &Arc<Upload>) {
        let id = &upload.spec.upload_id;
        if let Some(key) = &upload.spec.key {
            self.keys.insert(key.clone(), id.clone());
        }
        self.uploads.insert(id.clone(), Arc::clone(upload));
    }

    fn forget(&mut self, upload: &Upload) {
        if let Some(key) = &upload.spec.key {
            self.keys.remove(key);
        }
        self.uploads.remove(&upload.spec.upload_id);
    }

    fn check_room(&self, spec: &Spec) -> Result<(), Failure> {
        let refuse = |message| Err(Failure::refused(Reason::InsufficientStagingSpace, message));
        if self.open().count() >= UNFINISHED {
            return refuse(format!("{UNFINISHED} uploads are unfinished; complete or abort one"));
        }
        let taken = self.open().fold(0_u64, |sum, upload| sum.saturating_add(upload.spec.content_length));
        if taken.saturating_add(spec.content_length) > spec.quota {
            return refuse(format!(
                "content_length {} and the {taken} bytes of unfinished uploads are more than the quota of {} \
                 bytes; complete or abort one",
                spec.content_length, spec.quota
            ));
        }
        Ok(())
    }
}

/// Goes on to its end when the caller does not wait for it.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    let ended = |error| Failure::Other(Status::internal(format!("the upload's work ended: {error}")));
    tokio::spawn(work).await.unwrap_or_else(|error| Err(ended(error)))
}

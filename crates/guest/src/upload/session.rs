//! One upload: what of it is there, who is writing to it, and how it ended.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use nullspace_guest_proto as pb;
use pb::UploadFailure as Reason;
use pb::UploadStatus;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use super::parts::{PARTS_MAX, Parts};
use super::state::{Denied, Event, has_ended, step};
use super::{Digest, Failure, Published, Spec, now_ns, staging};
use crate::mounts::elsewhere;

/// See the module.
pub struct Upload {
    /// What was wanted.
    pub spec: Spec,
    /// Held by the one that begins it, puts it in place or gives it up.
    pub gate: Arc<tokio::sync::Mutex<()>>,
    /// Set when it is given up: whoever puts it in place stops.
    pub stop: AtomicBool,
    created_ns: i64,
    state: Mutex<State>,
}

struct State {
    status: UploadStatus,
    updated_ns: i64,
    parts: Parts,
    /// None until it has been staged, and when it has ended.
    content: Option<Arc<File>>,
    staged: bool,
    whole_sha256: Option<Digest>,
    /// Parts that are being written.
    lanes: HashMap<u32, Lane>,
    published: Option<Published>,
    failure: Option<Failure>,
}

/// Those who write one part. The newest counts: it was sent by somebody who gave the others up.
#[derive(Default)]
struct Lane {
    writers: usize,
    newest: u64,
    /// Held while a piece is being written, so that none of an older writer comes behind one of a newer.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// What [`Upload::begin`] found.
pub enum Begun {
    /// It is to be put in place now, with this digest if any.
    Now(Arc<File>, Option<Digest>),
    /// It is in place.
    Already,
}

impl Upload {
    /// Nothing has come of it, and its room is not there yet.
    pub fn new(spec: Spec, now: i64) -> Result<Self, Failure> {
        let parts = Parts::new(spec.content_length, spec.part_size).ok_or_else(|| {
            let (length, size) = (spec.content_length, spec.part_size);
            let message =
                format!("content_length {length} has more than {PARTS_MAX} parts of part_size {size}");
            Failure::refused(Reason::SizeLimitExceeded, message)
        })?;
        let status = match parts.missing() {
            0 => UploadStatus::UploadStaged,
            _ => UploadStatus::UploadCreated,
        };
        let state = State {
            status,
            updated_ns: now,
            parts,
            content: None,
            staged: false,
            whole_sha256: spec.whole_sha256,
            lanes: HashMap::new(),
            published: None,
            failure: None,
        };
        let (gate, stop) = (Arc::default(), AtomicBool::new(false));
        Ok(Self { spec, gate, stop, created_ns: now, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Whether its room has been taken: from then on it can be named.
    pub fn is_staged(&self) -> bool {
        self.state().staged
    }

    /// Whether nothing can change any more.
    pub fn has_ended(&self) -> bool {
        has_ended(self.state().status)
    }

    /// Whether it waits for somebody, and so may expire.
    pub fn is_waiting(&self) -> bool {
        let status = self.state().status;
        !has_ended(status) && status != UploadStatus::UploadCompleting
    }

    /// The end of the attempt to take its room. A failed one ends the upload.
    pub fn staged(&self, outcome: Result<File, Failure>) -> Result<(), Failure> {
        let mut state = self.state();
        match outcome {
            // Unless its time ran out over it.
            Ok(file) => {
                state.content = Some(Arc::new(file)).filter(|_| !has_ended(state.status));
                state.staged = true;
                Ok(())
            }
            Err(failure) => {
                // One that has ended has ended.
                let _ = state.happens(Event::Spoiled);
                state.failure = Some(failure.clone());
                Err(failure)
            }
        }
    }

    /// Takes up the writing of a part.
    pub fn write_part(
        self: &Arc<Self>,
        part: u32,
        permit: OwnedSemaphorePermit,
    ) -> Result<PartWriter, Failure> {
        let mut state = self.state();
        let missing = state.parts.missing();
        step(state.status, Event::Part { missing }).map_err(|denied| self.denial(&state, denied))?;
        let Some((offset, length)) = state.parts.range(part) else {
            let message = format!("there is no part {part}; the upload has {}", state.parts.count());
            return Err(Failure::refused(Reason::PartOutOfRange, message));
        };
        let place = (!state.parts.has(part)).then(|| {
            let lane = state.lanes.entry(part).or_default();
            lane.writers += 1;
            lane.newest += 1;
            Turn { ticket: lane.newest, turn: Arc::clone(&lane.turn) }
        });
        let upload = Arc::clone(self);
        Ok(PartWriter { upload, part, offset, length, written: 0, place, _permit: permit })
    }

    /// Begins to put it in place. `wanted`: the digest that this call knows.
    pub fn begin(&self, wanted: Option<Digest>) -> Result<Begun, Failure> {
        let mut state = self.state();
        if let (Some(known), Some(wanted)) = (state.whole_sha256, wanted)
            && known != wanted
        {
            let message = "whole_sha256 is another than the one that was announced before";
            return Err(Failure::refused(Reason::WholeChecksumMismatch, message));
        }
        if state.published.is_some() {
            return Ok(Begun::Already);
        }
        if self.stop.load(Ordering::Relaxed) && !has_ended(state.status) {
            return Err(staging::stopped());
        }
        let missing = state.parts.missing();
        state.happens(Event::Begin { missing }).map_err(|denied| self.denial(&state, denied))?;
        let content = state.content.clone();
        let content = content.ok_or_else(|| self.denial(&state, Denied::NotNow))?;
        Ok(Begun::Now(content, wanted.or(state.whole_sha256)))
    }

    /// The end of an attempt to put it in place. A failure whose cause may go away leaves it as it was
    /// before; content that is at fault ends it, and its room is free.
    pub fn finish(
        &self,
        outcome: Result<Published, Failure>,
        wanted: Option<Digest>,
    ) -> (Result<(), Failure>, Option<Arc<File>>) {
        let mut state = self.state();
        let (event, result) = match outcome {
            Ok(published) => {
                state.published = Some(published);
                state.whole_sha256 = wanted;
                (Event::Published, Ok(()))
            }
            Err(failure) if failure.is_final() => {
                state.failure = Some(failure.clone());
                (Event::Spoiled, Err(failure))
            }
            Err(failure) => (Event::PutBack, Err(failure)),
        };
        match state.happens(event) {
            Ok(content) => (result, content),
            Err(denied) => (Err(self.denial(&state, denied)), None),
        }
    }

    /// It is given up, by whoever holds the gate. What it held is returned, to be freed.
    pub fn abort(&self) -> Result<Option<Arc<File>>, Failure> {
        let mut state = self.state();
        state.happens(Event::Abort).map_err(|denied| self.denial(&state, denied))
    }

    /// Its time may be over. If it is, and this call ended it, that is told with what it held.
    pub fn expire(&self, now: i64) -> Option<Option<Arc<File>>> {
        if now < self.spec.expires_ns {
            return None;
        }
        self.state().happens(Event::Expire).ok()
    }

    /// As the protocol tells it.
    pub fn describe(&self) -> pb::Upload {
        let spec = &self.spec;
        let state = self.state();
        let reserved_bytes = if has_ended(state.status) { 0 } else { spec.content_length };
        pb::Upload {
            upload_id: spec.upload_id.clone(),
            kind: spec.kind.into(),
            target_path: spec.target.to_string_lossy().into_owned(),
            user: spec.user.clone(),
            content_length: spec.content_length,
            accepted_bytes: state.parts.accepted_bytes(),
            reserved_bytes,
            part_size: spec.part_size,
            part_count: state.parts.count(),
            next_part: state.parts.next(),
            status: state.status.into(),
            conflict: spec.conflict.into(),
            whole_sha256: state.whole_sha256.map_or_else(Bytes::new, |sha| Bytes::copy_from_slice(&sha)),
            created_ns: self.created_ns,
            updated_ns: state.updated_ns,
            expires_ns: spec.expires_ns,
            label: spec.label.clone(),
        }
    }

    /// What was put in place, or why nothing will be.
    pub fn outcome(&self) -> Result<pb::CompleteUploadReply, Failure> {
        let published = {
            let state = self.state();
            state.published.ok_or_else(|| self.denial(&state, Denied::Ended))?
        };
        Ok(pb::CompleteUploadReply {
            upload: Some(self.describe()),
            published_bytes: published.bytes,
            published_file_count: published.files,
        })
    }

    /// Why it could not be begun.
    pub fn failed(&self) -> Failure {
        self.denial(&self.state(), Denied::Ended)
    }

    fn denial(&self, state: &State, denied: Denied) -> Failure {
        let id = &self.spec.upload_id;
        match (denied, state.status) {
            (Denied::Missing(missing), _) => {
                let (count, next) = (state.parts.count(), state.parts.next().unwrap_or_default());
                let message = format!("{missing} of {count} parts are missing; the first is {next}");
                Failure::refused(Reason::MissingParts, message)
            }
            (Denied::Ended, UploadStatus::UploadCompleted) => {
                Failure::refused(Reason::UploadCompletedAlready, format!("upload {id} is completed"))
            }
            (Denied::Ended, UploadStatus::UploadAborted) => {
                Failure::refused(Reason::UploadAbortedAlready, format!("upload {id} was aborted"))
            }
            (Denied::Ended, UploadStatus::UploadExpired) => {
                Failure::refused(Reason::UploadExpiredAlready, format!("upload {id} has expired; begin anew"))
            }
            _ => state.failure.clone().unwrap_or_else(|| {
                Status::failed_precondition(format!("upload {id} is being put in place, or is not")).into()
            }),
        }
    }
}

impl State {
    /// What an end leaves to be freed is returned.
    fn happens(&mut self, event: Event) -> Result<Option<Arc<File>>, Denied> {
        let next = step(self.status, event)?;
        if next != self.status {
            self.status = next;
            self.updated_ns = now_ns();
        }
        if !has_ended(next) {
            return Ok(None);
        }
        self.parts.close();
        Ok(self.content.take())
    }
}

/// A part that is being written. Dropped before it is finished, it changes nothing.
pub struct PartWriter {
    upload: Arc<Upload>,
    part: u32,
    offset: u64,
    length: u64,
    written: u64,
    /// None where the part is there already: it is only measured then.
    place: Option<Turn>,
    _permit: OwnedSemaphorePermit,
}

struct Turn {
    ticket: u64,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl PartWriter {
    /// Writes what comes next of the part.
    pub async fn write(&mut self, pieces: Vec<Bytes>) -> Result<(), Failure> {
        let mut at = self.offset + self.written;
        self.written += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        if self.written > self.length {
            return Err(self.mismatch("more"));
        }
        let Some(place) = &self.place else { return Ok(()) };
        // It goes with the work: a call that is given up leaves its last piece under way.
        let turn = Arc::clone(&place.turn).lock_owned().await;
        let content = self.content(&self.upload.state(), place)?;
        let written = elsewhere(move || {
            let _turn = turn;
            pieces.iter().try_for_each(|piece| {
                content.write_all_at(piece, at)?;
                at += piece.len() as u64;
                Ok(())
            })
        });
        written.await?.map_err(|error| Failure::system(&error, &self.upload.spec.target))
    }

    /// All of it has come.
    pub fn finish(self) -> Result<pb::Upload, Failure> {
        if self.written < self.length {
            return Err(self.mismatch("less"));
        }
        if let Some(place) = &self.place {
            let mut state = self.upload.state();
            self.content(&state, place)?;
            state.parts.accept(self.part);
            let missing = state.parts.missing();
            state.happens(Event::Part { missing }).map_err(|denied| self.upload.denial(&state, denied))?;
            state.updated_ns = now_ns();
        }
        Ok(self.upload.describe())
    }

    /// The content, if it is still this writer's to change.
    fn content(&self, state: &State, place: &Turn) -> Result<Arc<File>, Failure> {
        let content = state.content.clone();
        let content = content.ok_or_else(|| self.upload.denial(state, Denied::Ended))?;
        if state.lanes.get(&self.part).is_none_or(|lane| lane.newest != place.ticket) {
            let message = format!("part {} is being sent by another call", self.part);
            return Err(Status::aborted(message).into());
        }
        Ok(content)
    }

    fn mismatch(&self, than: &str) -> Failure {
        let message = format!("part {} has {} bytes; {than} came", self.part, self.length);
        Failure::refused(Reason::PartSizeMismatch, message)
    }
}

impl Drop for PartWriter {
    fn drop(&mut self) {
        if self.place.is_none() {
            return;
        }
        let mut state = self.upload.state();
        if let Some(lane) = state.lanes.get_mut(&self.part) {
            lane.writers -= 1;
            if lane.writers == 0 {
                state.lanes.remove(&self.part);
            }
        }
    }
}

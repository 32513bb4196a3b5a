//! Streams of what is recorded about a process.
//!
//! A follower keeps a cursor into the record and a waker, no buffer: a slow or absent reader costs
//! nothing, and a process never waits for one.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use nullspace_guest_proto as pb;
use pb::run_event::Event;
use tokio_stream::Stream;
use tonic::Status;

use super::Process;
use super::output::{Channel, Cursor};

/// The events of a process, from its start or from given offsets.
pub struct Follow {
    process: Arc<Process>,
    cursor: Cursor,
    /// Bytes that may still be sent; none: no bound.
    left: Option<u64>,
    phase: Phase,
    /// When the call came that started the process, for the one who made it.
    arrived: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Start,
    Output,
    Cut,
    Over,
}

impl Follow {
    /// `inline_limit` as in `RunRequest`.
    pub fn new(process: Arc<Process>, cursor: Cursor, inline_limit: u64) -> Self {
        let left = (inline_limit > 0).then_some(inline_limit);
        Self { process, cursor, left, phase: Phase::Start, arrived: None }
    }

    /// For whoever started the process: the time until it learns of the end is counted too.
    pub fn of_starter(process: Arc<Process>, inline_limit: u64) -> Self {
        let arrived = Some(process.arrived);
        Self { arrived, ..Self::new(process, Cursor::default(), inline_limit) }
    }
}

/// What a call that starts a process answers with.
pub enum Events {
    /// All that happens.
    Follow(Follow),
    /// One event and no more.
    One(Option<Event>),
}

impl Stream for Events {
    type Item = Result<pb::RunEvent, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.get_mut() {
            Events::Follow(follow) => Pin::new(follow).poll_next(context),
            Events::One(one) => match one.take() {
                Some(one) => event(one),
                None => Poll::Ready(None),
            },
        }
    }
}

fn event(event: Event) -> Poll<Option<Result<pb::RunEvent, Status>>> {
    Poll::Ready(Some(Ok(pb::RunEvent { event: Some(event) })))
}

impl Stream for Follow {
    type Item = Result<pb::RunEvent, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        match this.phase {
            Phase::Start => {
                this.phase = Phase::Output;
                return event(Event::Started(pb::Started { pid: this.process.pid }));
            }
            Phase::Over => return Poll::Ready(None),
            Phase::Output | Phase::Cut => {}
        }
        let mut state = this.process.state();
        if this.phase == Phase::Output {
            // With nothing left, one byte is looked for: only if there is more is it a cut.
            let mut ahead = this.cursor.clone();
            let limit =
                this.left.map_or(pb::CHUNK_BYTES as u64, |left| left.clamp(1, pb::CHUNK_BYTES as u64));
            match state.output.next(&mut ahead, limit as usize) {
                Ok(Some(_)) if this.left == Some(0) => {
                    this.phase = Phase::Cut;
                    return event(Event::OutputCut(pb::OutputCut {}));
                }
                Ok(Some((channel, data))) => {
                    this.cursor = ahead;
                    this.left = this.left.map(|left| left - data.len() as u64);
                    let stream = match channel {
                        Channel::Stdout => pb::Stream::Stdout,
                        Channel::Stderr => pb::Stream::Stderr,
                    };
                    return event(Event::Output(pb::Output { stream: stream.into(), data }));
                }
                Ok(None) => this.cursor = ahead,
                Err(error) => {
                    this.phase = Phase::Over;
                    return Poll::Ready(Some(Err(unreadable(this.process.pid, &error))));
                }
            }
        }
        if let Some(exit) = state.exit {
            this.phase = Phase::Over;
            return event(Event::Exited(pb::Exited {
                exit_code: exit.code,
                timed_out: exit.timed_out,
                duration_us: this.arrived.map_or(exit.duration, |since| since.elapsed()).as_micros() as u64,
                stdout_bytes: exit.stdout_bytes,
                stderr_bytes: exit.stderr_bytes,
            }));
        }
        if !state.followers.iter().any(|waker| waker.will_wake(context.waker())) {
            state.followers.push(context.waker().clone());
        }
        Poll::Pending
    }
}

/// One stream's recorded bytes, or both in order, as far as there are any when it is made.
pub struct Record {
    process: Arc<Process>,
    view: View,
    /// Bytes to pass over, and then to send.
    skip: u64,
    left: u64,
}

enum View {
    One(Channel, u64),
    Both(Cursor),
}

impl Record {
    /// From `offset` of that stream on.
    pub fn new(process: Arc<Process>, stream: pb::Stream, offset: u64) -> Result<Self, Status> {
        let (view, len) = {
            let state = process.state();
            let len = |channel| state.output.len(channel);
            match stream {
                pb::Stream::Stdout => (View::One(Channel::Stdout, offset), len(Channel::Stdout)),
                pb::Stream::Stderr => (View::One(Channel::Stderr, offset), len(Channel::Stderr)),
                pb::Stream::Interleaved => {
                    (View::Both(Cursor::default()), len(Channel::Stdout) + len(Channel::Stderr))
                }
                pb::Stream::Unspecified => return Err(Status::invalid_argument("stream is not set")),
            }
        };
        let skip = if matches!(view, View::Both(_)) { offset } else { 0 };
        Ok(Self { process, view, skip, left: len.saturating_sub(offset) })
    }
}

impl Stream for Record {
    type Item = Result<pb::LogChunk, Status>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let state = this.process.state();
        while this.left > 0 {
            let wanted = if this.skip > 0 { this.skip } else { this.left };
            let limit = wanted.min(pb::CHUNK_BYTES as u64) as usize;
            let data = match &mut this.view {
                View::One(channel, offset) => state.output.read(*channel, *offset, limit).inspect(|data| {
                    *offset += data.len() as u64;
                }),
                View::Both(cursor) => state
                    .output
                    .next(cursor, limit)
                    .map(|next| next.map(|(_, data)| data).unwrap_or_default()),
            };
            match data {
                Ok(data) if data.is_empty() => break,
                Ok(data) if this.skip > 0 => this.skip -= data.len() as u64,
                Ok(data) => {
                    this.left -= data.len() as u64;
                    return Poll::Ready(Some(Ok(pb::LogChunk { data })));
                }
                Err(error) => {
                    this.left = 0;
                    return Poll::Ready(Some(Err(unreadable(this.process.pid, &error))));
                }
            }
        }
        Poll::Ready(None)
    }
}

fn unreadable(pid: u32, error: &std::io::Error) -> Status {
    Status::internal(format!("the log of process {pid} cannot be read: {error}"))
}

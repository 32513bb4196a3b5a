//! Streams of what is recorded about a process.
//!
//! A follower keeps a cursor into the record and a waker, no buffer: a slow or absent reader costs
//! nothing. A process waits only for one that asked for it, which has a place in `pace` as long as it
//! lives, and which finds there what the record has no room for.
//!
//! Output ends where the process's own did: what descendants write later is in the log alone.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use nullspace_guest_proto as pb;
use pb::run_event::Event;
use tokio_stream::Stream;
use tonic::Status;

use super::output::{Channel, Cursor};
use super::{Process, State};

/// The events of a process, from its start or from given offsets.
pub struct Follow {
    process: Arc<Process>,
    cursor: Cursor,
    /// Bytes that may still be sent; none: no bound.
    left: Option<u64>,
    phase: Phase,
    /// When the call came that started the process, for the one who made it.
    arrived: Option<Instant>,
    /// Its number among those that the process waits for, if it is one of them.
    paced: Option<u64>,
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
    pub fn new(process: Arc<Process>, cursor: Cursor, inline_limit: u64, paced: bool) -> Self {
        let left = (inline_limit > 0).then_some(inline_limit);
        let paced = {
            let mut state = process.state();
            // Once the log was cut, or is complete, it is all there is.
            let joins = paced && state.exit.is_none() && state.output.cut_at().is_none();
            joins.then(|| state.pace.join())
        };
        Self { process, cursor, left, phase: Phase::Start, arrived: None, paced }
    }

    /// For whoever started the process: the time until it learns of the end is counted too.
    pub fn of_starter(process: Arc<Process>, inline_limit: u64, paced: bool) -> Self {
        let mut follow = Self::new(process, Cursor::default(), inline_limit, paced);
        follow.arrived = Some(follow.process.arrived);
        follow
    }

    /// The process that is followed.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The next output, at most `limit` bytes.
    fn next(&self, state: &State, ahead: &mut Cursor, limit: u64) -> io::Result<Option<(Channel, Bytes)>> {
        let end = match (state.exit, self.paced) {
            (None, _) => u64::MAX,
            (Some(_), Some(_)) => state.pace.came(),
            (Some(exit), None) => exit.stdout_bytes + exit.stderr_bytes,
        };
        loop {
            let passed = ahead.passed();
            // Where the log ends for one who was there before it was cut, and has no need of its mark.
            let cut = state.output.cut_at().filter(|_| self.paced.is_some());
            let limit = limit.min(end.saturating_sub(passed));
            match cut {
                _ if limit == 0 => return Ok(None),
                Some(cut) if passed >= cut => {
                    let Some((channel, data)) = state.pace.next(passed, limit as usize) else {
                        return Ok(None);
                    };
                    let data = ahead.take(channel, data);
                    if !data.is_empty() {
                        return Ok(Some((channel, data)));
                    }
                }
                Some(cut) => {
                    let next = state.output.next(ahead, limit.min(cut - passed) as usize)?;
                    if next.is_some() || ahead.passed() < cut {
                        return Ok(next);
                    }
                }
                None => return state.output.next(ahead, limit as usize),
            }
        }
    }

    /// Lets the process go on, as far as it waited for this one.
    fn release(&mut self, state: &mut State) {
        if let Some(number) = self.paced.take() {
            state.pace.leave(number);
            self.process.moved.notify_one();
        }
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
        let process = Arc::clone(&this.process);
        let mut state = process.state();
        if this.phase == Phase::Output {
            // With nothing left, one byte is looked for: only if there is more is it a cut.
            let mut ahead = this.cursor.clone();
            let limit =
                this.left.map_or(pb::CHUNK_BYTES as u64, |left| left.clamp(1, pb::CHUNK_BYTES as u64));
            match this.next(&state, &mut ahead, limit) {
                Ok(Some(_)) if this.left == Some(0) => {
                    this.phase = Phase::Cut;
                    this.release(&mut state);
                    return event(Event::OutputCut(pb::OutputCut {}));
                }
                Ok(next) => {
                    this.cursor = ahead;
                    if let Some(number) = this.paced {
                        let held = state.pace.holds();
                        state.pace.advance(number, this.cursor.passed());
                        if held && !state.pace.holds() {
                            process.moved.notify_one();
                        }
                    }
                    if let Some((channel, data)) = next {
                        this.left = this.left.map(|left| left - data.len() as u64);
                        let stream = match channel {
                            Channel::Stdout => pb::Stream::Stdout,
                            Channel::Stderr => pb::Stream::Stderr,
                        };
                        return event(Event::Output(pb::Output { stream: stream.into(), data }));
                    }
                }
                Err(error) => {
                    this.phase = Phase::Over;
                    this.release(&mut state);
                    return Poll::Ready(Some(Err(unreadable(process.pid, &error))));
                }
            }
        }
        if let Some(exit) = state.exit {
            this.phase = Phase::Over;
            this.release(&mut state);
            return event(Event::Exited(pb::Exited {
                exit_code: exit.code,
                timed_out: exit.timed_out,
                duration_us: this.arrived.map_or(exit.duration, |since| since.elapsed()).as_micros() as u64,
                stdout_bytes: exit.stdout_bytes,
                stderr_bytes: exit.stderr_bytes,
            }));
        }
        state.wake_later(context.waker());
        Poll::Pending
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        if self.paced.is_some() {
            let process = Arc::clone(&self.process);
            let mut state = process.state();
            self.release(&mut state);
        }
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::children::Children;
    use super::super::output::{Output, Plan};
    use super::super::pace::WINDOW_BYTES;
    use super::*;

    /// A process with a small log, as its task writes it.
    struct Written {
        process: Arc<Process>,
        directory: tempfile::TempDir,
    }

    impl Written {
        fn new(limit: u64) -> Self {
            let leader = Children::default().begin().child(1).leader;
            let process = Process::for_test(leader, Output::new(limit));
            Self { process: Arc::new(process), directory: tempfile::tempdir().unwrap() }
        }

        fn path(&self) -> &Path {
            self.directory.path()
        }

        fn write(&self, channel: Channel, data: &[u8]) {
            let mut state = self.process.state();
            match state.output.plan(channel, data.len(), self.path()) {
                Plan::Commit => state.commit(channel, data, self.path()),
                Plan::Write(place) => {
                    place.write(data).unwrap();
                    state.commit(channel, data, self.path());
                }
                Plan::LeaveOut => state.leave_out(channel, data),
            }
        }

        fn follow(&self, paced: bool) -> Follow {
            Follow::new(Arc::clone(&self.process), Cursor::default(), 0, paced)
        }
    }

    /// All output there is now, and whether the end has come.
    fn read(follow: &mut Follow) -> (Vec<u8>, bool) {
        let (mut all, mut exited) = (Vec::new(), false);
        let mut context = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(Some(event)) = Pin::new(&mut *follow).poll_next(&mut context) {
            assert!(!exited, "nothing follows the end");
            match event.unwrap().event.unwrap() {
                Event::Output(output) => all.extend_from_slice(&output.data),
                Event::Exited(_) => exited = true,
                _ => {}
            }
        }
        (all, exited)
    }

    #[test]
    fn a_follower_that_is_waited_for_gets_every_byte_beyond_the_log_and_a_later_one_the_mark() {
        let written = Written::new(200_000);
        let (mut early, mut slow) = (written.follow(true), written.follow(true));
        let (mut sent, mut seen) = (Vec::new(), Vec::new());
        for round in 0..4000_u32 {
            let data: Vec<u8> = (0..300).map(|n| (round * 7 + n) as u8).collect();
            written.write(if round % 5 == 0 { Channel::Stderr } else { Channel::Stdout }, &data);
            sent.extend(data);
            if round % 100 == 0 {
                seen.extend(read(&mut early).0);
            }
        }
        let cut = written.process.state().output.cut_at().unwrap() as usize;
        assert!(cut < 200_000);
        assert!(written.process.state().pace.holds(), "{} is more than the window", sent.len());
        let mut late = written.follow(true);
        seen.extend(read(&mut early).0);
        assert!(seen == sent);
        assert!(written.process.state().pace.holds(), "the slowest counts");
        written.process.finish(0, false, written.path());
        written.write(Channel::Stdout, b"of a descendant");
        assert!(read(&mut slow) == (sent.clone(), true));
        assert!(read(&mut early) == (Vec::new(), true));
        let (log, ended) = read(&mut late);
        let mark = format!("\n[nullspace: output cut here, {} bytes left out]\n", sent.len() - cut);
        assert!(ended && log[..cut] == sent[..cut] && log.ends_with(mark.as_bytes()));
    }

    #[test]
    fn a_follower_that_is_gone_or_wants_no_more_holds_nothing_back() {
        let written = Written::new(u64::MAX);
        let holds = || written.process.state().pace.holds();
        let follow = written.follow(true);
        written.write(Channel::Stdout, &vec![b'x'; WINDOW_BYTES as usize]);
        assert!(holds());
        drop(follow);
        assert!(!holds());
        let mut follow = Follow::of_starter(Arc::clone(&written.process), 10, true);
        assert!(holds());
        assert_eq!(read(&mut follow), (vec![b'x'; 10], false));
        written.write(Channel::Stdout, &vec![b'x'; WINDOW_BYTES as usize]);
        assert!(!holds(), "after its cut it is no reader");
    }
}

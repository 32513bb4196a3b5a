//! What a viewer of a session sees: the screen as it is, and then what comes.
//!
//! A viewer keeps its place in what the program wrote, by which it holds the program back. Without a place,
//! at first and after it was left behind, it is shown the screen.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use nullspace_guest_proto as pb;
use pb::terminal_event::Event;
use tokio_stream::Stream;
use tonic::Status;

use super::{Session, Shows};

/// See the module.
pub struct Viewer {
    session: Arc<Session>,
    /// Its number among the readers of what is written.
    place: Option<u64>,
    /// Of a screen, what has still to be sent.
    drawing: Bytes,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Start,
    Output,
    Over,
}

impl Viewer {
    pub fn new(session: Arc<Session>) -> Self {
        Self { session, place: None, drawing: Bytes::new(), phase: Phase::Start }
    }
}

fn event(event: Event) -> Poll<Option<Result<pb::TerminalEvent, Status>>> {
    Poll::Ready(Some(Ok(pb::TerminalEvent { event: Some(event) })))
}

impl Stream for Viewer {
    type Item = Result<pb::TerminalEvent, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        match this.phase {
            Phase::Start => {
                this.phase = Phase::Output;
                return event(Event::Terminal(this.session.info()));
            }
            Phase::Over => return Poll::Ready(None),
            Phase::Output => {}
        }
        let mut state = this.session.state();
        let state = &mut *state;
        let place = this.place.and_then(|number| Some((number, state.window.position(number)?)));
        let (number, at) = place.unwrap_or_else(|| {
            this.drawing = match &state.shows {
                Shows::Running { screen, .. } => screen.redraw(),
                Shows::Ended { last, .. } => last.clone(),
            };
            let end = state.window.end();
            let number = state.window.join(end);
            this.place = Some(number);
            (number, end)
        });
        let data = if this.drawing.is_empty() {
            state.window.read(at, pb::CHUNK_BYTES)
        } else {
            let len = this.drawing.len().min(pb::CHUNK_BYTES);
            state.window.advance(number, at);
            return event(Event::Output(this.drawing.split_to(len)));
        };
        if !data.is_empty() {
            state.window.advance(number, at + data.len() as u64);
            this.session.moved.notify_one();
            return event(Event::Output(data));
        }
        if let Shows::Ended { exit, .. } = &state.shows {
            this.phase = Phase::Over;
            return event(Event::Exited(pb::Exited {
                exit_code: exit.code,
                duration_us: exit.duration.as_micros() as u64,
                ..Default::default()
            }));
        }
        if !state.viewers.iter().any(|waker| waker.will_wake(context.waker())) {
            state.viewers.push(context.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        if let Some(number) = self.place {
            self.session.state().window.leave(number);
            self.session.moved.notify_one();
        }
    }
}

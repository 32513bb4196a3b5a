//! One WebSocket (RFC 6455), whatever is spoken on it: its frames, its bounds, and its end.
//!
//! Nothing is queued here: a frame is made when the one before it has gone. A client that does not read
//! holds back whoever makes the frames, and what it sends is still heard meanwhile. It is dropped when since
//! the last but one ping it has neither said anything nor taken anything: a slow one is not, a dead one is.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use bytes::Bytes;
use futures::future::{Fuse, FusedFuture};
use futures::stream::{SplitSink, SplitStream};
use futures::{FutureExt, SinkExt, StreamExt};
use nullspace_types::Error;
use nullspace_types::socket::ClientFrame;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::request::{Request, parse};

/// Most bytes of a client's frame. Those of the server stay below.
pub(super) const FRAME: usize = 1 << 20;
/// A frame somewhat larger is read to its end, so that its refusal arrives.
const READ: usize = 4 * FRAME;
const PING: Duration = Duration::from_secs(15);
/// How many pings may remain without a sign of life.
const PINGS: u32 = 2;
/// How long a client may take over the last frames; what lies in the network before them takes its time.
const SILENCE: Duration = Duration::from_secs(45);
/// How long the answer to a client's goodbye may take.
const GOODBYE: Duration = Duration::from_secs(5);
/// Answers that wait while a frame is on its way.
const ANSWERS: usize = 8;
/// Frames of a client that wait while what an earlier one asks for is done, and the bytes of their data
/// from which on no more are heard.
const WAITING: usize = 64;
const WAITING_BYTES: usize = FRAME;

/// Requests that wait for an answer on a socket where each replaces the one before.
pub(super) const REQUESTS: usize = 8;

/// Sets the bounds of a socket that is about to be opened.
pub(super) fn bounded(upgrade: WebSocketUpgrade) -> WebSocketUpgrade {
    upgrade.max_message_size(READ).max_frame_size(READ)
}

/// How a socket ends.
pub(super) enum Ending<R: Request = ClientFrame> {
    /// In order, after a last frame if there is one.
    Close(u16, Option<R::Frame>),
    /// The client said goodbye.
    Left,
    /// The client is gone without a word.
    Gone,
}

impl<R: Request> Ending<R> {
    /// Everything was said.
    pub fn done() -> Self {
        Self::Close(close_code::NORMAL, None)
    }

    /// With an error as the last frame.
    pub fn refused(id: Option<String>, error: Error) -> Self {
        Self::Close(close_code::NORMAL, Some(R::told(id, error)))
    }
}

/// A socket on which clients say `R`.
pub(super) struct Connection<R: Request = ClientFrame> {
    outgoing: Outgoing,
    incoming: Incoming<R>,
}

/// Pings since the client last gave a sign of life. Counted, not timed: while it is not listened to, its
/// silence says nothing.
#[derive(Default)]
struct Life(AtomicU32);

impl Life {
    fn sign(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Counts a ping; false if there were enough.
    fn ping(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) < PINGS
    }
}

/// The side that sends.
pub(super) struct Outgoing {
    sink: SplitSink<WebSocket, Message>,
    life: Arc<Life>,
    answers: mpsc::Receiver<Message>,
}

/// The side that hears, and may answer.
pub(super) struct Incoming<R: Request = ClientFrame> {
    stream: SplitStream<WebSocket>,
    life: Arc<Life>,
    answers: mpsc::Sender<Message>,
    ping: tokio::time::Interval,
    said: PhantomData<fn() -> R>,
}

impl<R: Request> Connection<R> {
    pub fn new(socket: WebSocket) -> Self {
        let (sink, stream) = socket.split();
        let (send, receive) = mpsc::channel(ANSWERS);
        let life = Arc::new(Life::default());
        let mut ping = tokio::time::interval_at(Instant::now() + PING, PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            outgoing: Outgoing { sink, life: life.clone(), answers: receive },
            incoming: Incoming { stream, life, answers: send, ping, said: PhantomData },
        }
    }

    /// The first frame; one that makes no sense is the end.
    pub async fn first(&mut self) -> Result<R, Ending<R>> {
        self.incoming.hear().await?.map_err(|refusal| Ending::Close(close_code::NORMAL, Some(refusal)))
    }

    /// Both sides, to be used at once.
    pub fn sides(&mut self) -> (&mut Outgoing, &mut Incoming<R>) {
        (&mut self.outgoing, &mut self.incoming)
    }

    /// Says the last, and waits for the other side's goodbye. A connection that were dropped before would be
    /// reset, and the reset may overtake the last frames.
    pub async fn end(mut self, ending: Ending<R>) {
        let (code, last) = match ending {
            Ending::Close(code, last) => (code, last),
            Ending::Left => {
                // Its goodbye is answered by itself, once what waits is sent.
                _ = tokio::time::timeout(GOODBYE, self.outgoing.sink.close()).await;
                return;
            }
            Ending::Gone => return,
        };
        let close = Message::Close(Some(CloseFrame { code, reason: Utf8Bytes::default() }));
        for message in last.map(|frame| Message::Text(encoded(&frame))).into_iter().chain([close]) {
            match tokio::time::timeout(SILENCE, self.outgoing.message(message)).await {
                Ok(Ok(())) => {}
                Ok(Err(Gone)) | Err(_) => return,
            }
        }
        // A slow client has much to read before it answers. Whether it does makes no difference any more.
        while let Ok(Some(Ok(_))) = tokio::time::timeout(SILENCE, self.incoming.stream.next()).await {}
    }
}

/// Nobody is there any more.
pub(super) struct Gone;

impl Outgoing {
    /// Sends a frame; waits as long as the client takes nothing.
    pub async fn send(&mut self, frame: &impl Serialize) -> Result<(), Gone> {
        self.text(encoded(frame)).await
    }

    /// The same, of a frame that is text already.
    pub async fn text(&mut self, text: Utf8Bytes) -> Result<(), Gone> {
        self.message(Message::Text(text)).await
    }

    async fn message(&mut self, message: Message) -> Result<(), Gone> {
        // The network takes a ping for a client that is dead.
        let ping = matches!(message, Message::Ping(_));
        self.sink.send(message).await.map_err(|_| Gone)?;
        if !ping {
            self.life.sign();
        }
        Ok(())
    }

    /// Sends answers as they come, until `next` has something.
    pub async fn until<T>(&mut self, next: impl Future<Output = T>) -> Result<T, Gone> {
        let mut next = std::pin::pin!(next);
        loop {
            tokio::select! {
                biased;
                answer = self.answers.recv() => match answer {
                    Some(message) => self.message(message).await?,
                    None => return Err(Gone),
                },
                done = &mut next => return Ok(done),
            }
        }
    }
}

/// A frame as text.
pub(super) fn encoded(frame: &impl Serialize) -> Utf8Bytes {
    serde_json::to_string(frame).expect("texts and numbers are always JSON").into()
}

impl<R: Request> Incoming<R> {
    /// The next frame. One that makes no sense is given back as what is to be told about it.
    pub async fn hear(&mut self) -> Result<Result<R, R::Frame>, Ending<R>> {
        loop {
            let message = tokio::select! {
                biased;
                message = self.stream.next() => message,
                _ = self.ping.tick() => {
                    if !self.life.ping() {
                        tracing::debug!("a socket's client is silent and takes nothing");
                        return Err(Ending::Gone);
                    }
                    // If the answers wait already, the client has enough to take.
                    _ = self.answers.try_send(Message::Ping(Bytes::new()));
                    continue;
                }
            };
            self.life.sign();
            match message {
                Some(Ok(Message::Text(text))) => return parse(text.as_bytes()),
                Some(Ok(Message::Binary(bytes))) => return parse(&bytes),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) => return Err(Ending::Left),
                Some(Err(_)) | None => return Err(Ending::Gone),
            }
        }
    }

    /// Answers; waits while the client takes nothing, though not for ever.
    pub async fn answer(&self, frame: &R::Frame) -> Result<(), Ending<R>> {
        let answer = self.answers.send(Message::Text(encoded(frame)));
        match tokio::time::timeout(SILENCE, answer).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Ending::Gone),
        }
    }

    /// Hears the client to its end and passes on what it says. Nonsense is the end, and so is more than is
    /// answered: who does not read is to be pinged, and not to be waited for.
    pub async fn pass_on(&mut self, first: R, to: mpsc::Sender<R>) -> Ending<R> {
        let mut request = first;
        loop {
            let id = request.id().map(str::to_owned);
            if to.try_send(request).is_err() {
                let message = format!("{REQUESTS} frames wait for their answers: read these first");
                return Ending::refused(id, Error::invalid(message));
            }
            request = match self.hear().await {
                Ok(Ok(next)) => next,
                Ok(Err(refusal)) => return Ending::Close(close_code::NORMAL, Some(refusal)),
                Err(ending) => return ending,
            };
        }
    }

    /// Hears the client to its end and does what it asks for, one thing after the other: what is written
    /// waits for its reader, which may be long. The client is heard meanwhile, and what is `urgent` is done
    /// at once.
    pub async fn serve<F>(&mut self, urgent: impl Fn(&R) -> bool, act: impl Fn(R) -> F) -> Ending<R>
    where
        F: Future<Output = Result<(), R::Frame>>,
    {
        let mut waiting: VecDeque<R> = VecDeque::new();
        let mut waiting_bytes = 0;
        let mut doing = pin!(Fuse::terminated());
        let ending = loop {
            let room = waiting.len() < WAITING && waiting_bytes < WAITING_BYTES;
            let done = tokio::select! {
                biased;
                done = doing.as_mut(), if !doing.is_terminated() => {
                    if let Some(frame) = waiting.pop_front() {
                        waiting_bytes -= frame.data_bytes();
                        doing.set(act(frame).fuse());
                    }
                    done
                }
                heard = self.hear(), if room => match heard {
                    Ok(Ok(frame)) if urgent(&frame) => act(frame).await,
                    Ok(Ok(frame)) if doing.is_terminated() => {
                        doing.set(act(frame).fuse());
                        Ok(())
                    }
                    Ok(Ok(frame)) => {
                        waiting_bytes += frame.data_bytes();
                        waiting.push_back(frame);
                        Ok(())
                    }
                    Ok(Err(refusal)) => Err(refusal),
                    Err(ending) => break ending,
                },
            };
            if let Err(refusal) = done
                && let Err(ending) = self.answer(&refusal).await
            {
                return ending;
            }
        };
        if let Ending::Left = ending {
            // What a client said before its goodbye is done, though nobody hears what comes of it.
            let rest = async {
                if !doing.is_terminated() {
                    _ = doing.await;
                }
                for frame in waiting {
                    _ = act(frame).await;
                }
            };
            _ = tokio::time::timeout(SILENCE, rest).await;
        }
        ending
    }
}

//! One WebSocket (RFC 6455): its frames, its bounds, and its end.
//!
//! Nothing is queued here: a frame is made when the one before it has gone. A client that does not read
//! holds back whoever makes the frames, and what it sends is still heard meanwhile. It is dropped when since
//! the last but one ping it has neither said anything nor taken anything: a slow one is not, a dead one is.

use std::collections::VecDeque;
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
use nullspace_types::socket::{ClientFrame, ServerFrame};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::told;

/// Most bytes of a client's frame.
const FRAME: usize = 1 << 20;
/// A frame somewhat larger is read to its end, so that its refusal arrives.
const READ: usize = 4 * FRAME;
/// Most bytes of a client's ID: it stands in every frame of the answer.
const ID: usize = 256;
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

/// Sets the bounds of a socket that is about to be opened.
pub(super) fn bounded(upgrade: WebSocketUpgrade) -> WebSocketUpgrade {
    upgrade.max_message_size(READ).max_frame_size(READ)
}

/// How a socket ends.
pub(super) enum Ending {
    /// In order, after a last frame if there is one.
    Close(u16, Option<ServerFrame>),
    /// The client said goodbye.
    Left,
    /// The client is gone without a word.
    Gone,
}

impl Ending {
    /// Everything was said.
    pub fn done() -> Self {
        Self::Close(close_code::NORMAL, None)
    }

    /// With an error as the last frame.
    pub fn refused(id: Option<String>, error: Error) -> Self {
        Self::Close(close_code::NORMAL, Some(told(id, error)))
    }
}

/// A socket.
pub(super) struct Connection {
    outgoing: Outgoing,
    incoming: Incoming,
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
pub(super) struct Incoming {
    stream: SplitStream<WebSocket>,
    life: Arc<Life>,
    answers: mpsc::Sender<Message>,
    ping: tokio::time::Interval,
}

impl Connection {
    pub fn new(socket: WebSocket) -> Self {
        let (sink, stream) = socket.split();
        let (send, receive) = mpsc::channel(ANSWERS);
        let life = Arc::new(Life::default());
        let mut ping = tokio::time::interval_at(Instant::now() + PING, PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            outgoing: Outgoing { sink, life: life.clone(), answers: receive },
            incoming: Incoming { stream, life, answers: send, ping },
        }
    }

    /// The first frame; one that makes no sense is the end.
    pub async fn first(&mut self) -> Result<ClientFrame, Ending> {
        self.incoming.hear().await?.map_err(|refusal| Ending::Close(close_code::NORMAL, Some(refusal)))
    }

    /// Both sides, to be used at once.
    pub fn sides(&mut self) -> (&mut Outgoing, &mut Incoming) {
        (&mut self.outgoing, &mut self.incoming)
    }

    /// Says the last, and waits for the other side's goodbye. A connection that were dropped before would be
    /// reset, and the reset may overtake the last frames.
    pub async fn end(mut self, ending: Ending) {
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
    pub async fn send(&mut self, frame: &ServerFrame) -> Result<(), Gone> {
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
pub(super) fn encoded(frame: &ServerFrame) -> Utf8Bytes {
    serde_json::to_string(frame).expect("texts and numbers are always JSON").into()
}

impl Incoming {
    /// The next frame. One that makes no sense is given back as what is to be told about it.
    pub async fn hear(&mut self) -> Result<Result<ClientFrame, ServerFrame>, Ending> {
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
    pub async fn answer(&self, frame: &ServerFrame) -> Result<(), Ending> {
        let answer = self.answers.send(Message::Text(encoded(frame)));
        match tokio::time::timeout(SILENCE, answer).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Ending::Gone),
        }
    }

    /// Hears the client to its end and does what it asks for, one thing after the other: what is written
    /// waits for its reader, which may be long. The client is heard meanwhile, and what is `urgent` is done
    /// at once.
    pub async fn serve<F>(
        &mut self,
        urgent: impl Fn(&ClientFrame) -> bool,
        act: impl Fn(ClientFrame) -> F,
    ) -> Ending
    where
        F: Future<Output = Result<(), ServerFrame>>,
    {
        let mut waiting = VecDeque::new();
        let mut waiting_bytes = 0;
        let mut doing = pin!(Fuse::terminated());
        let ending = loop {
            let room = waiting.len() < WAITING && waiting_bytes < WAITING_BYTES;
            let done = tokio::select! {
                biased;
                done = doing.as_mut(), if !doing.is_terminated() => {
                    if let Some(frame) = waiting.pop_front() {
                        waiting_bytes -= data_bytes(&frame);
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
                        waiting_bytes += data_bytes(&frame);
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

/// What a frame holds beside its names and numbers.
fn data_bytes(frame: &ClientFrame) -> usize {
    match frame {
        ClientFrame::ExecStdin { data, .. } => data.len(),
        ClientFrame::PtyInput { data, data_base64, .. } => {
            [data, data_base64].into_iter().flatten().map(String::len).sum()
        }
        ClientFrame::ExecStdinClose { .. }
        | ClientFrame::ExecKill { .. }
        | ClientFrame::PtyResize { .. }
        | ClientFrame::PtyKill { .. } => 0,
        // They are refused, and may be as large as a frame.
        ClientFrame::ExecStart { .. }
        | ClientFrame::ExecConnect { .. }
        | ClientFrame::PtyStart { .. }
        | ClientFrame::PtyConnect { .. }
        | ClientFrame::FileWatch { .. } => FRAME,
    }
}

/// The ID that a client gave a frame.
fn id_of(frame: &ClientFrame) -> &str {
    match frame {
        ClientFrame::ExecStart { id, .. }
        | ClientFrame::ExecConnect { id, .. }
        | ClientFrame::ExecStdin { id, .. }
        | ClientFrame::ExecStdinClose { id, .. }
        | ClientFrame::ExecKill { id, .. }
        | ClientFrame::PtyStart { id, .. }
        | ClientFrame::PtyConnect { id, .. }
        | ClientFrame::PtyInput { id, .. }
        | ClientFrame::PtyResize { id, .. }
        | ClientFrame::PtyKill { id, .. }
        | ClientFrame::FileWatch { id, .. } => id,
    }
}

/// What names the frame in an answer, if anything does.
#[derive(Deserialize)]
struct Named {
    id: Option<String>,
}

fn parse(text: &[u8]) -> Result<Result<ClientFrame, ServerFrame>, Ending> {
    if text.len() > FRAME {
        let message = format!("a frame has at most {FRAME} bytes, this one has {}", text.len());
        return Err(Ending::Close(close_code::SIZE, Some(told(None, Error::invalid(message)))));
    }
    Ok(match serde_json::from_slice::<ClientFrame>(text) {
        Ok(frame) if id_of(&frame).len() > ID => {
            let length = id_of(&frame).len();
            let message = format!("invalid message: id has at most {ID} bytes, this one has {length}");
            Err(told(None, Error::invalid(message)))
        }
        Ok(frame) => Ok(frame),
        Err(error) => {
            let named = serde_json::from_slice::<Named>(text).ok().and_then(|named| named.id);
            let id = named.filter(|id| id.len() <= ID);
            Err(told(id, Error::invalid(format!("invalid message: {error}"))))
        }
    })
}

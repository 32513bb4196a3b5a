//! Bytes both ways between two streams: upgraded connections and raw ones.
//!
//! Each direction ends by itself, and its end is passed on, so that half-open connections stay so. Nothing is
//! read before what was read is written, which is all the back-pressure there is; and memory is held only for
//! what the other side would not take at once, so that an idle tunnel has no buffers.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use crate::exchange::{Exchange, leash, tie};

/// Most bytes that one direction holds.
const PIECE: usize = 16 * 1024;

/// Copies until both directions have ended, one of them fails, or the exchange must end.
pub(crate) async fn tunnel(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut guest: impl AsyncRead + AsyncWrite + Unpin,
    exchange: Arc<Exchange>,
    cut: CancellationToken,
) {
    let (mut inwards, mut outwards) = (Way::default(), Way::default());
    let mut tied = false;
    let copied = leash(
        cut,
        poll_fn(|cx| {
            if !tied {
                tie(&exchange);
                tied = true;
            }
            let (client, guest) = (Pin::new(&mut client), Pin::new(&mut guest));
            both(cx, client, guest, &mut inwards, &mut outwards, &exchange)
        }),
    )
    .await;
    match copied {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::debug!(%error, "a tunnel broke"),
        None => tracing::debug!("a tunnel was cut"),
    }
}

fn both<A: AsyncRead + AsyncWrite, B: AsyncRead + AsyncWrite>(
    cx: &mut Context<'_>,
    mut client: Pin<&mut A>,
    mut guest: Pin<&mut B>,
    inwards: &mut Way,
    outwards: &mut Way,
    exchange: &Exchange,
) -> Poll<io::Result<()>> {
    let there = inwards.poll(cx, client.as_mut(), guest.as_mut(), |bytes| exchange.passed_in(bytes))?;
    let back = outwards.poll(cx, guest, client, |bytes| exchange.passed_out(bytes))?;
    if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
}

/// How far a direction is.
#[derive(Default, Clone, Copy)]
enum Stage {
    #[default]
    Flows,
    Closes,
    Closed,
}

/// One direction.
#[derive(Default)]
struct Way {
    stage: Stage,
    /// What was read and could not be written.
    left: Bytes,
    /// Whether something may be held back by the writer.
    unflushed: bool,
}

impl Way {
    fn poll<R: AsyncRead, W: AsyncWrite>(
        &mut self,
        cx: &mut Context<'_>,
        mut from: Pin<&mut R>,
        mut to: Pin<&mut W>,
        passed: impl Fn(usize),
    ) -> Poll<io::Result<()>> {
        loop {
            match self.stage {
                Stage::Flows => {
                    while !self.left.is_empty() {
                        let written = ready!(to.as_mut().poll_write(cx, &self.left))?;
                        if written == 0 {
                            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                        }
                        self.left.advance(written);
                        self.unflushed = true;
                    }
                    self.left = Bytes::new();
                    let mut piece = [MaybeUninit::uninit(); PIECE];
                    let mut piece = ReadBuf::uninit(&mut piece);
                    if from.as_mut().poll_read(cx, &mut piece)?.is_pending() {
                        if self.unflushed {
                            ready!(to.as_mut().poll_flush(cx))?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                    let filled = piece.filled();
                    if filled.is_empty() {
                        self.stage = Stage::Closes;
                        continue;
                    }
                    passed(filled.len());
                    // Mostly it goes out at once, and nothing has to be kept.
                    let written = match to.as_mut().poll_write(cx, filled)? {
                        Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                        Poll::Ready(written) => written,
                        Poll::Pending => 0,
                    };
                    self.unflushed |= written > 0;
                    if let Some(rest) = filled.get(written..).filter(|rest| !rest.is_empty()) {
                        self.left = Bytes::copy_from_slice(rest);
                    }
                }
                Stage::Closes => {
                    ready!(to.as_mut().poll_shutdown(cx))?;
                    self.stage = Stage::Closed;
                }
                Stage::Closed => return Poll::Ready(Ok(())),
            }
        }
    }
}

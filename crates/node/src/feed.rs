//! Calls whose request is a stream: what a caller sends, on its way into a machine.
//!
//! Nothing is held here: the guest takes a message when it has room, and only then is the caller's next
//! piece read.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, Stream, StreamExt};
use nullspace_types::{Error, Result};
use tokio::sync::{oneshot, watch};
use tonic::Status;

use crate::guest::{PATIENCE, silent};
use crate::running::Running;

/// Content is cut into messages of at most this many bytes; few are, as most pieces come smaller.
const PIECE_BYTES: usize = 256 << 10;

/// Whose turn it is.
#[derive(Clone, Copy, PartialEq)]
enum Turn {
    Caller,
    Guest,
}

/// The messages of a call. A type of its own: the compiler does not see through the other one that calls
/// with it can go from thread to thread.
pub struct Requests<M>(BoxStream<'static, M>);

impl<M> Stream for Requests<M> {
    type Item = M;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<M>> {
        self.0.poll_next_unpin(context)
    }
}

/// Makes a call of messages that may fail. If one does, the call is dropped rather than ended, so that the
/// agent takes nothing for whole, and the error is answered. A guest that takes nothing for
/// [`PATIENCE`], or does not answer so long after the last message, does not answer.
pub fn send<M, T, F>(
    machine: Arc<Running>,
    messages: impl Stream<Item = Result<M>> + Send + 'static,
    call: impl FnOnce(Requests<M>) -> F + Send + 'static,
    refused: impl FnOnce(&Status) -> Error + Send + 'static,
) -> BoxFuture<'static, Result<T>>
where
    M: Send + 'static,
    T: Send + 'static,
    F: Future<Output = Result<T, Status>> + Send,
{
    let (failed, failure) = oneshot::channel();
    let (turn, turns) = watch::channel(Turn::Caller);
    let state = (messages.boxed(), failed, turn);
    let requests = stream::unfold(state, |(mut messages, failed, turn)| async {
        turn.send_replace(Turn::Caller);
        match messages.next().await {
            Some(Ok(message)) => {
                turn.send_replace(Turn::Guest);
                Some((message, (messages, failed, turn)))
            }
            Some(Err(error)) => {
                // Whoever is not there to hear it has dropped the call already.
                let _ = failed.send(error);
                let never = std::future::pending::<Infallible>().await;
                match never {}
            }
            None => None,
        }
    });
    let answered = async move {
        tokio::select! {
            answer = call(Requests(requests.boxed())) => answer.map_err(|status| refused(&status)),
            // It is dropped unsent when the stream of messages has ended, or is no longer wanted.
            Ok(error) = failure => Err(error),
            () = stalled(turns) => Err(silent(&Status::deadline_exceeded("the guest takes nothing"))),
        }
    };
    async move { machine.while_there(answered).await }.boxed()
}

/// Resolves once it was the guest's turn for [`PATIENCE`] without a break.
async fn stalled(mut turns: watch::Receiver<Turn>) {
    loop {
        let turn = *turns.borrow_and_update();
        let changed = match turn {
            Turn::Caller => turns.changed().await,
            Turn::Guest => match tokio::time::timeout(PATIENCE, turns.changed()).await {
                Ok(changed) => changed,
                Err(_) => return,
            },
        };
        if changed.is_err() {
            // Everything is sent; what is missing is the answer.
            return tokio::time::sleep(PATIENCE).await;
        }
    }
}

/// Content in messages of a size that the guest takes.
pub fn cut(mut data: Bytes) -> impl Iterator<Item = Bytes> + Send {
    std::iter::from_fn(move || (!data.is_empty()).then(|| data.split_to(data.len().min(PIECE_BYTES))))
}

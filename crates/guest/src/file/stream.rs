//! A sequence of messages that comes from file work, as a stream.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Messages that wait for their reader when they are made on another thread.
const WAITING: usize = 4;

/// Messages that another thread or task tells.
pub type Told<T> = ReceiverStream<Result<T, Status>>;

/// Does work on another thread that tells what it finds. It is to stop when its channel is closed:
/// then nobody wants to know.
pub fn tell<T: Send + 'static>(
    work: impl FnOnce(&mpsc::Sender<Result<T, Status>>) + Send + 'static,
) -> Told<T> {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::task::spawn_blocking(move || work(&sender));
    ReceiverStream::new(receiver)
}

/// Made where they are asked for, or on another thread.
pub enum Messages<I: Iterator> {
    Here(I),
    Elsewhere(mpsc::Receiver<I::Item>),
}

impl<T: Send + 'static, I: Iterator<Item = Result<T, Status>> + Send + 'static> Messages<I> {
    /// `elsewhere`: the work is long or may hang.
    pub fn new(source: I, elsewhere: bool) -> Self {
        if !elsewhere {
            return Messages::Here(source);
        }
        let (sender, receiver) = mpsc::channel(WAITING);
        // Ends with its source, or at the first message that nobody wants.
        tokio::task::spawn_blocking(move || {
            for message in source {
                if sender.blocking_send(message).is_err() {
                    break;
                }
            }
        });
        Messages::Elsewhere(receiver)
    }
}

impl<I: Iterator + Unpin> Stream for Messages<I> {
    type Item = I::Item;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.get_mut() {
            Messages::Here(source) => Poll::Ready(source.next()),
            Messages::Elsewhere(receiver) => receiver.poll_recv(context),
        }
    }
}

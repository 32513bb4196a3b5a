//! Standard input, piece by piece. One thread owns the reading, because a read of a terminal or a
//! pipe cannot be called off; it ends with the input, with the receiver, or with the process.

use std::io::{self, Read};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::failure::Failure;

const PIECE: usize = 64 << 10;

/// Standard input as a sequence of pieces.
pub(crate) struct Stdin(mpsc::Receiver<io::Result<Bytes>>);

impl Stdin {
    pub(crate) fn open() -> Result<Self, Failure> {
        let (sender, receiver) = mpsc::channel(4);
        let read = move || {
            let mut piece = vec![0; PIECE];
            let mut input = io::stdin().lock();
            loop {
                let read = match input.read(&mut piece) {
                    Ok(0) => return,
                    Ok(count) => Ok(Bytes::copy_from_slice(&piece[..count])),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => Err(error),
                };
                let failed = read.is_err();
                if sender.blocking_send(read).is_err() || failed {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("stdin".to_owned()).spawn(read);
        thread.map_err(Failure::io("read standard input"))?;
        Ok(Self(receiver))
    }

    /// The next piece; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        self.0.recv().await.transpose().map_err(Failure::io("read standard input"))
    }

    /// What remains, for a request's body.
    pub(crate) fn into_stream(self, first: Bytes) -> impl futures::Stream<Item = io::Result<Bytes>> + Send {
        let rest = futures::stream::unfold(self.0, |mut receiver| async move {
            let piece = receiver.recv().await?;
            Some((piece, receiver))
        });
        futures::StreamExt::chain(futures::stream::iter([Ok(first)]), rest)
    }
}

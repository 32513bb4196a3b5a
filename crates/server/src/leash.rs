//! A connection on a leash: whoever accepted it keeps hold of it when it has become a socket and belongs to a
//! handler, learns when it is dropped, and can cut it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

/// The near end.
pub(crate) struct Leash {
    cut: CancellationToken,
    dropped: CancellationToken,
}

/// The far end: the connection itself.
pub(crate) struct Leashed<S> {
    stream: S,
    cut: CancellationToken,
    /// One for each direction, as each may be waited for by another task.
    cut_read: Pin<Box<WaitForCancellationFutureOwned>>,
    cut_write: Pin<Box<WaitForCancellationFutureOwned>>,
    _dropped: DropGuard,
}

/// Puts a connection on a leash.
pub(crate) fn leashed<S>(stream: S) -> (Leashed<S>, Leash) {
    let leash = Leash { cut: CancellationToken::new(), dropped: CancellationToken::new() };
    let cut = || Box::pin(leash.cut.clone().cancelled_owned());
    let leashed = Leashed {
        stream,
        cut: leash.cut.clone(),
        cut_read: cut(),
        cut_write: cut(),
        _dropped: leash.dropped.clone().drop_guard(),
    };
    (leashed, leash)
}

impl Leash {
    /// Has everything that is done with the connection fail from now on.
    pub(crate) fn cut(&self) {
        self.cut.cancel();
    }

    /// Resolves once nobody has the connection any more.
    pub(crate) async fn dropped(&self) {
        self.dropped.cancelled().await;
    }
}

/// Ready with an error once it is cut.
fn check(
    cut: &CancellationToken,
    wait: &mut Pin<Box<WaitForCancellationFutureOwned>>,
    context: &mut Context<'_>,
) -> Result<(), io::Error> {
    // What has resolved must not be polled again.
    if cut.is_cancelled() || wait.as_mut().poll(context).is_ready() {
        return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server is stopping"));
    }
    Ok(())
}

impl<S: AsyncRead + Unpin> AsyncRead for Leashed<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        check(&this.cut, &mut this.cut_read, context)?;
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Leashed<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        check(&this.cut, &mut this.cut_write, context)?;
        Pin::new(&mut this.stream).poll_write(context, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        check(&this.cut, &mut this.cut_write, context)?;
        Pin::new(&mut this.stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

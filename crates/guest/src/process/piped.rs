//! A program whose standard streams are somebody's outside: nothing of it is recorded.
//!
//! Owned here: the two lanes, and the rule of when they end. A command has pipes, which the kernel moves
//! from and to the lanes (`splice`): a lane given to it as it is would be reset, and the end of its output
//! lost, whenever it ends without having read all of its input. The agent's own SFTP server reads to the
//! end, and has the lanes themselves.
//!
//! The end of the program is told when it is gone; a lane ends when nobody writes to it any more, which may
//! be a descendant in the background. When the call is dropped before the end, both lanes are closed and the
//! group is hung up, as by a terminal that is gone.

use std::convert::Infallible;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};
use nullspace_guest_proto as pb;
use pb::run_event::Event;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_stream::Stream;
use tonic::Status;

use super::Process;
use super::follow::Follow;
use super::launch::LaunchError;
use super::output::Cursor;
use super::pipe::Pipe;
use super::signal::Signal;
use crate::bulk::{Lane, Over};
use crate::splice::{PIECE, carry, discard};
use crate::watch::watch;

/// How long a group that was hung up may take to end.
const GRACE: Duration = Duration::from_secs(2);
/// How long the other side may take to close its lane once the program's output has ended.
const LINGER: Duration = Duration::from_secs(20);

/// The lanes of a program that is to be started, with what it has as its standard files.
pub enum Streams {
    /// Standard input and output, and standard error.
    Piped { stdio: TcpStream, stderr: TcpStream, pipes: Pipes },
    /// The same, which are the program's own; each is held until its end.
    Direct(Lane, Lane),
}

/// Our ends of the pipes.
pub struct Pipes {
    stdin: AsyncFd<OwnedFd>,
    stdout: AsyncFd<OwnedFd>,
    stderr: AsyncFd<OwnedFd>,
}

impl Streams {
    /// By pipes; with the program's ends.
    pub fn piped(stdio: TcpStream, stderr: TcpStream) -> Result<(Self, [OwnedFd; 3]), LaunchError> {
        let wide = PIECE as i32;
        let (stdin, stdout, errors) = (
            Pipe::to_program()?.holding(wide),
            Pipe::from_program()?.holding(wide),
            Pipe::from_program()?.holding(wide),
        );
        let pipes = Pipes { stdin: stdin.ours, stdout: stdout.ours, stderr: errors.ours };
        Ok((Self::Piped { stdio, stderr, pipes }, [stdin.theirs, stdout.theirs, errors.theirs]))
    }

    /// The lanes as they are.
    pub fn direct(stdio: TcpStream, stderr: TcpStream) -> Result<(Self, [OwnedFd; 3]), Status> {
        let (stdio, stderr) = (Lane::of(stdio)?, Lane::of(stderr)?);
        let theirs = [stdio.handle()?.into(), stdio.handle()?.into(), stderr.handle()?.into()];
        Ok((Self::Direct(stdio, stderr), theirs))
    }
}

/// What a call sees of such a program: Started, Exited.
pub struct Piped {
    process: Arc<Process>,
    follow: Follow,
    told: bool,
    /// Dropped with the call.
    _wanted: oneshot::Sender<Infallible>,
}

impl Piped {
    /// Looks after the streams of a program that was started. `over`: the machine is another one.
    pub fn new(process: Arc<Process>, streams: Streams, over: Over) -> Self {
        let (wanted, dropped) = oneshot::channel();
        let follow = Follow::new(Arc::clone(&process), Cursor::default(), 0, false);
        tokio::spawn(look_after(Arc::clone(&process), streams, dropped, over));
        Self { process, follow, told: false, _wanted: wanted }
    }
}

impl Stream for Piped {
    type Item = Result<pb::RunEvent, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let event = ready!(Pin::new(&mut this.follow).poll_next(context));
        if let Some(Ok(pb::RunEvent { event: Some(Event::Exited(_)) })) = event {
            this.told = true;
        }
        Poll::Ready(event)
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        if !self.told {
            tokio::spawn(hang_up(Arc::clone(&self.process)));
        }
    }
}

/// Nothing happens to a group whose leader has ended.
async fn hang_up(process: Arc<Process>) {
    process.signal(Signal::HANG_UP);
    // One that stands still would not hear it.
    process.signal(Signal::CONTINUE);
    if tokio::time::timeout(GRACE, process.ended()).await.is_err() {
        process.signal(Signal::KILL);
    }
}

/// Until the streams have ended; for a call that is dropped before the program's end no longer.
async fn look_after(
    process: Arc<Process>,
    streams: Streams,
    dropped: oneshot::Receiver<Infallible>,
    mut over: Over,
) {
    let unwanted = async {
        // Nothing can be sent: it is dropped.
        let _ = dropped.await;
        if process.exit().is_some() {
            std::future::pending::<()>().await;
        }
    };
    let streaming = async {
        match streams {
            Streams::Piped { stdio, stderr, pipes } => match (Watched::of(stdio), Watched::of(stderr)) {
                (Ok(stdio), Ok(stderr)) => pass(&process, &stdio, &stderr, pipes).await,
                // Without them the program finds its streams closed.
                (Err(_), _) | (_, Err(_)) => {}
            },
            Streams::Direct(stdio, stderr) => {
                process.ended().await;
                drop((stdio, stderr));
            }
        }
    };
    tokio::select! {
        () = streaming => {}
        () = unwanted => {}
        () = over.come() => {}
    }
}

async fn pass(process: &Process, stdio: &Watched, stderr: &Watched, pipes: Pipes) {
    let input = async {
        let whole = carry(&stdio.0, &pipes.stdin).await;
        drop(pipes.stdin);
        if whole.is_err() {
            discard(&stdio.0).await;
        }
    };
    let output = async {
        tokio::join!(give(pipes.stdout, stdio), give(pipes.stderr, stderr));
        process.ended().await;
    };
    tokio::pin!(input, output);
    tokio::select! {
        () = &mut input => output.await,
        // What it sends in vain is taken until it has seen the end.
        () = &mut output => {
            let _ = tokio::time::timeout(LINGER, input).await;
        }
    }
}

/// What the program writes, to its end. A reader that is gone closes the pipe, of which the program learns
/// as it would of any.
async fn give(pipe: AsyncFd<OwnedFd>, lane: &Watched) {
    // Either way there is nothing more to send.
    let _ = carry(&pipe, &lane.0).await;
    let _ = shutdown(lane.0.as_raw_fd(), Shutdown::Write);
}

/// A lane that the event loop watches. Closed when this is dropped, whoever else has it.
struct Watched(AsyncFd<OwnedFd>);

impl Watched {
    fn of(stream: TcpStream) -> std::io::Result<Self> {
        let descriptor = OwnedFd::from(stream.into_std()?);
        watch(descriptor, Interest::READABLE | Interest::WRITABLE).map(Self)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // An error means that it is closed already.
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }
}

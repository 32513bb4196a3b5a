//! The task of one session: takes what its program writes, waits for viewers that are behind, and says when
//! the session has ended.
//!
//! The end is said when the program is gone and its terminal holds nothing more. Descendants that keep the
//! terminal open do not delay it: the kernel has hung up on them with the program, which led the session.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::sessions::Sessions;
use super::{Exit, Session, Shows, wake};

/// How far a viewer may be behind before the program waits.
const WINDOW_BYTES: u64 = 1 << 20;
/// How long the program waits for a viewer that does not move at all.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is read at once.
const READ_BYTES: usize = 16 << 10;
/// What is taken after the program has ended: more than any terminal holds, and no more, so that a
/// descendant that writes without end does not hold the end up.
const DRAIN_BYTES: usize = 1 << 20;

/// The two sides of the terminal, and the news of the exit. The program's side is held so that the terminal
/// stays one while no process has it open.
pub struct Ends {
    pub ours: Arc<AsyncFd<OwnedFd>>,
    pub theirs: OwnedFd,
    pub exit: oneshot::Receiver<i32>,
}

/// Runs until the session has ended.
pub async fn drive(sessions: Arc<Sessions>, session: Arc<Session>, ends: Ends) {
    let Ends { ours, theirs, mut exit } = ends;
    let mut open = true;
    let code = loop {
        let held = session.state().window.behind() >= WINDOW_BYTES;
        tokio::select! {
            biased;
            // The reaper lives as long as the agent; without it there is no status to tell.
            code = &mut exit => break code.unwrap_or(-1),
            () = room(&session), if held => {}
            ready = ours.readable(), if open && !held => match ready {
                Ok(mut ready) => match ready.try_io(|ours| take(&session, ours.get_ref())) {
                    Ok(Ok(len)) => open = len > 0,
                    // Hung up on, which the program's end follows.
                    Ok(Err(_)) => open = false,
                    Err(_not_yet) => {}
                },
                Err(_) => open = false,
            },
        }
    };
    let mut drained = 0;
    while drained < DRAIN_BYTES
        && let Ok(len @ 1..) = take(&session, ours.get_ref())
    {
        drained += len;
    }
    end(&session, code);
    sessions.ended(&session);
    // Whoever still has the terminal open is hung up on.
    drop((ours, theirs));
}

/// Waits until no viewer is too far behind. One that does not move meanwhile is left behind.
async fn room(session: &Session) {
    let since = std::time::Instant::now();
    loop {
        let next = {
            let mut state = session.state();
            let waits = |moved: std::time::Instant| moved.max(since) + PATIENCE;
            let now = std::time::Instant::now();
            let laggards: Vec<_> = state.window.laggards(WINDOW_BYTES).collect();
            for (number, _) in laggards.iter().filter(|(_, moved)| waits(*moved) <= now) {
                state.window.leave(*number);
            }
            laggards.into_iter().map(|(_, moved)| waits(moved)).filter(|until| *until > now).min()
        };
        let Some(next) = next else { return };
        // Either way they are looked at again.
        let _ = timeout_at(Instant::from_std(next), session.moved.notified()).await;
    }
}

/// Reads once and shows it. The number of bytes; none at the end.
fn take(session: &Session, terminal: &OwnedFd) -> io::Result<usize> {
    let mut buffer = [0; READ_BYTES];
    let len = loop {
        match nix::unistd::read(terminal.as_fd(), &mut buffer) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    if len > 0 {
        let mut state = session.state();
        if let Shows::Running { screen, .. } = &mut state.shows {
            screen.feed(&buffer[..len]);
        }
        state.window.push(&buffer[..len]);
        wake(state);
    }
    Ok(len)
}

fn end(session: &Session, code: i32) {
    let mut state = session.state();
    if let Shows::Running { screen, .. } = &state.shows {
        let exit = Exit { code, duration: session.begun.elapsed() };
        state.shows = Shows::Ended { last: screen.redraw(), exit };
    }
    wake(state);
    session.ended.notify_waiters();
}

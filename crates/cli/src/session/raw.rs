//! This terminal while somebody types into another one: every key goes through, and nothing is echoed
//! here. However it ends, by a return, a panic or a signal that is waited for, it is put back.

use std::io;
use std::os::fd::AsFd;

use nullspace_types::terminal::{SIDE_MAX, TerminalResize};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit;
use crate::failure::Failure;
use crate::printer;

/// Raw until dropped.
pub(crate) struct Raw {
    before: Termios,
    /// Whether the far side has cleaned up after itself.
    pub(crate) tidy: bool,
}

impl Raw {
    pub(crate) fn enter() -> Result<Self, Failure> {
        let failed = |error: rustix::io::Errno| Failure::io("set this terminal up")(error.into());
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Drain, &raw).map_err(failed)?;
        Ok(Self { before, tidy: false })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring. One that is held back must not hold us too.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &self.before);
        if !self.tidy {
            drop(printer::leave_screen());
        }
    }
}

/// The size of this terminal's window, if it is one.
pub(crate) fn window() -> Option<TerminalResize> {
    let size = tcgetwinsize(io::stdout().as_fd()).ok()?;
    let side = |length: u16| u32::from(length).min(SIDE_MAX);
    Some(TerminalResize { cols: side(size.ws_col), rows: side(size.ws_row) })
        .filter(|size| size.cols > 0 && size.rows > 0)
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(Failure::io("listen for signals"))
}

/// Hears of every change of the window's size.
pub(crate) fn window_changes() -> Result<Signal, Failure> {
    listen(SignalKind::window_change())
}

/// The signals that end a program.
pub(crate) struct Endings([(Signal, u8); 4]);

impl Endings {
    pub(crate) fn listen() -> Result<Self, Failure> {
        let ending = |kind: SignalKind| {
            let status = exit::signalled(kind.as_raw_value());
            Ok::<_, Failure>((listen(kind)?, status))
        };
        Ok(Self([
            ending(SignalKind::interrupt())?,
            ending(SignalKind::terminate())?,
            ending(SignalKind::hangup())?,
            ending(SignalKind::quit())?,
        ]))
    }

    /// The exit status for the one that came.
    pub(crate) async fn next(&mut self) -> u8 {
        let [(interrupt, one), (terminate, two), (hangup, three), (quit, four)] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => *one,
            _ = terminate.recv() => *two,
            _ = hangup.recv() => *three,
            _ = quit.recv() => *four,
        }
    }
}

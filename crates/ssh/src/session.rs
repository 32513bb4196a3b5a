//! A session channel: one program, with or without a terminal, whose streams are the channel's.
//!
//! Exit statuses are the machine's: 128 + signal for a program that was killed, as shells have it. That the
//! protocol could name the signal itself is not used: the two cannot be told apart any more, and a status says
//! more to whoever reads `$?` than the client's 255.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use nullspace_edge_api::{Machines, PipedProcess, Program, Terminal};
use nullspace_types::sandbox::Envs;
use nullspace_types::terminal::TerminalEvent;
use nullspace_types::{Code, Error};
use russh::Sig;
use tokio::sync::{mpsc, watch};

use crate::forward::Owner;
use crate::inlet::Seat;
use crate::outlet::{Outlet, Stream};
use crate::relay::entered;

/// The status of a program that could not be run, or whose end is not known: what `ssh` itself uses.
const FAILED: u32 = 255;
/// How long the machine may take to end a terminal whose client is gone.
const ENDING: Duration = Duration::from_secs(10);
/// Most variables that a client sets.
const ENVS_MAX: usize = 64;
/// Most bytes of them, names and values.
const ENVS_BYTES_MAX: usize = 32 << 10;

/// Signals that end what has a terminal.
const HUP: i32 = 1;
const KILL: i32 = 9;
const TERM: i32 = 15;

/// Columns and rows.
pub(crate) type Size = (u32, u32);

/// What to run.
pub(crate) struct Run {
    pub(crate) program: Program,
    pub(crate) envs: Envs,
    /// With a terminal, whose size this is.
    pub(crate) size: Option<watch::Receiver<Size>>,
    pub(crate) signals: mpsc::Receiver<i32>,
}

/// A channel on which something runs.
pub(crate) struct Session<M> {
    pub(crate) owner: Owner<M>,
    pub(crate) seat: Seat,
    pub(crate) outlet: Outlet,
}

/// How it ended.
enum End {
    Exited(i32),
    Failed(Error),
    /// The client closed the channel, or its connection ended.
    Left,
}

impl<M: Machines> Session<M> {
    /// Runs it to its end, and closes the channel.
    pub(crate) async fn run(mut self, run: Run) {
        let end = match self.admitted().await {
            None => match run.size {
                Some(size) => self.terminal(run.program, run.envs, size, run.signals).await,
                None => self.piped(run.program, run.envs, run.signals).await,
            },
            Some(end) => end,
        };
        let saying = async {
            let status = match end {
                End::Exited(status) => status as u32,
                End::Failed(error) => {
                    let reason = format!("nullspace: {}\r\n", reason(&error));
                    self.outlet.send(Stream::Errors, reason.into()).await?;
                    FAILED
                }
                End::Left => return Ok(()),
            };
            self.outlet.eof().await?;
            self.outlet.exit_status(status).await?;
            self.outlet.close().await
        };
        tokio::select! {
            said = saying => if let Err(error) = said {
                tracing::debug!(%error, "a session's client left before it was told its end");
            },
            () = self.seat.inlet.closed() => {}
        }
    }

    /// Waits until the sandbox is there; the end of this, if it will not be.
    async fn admitted(&mut self) -> Option<End> {
        tokio::select! {
            entered = entered(&mut self.owner.phase) => entered.err().map(End::Failed),
            end = left(&self.seat) => Some(end),
        }
    }

    /// A program whose standard streams are the channel's.
    async fn piped(&self, program: Program, envs: Envs, mut signals: mpsc::Receiver<i32>) -> End {
        // Not given up half-way: what was started must be ours, so that it can be hung up.
        let started = self.owner.machines.process(&self.owner.claims, program, envs).await;
        let PipedProcess { pid, stdio, stderr, exit } = match started {
            Ok(process) => process,
            Err(error) => return End::Failed(error),
        };
        let (stdout, stdin) = tokio::io::split(stdio);
        let input = self.seat.inlet.feed(stdin);
        let signalled = async {
            while let Some(signal) = signals.recv().await {
                if let Err(error) = self.owner.machines.signal(&self.owner.claims, pid, signal).await {
                    tracing::debug!(%error, signal, "a signal was not delivered");
                }
            }
        };
        let output = self.outlet.send_all(Stream::Output, stdout);
        let errors = self.outlet.send_all(Stream::Errors, stderr);
        let ended = async {
            // A stream that breaks off is the program's end, or the machine's: the exit says which.
            let (_, _, exit) = tokio::join!(output, errors, exit);
            exit.map_or_else(End::Failed, End::Exited)
        };
        tokio::select! {
            end = ended => end,
            end = left(&self.seat) => end,
            end = forever(async { tokio::join!(input, signalled) }) => end,
        }
    }

    /// A program with a terminal. The client's end of input is not the terminal's.
    async fn terminal(
        &self,
        program: Program,
        envs: Envs,
        mut size: watch::Receiver<Size>,
        mut signals: mpsc::Receiver<i32>,
    ) -> End {
        let line = match program {
            Program::Shell => None,
            Program::Line(line) => Some(line),
            Program::Sftp => {
                let never = Error::invalid("file transfer has no terminal");
                return End::Failed(never.suggest("ask for it without one"));
            }
        };
        let (machines, claims) = (&self.owner.machines, &*self.owner.claims);
        let (cols, rows) = *size.borrow_and_update();
        let started = machines.terminal(claims, line, envs, cols, rows).await;
        let Terminal { session_id, mut events } = match started {
            Ok(terminal) => terminal,
            Err(error) => return End::Failed(error),
        };
        // What fails here fails because the terminal has ended, which its events tell.
        let input = async {
            while let Some(data) = self.seat.inlet.gather().await {
                machines.terminal_write(claims, session_id, data).await?;
            }
            Ok::<_, Error>(())
        };
        let resized = async {
            while size.changed().await.is_ok() {
                let (cols, rows) = *size.borrow_and_update();
                machines.terminal_resize(claims, session_id, cols, rows).await?;
            }
            Ok::<_, Error>(())
        };
        let signalled = async {
            while let Some(signal) = signals.recv().await {
                match signal {
                    HUP | KILL | TERM => machines.terminal_end(claims, session_id).await?,
                    signal => {
                        if let Some(key) = key(signal) {
                            machines.terminal_write(claims, session_id, key).await?;
                        }
                    }
                }
            }
            Ok::<_, Error>(())
        };
        let shown = async {
            loop {
                match events.next().await {
                    Some(Ok(TerminalEvent::Attached(_))) => {}
                    Some(Ok(TerminalEvent::Output(data))) => {
                        if self.outlet.send(Stream::Output, data).await.is_err() {
                            return End::Left;
                        }
                    }
                    Some(Ok(TerminalEvent::Exited { exit_code })) => return End::Exited(exit_code),
                    Some(Err(error)) => return End::Failed(error),
                    None => {
                        return End::Failed(Error::new(Code::TerminalNotFound, "the terminal is gone"));
                    }
                }
            }
        };
        let end = tokio::select! {
            end = shown => end,
            end = left(&self.seat) => end,
            end = forever(async { tokio::join!(input, resized, signalled) }) => end,
        };
        if !matches!(end, End::Exited(_)) {
            let ending = tokio::time::timeout(ENDING, machines.terminal_end(claims, session_id)).await;
            if !matches!(ending, Ok(Ok(()))) {
                tracing::debug!(%session_id, "a terminal whose client left could not be ended");
            }
        }
        end
    }
}

/// Waits until the client leaves the channel, or has to.
async fn left(seat: &Seat) -> End {
    tokio::select! {
        () = seat.inlet.closed() => End::Left,
        () = seat.inlet.stuck() => {
            let error = Error::new(Code::RateLimitExceeded, "the program does not read what it is sent, and held up the connection");
            End::Failed(error.suggest("use a connection of its own for it"))
        }
    }
}

/// Does something on the side, and never ends.
pub(crate) async fn forever<T>(work: impl Future) -> T {
    work.await;
    std::future::pending().await
}

/// An error in words for a person.
pub(crate) fn reason(error: &Error) -> String {
    match &error.suggested_action {
        Some(action) => format!("{}; {action}", error.message),
        None => error.message.clone(),
    }
}

/// Adds a variable that a client sets; says whether it may.
pub(crate) fn set(envs: &mut Envs, name: &str, value: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let named =
        !name.is_empty() && name.bytes().all(letter) && !name.starts_with(|c: char| c.is_ascii_digit());
    let bytes: usize = envs.iter().map(|(name, value)| name.len() + value.len()).sum();
    let room = envs.len() < ENVS_MAX && bytes + name.len() + value.len() <= ENVS_BYTES_MAX;
    let good = named && room && !value.contains('\0');
    if good {
        envs.insert(name.to_owned(), value.to_owned());
    }
    good
}

/// A signal's number on Linux, for those that RFC 4254 (6.10) and OpenSSH name.
pub(crate) fn number(signal: &Sig) -> Option<i32> {
    Some(match signal {
        Sig::HUP => HUP,
        Sig::INT => 2,
        Sig::QUIT => 3,
        Sig::ILL => 4,
        Sig::ABRT => 6,
        Sig::FPE => 8,
        Sig::KILL => KILL,
        Sig::USR1 => 10,
        Sig::SEGV => 11,
        Sig::PIPE => 13,
        Sig::ALRM => 14,
        Sig::TERM => TERM,
        Sig::Custom(name) => match name.as_str() {
            "USR2" => 12,
            "CONT" => 18,
            "STOP" => 19,
            "TSTP" => 20,
            "WINCH" => 28,
            _ => return None,
        },
    })
}

/// The key that has a terminal send such a signal to what runs in it, if there is one.
fn key(signal: i32) -> Option<Bytes> {
    match signal {
        2 => Some(Bytes::from_static(b"\x03")),
        3 => Some(Bytes::from_static(b"\x1c")),
        20 => Some(Bytes::from_static(b"\x1a")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_set_a_bounded_number_of_variables_with_names() {
        let mut envs = Envs::new();
        for good in ["LANG", "LC_ALL", "TERM", "_x1"] {
            assert!(set(&mut envs, good, "de_DE.UTF-8"), "{good}");
        }
        for bad in ["", "1A", "A=B", "A B", "Ä"] {
            assert!(!set(&mut envs, bad, "x"), "{bad}");
        }
        assert!(!set(&mut envs, "NUL", "a\0b"));
        assert!(!set(&mut envs, "LARGE", &"x".repeat(ENVS_BYTES_MAX)));
        let taken = (0..2 * ENVS_MAX).filter(|n| set(&mut envs, &format!("N{n}"), "x")).count();
        assert_eq!((taken, envs.len()), (ENVS_MAX - 4, ENVS_MAX));
    }
}

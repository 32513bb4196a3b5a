//! `nullspace sandbox pty`. `connect` is a real terminal when there is one here: raw keys, this window's
//! size, the screen drawn by the program in the sandbox. Otherwise it is a pipe.

use std::convert::Infallible;
use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::{Args, Subcommand};
use nullspace_client::{Client, Terminal, TerminalInput, TerminalStart, TerminalTarget};
use nullspace_types::terminal::{TerminalEvent, TerminalResize};
use serde::Serialize;

use super::sandbox::Target;
use crate::failure::{Failure, Outcome};
use crate::session::detach::Detach;
use crate::session::raw::{self, Raw};
use crate::session::stdin::Stdin;
use crate::{exit, options, printer, session};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Print the terminal sessions that run, as JSON.
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Print a terminal session as JSON.
    Get(One),
    /// Start a terminal session and leave it running. Prints it as JSON.
    Create(Create),
    /// Use a terminal session from here, and exit with its program's status.
    ///
    /// In a terminal every key goes to the session, and the sequence `~.` at the beginning of a line
    /// leaves it running and returns (`~~` is one `~`). When the connection breaks it is made again.
    ///
    /// When standard input or output is no terminal, bytes are passed on as they are; the end of standard
    /// input ends nothing.
    Connect(Connect),
    /// End a terminal session with all its processes.
    Kill(One),
    /// Set the size of a terminal session.
    Resize(Resize),
}

#[derive(Args)]
pub(crate) struct One {
    #[command(flatten)]
    target: Target,
    /// The terminal session's ID.
    #[arg(value_name = "SESSION")]
    session: String,
}

#[derive(Args)]
pub(crate) struct Create {
    #[command(flatten)]
    target: Target,
    /// A name of your own for the request.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Columns.
    #[arg(long, value_name = "COLUMNS", default_value_t = nullspace_types::terminal::COLS_DEFAULT)]
    cols: u32,
    /// Rows.
    #[arg(long, value_name = "ROWS", default_value_t = nullspace_types::terminal::ROWS_DEFAULT)]
    rows: u32,
    /// Working directory, absolute.
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// A variable of its environment.
    #[arg(long, value_name = "KEY=VALUE", value_parser = options::pair)]
    env: Vec<(String, String)>,
}

#[derive(Args)]
pub(crate) struct Connect {
    #[command(flatten)]
    target: Target,
    /// The process ID of the session's program; or give --session-id.
    #[arg(value_name = "PID", required_unless_present = "session_id", conflicts_with = "session_id")]
    pid: Option<u32>,
    /// The terminal session's ID.
    #[arg(long, value_name = "SESSION")]
    session_id: Option<String>,
    /// A name of your own for the request.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Seconds after which to stop watching; exits with 124, and the session goes on.
    #[arg(long, value_name = "SECONDS", value_parser = options::duration)]
    timeout: Option<Duration>,
    /// Answer with JSON at the end; the session's output goes to standard error.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct Resize {
    #[command(flatten)]
    one: One,
    /// Columns.
    #[arg(long, value_name = "COLUMNS")]
    cols: u32,
    /// Rows.
    #[arg(long, value_name = "ROWS")]
    rows: u32,
}

impl Command {
    pub(crate) fn run(self) -> Outcome {
        match self {
            Self::List { target } => list(&target.sandbox),
            Self::Get(one) => one.get(),
            Self::Create(create) => create.run(),
            Self::Connect(connect) => connect.run(),
            Self::Kill(one) => one.kill(),
            Self::Resize(resize) => resize.run(),
        }
    }
}

fn list(sandbox: &str) -> Outcome {
    session::run_in(sandbox, async |client| {
        let listing = client.terminal_list(sandbox);
        printer::json(&session::wait("listing terminal sessions", None, listing).await?)?;
        Ok(0)
    })
}

impl One {
    fn get(self) -> Outcome {
        session::run_in(&self.target.sandbox, async |client| {
            let getting = client.terminal_get(&self.target.sandbox, &self.session);
            printer::json(&session::wait("looking for the session", None, getting).await?)?;
            Ok(0)
        })
    }

    fn kill(self) -> Outcome {
        session::run_in(&self.target.sandbox, async |client| {
            let killing = client.terminal_kill(&self.target.sandbox, &self.session);
            session::wait("ending the session", None, killing).await?;
            Ok(0)
        })
    }
}

impl Create {
    fn run(self) -> Outcome {
        let Self { target: Target { sandbox }, id, cols, rows, cwd, env } = self;
        let envs =
            Some(env.into_iter().collect()).filter(|envs: &nullspace_types::sandbox::Envs| !envs.is_empty());
        let start = TerminalStart { id, cols: Some(cols), rows: Some(rows), cwd, envs, user: None };
        session::run_in(&sandbox, async |client| {
            let left = format!("it may be started: see `nullspace sandbox pty list {sandbox}`");
            let starting = client.terminal_start(&sandbox, &start);
            let terminal = session::wait("starting", Some(&left), starting).await?;
            printer::json(terminal.info())?;
            terminal.close();
            Ok(0)
        })
    }
}

impl Resize {
    fn run(self) -> Outcome {
        let Self { one: One { target, session: id }, cols, rows } = self;
        session::run_in(&target.sandbox, async |client| {
            let size = TerminalResize { cols, rows };
            let resizing = client.terminal_resize(&target.sandbox, &id, &size);
            session::wait("setting the size", None, resizing).await?;
            Ok(0)
        })
    }
}

/// How a connection came to its end.
enum End {
    /// The session's program has ended.
    Exited(i32),
    /// The server can no longer show the session.
    Lost(String),
    /// `--timeout`.
    TimedOut,
    /// The person left.
    Left,
    /// A signal came; the exit status for it.
    Signalled(u8),
}

/// What `pty connect --json` answers.
#[derive(Serialize)]
struct EndJson {
    exit_code: i32,
    error: Option<String>,
    timed_out: bool,
}

impl Connect {
    fn run(self) -> Outcome {
        let sandbox = self.target.sandbox.clone();
        session::run_in(&sandbox, async |client| self.connect(&client).await)
    }

    async fn connect(self, client: &Client) -> Outcome {
        let target = match (self.session_id, self.pid) {
            (Some(session), _) => TerminalTarget::Session(session),
            (None, Some(pid)) => TerminalTarget::Pid(pid),
            (None, None) => {
                return Err(Failure::usage("give the PID of a session's program or --session-id"));
            }
        };
        let sandbox = &self.target.sandbox;
        let connecting = client.terminal_connect(sandbox, &target, self.id);
        let mut terminal = session::wait("connecting", None, connecting).await?;
        let again =
            format!("nullspace sandbox pty connect {sandbox} --session-id {}", terminal.info().session_id);
        let here = io::stdin().is_terminal() && io::stdout().is_terminal() && !self.json;
        let mut raw = here.then(Raw::enter).transpose()?;
        let end = use_terminal(&mut terminal, here, self.json, self.timeout).await;
        if let Some(raw) = &mut raw {
            raw.tidy = matches!(end, Ok(End::Exited(_)));
        }
        // From here on this terminal is as it was.
        drop(raw);
        let end = end?;
        let left = matches!(end, End::Left);
        if !matches!(end, End::Exited(_) | End::Lost(_)) {
            terminal.close();
        }
        let told = match end {
            End::Exited(exit_code) => EndJson { exit_code, error: None, timed_out: false },
            End::Lost(error) => {
                EndJson { exit_code: exit::GENERIC.into(), error: Some(error), timed_out: false }
            }
            End::TimedOut => EndJson {
                exit_code: exit::TIMED_OUT.into(),
                error: Some("timed out".to_owned()),
                timed_out: true,
            },
            End::Left => EndJson { exit_code: 0, error: None, timed_out: false },
            End::Signalled(status) => {
                EndJson { exit_code: status.into(), error: Some("interrupted".to_owned()), timed_out: false }
            }
        };
        let status = exit::remote(told.exit_code);
        if self.json {
            printer::json(&told)?;
        } else if let Some(error) = told.error {
            printer::error(&error, Some(&format!("the session may go on: `{again}`")), None)?;
        } else if left {
            printer::note(format_args!("left; the session goes on: {again}"))?;
        }
        Ok(status)
    }
}

/// Everything that happens at once while a session is used. Whatever comes to an end first ends it.
async fn use_terminal(
    terminal: &mut Terminal,
    here: bool,
    json: bool,
    timeout: Option<Duration>,
) -> Result<End, Failure> {
    let mut endings = raw::Endings::listen()?;
    let input = terminal.input();
    let time = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        end = show(terminal, here, json) => end,
        end = type_into(&input, here) => end,
        failure = follow_window(&input, here) => match failure? {},
        () = time => Ok(End::TimedOut),
        status = endings.next() => Ok(End::Signalled(status)),
    }
}

/// Shows what the session writes until it ends.
async fn show(terminal: &mut Terminal, here: bool, json: bool) -> Result<End, Failure> {
    let show = |data: &[u8]| if json { printer::error_bytes(data) } else { printer::bytes(data) };
    loop {
        match terminal.next().await {
            Ok(Some(TerminalEvent::Output(data))) => show(&data)?,
            Ok(Some(TerminalEvent::Exited { exit_code })) => return Ok(End::Exited(exit_code)),
            Ok(Some(TerminalEvent::Attached(_))) => {}
            Ok(None) => return Ok(End::Lost("the session ended without a status".to_owned())),
            // A person is shown the screen anew. A program would take it for more output.
            Err(error) if here && error.is_passing() => {
                printer::raw_note(format_args!("{}; connecting again", error.message()))?;
                terminal.reconnect().await?;
                if let Some(size) = raw::window() {
                    terminal.input().resize(size).await?;
                }
            }
            Err(error) if error.is_transport() || error.code() == "invalid_response" => {
                return Err(error.into());
            }
            Err(error) => return Ok(End::Lost(error.message().to_owned())),
        }
    }
}

/// Types what comes from standard input. Its end ends nothing.
async fn type_into(input: &TerminalInput, here: bool) -> Result<End, Failure> {
    let mut stdin = Stdin::open()?;
    let mut detach = Detach::default();
    while let Some(piece) = stdin.next().await? {
        let (keys, leaves) = if here { detach.take(&piece) } else { (piece.to_vec(), false) };
        match input.write(&keys).await {
            Ok(()) => {}
            // What is typed while the connection is made again goes nowhere, and the person sees it.
            Err(error) if here && error.is_transport() => {}
            Err(error) => return Err(error.into()),
        }
        if leaves {
            return Ok(End::Left);
        }
    }
    std::future::pending().await
}

/// Gives the session this window's size, now and whenever it changes.
async fn follow_window(input: &TerminalInput, here: bool) -> Result<Infallible, Failure> {
    if !here {
        std::future::pending::<()>().await;
    }
    let mut changes = raw::window_changes()?;
    loop {
        if let Some(size) = raw::window() {
            match input.resize(size).await {
                Ok(()) => {}
                // It is set again when the connection is.
                Err(error) if error.is_transport() => {}
                Err(error) => return Err(error.into()),
            }
        }
        changes.recv().await;
    }
}

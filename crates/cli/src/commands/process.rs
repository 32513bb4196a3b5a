//! `nullspace sandbox exec` and `nullspace sandbox process`. Following a process is in
//! `process_stream`.

use clap::{Args, Subcommand};
use nullspace_types::process::ExecRequest;
use serde::Serialize;

use super::process_stream::{Attach, CodeRun, Stream};
use super::sandbox::Target;
use crate::failure::{Failure, Outcome};
use crate::printer::{self, Cell, Mood};
use crate::session::stdin::Stdin;
use crate::{exit, options, session};

/// A command to run, and where.
#[derive(Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) target: Target,
    /// The program; with --shell, a line for the shell.
    #[arg(value_name = "COMMAND")]
    command: String,
    /// Its arguments.
    #[arg(value_name = "ARGS")]
    args: Vec<String>,
    /// Seconds until it is killed.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = options::seconds)]
    timeout: i64,
    /// Working directory, absolute.
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// A variable of its environment.
    #[arg(long, value_name = "KEY=VALUE", value_parser = options::pair)]
    env: Vec<(String, String)>,
    /// Hand the command to the sandbox's shell.
    #[arg(long)]
    shell: bool,
}

#[derive(Args)]
#[command(override_usage = "nullspace sandbox exec [OPTIONS] <SANDBOX> <COMMAND> [ARGS]...")]
pub(crate) struct Exec {
    #[command(flatten)]
    run: Run,
    /// Start it and do not wait.
    #[arg(long)]
    background: bool,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// List the processes that were started in a sandbox.
    List {
        #[command(flatten)]
        target: Target,
        /// Answer with JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print all that a process has written.
    Logs(One),
    /// Send standard input to a process, to its end.
    Stdin(One),
    /// Kill a process and its group.
    Kill(One),
    /// Run a command, print what it writes as it writes it, and exit with its status.
    ///
    /// Options may stand before or behind the command, as for `sandbox exec`. When the connection breaks
    /// it is made again, and the output goes on where it broke. Interrupted, the command runs on.
    Stream(Stream),
    /// Print all that a process has written and what it writes, and exit with its status.
    Attach(Attach),
    /// Run a piece of code and exit with its status.
    CodeRun(CodeRun),
}

#[derive(Args)]
pub(crate) struct One {
    #[command(flatten)]
    target: Target,
    /// The process's ID in the sandbox.
    #[arg(value_name = "PID")]
    pid: u32,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

impl Run {
    pub(crate) fn into_request(self) -> (String, ExecRequest) {
        let request = ExecRequest {
            command: self.command,
            args: Some(self.args).filter(|args| !args.is_empty()),
            shell: Some(true).filter(|_| self.shell),
            cwd: self.cwd,
            envs: if self.env.is_empty() { None } else { Some(self.env.into_iter().collect()) },
            user: None,
            timeout_secs: Some(as_seconds(self.timeout)),
            background: None,
        };
        (self.target.sandbox, request)
    }
}

/// What [`options::seconds`] made milliseconds of.
#[expect(clippy::cast_precision_loss, reason = "bounded by its parser")]
pub(crate) fn as_seconds(milliseconds: i64) -> f64 {
    milliseconds as f64 / 1000.0
}

impl Exec {
    pub(crate) fn run(self) -> Outcome {
        let (id, request) = self.run.into_request();
        session::run_in(&id, async |client| {
            let left = format!("the command may still run: see `nullspace sandbox process list {id}`");
            if self.background {
                let starting = client.exec_background(&id, &request);
                let started = session::wait("starting", Some(&left), starting).await?;
                if self.json {
                    printer::json(&started)?;
                } else {
                    printer::line(format_args!("started process {}", started.pid))?;
                }
                return Ok(0);
            }
            let result = session::wait("running", Some(&left), client.exec(&id, &request)).await?;
            if self.json {
                printer::json(&result)?;
            } else {
                printer::bytes(result.stdout.as_bytes())?;
                printer::error_bytes(result.stderr.as_bytes())?;
            }
            Ok(exit::remote(result.exit_code))
        })
    }
}

impl Command {
    pub(crate) fn run(self) -> Outcome {
        match self {
            Self::List { target, json } => list(&target.sandbox, json),
            Self::Logs(one) => one.logs(),
            Self::Stdin(one) => one.stdin(),
            Self::Kill(one) => one.kill(),
            Self::Stream(stream) => stream.run(),
            Self::Attach(attach) => attach.run(),
            Self::CodeRun(code) => code.run(),
        }
    }
}

fn list(id: &str, json: bool) -> Outcome {
    session::run_in(id, async |client| {
        let processes = session::wait("listing processes", None, client.process_list(id)).await?;
        if json {
            printer::json(&processes)?;
        } else if processes.is_empty() {
            printer::note("no processes")?;
        } else {
            let rows: Vec<_> = processes
                .iter()
                .map(|process| {
                    let state = match process.running {
                        true => Cell::with("running", Mood::Good),
                        false => Cell::with("exited", Mood::Faint),
                    };
                    vec![Cell::new(process.pid), state, Cell::new(&process.command)]
                })
                .collect();
            printer::table(&["PID", "STATE", "COMMAND"], &rows)?;
        }
        Ok(0)
    })
}

/// What `process kill` answers.
#[derive(Serialize)]
struct Killed {
    pid: u32,
    status: &'static str,
}

/// What `process stdin` answers.
#[derive(Serialize)]
struct Sent {
    pid: u32,
    bytes_sent: u64,
}

impl One {
    fn logs(self) -> Outcome {
        session::run_in(&self.target.sandbox, async |client| {
            let reading = client.process_logs(&self.target.sandbox, self.pid);
            let logs = session::wait("reading the logs", None, reading).await?;
            if self.json {
                printer::json(&logs)?;
            } else {
                printer::bytes(logs.stdout.as_bytes())?;
                printer::error_bytes(logs.stderr.as_bytes())?;
            }
            Ok(0)
        })
    }

    /// Sends what comes when it comes, so that a person can type and a program can pipe without end.
    fn stdin(self) -> Outcome {
        session::run_in(&self.target.sandbox, async |client| {
            let mut stdin = Stdin::open()?;
            let mut bytes_sent = 0;
            let mut split = Vec::new();
            while let Some(chunk) = session::quietly(None, stdin.next()).await? {
                split.extend_from_slice(&chunk);
                let text = whole_characters(&mut split)?;
                if !text.is_empty() {
                    let sending = client.process_stdin(&self.target.sandbox, self.pid, &text);
                    session::wait("sending", None, sending).await?;
                    bytes_sent += text.len() as u64;
                }
            }
            if !split.is_empty() {
                return Err(not_text());
            }
            if self.json {
                printer::json(&Sent { pid: self.pid, bytes_sent })?;
            } else {
                printer::line(format_args!("sent {bytes_sent} bytes to process {}", self.pid))?;
            }
            Ok(0)
        })
    }

    fn kill(self) -> Outcome {
        session::run_in(&self.target.sandbox, async |client| {
            let killing = client.process_kill(&self.target.sandbox, self.pid);
            session::wait("killing the process", None, killing).await?;
            if self.json {
                printer::json(&Killed { pid: self.pid, status: "killed" })?;
            } else {
                printer::line(format_args!("killed process {}", self.pid))?;
            }
            Ok(0)
        })
    }
}

/// Takes the text that is complete; the beginning of a character stays for the next piece.
fn whole_characters(bytes: &mut Vec<u8>) -> Result<String, Failure> {
    let end = match std::str::from_utf8(bytes) {
        Ok(text) => text.len(),
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        Err(_) => return Err(not_text()),
    };
    let rest = bytes.split_off(end);
    let text = String::from_utf8(std::mem::replace(bytes, rest)).map_err(|_| not_text())?;
    Ok(text)
}

fn not_text() -> Failure {
    Failure::Usage {
        message: "standard input is not UTF-8 text, and a process takes nothing else".to_owned(),
        hint: Some(
            "write a file with `nullspace sandbox file write` and let the process read that".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_that_arrives_in_two_pieces_is_sent_whole() {
        let mut bytes = b"a\xc3".to_vec();
        assert_eq!(whole_characters(&mut bytes).unwrap(), "a");
        bytes.push(0xa4);
        assert_eq!(whole_characters(&mut bytes).unwrap(), "ä");
        assert!(bytes.is_empty());
        assert!(whole_characters(&mut b"\xff".to_vec()).is_err());
    }
}

//! Following a process from here: its output comes out as it is written, and its status is ours.

use clap::Args;
use nullspace_client::{ProcessOffsets, ProcessOutput, ProcessStream};
use nullspace_types::process::{ExecRequest, ExecResult};

use super::process::{Run, as_seconds};
use super::sandbox::Target;
use crate::failure::{Failure, Outcome};
use crate::{exit, options, printer, session};

/// With `--json` output is held until the end; as much as a server keeps of it, and no more.
const HELD_MAX: usize = 256 << 20;

#[derive(Args)]
#[command(override_usage = "nullspace sandbox process stream [OPTIONS] <SANDBOX> <COMMAND> [ARGS]...")]
pub(crate) struct Stream {
    #[command(flatten)]
    run: Run,
    /// Answer with JSON when it has ended.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct Attach {
    #[command(flatten)]
    target: Target,
    /// The process's ID in the sandbox.
    #[arg(value_name = "PID")]
    pid: u32,
    /// Answer with JSON when it has ended.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct CodeRun {
    #[command(flatten)]
    target: Target,
    /// The code; `@FILE` and `-` read it from there.
    #[arg(value_name = "CODE")]
    code: String,
    /// What runs it: python, javascript, ruby, bash, sh, or a program that takes code behind `-c`.
    #[arg(long, value_name = "LANGUAGE", default_value = "python")]
    language: String,
    /// Seconds until it is killed.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = options::seconds)]
    timeout: i64,
    /// Answer with JSON when it has ended.
    #[arg(long)]
    json: bool,
}

impl Stream {
    pub(super) fn run(self) -> Outcome {
        let (sandbox, request) = self.run.into_request();
        start(&sandbox, &request, self.json)
    }
}

impl Attach {
    pub(super) fn run(self) -> Outcome {
        let Self { target: Target { sandbox }, pid, json } = self;
        session::run_in(&sandbox, async |client| {
            let attaching = client.process_attach(&sandbox, pid, ProcessOffsets::default());
            let stream = session::wait("attaching", None, attaching).await?;
            follow(stream, &sandbox, json).await
        })
    }
}

impl CodeRun {
    pub(super) fn run(self) -> Outcome {
        let code = options::text(&self.code)?;
        let (program, flag) = match self.language.as_str() {
            "python" => ("python3", "-c"),
            "javascript" => ("node", "-e"),
            "ruby" => ("ruby", "-e"),
            other => (other, "-c"),
        };
        let request = ExecRequest {
            command: program.to_owned(),
            args: Some(vec![flag.to_owned(), code]),
            timeout_secs: Some(as_seconds(self.timeout)),
            ..ExecRequest::default()
        };
        start(&self.target.sandbox, &request, self.json)
    }
}

fn start(sandbox: &str, request: &ExecRequest, json: bool) -> Outcome {
    session::run_in(sandbox, async |client| {
        let left = format!("the command may run: see `nullspace sandbox process list {sandbox}`");
        let starting = client.process_stream(sandbox, request);
        let stream = session::wait("starting", Some(&left), starting).await?;
        follow(stream, sandbox, json).await
    })
}

async fn follow(mut stream: ProcessStream, sandbox: &str, json: bool) -> Outcome {
    let pid = stream.pid();
    let left = format!("it runs on: follow it with `nullspace sandbox process attach {sandbox} {pid}`");
    session::quietly(Some(&left), async {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        // A server that ends the stream without an exit says so with an error.
        let mut exit_code = i32::from(exit::GENERIC);
        while let Some(output) = stream.next().await? {
            match output {
                ProcessOutput::Stdout(text) if json => hold(&mut stdout, &text)?,
                ProcessOutput::Stderr(text) if json => hold(&mut stderr, &text)?,
                ProcessOutput::Stdout(text) => printer::bytes(text.as_bytes())?,
                ProcessOutput::Stderr(text) => printer::error_bytes(text.as_bytes())?,
                ProcessOutput::Exited { exit_code: code } => exit_code = code,
            }
        }
        if json {
            printer::json(&ExecResult { exit_code, stdout, stderr, pid })?;
        }
        Ok(exit::remote(exit_code))
    })
    .await
}

fn hold(held: &mut String, text: &str) -> Result<(), Failure> {
    if held.len() + text.len() > HELD_MAX {
        return Err(Failure::Local {
            code: "cli_error",
            message: format!("the output has more than {HELD_MAX} bytes, too many for one answer"),
            hint: Some("the command runs on: follow it without --json".to_owned()),
            details: None,
        });
    }
    held.push_str(text);
    Ok(())
}

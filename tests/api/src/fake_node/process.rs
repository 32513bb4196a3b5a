//! Processes of fake machines: their work is done when they start, all but `cat` and `sleep`.

use std::time::Duration;

use bytes::Bytes;
use nullspace_node_api::{Captured, Command, Finished, ProcessEvents, ProcessState};
use nullspace_types::id::SandboxId;
use nullspace_types::process::{ProcessEvent, ProcessInfo};
use nullspace_types::{Code, Error, Result};

use super::{FakeHost, FakeMachine};

/// What is captured inline; more is left in the log.
const INLINE_MAX: usize = 1024 * 1024;
/// What one event has at most.
const PIECE: usize = 64 * 1024;

#[derive(Debug, Clone)]
pub(super) struct FakeProcess {
    command: String,
    /// Exit status, and whether its time ran out.
    pub exit: Option<(i32, bool)>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// The few commands that fake machines know: exit status, standard output, standard error.
fn interpret(command: &Command) -> Result<(i32, Vec<u8>, Vec<u8>)> {
    let line = std::iter::once(&command.command).chain(&command.args).cloned().collect::<Vec<_>>().join(" ");
    let (name, rest) = line.split_once(' ').unwrap_or((&line, ""));
    match name {
        "true" | "cat" | "sleep" => Ok((0, vec![], vec![])),
        "false" => Ok((1, vec![], b"it failed\n".to_vec())),
        "echo" => Ok((0, format!("{rest}\n").into_bytes(), vec![])),
        "latin1" => Ok((0, b"caf\xe9\n".to_vec(), vec![])),
        "yes" => Ok((0, vec![b'y'; rest.parse().unwrap_or(0)], vec![])),
        _ => Err(Error::new(Code::ExecFailed, format!("{name}: no such file or directory"))),
    }
}

pub(super) fn no_process(pid: u32) -> Error {
    Error::new(Code::ProcessNotFound, format!("process {pid} does not exist"))
}

impl FakeMachine {
    pub(super) fn process(&mut self, pid: u32) -> Result<&mut FakeProcess> {
        self.processes.get_mut(&pid).ok_or_else(|| no_process(pid))
    }
}

impl FakeProcess {
    pub(super) fn state(&self, pid: u32) -> ProcessState {
        ProcessState {
            info: ProcessInfo { pid, command: self.command.clone(), running: self.exit.is_none() },
            exit_code: self.exit.map(|(code, _)| code),
        }
    }
}

impl FakeHost {
    /// Starts a command; one of those that wait for something goes on if it may.
    pub(super) fn start(&self, id: SandboxId, command: Command, waits: bool) -> Result<u32> {
        let (code, stdout, stderr) = interpret(&command)?;
        let running = waits && matches!(command.command.as_str(), "cat" | "sleep");
        let exit = (!running).then_some((code, false));
        self.with(|world| {
            let machine = world.machine(id)?;
            machine.next_pid += 1;
            let process = FakeProcess { command: command.command, exit, stdout, stderr };
            machine.processes.insert(machine.next_pid, process);
            Ok(machine.next_pid)
        })
    }

    pub(super) async fn run(&self, id: SandboxId, command: Command) -> Result<Finished> {
        let limit = command.timeout_ms;
        let sleeps = command.command == "sleep";
        let pid = self.start(id, command, sleeps)?;
        if sleeps {
            let limit = limit.expect("a foreground command has a limit");
            tokio::time::sleep(Duration::from_millis(limit)).await;
            self.end(id, pid, true);
        }
        let process = self.with(|world| world.machine(id)?.process(pid).cloned())?;
        let (exit_code, timed_out) = process.exit.unwrap_or((0, false));
        let FakeProcess { stdout, stderr, .. } = process;
        let output = match stdout.len() + stderr.len() > INLINE_MAX {
            true => Captured::Log,
            false => Captured::Inline { stdout, stderr },
        };
        Ok(Finished { pid, exit_code, timed_out, guest_us: 10, output })
    }

    /// Ends a process if it is still there.
    fn end(&self, id: SandboxId, pid: u32, timed_out: bool) {
        self.with(|world| {
            if let Ok(process) = world.machine(id).and_then(|machine| machine.process(pid)) {
                process.exit.get_or_insert((137, timed_out));
            }
        });
    }

    pub(super) fn stream(&self, id: SandboxId, command: Command) -> Result<ProcessEvents> {
        let limit = command.timeout_ms;
        let pid = self.start(id, command, true)?;
        if let Some(limit) = limit {
            let host = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(limit)).await;
                host.end(id, pid, true);
            });
        }
        Ok(self.events(id, pid, (0, 0)))
    }

    /// Events of a process from two offsets on.
    pub(super) fn events(&self, id: SandboxId, pid: u32, (stdout, stderr): (u64, u64)) -> ProcessEvents {
        let cursor = (false, stdout as usize, stderr as usize);
        self.follow(id, cursor, move |machine, (told, stdout, stderr)| {
            let process = &machine.processes[&pid];
            let mut events = Vec::new();
            if !std::mem::replace(told, true) {
                events.push(ProcessEvent::Started { pid });
            }
            for (data, at, is_stderr) in [(&process.stdout, stdout, false), (&process.stderr, stderr, true)] {
                let pieces = data.get(*at..).unwrap_or_default().chunks(PIECE);
                let output =
                    |piece| ProcessEvent::Output { stderr: is_stderr, data: Bytes::copy_from_slice(piece) };
                events.extend(pieces.map(output));
                *at = data.len();
            }
            let exited = process.exit.map(|(exit_code, timed_out)| ProcessEvent::Exited {
                exit_code,
                timed_out,
                guest_us: 10,
            });
            events.extend(exited);
            (events, process.exit.is_some())
        })
    }
}

//! Terminal sessions of fake machines: what is typed is shown, and Ctrl-D ends them.

use bytes::Bytes;
use nullspace_node_api::{TerminalEvents, TerminalSpec};
use nullspace_types::id::{SandboxId, SessionId};
use nullspace_types::terminal::{TerminalEvent, TerminalInfo};
use nullspace_types::{Code, Error, Result};

use super::{FakeHost, FakeMachine};

/// Ctrl-D.
const END: u8 = 4;

#[derive(Debug, Clone)]
pub(super) struct FakeTerminal {
    pub info: TerminalInfo,
    shown: Vec<u8>,
    pub exit_code: Option<i32>,
}

impl FakeMachine {
    pub(super) fn terminal(&mut self, session: SessionId) -> Result<&mut FakeTerminal> {
        let missing =
            || Error::new(Code::TerminalNotFound, format!("there is no terminal session {session}"));
        self.terminals.get_mut(&session).ok_or_else(missing)
    }
}

impl FakeTerminal {
    pub(super) fn write(&mut self, data: &[u8]) -> Result<()> {
        if self.exit_code.is_some() {
            return Err(Error::invalid("the terminal session has ended"));
        }
        let typed = data.split(|byte| *byte == END).next().unwrap_or_default();
        self.shown.extend_from_slice(typed);
        self.exit_code = (typed.len() < data.len()).then_some(0);
        Ok(())
    }
}

impl FakeHost {
    pub(super) fn start_terminal(&self, id: SandboxId, spec: TerminalSpec) -> Result<TerminalInfo> {
        self.with(|world| {
            let machine = world.machine(id)?;
            machine.next_pid += 1;
            let TerminalSpec { session_id, cols, rows, .. } = spec;
            let info = TerminalInfo { session_id, pid: machine.next_pid, cols, rows };
            let terminal = FakeTerminal { info, shown: b"$ ".to_vec(), exit_code: None };
            Ok(machine.terminals.entry(session_id).or_insert(terminal).info.clone())
        })
    }

    pub(super) fn view(&self, id: SandboxId, session: SessionId) -> Result<TerminalEvents> {
        self.with(|world| world.machine(id)?.terminal(session).map(drop))?;
        Ok(self.follow(id, None, move |machine, at: &mut Option<usize>| {
            let terminal = &machine.terminals[&session];
            let mut events = Vec::new();
            if at.is_none() {
                events.push(TerminalEvent::Attached(terminal.info.clone()));
            }
            let new = &terminal.shown[at.unwrap_or(0)..];
            if !new.is_empty() {
                events.push(TerminalEvent::Output(Bytes::copy_from_slice(new)));
            }
            *at = Some(terminal.shown.len());
            events.extend(terminal.exit_code.map(|exit_code| TerminalEvent::Exited { exit_code }));
            (events, terminal.exit_code.is_some())
        }))
    }
}

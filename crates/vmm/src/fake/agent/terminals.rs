//! Terminal sessions without a program: what is typed is shown, and Ctrl-D ends them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use nullspace_guest_proto as proto;
use nullspace_guest_proto::terminal_event::Event;
use tokio::sync::{mpsc, watch};
use tonic::Status;

/// Ctrl-D.
const END: u8 = 4;
/// Process IDs of sessions, apart from those of commands.
const FIRST_PID: u32 = 10_000;

/// What a session has come to.
#[derive(Clone)]
struct Screen {
    info: proto::Terminal,
    shown: Vec<u8>,
    exit_code: Option<i32>,
}

/// One of them.
pub struct Terminal {
    begun: Instant,
    screen: watch::Sender<Screen>,
}

/// All of them.
#[derive(Default)]
pub struct Terminals(BTreeMap<String, Arc<Terminal>>);

impl Terminals {
    /// The same sessions, going their own way.
    pub fn copy(&self) -> Self {
        let copy = |terminal: &Terminal| Terminal {
            begun: terminal.begun,
            screen: watch::channel(terminal.screen.borrow().clone()).0,
        };
        Self(self.0.iter().map(|(id, terminal)| (id.clone(), Arc::new(copy(terminal)))).collect())
    }

    pub fn start(&mut self, request: proto::StartTerminalRequest) -> proto::Terminal {
        let pid = FIRST_PID + self.0.len() as u32;
        let terminal = self.0.entry(request.session_id.clone()).or_insert_with(|| {
            let info = proto::Terminal {
                session_id: request.session_id,
                pid,
                cols: request.cols,
                rows: request.rows,
            };
            let screen = Screen { info, shown: b"$ ".to_vec(), exit_code: None };
            Arc::new(Terminal { begun: Instant::now(), screen: watch::channel(screen).0 })
        });
        terminal.info()
    }

    pub fn find(&self, session_id: &str) -> Result<Arc<Terminal>, Status> {
        let missing = || Status::not_found(format!("there is no terminal session {session_id}"));
        self.0.get(session_id).cloned().ok_or_else(missing)
    }

    pub fn running(&self) -> Vec<proto::Terminal> {
        let running = self.0.values().filter(|terminal| terminal.screen.borrow().exit_code.is_none());
        running.map(|terminal| terminal.info()).collect()
    }
}

impl Terminal {
    fn info(&self) -> proto::Terminal {
        self.screen.borrow().info.clone()
    }

    pub fn write(&self, data: &[u8]) -> Result<(), Status> {
        if self.screen.borrow().exit_code.is_some() {
            return Err(Status::failed_precondition("the terminal session has ended"));
        }
        let typed = data.split(|byte| *byte == END).next().unwrap_or_default();
        self.screen.send_modify(|screen| screen.shown.extend_from_slice(typed));
        if typed.len() < data.len() {
            self.end(0);
        }
        Ok(())
    }

    pub fn resize(&self, cols: u32, rows: u32) {
        self.screen.send_modify(|screen| (screen.info.cols, screen.info.rows) = (cols, rows));
    }

    pub fn end(&self, exit_code: i32) {
        self.screen.send_if_modified(|screen| {
            screen.exit_code.is_none() && screen.exit_code.replace(exit_code).is_none()
        });
    }

    /// Tells a viewer of the session, what it shows, and its end.
    pub async fn tell(&self, events: mpsc::Sender<Result<proto::TerminalEvent, Status>>) {
        let mut changes = self.screen.subscribe();
        let mut at = 0;
        let mut next = vec![Event::Terminal(self.info())];
        loop {
            let exit_code = {
                let screen = changes.borrow_and_update();
                let shown = bytes::Bytes::copy_from_slice(&screen.shown[at..]);
                at = screen.shown.len();
                next.extend((!shown.is_empty()).then_some(Event::Output(shown)));
                screen.exit_code
            };
            next.extend(exit_code.map(|exit_code| {
                let duration_us = self.begun.elapsed().as_micros() as u64;
                Event::Exited(proto::Exited { exit_code, duration_us, ..Default::default() })
            }));
            for event in next.drain(..) {
                if events.send(Ok(proto::TerminalEvent { event: Some(event) })).await.is_err() {
                    return;
                }
            }
            if exit_code.is_some() || changes.changed().await.is_err() {
                return;
            }
        }
    }
}

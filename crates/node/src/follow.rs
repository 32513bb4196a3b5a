//! One process followed from its start, or from where its reader stopped, to its end, however often the
//! link breaks in between: no byte lost, none doubled, and a command started once.
//!
//! What makes that so: a start has a name, under which the agent answers a repeated one with the process
//! that it made; and the output of a process lies in logs, which are read on from the offsets that were
//! heard. Nothing is buffered here: a reader that is slow holds the stream back, and the stream the process.

use std::sync::Arc;
use std::time::Duration;

use nullspace_guest_proto as proto;
use nullspace_guest_proto::run_event::Event;
use nullspace_types::{Code, Error, Result};
use tonic::{Status, Streaming};

use crate::guest::{Breaks, PATIENCE, link_broke, process_error, silent};
use crate::running::Running;

/// A process that is followed.
pub struct Follow {
    machine: Arc<Running>,
    begin: Begin,
    /// Whether somebody was told of the start.
    told: bool,
    paced: bool,
    /// How long it may be silent; none for a process without a time limit.
    patience: Option<Duration>,
    stdout: u64,
    stderr: u64,
    events: Option<Streaming<proto::RunEvent>>,
}

/// How it is found again.
enum Begin {
    /// It has not been heard of: by the name of its start.
    Run(Box<proto::RunRequest>),
    /// By its PID.
    Attach(u32),
}

enum Broken {
    Command(Error),
    Link(Status),
}

impl Follow {
    /// Starts a command. `request` is given its name here.
    pub fn run(machine: Arc<Running>, mut request: proto::RunRequest) -> Self {
        request.run_id = crate::random_hex(16);
        let limit = (request.timeout_ms > 0).then(|| Duration::from_millis(request.timeout_ms) + PATIENCE);
        Self {
            machine,
            told: false,
            paced: request.paced,
            patience: if request.background { Some(PATIENCE) } else { limit },
            stdout: 0,
            stderr: 0,
            events: None,
            begin: Begin::Run(Box::new(request)),
        }
    }

    /// Finds a process that was started before; events from these offsets on, at the reader's pace.
    pub fn attach(machine: Arc<Running>, pid: u32, stdout: u64, stderr: u64) -> Self {
        let begin = Begin::Attach(pid);
        Self { machine, begin, told: false, paced: true, patience: None, stdout, stderr, events: None }
    }

    /// The next event: first `Started`, once; last `Exited`, and nothing may be asked for behind it.
    pub async fn next(&mut self) -> Result<Event> {
        let mut breaks = Breaks::default();
        loop {
            let status = match self.listen().await {
                Ok(event) => return Ok(event),
                Err(Broken::Command(error)) => return Err(error),
                Err(Broken::Link(status)) => status,
            };
            self.events = None;
            breaks.pause(status).await.map_err(|status| silent(&status))?;
        }
    }

    async fn listen(&mut self) -> Result<Event, Broken> {
        if self.events.is_none() {
            self.events = Some(self.open().await?);
        }
        loop {
            let events = self.events.as_mut().expect("opened above");
            let started = matches!(self.begin, Begin::Attach(_));
            let patience = if started { self.patience } else { Some(PATIENCE) };
            let message = within(patience, events.message()).await?;
            let ended = || Broken::Link(Status::unavailable("the stream ended before the command"));
            match message.ok_or_else(ended)?.event {
                Some(Event::Started(started)) => {
                    if let Begin::Run(_) = self.begin {
                        self.begin = Begin::Attach(started.pid);
                    }
                    if !std::mem::replace(&mut self.told, true) {
                        return Ok(Event::Started(started));
                    }
                }
                Some(Event::Output(output)) => {
                    match output.stream() {
                        proto::Stream::Stderr => self.stderr += output.data.len() as u64,
                        _ => self.stdout += output.data.len() as u64,
                    }
                    return Ok(Event::Output(output));
                }
                Some(Event::Failed(failed)) => return Err(Broken::Command(not_started(&failed))),
                Some(event @ (Event::OutputCut(_) | Event::Exited(_))) => return Ok(event),
                None => {}
            }
        }
    }

    async fn open(&self) -> Result<Streaming<proto::RunEvent>, Broken> {
        let mut client = self.machine.client().map_err(Broken::Command)?;
        let opened = match &self.begin {
            Begin::Run(request) => within(Some(PATIENCE), client.run((**request).clone())).await,
            Begin::Attach(pid) => {
                let attach = proto::AttachRequest {
                    pid: *pid,
                    stdout_offset: self.stdout,
                    stderr_offset: self.stderr,
                    paced: self.paced,
                };
                within(Some(PATIENCE), client.attach(attach)).await
            }
        };
        opened.map(tonic::Response::into_inner)
    }
}

/// What comes within a time.
async fn within<T>(
    patience: Option<Duration>,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Broken> {
    let result = match patience {
        Some(patience) => tokio::time::timeout(patience, call)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("the guest does not answer"))),
        None => call.await,
    };
    result.map_err(|status| match link_broke(&status) {
        true => Broken::Link(status),
        false => Broken::Command(process_error(&status)),
    })
}

fn not_started(failed: &proto::Failed) -> Error {
    use proto::failed::Reason;
    match failed.reason() {
        Reason::BadCwd | Reason::BadUser => Error::invalid(failed.message.clone()),
        _ => Error::new(Code::ExecFailed, failed.message.clone()),
    }
}

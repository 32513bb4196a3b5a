//! An agent in memory: the protocol's calls over a few words of a command language and a tree of
//! files that nobody else sees. It runs nothing and touches no file of the host's.
//!
//! Words: `true`, `false`, `echo …`, `env`, `pwd`, `exit N`, `sleep SECONDS`, `cat` (copies standard
//! input until that ends), `yes-bytes N` (that much output), `count N` (so many lines, each its own),
//! `bad-utf8`. A shell line is split at spaces. Anything else is not found.

mod calls;
mod door;
mod files;
mod processes;
mod search;
mod terminals;
mod uploads;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use nullspace_guest_proto as proto;
use tokio::io::{DuplexStream, copy_bidirectional, duplex};
use tokio::sync::watch;
use tonic::Status;

use door::Door;
use files::Tree;
use processes::Processes;
use terminals::Terminals;
use uploads::Uploads;

use super::LINK_BYTES;

/// How an agent is told to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does not confirm that entropy was credited. As all faults it is captured, and goes on in what is
    /// restored.
    RefuseEntropy,
    /// Adopt is never answered.
    HangOnAdopt,
}

/// An agent. All clones are the same one.
#[derive(Clone)]
pub struct FakeAgent {
    state: Arc<Mutex<State>>,
    links: Links,
}

struct State {
    /// What is taken now: the checkpoint's until it is adopted.
    token: String,
    /// The one before.
    former_token: Option<String>,
    own: Option<proto::AdoptRequest>,
    fault: Option<Fault>,
    /// By which freeze programs are said to stand still.
    frozen: watch::Sender<Option<String>>,
    /// How often they did.
    freezes: usize,
    /// For each of the next streams of a command, after how many events the links break.
    breaks: VecDeque<u64>,
    files: Tree,
    processes: Processes,
    terminals: Terminals,
    uploads: Uploads,
}

/// Every link that is open.
#[derive(Clone, Default)]
struct Links(watch::Sender<()>);

impl Links {
    /// Breaks them all. What was sent and has not arrived is lost.
    fn cut(&self) {
        self.0.send_replace(());
    }
}

impl FakeAgent {
    /// One that takes this token until it is adopted.
    pub fn new(checkpoint_token: String) -> Self {
        Self::of(State {
            token: checkpoint_token,
            former_token: None,
            own: None,
            fault: None,
            frozen: watch::Sender::default(),
            freezes: 0,
            breaks: VecDeque::new(),
            files: Tree::default(),
            processes: Processes::default(),
            terminals: Terminals::default(),
            uploads: Uploads::default(),
        })
    }

    /// One that was adopted with this token, and of which nothing else is known.
    pub(super) fn adopted(sandbox_id: String, token: String) -> Self {
        let agent = Self::new(String::new());
        let own = proto::AdoptRequest { sandbox_id, token: token.clone(), ..Default::default() };
        {
            let mut state = agent.state();
            (state.own, state.token) = (Some(own), token);
        }
        agent
    }

    fn of(state: State) -> Self {
        Self { state: Arc::new(Mutex::new(state)), links: Links::default() }
    }

    /// Another one that is where this is now, and goes its own way from there. It has no links.
    pub(super) fn copy(&self) -> Self {
        Self::of(self.state().copy())
    }

    /// Has what ran when it was copied go on.
    pub(super) fn go_on(&self) {
        for process in self.state().processes.all() {
            let process = Arc::clone(process);
            tokio::spawn(async move { process.work().await });
        }
    }

    /// As whom it was adopted, if it was: sandbox and token.
    pub(super) fn identity(&self) -> Option<(String, String)> {
        self.state().own.as_ref().map(|own| (own.sandbox_id.clone(), own.token.clone()))
    }

    /// Has it fail from now on.
    pub fn fail(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    /// Has every link break once the next stream of a command has had so many events (with 0, before the
    /// caller hears of the start), then again in the next such stream, and so on.
    pub fn break_links_after(&self, events: impl IntoIterator<Item = u64>) {
        self.state().breaks.extend(events);
    }

    /// Breaks every link now.
    pub fn break_links(&self) {
        self.links.cut();
    }

    /// How many processes were ever started since it was adopted.
    pub fn started(&self) -> usize {
        self.state().processes.all().count()
    }

    /// Waits until its programs were told to go on, if they were told to stand still.
    pub async fn goes_on(&self) {
        let mut frozen = self.state().frozen.subscribe();
        // The sender lives in `self`.
        drop(frozen.wait_for(Option::is_none).await);
    }

    /// How often they were, with what it was copied from.
    pub fn freezes(&self) -> usize {
        self.state().freezes
    }

    /// Serves one link to its end.
    pub async fn serve(self, mut stream: DuplexStream) {
        let links = self.links.clone();
        let service = Door::to(self);
        // The library serves a link in a task of its own: what is broken is the way to it.
        let (mut near, far) = duplex(LINK_BYTES);
        let served = async {
            let far = tokio_stream::iter([Ok::<_, std::io::Error>(far)]);
            let served =
                tonic::transport::Server::builder().add_service(service).serve_with_incoming(far).await;
            if let Err(error) = served {
                tracing::debug!(%error, "a link to a fake agent broke");
            }
            std::future::pending::<()>().await;
        };
        let mut cut = links.0.subscribe();
        tokio::select! {
            () = served => {}
            ended = copy_bidirectional(&mut stream, &mut near) => {
                tracing::debug!(?ended, "a link to a fake agent ended");
            }
            // The sender lives in `links`.
            _ = cut.changed() => {}
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

/// What a token is to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The one that counts.
    Own,
    /// The one before, which may only ask for the answer of an adoption again.
    Former,
    Stranger,
}

impl State {
    fn standing(&self, token: &str) -> Standing {
        match &self.former_token {
            _ if token == self.token => Standing::Own,
            Some(former) if token == former => Standing::Former,
            _ => Standing::Stranger,
        }
    }

    /// Adopted once by whoever has the checkpoint's token, and again by whoever has its own, with another.
    #[allow(clippy::result_large_err, reason = "the calls answer with it")]
    fn adopt(&mut self, request: proto::AdoptRequest, by_own: bool) -> Result<(), Status> {
        match &self.own {
            Some(own) if own.token == request.token && own.sandbox_id == request.sandbox_id => return Ok(()),
            Some(own) if !by_own || own.token == request.token => {
                return Err(Status::failed_precondition(format!("already adopted as {}", own.sandbox_id)));
            }
            Some(_) => {}
            None => self.processes.forget(),
        }
        self.former_token = Some(std::mem::replace(&mut self.token, request.token.clone()));
        self.own = Some(request);
        self.frozen.send_replace(None);
        Ok(())
    }

    fn copy(&self) -> Self {
        Self {
            token: self.token.clone(),
            former_token: self.former_token.clone(),
            own: self.own.clone(),
            fault: self.fault,
            frozen: watch::Sender::new(self.frozen.borrow().clone()),
            freezes: self.freezes,
            // It has no links.
            breaks: VecDeque::new(),
            files: self.files.copy(),
            processes: self.processes.copy(),
            terminals: self.terminals.copy(),
            uploads: self.uploads.clone(),
        }
    }

    fn environment(&self, more: &std::collections::HashMap<String, String>) -> BTreeMap<String, String> {
        let own = self.own.iter().flat_map(|own| &own.envs);
        own.chain(more).map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The machine's own directory.
    fn cwd(&self) -> &str {
        self.own.as_ref().map(|own| own.cwd.as_str()).filter(|cwd| !cwd.is_empty()).unwrap_or("/workspace")
    }
}

//! An agent in memory: the protocol's calls over a few words of a command language and a tree of
//! files that nobody else sees. It runs nothing and touches no file of the host's.
//!
//! Words: `true`, `false`, `echo …`, `env`, `pwd`, `exit N`, `sleep SECONDS`, `cat` (copies standard
//! input until that ends), `yes-bytes N` (that much output), `count N` (so many lines, each its own),
//! `bad-utf8`. A shell line is split at spaces. Anything else is not found.

mod calls;
mod files;
mod processes;
mod search;
mod terminals;
mod uploads;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use nullspace_guest_proto as proto;
use nullspace_guest_proto::agent_server::AgentServer;
use tokio::io::{DuplexStream, copy_bidirectional, duplex};
use tokio::sync::watch;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Status};

use files::Tree;
use processes::Processes;
use terminals::Terminals;
use uploads::Uploads;

use super::LINK_BYTES;

/// How an agent is told to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does not confirm that entropy was credited.
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
    checkpoint_token: String,
    own: Option<proto::AdoptRequest>,
    fault: Option<Fault>,
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
        let state = State {
            checkpoint_token,
            own: None,
            fault: None,
            breaks: VecDeque::new(),
            files: Tree::default(),
            processes: Processes::default(),
            terminals: Terminals::default(),
            uploads: Uploads::default(),
        };
        Self { state: Arc::new(Mutex::new(state)), links: Links::default() }
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

    /// Serves one link to its end.
    pub async fn serve(self, mut stream: DuplexStream) {
        let (checked, links) = (self.clone(), self.links.clone());
        let service = AgentServer::new(self).max_decoding_message_size(proto::MESSAGE_LIMIT);
        let service = InterceptedService::new(service, move |request: Request<()>| checked.check(request));
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

    /// The checkpoint's token until adoption, its own from then on. Adopt takes both, for whoever lost
    /// the answer.
    #[allow(clippy::result_large_err, reason = "the signature is the interceptor's")]
    fn check(&self, request: Request<()>) -> Result<Request<()>, Status> {
        let given = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        let state = self.state();
        let own = state.own.as_ref().map(|own| own.token.as_str());
        if own == Some(given) || given == state.checkpoint_token {
            return Ok(request);
        }
        Err(Status::unauthenticated("the token is missing or wrong"))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

impl State {
    fn environment(&self, more: &std::collections::HashMap<String, String>) -> BTreeMap<String, String> {
        let own = self.own.iter().flat_map(|own| &own.envs);
        own.chain(more).map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The machine's own directory.
    fn cwd(&self) -> &str {
        self.own.as_ref().map(|own| own.cwd.as_str()).filter(|cwd| !cwd.is_empty()).unwrap_or("/workspace")
    }
}

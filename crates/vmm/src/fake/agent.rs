//! An agent in memory: the protocol's calls over a few words of a command language and a tree of
//! files that nobody else sees. It runs nothing and touches no file of the host's.
//!
//! Words: `true`, `false`, `echo …`, `env`, `pwd`, `exit N`, `sleep SECONDS`, `cat` (copies standard
//! input until it is killed), `yes-bytes N` (that much output), `bad-utf8`. A shell line is split at
//! spaces. Anything else is not found.

mod calls;
mod files;
mod processes;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use nullspace_guest_proto as proto;
use nullspace_guest_proto::agent_server::AgentServer;
use tokio::io::DuplexStream;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Status};

use files::Tree;
use processes::Processes;

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
pub struct FakeAgent(Arc<Mutex<State>>);

struct State {
    checkpoint_token: String,
    own: Option<proto::AdoptRequest>,
    fault: Option<Fault>,
    files: Tree,
    processes: Processes,
}

impl FakeAgent {
    /// One that takes this token until it is adopted.
    pub fn new(checkpoint_token: String) -> Self {
        let state = State {
            checkpoint_token,
            own: None,
            fault: None,
            files: Tree::default(),
            processes: Processes::default(),
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Has it fail from now on.
    pub fn fail(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    /// Serves one link to its end.
    pub async fn serve(self, stream: DuplexStream) {
        let checked = self.clone();
        let service = AgentServer::new(self).max_decoding_message_size(proto::MESSAGE_LIMIT);
        let service = InterceptedService::new(service, move |request: Request<()>| checked.check(request));
        let links = tokio_stream::iter([Ok::<_, std::io::Error>(stream)]);
        let served =
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(links).await;
        if let Err(error) = served {
            tracing::debug!(%error, "a link to a fake agent broke");
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
        self.0.lock().expect("no holder panics")
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

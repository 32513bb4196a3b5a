//! Who may call: as with a real agent, the token in force opens everything, and the one before only Adopt.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use nullspace_guest_proto as proto;
use nullspace_guest_proto::agent_server::AgentServer;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use super::{FakeAgent, Standing};

/// The path of the one call that the token before opens.
const ADOPT: &str = "/nullspace.guest.v1.Agent/Adopt";

/// Lets a call in, if its token is right.
#[derive(Clone)]
pub struct Door {
    agent: FakeAgent,
    calls: AgentServer<FakeAgent>,
}

impl Door {
    /// The door of an agent.
    pub fn to(agent: FakeAgent) -> Self {
        let calls = AgentServer::new(agent.clone()).max_decoding_message_size(proto::MESSAGE_LIMIT);
        Self { agent, calls }
    }
}

impl NamedService for Door {
    const NAME: &'static str = <AgentServer<FakeAgent> as NamedService>::NAME;
}

impl Service<http::Request<Body>> for Door {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let given = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        let standing = self.agent.state().standing(given);
        match standing {
            Standing::Own => {}
            Standing::Former if request.uri().path() == ADOPT => {}
            Standing::Former | Standing::Stranger => {
                let refused = Status::unauthenticated("the token is missing or wrong");
                return Box::pin(std::future::ready(Ok(refused.into_http())));
            }
        }
        request.extensions_mut().insert(standing);
        self.calls.call(request)
    }
}

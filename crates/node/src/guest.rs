//! The node's side of the protocol with a guest's agent: one HTTP/2 connection for each machine,
//! opened again when it breaks, with the token on every call and a deadline on every answer.
//!
//! The guest is hostile: messages are bounded, and what it says is never used as a path here.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use nullspace_guest_proto::agent_client::AgentClient;
use nullspace_guest_proto::{self as proto, MESSAGE_LIMIT};
use nullspace_types::{Code, Error};
use nullspace_vmm::GuestLink;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// How long the guest may take for what is not a user's own command.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long a new link may take: a restored guest has to translate its network code first.
const DIAL_PATIENCE: Duration = Duration::from_secs(20);

/// Puts the token on every call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// A client of one guest's agent.
pub type Client = AgentClient<InterceptedService<Channel, Bearer>>;

/// The way to one guest's agent.
#[derive(Clone)]
pub struct Guest {
    channel: Channel,
}

impl Guest {
    /// Opens nothing yet: the first call does.
    pub fn new(link: Arc<dyn GuestLink>) -> Self {
        let channel = Endpoint::from_static("http://guest")
            .initial_connection_window_size(4 << 20)
            .initial_stream_window_size(2 << 20)
            .connect_with_connector_lazy(tower::service_fn(move |_| {
                let link = Arc::clone(&link);
                async move { link.dial(DIAL_PATIENCE).await.map(TokioIo::new) }
            }));
        Self { channel }
    }

    /// A client that shows a token.
    pub fn with_token(&self, token: &str) -> Result<Client, Error> {
        let value = format!("Bearer {token}").parse().map_err(Error::internal)?;
        Ok(AgentClient::with_interceptor(self.channel.clone(), Bearer(value))
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT))
    }
}

/// Makes a clone its own machine, and checks that every part was confirmed.
pub async fn adopt(client: &mut Client, request: proto::AdoptRequest) -> Result<(), Error> {
    let reply = answered(client.adopt(request)).await.map_err(|status| failed("adopt", &status))?;
    let parts = [
        ("clock", reply.clock),
        ("entropy", reply.entropy),
        ("host name", reply.hostname),
        ("machine ID", reply.machine_id),
        ("boot ID", reply.boot_id),
        ("environment", reply.environment),
        ("token", reply.token),
        ("disk", reply.disk),
    ];
    match parts.iter().find(|(_, confirmed)| !confirmed) {
        None => Ok(()),
        Some((part, _)) => Err(Error::internal(format!("the agent did not confirm its {part}"))),
    }
}

/// An answer within [`PATIENCE`].
pub async fn answered<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(reply) => reply.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("the guest does not answer")),
    }
}

/// A failure of the guest's own work that no caller can do anything about.
pub fn failed(what: &str, status: &Status) -> Error {
    Error::internal(format!("{what}: {:?}: {}", status.code(), status.message()))
}

/// What a caller is told when a file call fails.
pub fn file_error(status: &Status) -> Error {
    match status.code() {
        tonic::Code::NotFound => Error::new(Code::FileNotFound, status.message()),
        tonic::Code::InvalidArgument => Error::invalid(status.message()),
        tonic::Code::PermissionDenied
        | tonic::Code::ResourceExhausted
        | tonic::Code::FailedPrecondition
        | tonic::Code::AlreadyExists => Error::new(Code::FileError, status.message()),
        _ => silent(status),
    }
}

/// What a caller is told when a process call fails.
pub fn process_error(status: &Status) -> Error {
    match status.code() {
        tonic::Code::NotFound => Error::new(Code::ProcessNotFound, status.message()),
        tonic::Code::InvalidArgument | tonic::Code::FailedPrecondition => Error::invalid(status.message()),
        tonic::Code::ResourceExhausted => Error::new(Code::ExecFailed, status.message()),
        _ => silent(status),
    }
}

/// The guest does not answer, or not as it should: its own doing, not a fault of the server's.
fn silent(status: &Status) -> Error {
    Error::new(Code::ExecFailed, "the sandbox does not answer")
        .suggest("try again; if it stays so, destroy the sandbox and create another")
        .context(format!("{:?}: {}", status.code(), status.message()))
}

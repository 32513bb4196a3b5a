//! The node's side of the protocol with a guest's agent: one HTTP/2 connection for each machine,
//! opened again when it breaks, with the token on every call and a deadline on every answer.
//!
//! The guest is hostile: messages are bounded, and what it says is never used as a path here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, stream};
use hyper_util::rt::TokioIo;
use nullspace_guest_proto::agent_client::AgentClient;
use nullspace_guest_proto::{self as proto, MESSAGE_LIMIT};
use nullspace_types::{Code, Error};
use nullspace_vmm::{GuestLink, LinkStream};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

/// How long the guest may take for what is not a user's own command.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long a new link may take: a restored guest has to translate its network code first.
const DIAL_PATIENCE: Duration = Duration::from_secs(20);

/// Bytes that one answer may send ahead of its reader: all that a slow reader costs.
const STREAM_WINDOW: u32 = 1 << 20;
/// The same of all answers of a link together; so large that readers who are slow hold up no other call.
const LINK_WINDOW: u32 = 1 << 30;
/// Bytes of one frame that the guest may send: each costs it a turn, and the guest is the slower side.
const FRAME_BYTES: u32 = 256 << 10;

/// Pauses between two tries of a call whose link broke: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

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
    link: Arc<dyn GuestLink>,
}

impl Guest {
    /// Opens nothing yet: the first call does.
    pub fn new(link: Arc<dyn GuestLink>) -> Self {
        let dialled = Arc::clone(&link);
        let channel = Endpoint::from_static("http://guest")
            .initial_connection_window_size(LINK_WINDOW)
            .initial_stream_window_size(STREAM_WINDOW)
            .max_frame_size(FRAME_BYTES)
            .connect_with_connector_lazy(tower::service_fn(move |_| {
                let link = Arc::clone(&dialled);
                async move { link.dial(DIAL_PATIENCE).await.map(TokioIo::new) }
            }));
        Self { channel, link }
    }

    /// Whether it has a lane for bulk data.
    pub fn has_bulk(&self) -> bool {
        self.link.has_bulk()
    }

    /// A new connection of that lane.
    pub async fn dial_bulk(&self) -> std::io::Result<Box<dyn LinkStream>> {
        self.link.dial_bulk(DIAL_PATIENCE).await
    }

    /// A client that shows a token.
    pub fn with_token(&self, token: &str) -> Result<Client, Error> {
        let value = format!("Bearer {token}").parse().map_err(Error::internal)?;
        Ok(AgentClient::with_interceptor(self.channel.clone(), Bearer(value))
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT))
    }
}

/// Asks the agent which protocol it speaks, and answers who it is.
pub async fn greet(client: &mut Client) -> Result<proto::HelloReply, Error> {
    let hello = answered(client.hello(proto::HelloRequest { generation: proto::GENERATION })).await;
    let hello = hello.map_err(|status| failed("hello", &status))?;
    if hello.generation != proto::GENERATION {
        return Err(Error::internal(format!("the agent speaks generation {}", hello.generation)));
    }
    Ok(hello)
}

/// How long an adoption may take: the hooks of a restored machine run within.
const ADOPTION: Duration = Duration::from_secs(60);

/// Makes a clone its own machine, checks that every part was confirmed, and answers what became of its hooks.
pub async fn adopt(
    client: &mut Client,
    request: proto::AdoptRequest,
) -> Result<Vec<proto::HookOutcome>, Error> {
    let no_authority = request.authority_pem.is_empty();
    let reply = match tokio::time::timeout(ADOPTION, client.adopt(request)).await {
        Ok(reply) => reply.map_err(|status| failed("adopt", &status))?.into_inner(),
        Err(_) => return Err(Error::internal("adopt: the guest does not answer")),
    };
    let parts = [
        ("clock", reply.clock),
        ("entropy", reply.entropy),
        ("host name", reply.hostname),
        ("machine ID", reply.machine_id),
        ("boot ID", reply.boot_id),
        ("environment", reply.environment),
        ("token", reply.token),
        ("disk", reply.disk),
        ("SSH host key", reply.ssh_host_key),
        ("authority", reply.authority || no_authority),
    ];
    match parts.iter().find(|(_, confirmed)| !confirmed) {
        None => Ok(reply.hooks),
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

/// What a stream brings whose next piece is always ready soon; a guest that keeps it back longer than
/// [`PATIENCE`] does not answer.
pub fn patient<T: Send + 'static>(messages: Streaming<T>) -> impl Stream<Item = Result<T, Status>> + Send {
    stream::unfold(Some(messages), |messages| async {
        let mut messages = messages?;
        match tokio::time::timeout(PATIENCE, messages.message()).await {
            Ok(Ok(None)) => None,
            Ok(Ok(Some(message))) => Some((Ok(message), Some(messages))),
            Ok(Err(status)) => Some((Err(status), None)),
            Err(_) => Some((Err(Status::deadline_exceeded("the guest does not answer")), None)),
        }
    })
}

/// An answer to a call that can be made again without harm, however often the link breaks within
/// [`PATIENCE`].
pub async fn repeated<T, F>(mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    let mut breaks = Breaks::default();
    loop {
        match answered(call()).await {
            Err(status) if link_broke(&status) => breaks.pause(status).await?,
            answer => return answer,
        }
    }
}

/// Whether a call failed for want of a link, rather than being refused: what the agent itself answers has no
/// cause on this side.
pub fn link_broke(status: &Status) -> bool {
    status.code() == tonic::Code::Unavailable || std::error::Error::source(status).is_some()
}

/// How often a link broke in a row, and for how long.
#[derive(Default)]
pub struct Breaks {
    since: Option<Instant>,
    pause: Duration,
}

impl Breaks {
    /// Waits before the next try; gives up with the reason once the link has been broken for [`PATIENCE`].
    pub async fn pause(&mut self, reason: Status) -> Result<(), Status> {
        if self.since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
            return Err(reason);
        }
        tracing::debug!(%reason, "a call is made again after its link broke");
        self.pause = (self.pause * 2).clamp(PAUSES.0, PAUSES.1);
        tokio::time::sleep(self.pause).await;
        Ok(())
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

/// What a caller is told when a call about a terminal session fails.
pub fn terminal_error(status: &Status) -> Error {
    match status.code() {
        tonic::Code::NotFound => Error::new(Code::TerminalNotFound, status.message()),
        _ => process_error(status),
    }
}

/// The guest does not answer, or not as it should: its own doing, not a fault of the server's.
pub fn silent(status: &Status) -> Error {
    Error::new(Code::ExecFailed, "the sandbox does not answer")
        .suggest("try again; if it stays so, destroy the sandbox and create another")
        .context(format!("{:?}: {}", status.code(), status.message()))
}

//! What the gateway asks of the rest: who may pass, where to, and the way there.

use std::time::Duration;

use async_trait::async_trait;
use nullspace_node_api::Stream;
use nullspace_types::Error;
use nullspace_types::id::{PreviewGrantId, SandboxId};
use nullspace_types::preview::PreviewTransport;
use tokio_util::sync::CancellationToken;

/// What a request is for, by where it came in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    /// A preview host, `{port}-{label}.{domain}`.
    Host {
        /// The port.
        port: u16,
        /// Which sandbox.
        label: String,
    },
    /// A local address, which stands for one port of one sandbox.
    Local {
        /// The port.
        port: u16,
        /// Which sandbox.
        sandbox_id: SandboxId,
    },
}

/// What a request shows of itself.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The token in the URL's query.
    pub edge_token: Option<String>,
    /// The token in a proxy's header.
    pub proxy_token: Option<String>,
    /// Whether the URL says that a proxy's token comes in a header.
    pub proxy_transport: bool,
    /// The cookie that an earlier answer set. Never given for WebSockets.
    pub cookie: Option<String>,
    /// The sandbox's traffic token.
    pub traffic_token: Option<String>,
}

/// A request to be judged.
#[derive(Clone, PartialEq, Eq)]
pub struct Admission {
    /// What for.
    pub destination: Destination,
    /// What kind.
    pub transport: PreviewTransport,
    /// What it shows.
    pub credentials: Credentials,
}

/// A request that may pass.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// Into which sandbox. It is awake.
    pub sandbox_id: SandboxId,
    /// To which port.
    pub port: u16,
    /// The `Host` to show in place of the caller's own.
    pub host: Option<String>,
    /// By which grant, if by one.
    pub grant: Option<PreviewGrantId>,
    /// A cookie to set for the browser, and how long it is good: given when the token stood in the URL.
    pub cookie: Option<(String, Duration)>,
    /// Cancelled when what let it pass ends: the grant is revoked or over, or the sandbox is gone, paused or
    /// no longer public. What is open is then cut.
    pub ended: CancellationToken,
}

/// A request that may not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why, with its code.
    pub error: Error,
    /// When it is worth coming again.
    pub retry_after: Option<Duration>,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let retry_after = error.retryable().then_some(Duration::from_secs(1));
        Self { error, retry_after }
    }
}

/// What passed by a grant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of bodies and frames towards the sandbox.
    pub bytes_in: u64,
    /// Bytes from it.
    pub bytes_out: u64,
}

/// The rest of the server, as the gateway sees it.
#[async_trait]
pub trait Edge: Clone + Send + Sync + 'static {
    /// Judges a request, and wakes the sandbox if it may pass: once, however many come together, and within
    /// a bound. The use of a grant is counted here.
    async fn admit(&self, request: Admission) -> Result<Admitted, Refusal>;

    /// Connects to the service.
    /// [`Code::PreviewServiceNotReady`](nullspace_types::Code::PreviewServiceNotReady) or
    /// [`Code::EdgeRuntimeHostUnreachable`](nullspace_types::Code::EdgeRuntimeHostUnreachable) if that fails.
    async fn connect(&self, sandbox_id: SandboxId, port: u16) -> Result<Stream, Refusal>;

    /// Counts what passed.
    fn passed(&self, grant: PreviewGrantId, traffic: Traffic);

    /// Notes that a request by a grant failed behind the gateway.
    fn failed(&self, grant: PreviewGrantId, code: nullspace_types::Code);
}

//! Waiting for a service in a sandbox, before its address is given out or for its own sake.

use clap::{Args, ValueEnum};
use nullspace_client::Client;
use nullspace_types::preview::{PreviewReadiness, ReadinessRequest};

use crate::failure::Failure;
use crate::session;

/// A wait that has to be asked for.
#[derive(Args)]
pub(super) struct Wait {
    /// Wait until the service answers, and fail if it does not.
    #[arg(long)]
    wait: bool,
    /// What it has to do: take connections, or answer requests with a status below 500.
    #[arg(long, value_enum, ignore_case = true, default_value = "tcp")]
    readiness_kind: Kind,
    /// The path that is asked for with --readiness-kind http.
    #[arg(long, value_name = "PATH")]
    readiness_path: Option<String>,
    /// Seconds to wait at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout_secs: u32,
    /// The longest pause between two attempts, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 500)]
    interval_ms: u32,
}

/// A wait that is all there is to do.
#[derive(Args)]
pub(super) struct Probe {
    /// Ask for this path by HTTP until the answer's status is below 500; without it, taking connections is
    /// enough.
    #[arg(long, value_name = "PATH")]
    http: Option<String>,
    /// Seconds to wait at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Tcp,
    Http,
}

impl Kind {
    fn wire(self) -> String {
        match self {
            Self::Tcp => "tcp".to_owned(),
            Self::Http => "http".to_owned(),
        }
    }
}

impl Wait {
    /// Waits if that was asked for.
    pub(super) async fn done(
        &self,
        client: &Client,
        sandbox: &str,
        port: u16,
    ) -> Result<Option<PreviewReadiness>, Failure> {
        if !self.wait {
            return Ok(None);
        }
        if self.readiness_path.is_some() && self.readiness_kind == Kind::Tcp {
            return Err(Failure::usage("--readiness-path needs --readiness-kind http"));
        }
        session::wait("waking the sandbox", None, client.sandbox_connect(sandbox)).await?;
        let request = ReadinessRequest {
            kind: Some(self.readiness_kind.wire()),
            timeout_secs: Some(self.timeout_secs.into()),
            interval_ms: Some(self.interval_ms.into()),
            path: self.readiness_path.clone(),
        };
        let readiness = ask(client, sandbox, port, &request).await?;
        if readiness.ready { Ok(Some(readiness)) } else { Err(not_ready(readiness)) }
    }
}

impl Probe {
    pub(super) async fn ask(
        &self,
        client: &Client,
        sandbox: &str,
        port: u16,
    ) -> Result<PreviewReadiness, Failure> {
        let kind = if self.http.is_some() { Kind::Http } else { Kind::Tcp };
        let request = ReadinessRequest {
            kind: Some(kind.wire()),
            timeout_secs: Some(self.timeout.into()),
            interval_ms: None,
            path: self.http.clone(),
        };
        ask(client, sandbox, port, &request).await
    }
}

async fn ask(
    client: &Client,
    sandbox: &str,
    port: u16,
    request: &ReadinessRequest,
) -> Result<PreviewReadiness, Failure> {
    let asking = client.preview_readiness(sandbox, port, request);
    session::wait("waiting for the service", None, asking).await
}

/// What a service that does not answer comes to.
pub(super) fn not_ready(readiness: PreviewReadiness) -> Failure {
    let details = serde_json::to_value(&readiness).ok();
    let PreviewReadiness { port, elapsed_ms, error, suggested_action, .. } = readiness;
    let why = error.map(|error| format!(": {error}")).unwrap_or_default();
    Failure::Local {
        code: "preview_service_not_ready",
        message: format!("port {port} is not ready after {elapsed_ms} ms{why}"),
        hint: suggested_action,
        details,
    }
}

//! Waiting for a service: it is tried, and tried again after pauses that begin short and grow. That the
//! sandbox stops running ends the wait at once.

use std::time::Duration;

use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use nullspace_domain::lifecycle::State;
use nullspace_domain::preview::{Probe, port_text, readiness};
use nullspace_node_api::{Door, Stream};
use nullspace_types::id::SandboxId;
use nullspace_types::key::Principal;
use nullspace_types::preview::{PreviewReadiness, ReadinessRequest};
use nullspace_types::{Code, Error, Result};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::Control;
use crate::access::{answered, awake};
use crate::record::Record;
use crate::registry::Entry;

/// The first pause between two attempts, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));
/// The least and the most that one attempt may take.
const ATTEMPT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Most bytes of the head of an answer.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Why the sandbox's ports cannot be reached, if it is in a state in which they cannot.
fn unreachable(record: &Record) -> Option<Error> {
    let id = record.row.id;
    match record.state {
        State::Running { .. } => None,
        State::Hibernating { .. } | State::Paused { .. } => Some(
            Error::new(Code::SandboxPausedAutoResumeDisabled, format!("sandbox {id} is paused"))
                .suggest("resume it first"),
        ),
        State::Absent | State::Creating { .. } | State::Resuming { .. } => Some(
            Error::new(Code::SandboxNotReady, format!("sandbox {id} does not run yet"))
                .suggest("try again when its status is running"),
        ),
        State::Lost { .. } => Some(
            Error::new(Code::EdgeRuntimeHostUnreachable, format!("the machine of sandbox {id} is gone"))
                .suggest("destroy it and create another one"),
        ),
        State::Destroying { .. } | State::Destroyed => {
            Some(Error::new(Code::PreviewSandboxDisabled, format!("sandbox {id} is destroyed")))
        }
    }
}

/// Waits until the sandbox stops running, and says why it did.
async fn stopped(entry: &Entry) -> Error {
    let mut view = entry.view.clone();
    let stopped = view.wait_for(|view| unreachable(&view.record).is_some()).await;
    let why = stopped.ok().and_then(|view| unreachable(&view.record));
    why.unwrap_or_else(crate::access::stopping)
}

/// Asks for a path, and answers the status.
async fn ask_for(stream: Stream, path: &str, host: &str) -> std::result::Result<u16, hyper::Error> {
    let mut builder = http1::Builder::new();
    let (mut sender, connection) =
        builder.max_buf_size(HEAD_BYTES_MAX).handshake::<_, String>(TokioIo::new(stream)).await?;
    let request = hyper::Request::get(path)
        .header(HOST, host)
        .header(USER_AGENT, "nullspace-readiness")
        .header(CONNECTION, "close")
        .body(String::new());
    // What was judged to be a path and a host is one.
    let Ok(request) = request else { return Ok(599) };
    let asked = sender.send_request(request);
    tokio::pin!(connection, asked);
    tokio::select! {
        answer = &mut asked => Ok(answer?.status().as_u16()),
        ended = &mut connection => {
            ended?;
            Ok(asked.await?.status().as_u16())
        }
    }
}

impl Control {
    async fn probe(
        &self,
        id: SandboxId,
        port: u16,
        probe: &Probe,
        host: &str,
        limit: Duration,
    ) -> Result<()> {
        let not_ready = |why: String| Error::new(Code::PreviewServiceNotReady, why);
        let tried = async {
            let stream = answered(id, self.shared.node.connect(id, Door::Port(port), limit).await)?;
            let Probe::Http(path) = probe else { return Ok(()) };
            match ask_for(stream, path, host).await {
                Ok(status) if status < 500 => Ok(()),
                Ok(status) => {
                    Err(not_ready(format!("the service on port {port} answers with status {status}")))
                }
                Err(error) => {
                    Err(not_ready(format!("the service on port {port} does not answer in HTTP: {error}")))
                }
            }
        };
        let late = || not_ready(format!("the service on port {port} took connections but did not answer"));
        timeout(limit, tried).await.unwrap_or_else(|_| Err(late()))
    }

    /// Waits for a service. A sandbox that wakes by itself is woken for it.
    pub async fn preview_readiness(
        &self,
        caller: Principal,
        id: SandboxId,
        port: String,
        request: ReadinessRequest,
    ) -> Result<PreviewReadiness> {
        let begun = Instant::now();
        let entry = self.living(caller.tenant_id, id)?;
        let port = port_text(&port)?;
        let spec = readiness(request)?;
        let deadline = begun + spec.timeout;
        let woken = timeout_at(deadline, awake(&self.shared, caller.tenant_id, id)).await;
        // What its state does not say by itself, such as that there is no room for it.
        let failed = woken.ok().and_then(Result::err);
        let failed =
            failed.filter(|error| !matches!(error.code, Code::SandboxNotReady | Code::SandboxNotFound));
        let mask = entry.view.borrow().record.row.desired.network.mask_request_host.clone();
        let host =
            mask.unwrap_or_else(|| "localhost:${PORT}".to_owned()).replace("${PORT}", &port.to_string());
        let (mut attempts, mut pause) = (0, PAUSES.0);
        let outcome = loop {
            let unreachable = unreachable(&entry.view.borrow().record);
            if let Some(why) = unreachable {
                break Err((false, failed.unwrap_or(why)));
            }
            attempts += 1;
            let left = deadline.saturating_duration_since(Instant::now());
            let limit = left.clamp(ATTEMPT.0, ATTEMPT.1);
            let tried = tokio::select! {
                tried = self.probe(id, port, &spec.probe, &host, limit) => tried,
                why = stopped(&entry) => break Err((false, why)),
            };
            let Err(why) = tried else { break Ok(()) };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Err((why.code == Code::PreviewServiceNotReady, why));
            }
            tokio::select! {
                () = sleep(pause.min(left)) => {}
                why = stopped(&entry) => break Err((false, why)),
            }
            pause = (pause * 2).min(spec.interval).min(PAUSES.1);
        };
        let ready = outcome.is_ok();
        let (route_ready, why) = match outcome {
            Ok(()) => (true, None),
            Err((route_ready, why)) => (route_ready, Some(why)),
        };
        let hint = format!("let the service listen on 0.0.0.0:{port}, and look at its log");
        Ok(PreviewReadiness {
            ready,
            route_ready,
            service_ready: ready,
            sandbox_id: id,
            port,
            kind: spec.probe.as_str().to_owned(),
            checked_at: self.shared.clock.now(),
            elapsed_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            attempts,
            path: match spec.probe {
                Probe::Tcp => None,
                Probe::Http(path) => Some(path),
            },
            code: why.as_ref().map(|why| why.code.to_string()),
            error: why.as_ref().map(|why| why.message.clone()),
            suggested_action: why.map(|why| why.suggested_action.unwrap_or(hint)),
        })
    }
}

//! Watching all sandboxes of a key: one snapshot, then changes and samples. Each `monitor_subscribe` replaces
//! the one before.

use axum::extract::ws::close_code;
use axum::response::Response;
use futures::StreamExt;
use nullspace_types::key::Principal;
use nullspace_types::monitor::{MonitorFrame, MonitorNews, MonitorRequest, MonitorSpec};
use nullspace_types::process::ProcessInfo;
use nullspace_types::sandbox::{Sandbox, SandboxListQuery};
use nullspace_types::{Error, Result};
use serde::Serialize;
use tokio::sync::mpsc;

use super::connection::{REQUESTS, encoded};
use super::{Connection, Ending, Kind, Outgoing, Upgrade, open};
use crate::Api;
use crate::error::Failure;
use crate::monitor::MonitorStream;
use crate::openapi::{Malformed, Refused};
use crate::request::{Caller, Service, Stopping};

/// Milliseconds between two samples, where none are asked for.
const INTERVAL: u64 = 2000;
/// Between these they may be; what lies outside is taken for the nearer.
const INTERVALS: (u64, u64) = (250, 60_000);
/// Bytes of the list in one frame. With all that stands around it the frame stays below the mebibyte that
/// clients take.
const LIST: usize = 512 << 10;
/// Most bytes of a process's command that are told.
const COMMAND: usize = 4 << 10;

/// Watch all sandboxes of the key over a WebSocket. Its frames are described in
/// `docs/reference/websocket.md`.
#[utoipa::path(get, path = "/v1/monitor/ws", tag = "socket",
    responses((status = 101, description = "The WebSocket is open"), Malformed, Refused))]
pub(super) async fn monitor_socket<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    Stopping(stopping): Stopping,
    upgrade: Upgrade,
) -> Result<Response, Failure> {
    // A server that is starting refuses, upon which a client tries again.
    let query = SandboxListQuery { limit: Some("1".into()), ..Default::default() };
    api.sandbox_list(caller, query, true).await?;
    open(Watcher { api, caller }, upgrade, stopping)
}

/// Who watches.
struct Watcher<A> {
    api: A,
    caller: Principal,
}

/// What is told from here on, to whom.
struct Told {
    id: String,
    news: MonitorStream,
}

impl<A: Api> Watcher<A> {
    async fn tell(
        &self,
        mut requests: mpsc::Receiver<MonitorRequest>,
        outgoing: &mut Outgoing,
    ) -> Ending<MonitorRequest> {
        let silence = || Told { id: String::new(), news: futures::stream::pending().boxed() };
        let mut told = silence();
        loop {
            let next = async {
                tokio::select! {
                    biased;
                    Some(request) = requests.recv() => Ok(request),
                    news = told.news.next() => Err(news),
                }
            };
            let Ok(next) = outgoing.until(next).await else { return Ending::Gone };
            match next {
                Ok(MonitorRequest::MonitorSubscribe { id, interval_ms, include_processes }) => {
                    let interval = interval_ms.map_or(INTERVAL, |ms| u64::try_from(ms).unwrap_or(0));
                    let spec = MonitorSpec {
                        interval_ms: interval.clamp(INTERVALS.0, INTERVALS.1),
                        include_processes: include_processes.unwrap_or(false),
                    };
                    told = match outgoing.until(self.api.monitor(self.caller, spec)).await {
                        Ok(Ok(news)) => Told { id, news },
                        Ok(Err(error)) => return Ending::refused(Some(id), error),
                        Err(_) => return Ending::Gone,
                    };
                }
                Ok(MonitorRequest::MonitorUnsubscribe { id }) if id == told.id => told = silence(),
                Ok(MonitorRequest::MonitorUnsubscribe { .. }) => {}
                Err(Some(Ok(news))) => {
                    for frame in frames(&told.id, news) {
                        if outgoing.send(&frame).await.is_err() {
                            return Ending::Gone;
                        }
                    }
                }
                Err(Some(Err(error))) => return Ending::refused(Some(told.id), error),
                Err(None) => {
                    let error = Error::internal("a monitor came to an end by itself");
                    return Ending::refused(Some(told.id), error);
                }
            }
        }
    }
}

impl<A: Api> Kind for Watcher<A> {
    type Request = MonitorRequest;

    fn stopped() -> Ending<MonitorRequest> {
        Ending::Close(close_code::AWAY, None)
    }

    async fn begin(
        self,
        first: MonitorRequest,
        connection: &mut Connection<MonitorRequest>,
    ) -> Ending<MonitorRequest> {
        let (outgoing, incoming) = connection.sides();
        let (ask, asked) = mpsc::channel(REQUESTS);
        tokio::select! {
            ending = self.tell(asked, outgoing) => ending,
            ending = incoming.pass_on(first, ask) => ending,
        }
    }
}

/// News as frames that clients take. A snapshot that is too large for one goes on in updates.
fn frames(id: &str, news: MonitorNews) -> Vec<MonitorFrame> {
    let id = || id.to_owned();
    let update = |sandbox_id, sandbox: Option<Box<Sandbox>>| MonitorFrame::MonitorUpdate {
        id: id(),
        sandbox_id,
        removed: sandbox.is_none(),
        sandbox,
    };
    match news {
        MonitorNews::Snapshot(mut sandboxes) => {
            let rest = sandboxes.split_off(fitting(&sandboxes));
            let first = MonitorFrame::MonitorSnapshot { id: id(), sandboxes };
            let rest = rest.into_iter().map(|sandbox| update(sandbox.id, Some(Box::new(sandbox))));
            std::iter::once(first).chain(rest).collect()
        }
        MonitorNews::Update(sandbox_id, sandbox) => vec![update(sandbox_id, sandbox)],
        MonitorNews::Metrics(sandbox_id, metrics) => {
            vec![MonitorFrame::MonitorMetrics { id: id(), sandbox_id, metrics }]
        }
        MonitorNews::Processes(sandbox_id, processes) => {
            let mut processes: Vec<ProcessInfo> = processes.into_iter().map(shortened).collect();
            processes.truncate(fitting(&processes));
            vec![MonitorFrame::MonitorProcesses { id: id(), sandbox_id, processes }]
        }
    }
}

/// How many of the items, from the first on, one frame holds.
fn fitting<T: Serialize>(items: &[T]) -> usize {
    let mut bytes = 0;
    let fits = |item: &&T| {
        bytes += encoded(*item).len() + 1;
        bytes <= LIST
    };
    items.iter().take_while(fits).count()
}

fn shortened(mut process: ProcessInfo) -> ProcessInfo {
    if process.command.len() > COMMAND {
        process.command.truncate(process.command.floor_char_boundary(COMMAND));
        process.command.push('…');
    }
    process
}

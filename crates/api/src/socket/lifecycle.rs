//! Following the log of lifecycle events. Each `subscribe` replaces the one before; what it asks for is told
//! from the log itself, so that a client that reads slowly lags behind and loses nothing.

use axum::extract::ws::close_code;
use axum::response::Response;
use futures::StreamExt;
use jiff::Timestamp;
use nullspace_types::event::{LifecycleEventQuery, LifecycleSubscription};
use nullspace_types::id::SandboxId;
use nullspace_types::key::Principal;
use nullspace_types::monitor::{LifecycleFrame, LifecycleRequest};
use nullspace_types::{Error, Result};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::connection::REQUESTS;
use super::{Connection, Ending, Kind, Outgoing, Upgrade, open};
use crate::Api;
use crate::error::Failure;
use crate::lifecycle::LifecycleEvents;
use crate::openapi::{Malformed, Missing, Refused};
use crate::request::{Caller, SandboxPath, Service, Stopping, of_path};

/// How a client whose connection broke goes on: behind the last event that it has.
const RECONNECT_MODE: &str = "after_event_id";

/// Follow the log of lifecycle events over a WebSocket. Its frames are described in
/// `docs/reference/websocket.md`.
#[utoipa::path(get, path = "/v1/lifecycle/ws", tag = "socket",
    responses((status = 101, description = "The WebSocket is open"), Malformed, Refused))]
pub(super) async fn lifecycle_socket<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    Stopping(stopping): Stopping,
    upgrade: Upgrade,
) -> Result<Response, Failure> {
    Follower { api, caller, of: None }.open(upgrade, stopping).await
}

/// Follow the lifecycle events of one sandbox over a WebSocket, also once it is destroyed. Its frames are
/// described in `docs/reference/websocket.md`.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/lifecycle/ws", tag = "socket",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    responses((status = 101, description = "The WebSocket is open"), Malformed, Refused, Missing))]
pub(super) async fn sandbox_lifecycle_socket<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    Stopping(stopping): Stopping,
    upgrade: Upgrade,
) -> Result<Response, Failure> {
    Follower { api, caller, of: Some(id) }.open(upgrade, stopping).await
}

/// Who follows the log.
struct Follower<A> {
    api: A,
    caller: Principal,
    /// Only what this sandbox has a part in.
    of: Option<SandboxId>,
}

impl<A: Api> Follower<A> {
    async fn open(self, upgrade: Upgrade, stopping: CancellationToken) -> Result<Response, Failure> {
        // A client sees the status of a refused upgrade: that the sandbox is unknown, or that the server is
        // starting, upon which it tries again.
        let sandbox_id = self.of.map(|id| id.to_string());
        let query = LifecycleEventQuery { sandbox_id, limit: Some("1".into()), ..Default::default() };
        self.api.lifecycle_list(self.caller, query).await?;
        open(self, upgrade, stopping)
    }

    /// What is told from here on, and as what it was understood.
    async fn subscribe(
        &self,
        asked: LifecycleSubscription,
    ) -> Result<(LifecycleSubscription, LifecycleEvents)> {
        let sandbox_id = match self.of {
            Some(id) => of_path("sandbox_id", asked.sandbox_id, id)?,
            None => asked.sandbox_id,
        };
        let subscription = LifecycleSubscription { sandbox_id, ..asked };
        let events = self.api.lifecycle_subscribe(self.caller, subscription.clone()).await?;
        Ok((subscription, events))
    }

    async fn tell(
        &self,
        mut requests: mpsc::Receiver<LifecycleRequest>,
        outgoing: &mut Outgoing,
    ) -> Ending<LifecycleRequest> {
        let mut events: LifecycleEvents = futures::stream::pending().boxed();
        loop {
            let next = async {
                tokio::select! {
                    biased;
                    Some(request) = requests.recv() => Ok(request),
                    event = events.next() => Err(event),
                }
            };
            let Ok(next) = outgoing.until(next).await else { return Ending::Gone };
            let frame = match next {
                Ok(LifecycleRequest::Subscribe(asked)) => {
                    let Ok(subscribed) = outgoing.until(self.subscribe(asked)).await else {
                        return Ending::Gone;
                    };
                    match subscribed {
                        Ok((subscription, fresh)) => {
                            events = fresh;
                            LifecycleFrame::Subscribed {
                                subscription,
                                reconnect_mode: RECONNECT_MODE.to_owned(),
                                subscribed_at: Some(Timestamp::now()),
                            }
                        }
                        Err(error) => return Ending::refused(None, error),
                    }
                }
                Err(Some(Ok(event))) => LifecycleFrame::Event { event: Box::new(event) },
                Err(Some(Err(error))) => return Ending::refused(None, error),
                Err(None) => {
                    return Ending::refused(None, Error::internal("the log of events came to an end"));
                }
            };
            if outgoing.send(&frame).await.is_err() {
                return Ending::Gone;
            }
        }
    }
}

impl<A: Api> Kind for Follower<A> {
    type Request = LifecycleRequest;

    fn stopped() -> Ending<LifecycleRequest> {
        Ending::Close(close_code::AWAY, None)
    }

    async fn begin(
        self,
        first: LifecycleRequest,
        connection: &mut Connection<LifecycleRequest>,
    ) -> Ending<LifecycleRequest> {
        let (outgoing, incoming) = connection.sides();
        let (ask, asked) = mpsc::channel(REQUESTS);
        tokio::select! {
            ending = self.tell(asked, outgoing) => ending,
            ending = incoming.pass_on(first, ask) => ending,
        }
    }
}

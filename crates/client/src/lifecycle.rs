//! The log of lifecycle events: pages of it, and a stream that follows it.
//!
//! A stream outlives its connections. When one breaks it is made again and the server tells what came
//! behind the last event that was given out, so that none is missing and none comes twice. Until the first
//! event there is nothing to go on from: the subscription is then asked for as it was, and one of what
//! happens from now on asks for the past since it began.

use jiff::Timestamp;
use nullspace_types::event::{
    LifecycleEvent, LifecycleEventPage, LifecycleEventQuery, LifecycleSubscription,
};
use nullspace_types::id::EventId;
use nullspace_types::monitor::{LifecycleFrame, LifecycleRequest};
use reqwest::Method;

use crate::error::{Error, Result};
use crate::reconnect::Attempts;
use crate::socket::Socket;
use crate::transport::{Call, Client};

/// As many events of the past as a server tells without one to go on from.
const REPLAY_MAX: i64 = 1000;

/// Lifecycle events as they come.
pub struct LifecycleStream {
    client: Client,
    subscription: LifecycleSubscription,
    socket: Option<Socket>,
    attempts: Attempts,
    /// When the server first took the subscription, by its own clock.
    began_at: Option<Timestamp>,
    last: Option<EventId>,
}

impl Client {
    /// A page of the log.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn lifecycle_list(&self, query: &LifecycleEventQuery) -> Result<LifecycleEventPage> {
        self.json(Call::new(Method::GET, "/v1/lifecycle/events".to_owned()).query(query)?).await
    }

    /// Follows the log: first what the subscription wants of the past, then what happens. Has begun when
    /// this answers.
    ///
    /// # Errors
    /// `invalid_request` for a subscription that makes no sense; see [`crate::Error`].
    pub async fn lifecycle_stream(&self, subscription: &LifecycleSubscription) -> Result<LifecycleStream> {
        let mut stream = LifecycleStream {
            client: self.clone(),
            subscription: subscription.clone(),
            socket: None,
            attempts: Attempts::default(),
            began_at: None,
            last: None,
        };
        stream.connect().await?;
        Ok(stream)
    }
}

impl LifecycleStream {
    /// The next event. May be dropped and called again without losing anything.
    ///
    /// # Errors
    /// A transport error once the connection could not be made again; calling again tries again. What the
    /// server says of a subscription that it cannot serve. See [`crate::Error`].
    pub async fn next(&mut self) -> Result<LifecycleEvent> {
        loop {
            let Some(socket) = &mut self.socket else {
                self.attempts.wait().await;
                if let Err(error) = self.connect().await {
                    self.attempts.failed(error, &self.client.retry_policy())?;
                }
                continue;
            };
            let frame = match socket.next().await {
                Ok(LifecycleFrame::Error { code, message }) => Err(Error::from_frame(&code, message)),
                frame => frame,
            };
            match frame {
                Ok(LifecycleFrame::Event { event }) => {
                    self.attempts.succeeded();
                    if self.is_new(&event) {
                        self.last = Some(event.id);
                        return Ok(*event);
                    }
                }
                Ok(LifecycleFrame::Subscribed { .. } | LifecycleFrame::Error { .. }) => {}
                Err(error) => {
                    self.socket = None;
                    self.attempts.failed(error, &self.client.retry_policy())?;
                }
            }
        }
    }

    /// Stops following.
    pub fn close(self) {
        if let Some(socket) = self.socket {
            socket.close();
        }
    }

    async fn connect(&mut self) -> Result<()> {
        let call = Call::new(Method::GET, "/v1/lifecycle/ws".to_owned());
        let mut socket = self.client.open_socket(&call).await?;
        let subscription = resumed(&self.subscription, self.last, self.began_at.is_some());
        socket.writer().send(&LifecycleRequest::Subscribe(subscription)).await?;
        match socket.first().await? {
            LifecycleFrame::Subscribed { subscribed_at, .. } => {
                self.began_at = self.began_at.or(subscribed_at);
                self.socket = Some(socket);
                self.attempts.connected();
                Ok(())
            }
            LifecycleFrame::Error { code, message } => Err(Error::from_frame(&code, message)),
            LifecycleFrame::Event { .. } => Err(socket.out_of_turn()),
        }
    }

    /// Whether this is to be given out: not the one before, and not from before the beginning of a stream
    /// that wants what happens from now on.
    fn is_new(&self, event: &LifecycleEvent) -> bool {
        let live = self.last.is_none() && wants_live(&self.subscription);
        let early = live && self.began_at.is_some_and(|began_at| event.occurred_at < began_at);
        self.last != Some(event.id) && !early
    }
}

fn wants_live(subscription: &LifecycleSubscription) -> bool {
    subscription.live_only == Some(true) && subscription.after_event_id.is_none()
}

/// The subscription that goes on where an earlier connection broke: behind the last event, if there was
/// one. `again` is whether there was an earlier one at all.
fn resumed(asked: &LifecycleSubscription, last: Option<EventId>, again: bool) -> LifecycleSubscription {
    let mut subscription = asked.clone();
    if let Some(last) = last {
        subscription.live_only = Some(false);
        subscription.after_event_id = Some(last.to_string());
    } else if again && wants_live(asked) {
        subscription.live_only = Some(false);
        subscription.replay_limit = Some(REPLAY_MAX);
    }
    subscription
}

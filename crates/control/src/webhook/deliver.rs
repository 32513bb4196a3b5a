//! Deliveries on their way. One task makes them out of the log, another attempts those that are due, a
//! bounded number at once: of one webhook and sandbox one at a time, so that they come in order, and of one
//! webhook a few, so that one that hangs keeps no other waiting. What is under way when the server ends is
//! attempted again by the next: an endpoint may hear of an event twice, never not at all.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use nullspace_domain::webhook::next_attempt;
use nullspace_store::webhook::DueDelivery;
use nullspace_types::id::{AttemptId, SandboxId, WebhookId};
use nullspace_types::webhook::{DeliveryStatus, WebhookAttempt, WebhookDelivery};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep};

use super::post::{Answer, Post};
use crate::shared::Shared;

/// Events that deliveries are made of in one transaction.
const FAN_OUT: u32 = 500;
/// After deliveries were made: what happens meanwhile is made into deliveries together, so that many
/// changes do not cost as many transactions more.
const GATHER: Duration = Duration::from_millis(50);
/// Deliveries of one webhook that are under way at once.
const PER_WEBHOOK: usize = 4;
/// Between two looks at what is due if nothing tells of it: the clock may have been set.
const LOOK: Duration = Duration::from_secs(5);
/// After the store failed, before it is asked again: from the first time to the second, doubling.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Makes deliveries of what is written to the log, until the server stops.
pub(crate) async fn fan_out(shared: Arc<Shared>) {
    let mut head = shared.feed.head();
    loop {
        // Whatever is written from here on is looked at again.
        head.borrow_and_update();
        let made = make_deliveries(&shared).await;
        let again = async {
            match made {
                Ok(()) => {
                    sleep(GATHER).await;
                    // The feed lives as long as whoever runs this.
                    let _ = head.changed().await;
                }
                Err(error) => {
                    tracing::warn!(%error, "deliveries to webhooks could not be made; trying again");
                    sleep(LOOK).await;
                }
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = again => {}
        }
    }
}

async fn make_deliveries(shared: &Shared) -> nullspace_store::Result<()> {
    loop {
        let (events, deliveries) = shared.store.webhook_fan_out(FAN_OUT, shared.clock.now()).await?;
        if deliveries > 0 {
            shared.webhooks.due.notify_one();
        }
        if events < FAN_OUT {
            return Ok(());
        }
    }
}

/// Those that must not overtake each other: the deliveries of one webhook and sandbox.
type Line = (WebhookId, Option<SandboxId>);

struct Dispatcher {
    shared: Arc<Shared>,
    post: Arc<Post>,
    /// Dropped with this: attempts do not outlive the server.
    attempts: JoinSet<()>,
    under_way: HashMap<Id, Line>,
}

/// Attempts what is due, until the server stops.
pub(crate) async fn deliver(shared: Arc<Shared>) {
    let post = Arc::new(Post::new(&shared.webhooks.config));
    let mut dispatcher =
        Dispatcher { shared: shared.clone(), post, attempts: JoinSet::new(), under_way: HashMap::new() };
    loop {
        let next = dispatcher.start_due().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "deliveries to webhooks could not be read; trying again");
            LOOK
        });
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.webhooks.due.notified() => {}
            Some(ended) = dispatcher.attempts.join_next_with_id() => dispatcher.ended(ended),
            () = sleep(next) => {}
        }
    }
}

impl Dispatcher {
    /// Starts as many attempts as may be. Answers when to look again if nothing happens before.
    async fn start_due(&mut self) -> nullspace_store::Result<Duration> {
        let most = self.shared.webhooks.config.concurrency_max;
        if self.under_way.len() >= most {
            return Ok(LOOK);
        }
        let now = self.shared.clock.now();
        // Those that cannot start now stand before others: they are under way themselves, or their webhook
        // has its share. There are no more than twice as many of these as may be under way.
        let limit = u32::try_from(most.saturating_mul(3)).unwrap_or(u32::MAX);
        let due = self.shared.store.webhook_due(now, limit).await?;
        let (found, mut started) = (due.len(), 0);
        for delivery in due {
            let line = (delivery.delivery.webhook_id, delivery.event.event.sandbox_id);
            let of_webhook = self.under_way.values().filter(|(webhook, _)| *webhook == line.0).count();
            let in_turn = !self.under_way.values().any(|other| *other == line);
            if in_turn && of_webhook < PER_WEBHOOK && self.under_way.len() < most {
                let attempt = attempt(self.shared.clone(), self.post.clone(), delivery);
                self.under_way.insert(self.attempts.spawn(attempt).id(), line);
                started += 1;
            }
        }
        if started < found {
            // The end of one that is under way makes room.
            return Ok(LOOK);
        }
        let next = self.shared.store.webhook_next_due().await?;
        let left = next.map(|next| Duration::try_from(next.duration_since(now)).unwrap_or_default());
        Ok(left.unwrap_or(LOOK).min(LOOK))
    }

    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        match ended {
            Ok((id, ())) => {
                self.under_way.remove(&id);
            }
            // A fault of ours, which would come again at once: its line stays closed until the next start.
            Err(panic) => {
                tracing::error!(%panic, "an attempt at a delivery failed by a fault of the server's")
            }
        }
    }
}

/// Attempts a delivery and writes what became of it.
async fn attempt(shared: Arc<Shared>, post: Arc<Post>, due: DueDelivery) {
    let (began, attempted_at) = (Instant::now(), shared.clock.now());
    let answer = post.send(&due, attempted_at).await;
    let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let delivery = after(&due.delivery, &answer, attempted_at, shared.clock.now());
    let attempt = WebhookAttempt {
        id: AttemptId::new(),
        delivery_id: delivery.id,
        attempt_number: delivery.attempt_count,
        attempted_at,
        duration_ms,
        response_status: answer.status,
        error_code: answer.failure.as_ref().map(|failure| failure.code.to_owned()),
        error_message: answer.failure.map(|failure| failure.message),
    };
    count(&delivery, &attempt);
    let mut pause = PAUSES.0;
    // Attempted again before that is written, it would be sent over and over.
    loop {
        match shared.store.webhook_attempted(&delivery, &attempt).await {
            // It went with its webhook.
            Ok(()) | Err(nullspace_store::Error::NotFound(_)) => return,
            Err(error) => {
                tracing::warn!(delivery = %delivery.id, %error, ?pause, "an attempt could not be written; trying again");
                sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }
}

/// What an attempt makes of a delivery.
fn after(
    before: &WebhookDelivery,
    answer: &Answer,
    attempted_at: jiff::Timestamp,
    now: jiff::Timestamp,
) -> WebhookDelivery {
    let attempt_count = before.attempt_count.saturating_add(1);
    let (delivery_status, next_attempt_at) = match &answer.failure {
        None => (DeliveryStatus::Succeeded, None),
        Some(_) => match next_attempt(before.created_at, now, attempt_count, rand::random()) {
            Some(next) => (DeliveryStatus::Queued, Some(crate::clock::as_stored(next))),
            None => (DeliveryStatus::DeadLetter, None),
        },
    };
    WebhookDelivery {
        delivery_status,
        attempt_count,
        next_attempt_at,
        last_attempt_at: Some(attempted_at),
        last_response_status: answer.status,
        last_error: answer.failure.as_ref().map(|failure| failure.message.clone()),
        ..before.clone()
    }
}

fn count(delivery: &WebhookDelivery, attempt: &WebhookAttempt) {
    let outcome = match delivery.delivery_status {
        DeliveryStatus::Succeeded => "succeeded",
        DeliveryStatus::Queued | DeliveryStatus::InProgress => "retried",
        DeliveryStatus::DeadLetter => "dead_letter",
    };
    ::metrics::counter!("nullspace_webhook_deliveries_total", "outcome" => outcome).increment(1);
    if delivery.delivery_status != DeliveryStatus::Succeeded {
        let (webhook, error) = (delivery.webhook_id, &attempt.error_code);
        tracing::info!(delivery = %delivery.id, %webhook, outcome, ?error, "a delivery was not taken");
    }
}

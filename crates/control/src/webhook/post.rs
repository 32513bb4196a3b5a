//! One attempt at a delivery: a signed POST, bounded in time, to an address that was looked at before it was
//! connected to. The name is resolved here, once, and the connection goes to what was resolved, so that a
//! name server cannot say one thing to be judged and another to be used. Redirects are not followed and no
//! proxy is used: both would lead somewhere that nobody looked at.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use nullspace_domain::WebhookConfig;
use nullspace_domain::webhook::{address_refused, literal_refused};
use nullspace_store::webhook::DueDelivery;
use nullspace_types::event::LifecycleEvent;
use nullspace_types::id::{DeliveryId, WebhookId};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Response, StatusCode, redirect};
use serde::Serialize;
use sha2::Sha256;
use tokio::time::{Instant, timeout_at};
use url::Url;

/// Of an answer no more than this is read, so that its connection can be used again; all of it is dropped.
const ANSWER_MAX: usize = 64 << 10;
/// How long an unused connection is kept for the next delivery.
const IDLE: Duration = Duration::from_secs(20);
const SIGNATURE_VERSION: &str = "v1";

/// The body of a delivery.
#[derive(Serialize)]
struct Body<'a> {
    id: DeliveryId,
    webhook_id: WebhookId,
    event: &'a LifecycleEvent,
    created_at: Timestamp,
}

/// How an endpoint answered.
pub(super) struct Answer {
    /// Its status, if there was one.
    pub(super) status: Option<u16>,
    /// Why the delivery was not taken, if it was not.
    pub(super) failure: Option<Failure>,
}

/// Why a delivery was not taken.
pub(super) struct Failure {
    /// For programs: `timeout`, `connection`, `address_refused`, `redirect`, `status`.
    pub(super) code: &'static str,
    /// For people.
    pub(super) message: String,
}

impl Failure {
    fn connection(message: impl Into<String>) -> Self {
        Self { code: "connection", message: message.into() }
    }

    fn address(why: &str) -> Self {
        Self { code: "address_refused", message: format!("the URL leads to {why}") }
    }
}

/// Sends deliveries.
pub(super) struct Post {
    /// Or why there is none: a host without certificates.
    client: Result<Client, String>,
    allow_private: bool,
    limit: Duration,
}

impl Post {
    pub(super) fn new(config: &WebhookConfig) -> Self {
        // Refused only when the process has already chosen, and then its choice stands.
        drop(rustls::crypto::ring::default_provider().install_default());
        let allow_private = config.allow_private;
        let client = Client::builder()
            .user_agent(concat!("nullspace-webhook/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .no_proxy()
            .dns_resolver(Judging { allow_private })
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(4)
            .build()
            .map_err(|error| chain(&error))
            .inspect_err(|error| tracing::warn!(%error, "no webhook can be sent to; install certificates"));
        Self { client, allow_private, limit: Duration::from_secs(u64::from(config.timeout_secs)) }
    }

    pub(super) async fn send(&self, due: &DueDelivery, now: Timestamp) -> Answer {
        let deadline = Instant::now() + self.limit;
        let answer = match timeout_at(deadline, self.answer(due, now)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(failure)) => return Answer { status: None, failure: Some(failure) },
            Err(_) => {
                let message = format!("no answer within {} seconds", self.limit.as_secs());
                return Answer { status: None, failure: Some(Failure { code: "timeout", message }) };
            }
        };
        let status = answer.status();
        // The status has decided. What follows it is read for the connection's sake.
        let _ = timeout_at(deadline, drain(answer)).await;
        Answer { status: Some(status.as_u16()), failure: refused(status) }
    }

    async fn answer(&self, due: &DueDelivery, now: Timestamp) -> Result<Response, Failure> {
        let client = self.client.as_ref().map_err(Failure::connection)?;
        let url: Url = due.url.parse().map_err(|error| Failure::connection(format!("{error}")))?;
        // A host that is an address never gets to the resolver.
        if let Some(why) = literal_refused(&url).filter(|_| !self.allow_private) {
            return Err(Failure::address(why));
        }
        let delivery = &due.delivery;
        let body = Body {
            id: delivery.id,
            webhook_id: delivery.webhook_id,
            event: &due.event.event,
            created_at: delivery.created_at,
        };
        let body = serde_json::to_vec(&body).map_err(|error| Failure::connection(error.to_string()))?;
        let timestamp = now.as_second();
        let signature = signature(&due.signing_secret, timestamp, &body);
        client
            .post(url)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header("x-nullspace-webhook-id", delivery.webhook_id.to_string())
            .header("x-nullspace-delivery-id", delivery.id.to_string())
            .header("x-nullspace-event-id", delivery.event_id.to_string())
            .header("x-nullspace-timestamp", timestamp)
            .header("x-nullspace-signature-version", SIGNATURE_VERSION)
            .header("x-nullspace-signature", signature)
            .body(body)
            .send()
            .await
            .map_err(|error| failed(&error.without_url()))
    }
}

/// The HMAC-SHA256 of timestamp, a dot and the body, as the header has it.
fn signature(secret: &str, timestamp: i64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(timestamp.to_string().as_bytes());
    mac.update(b".");
    mac.update(body);
    let mut text = format!("{SIGNATURE_VERSION}=");
    for byte in mac.finalize().into_bytes() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn refused(status: StatusCode) -> Option<Failure> {
    if status.is_success() {
        return None;
    }
    let (code, message) = if status.is_redirection() {
        ("redirect", format!("the endpoint answered {status}; redirects are not followed"))
    } else {
        ("status", format!("the endpoint answered {status}"))
    };
    Some(Failure { code, message })
}

async fn drain(mut answer: Response) {
    let mut read = 0;
    while let Ok(Some(part)) = answer.chunk().await {
        read += part.len();
        if read > ANSWER_MAX {
            return;
        }
    }
}

fn sources<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// An error and its causes in one line.
fn chain(error: &(dyn StdError + 'static)) -> String {
    sources(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn failed(error: &reqwest::Error) -> Failure {
    match sources(error).find_map(|source| source.downcast_ref::<Refused>()) {
        Some(Refused(why)) => Failure::address(why),
        None => Failure::connection(chain(error)),
    }
}

/// A name leads to an address that nothing is sent to.
#[derive(Debug, thiserror::Error)]
#[error("the name leads to {0}")]
struct Refused(&'static str);

/// Resolves names as the host does, and refuses those of which any address is not public.
struct Judging {
    allow_private: bool,
}

impl Resolve for Judging {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let refused = addresses.iter().find_map(|address| address_refused(address.ip()));
            if let Some(why) = refused.filter(|_| !allow_private) {
                return Err(Refused(why).into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_one_that_the_guide_verifies() {
        let signed = signature("a secret of 16 to 256 characters", 1_767_268_800, br#"{"id":"whd_1"}"#);
        assert_eq!(signed, "v1=964277e4774617f6bc3cdcd722aac1b349a3f22f3a002eb4ea6d3005e0d2ec29");
    }
}

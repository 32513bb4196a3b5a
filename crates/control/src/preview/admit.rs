//! What the gateway asks: who may pass, and the way in. What a request shows is judged first, so that only
//! who may pass learns of the sandbox's state, or wakes it. For a running sandbox and a grant that is
//! remembered nothing is waited for.
//!
//! A token that is shown and bad is refused even where none is needed: whoever shows it means to be let in
//! by it. A cookie is the browser's doing, and on a local address may be from whoever had the address
//! before: there, one that is about something else counts as not shown.

use std::time::Duration;

use async_trait::async_trait;
use nullspace_auth::{EdgeKind, EdgeToken};
use nullspace_domain::lifecycle::State;
use nullspace_domain::preview::{is_reserved, unsupported};
use nullspace_edge_api::{Admission, Admitted, Credentials, Destination, Edge, Refusal, Stream, Traffic};
use nullspace_node_api::Door;
use nullspace_types::id::{PreviewGrantId, SandboxId};
use nullspace_types::preview::{PROXY_TOKEN_HEADER, PreviewTransport, TRAFFIC_TOKEN_HEADER, TokenTransport};
use nullspace_types::{Code, Error};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::grants::Facts;
use super::subject;
use crate::Control;
use crate::access::{ask, taken_over};
use crate::registry::{Entry, Message};

/// How long a machine may take to answer a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// When a request that found its sandbox asleep may come again.
const ASLEEP_RETRY: Duration = Duration::from_secs(5);

/// A port that a request is for.
struct Target {
    id: SandboxId,
    port: u16,
    entry: Entry,
    /// Whether the address was another's before.
    local: bool,
}

/// A token that a request shows.
struct Shown<'a> {
    text: &'a str,
    kind: EdgeKind,
    transport: TokenTransport,
    invalid: Code,
    elsewhere: Code,
    expired: Code,
}

/// What lets a request pass.
struct Pass {
    grant: Option<Facts>,
    cookie: bool,
    ended: CancellationToken,
    host: Option<String>,
}

fn invalid(code: Code) -> Error {
    Error::new(code, "the token is not valid for this address").suggest("ask for a new preview URL")
}

fn disabled() -> Error {
    Error::new(Code::PreviewSandboxDisabled, "the sandbox at this address is lost or gone")
        .suggest("look at the sandbox's status")
}

fn nobody() -> Error {
    Error::new(Code::SandboxNotFound, "this address leads to no sandbox")
        .suggest("check the address, and that the sandbox is not destroyed")
}

fn not_awake(why: impl Into<String>) -> Refusal {
    let error = Error::new(Code::Unavailable, why).suggest("try again in a few seconds");
    Refusal { error, retry_after: Some(ASLEEP_RETRY) }
}

/// The tokens that a request shows. The last one decides what the request is counted as.
fn shown(transport: PreviewTransport, credentials: &Credentials) -> Result<Vec<Shown<'_>>, Error> {
    let kind = match transport {
        PreviewTransport::Http => EdgeKind::Http,
        PreviewTransport::Websocket => EdgeKind::Websocket,
    };
    let query = |text, kind| Shown {
        text,
        kind,
        transport: TokenTransport::Query,
        invalid: Code::EdgeTokenInvalid,
        elsewhere: Code::EdgeTokenScopeMismatch,
        expired: Code::EdgeTokenExpired,
    };
    let mut tokens = Vec::new();
    if let Some(text) = &credentials.edge_token {
        tokens.push(query(text, kind));
    }
    match &credentials.proxy_token {
        Some(text) => tokens.push(Shown {
            text,
            kind,
            transport: TokenTransport::Header,
            invalid: Code::PreviewProxyTokenInvalid,
            elsewhere: Code::PreviewProxyTokenScopeMismatch,
            expired: Code::PreviewProxyTokenExpired,
        }),
        None if credentials.proxy_transport => {
            let message = format!("the proxy did not send its token in the header {PROXY_TOKEN_HEADER}");
            return Err(Error::new(Code::PreviewProxyTokenMissing, message).suggest(
                "let the proxy add the header, with http_token or websocket_token, to each request",
            ));
        }
        None => {}
    }
    if let (true, PreviewTransport::Http, Some(text)) = (tokens.is_empty(), transport, &credentials.cookie) {
        tokens.push(query(text, EdgeKind::Cookie));
    }
    Ok(tokens)
}

impl Control {
    /// The sandbox that an address leads to.
    fn target(&self, destination: &Destination) -> Option<Target> {
        let (id, port, local) = match destination {
            Destination::Host { port, label } => (self.shared.registry.labelled(label)?, *port, false),
            Destination::Local { port, sandbox_id } => (*sandbox_id, *port, true),
        };
        let entry = self.shared.registry.get(id)?;
        let gone = {
            let view = entry.view.borrow();
            let ends = matches!(view.record.state, State::Destroying { .. } | State::Destroyed);
            ends || view.unborn.is_some()
        };
        (!gone).then_some(Target { id, port, entry, local })
    }

    fn fits(&self, token: &EdgeToken, facts: &Facts, kind: EdgeKind, transport: TokenTransport) -> bool {
        self.shared.access.tokens.verify(token, &subject(&facts.grant), kind, transport)
    }

    /// Whether it is a token of the grant at all, whatever it was made for.
    fn fits_anything(&self, token: &EdgeToken, facts: &Facts) -> bool {
        let kinds = [EdgeKind::Http, EdgeKind::Websocket, EdgeKind::Cookie];
        let places = [TokenTransport::Query, TokenTransport::Header];
        kinds.iter().any(|kind| places.iter().any(|place| self.fits(token, facts, *kind, *place)))
    }

    /// The grant that a token speaks of, if the token is good. What is wrong with the grant itself is only
    /// told, and noted, once the token is proved.
    async fn proved(
        &self,
        id: SandboxId,
        port: u16,
        local: bool,
        token: &Shown<'_>,
    ) -> Result<Option<Facts>, Error> {
        let shared = &self.shared;
        let parsed: EdgeToken = token.text.parse().map_err(|_| invalid(token.invalid))?;
        let stale = local && token.kind == EdgeKind::Cookie;
        let Some(facts) = shared.grants.find(&*shared.store, parsed.grant).await? else {
            if stale {
                return Ok(None);
            }
            let message = "the grant that the token speaks of does not exist";
            return Err(Error::new(Code::PreviewGrantInvalid, message).suggest("ask for a new preview URL"));
        };
        let grant = &facts.grant;
        let about_this = (grant.sandbox_id, grant.port) == (id, port);
        if stale && !about_this {
            return Ok(None);
        }
        if !about_this || !self.fits(&parsed, &facts, token.kind, token.transport) {
            return Err(match self.fits_anything(&parsed, &facts) {
                true => Error::new(token.elsewhere, "the token was made for something else").suggest(
                    "use each token for the port, the kind of traffic and the place that it was made for",
                ),
                false => invalid(token.invalid),
            });
        }
        let refused = |code, message: &str| {
            shared.grants.failed(grant.id, code, shared.clock.now());
            Error::new(code, message).suggest("ask for a new preview URL")
        };
        if facts.revoked {
            Err(refused(Code::PreviewGrantRevoked, "the preview URL was revoked"))
        } else if facts.disabled {
            Err(refused(Code::PreviewGrantDisabled, "the preview URL ended with its sandbox"))
        } else if grant.expires_at <= shared.clock.now() {
            Err(refused(token.expired, "the preview URL is too old"))
        } else {
            Ok(Some(facts))
        }
    }

    /// Why an address that leads nowhere is refused: who shows a good token of a sandbox that was there is
    /// told so.
    async fn nowhere(&self, request: &Admission) -> Error {
        let Destination::Host { port, label } = &request.destination else { return nobody() };
        let Ok(tokens) = shown(request.transport, &request.credentials) else { return nobody() };
        for token in tokens {
            let Ok(parsed) = token.text.parse::<EdgeToken>() else { continue };
            let Ok(Some(facts)) = self.shared.grants.find(&*self.shared.store, parsed.grant).await else {
                continue;
            };
            let id = facts.grant.sandbox_id;
            if self.shared.access.tokens.label(id) != *label {
                continue;
            }
            match self.proved(id, *port, false, &token).await {
                Err(error) if error.code == token.invalid || error.code == token.elsewhere => {}
                Err(error) => return error,
                // Its end is not written yet.
                Ok(_) => {
                    let message = "the preview URL ended with its sandbox";
                    return Error::new(Code::PreviewGrantDisabled, message);
                }
            }
        }
        nobody()
    }

    /// Whether what a request shows lets it pass, as things are now.
    async fn judge(&self, target: &Target, request: &Admission) -> Result<Pass, Error> {
        let credentials = &request.credentials;
        let tokens = shown(request.transport, credentials)?;
        let in_query = request.transport == PreviewTransport::Http
            && credentials.edge_token.is_some()
            && credentials.proxy_token.is_none();
        loop {
            let mut grant = None;
            for token in &tokens {
                grant = self.proved(target.id, target.port, target.local, token).await?.or(grant);
            }
            let refused = |error: Error| {
                if let Some(facts) = &grant {
                    self.shared.grants.failed(facts.grant.id, error.code, self.shared.clock.now());
                }
                error
            };
            let (life, network) = {
                let view = target.entry.view.borrow();
                (view.life.clone(), view.record.clone())
            };
            let network = &network.row.desired.network;
            let with_token = match &credentials.traffic_token {
                Some(text) if self.shared.access.tokens.is_traffic_token(target.id, text) => true,
                Some(_) => {
                    return Err(refused(Error::new(
                        Code::EdgeTokenInvalid,
                        "the traffic token is not this sandbox's",
                    )));
                }
                None if network.allow_public_traffic => false,
                None => {
                    let message = format!(
                        "the sandbox's ports are private: its token is needed in {TRAFFIC_TOKEN_HEADER}"
                    );
                    return Err(refused(
                        Error::new(Code::EdgeTokenMissing, message)
                            .suggest("send the traffic_access_token that the sandbox's creation answered"),
                    ));
                }
            };
            let ended = match &grant {
                None if with_token => Some(life.running),
                None => Some(life.public),
                Some(facts) => self.shared.grants.hold(facts.grant.id, &life, with_token),
            };
            // A grant that was revoked or forgotten since it was looked up is looked up again.
            if let Some(ended) = ended {
                let port = target.port.to_string();
                let host = network.mask_request_host.as_ref().map(|mask| mask.replace("${PORT}", &port));
                return Ok(Pass { cookie: in_query && grant.is_some(), grant, ended, host });
            }
        }
    }

    /// Whether the sandbox runs; if not, it is woken, and true is not answered.
    async fn running_or_woken(&self, target: &Target) -> Result<bool, Refusal> {
        let record = {
            let view = target.entry.view.borrow();
            if matches!(view.record.state, State::Running { .. }) && view.taken_over {
                return Ok(true);
            }
            view.record.clone()
        };
        match record.state {
            State::Running { .. } | State::Resuming { .. } => {}
            State::Hibernating { .. } | State::Paused { .. } if record.row.desired.auto_resume => {}
            State::Hibernating { .. } | State::Paused { .. } => {
                let message = "the sandbox is paused and does not wake by itself";
                let error = Error::new(Code::SandboxPausedAutoResumeDisabled, message)
                    .suggest("resume it, or create sandboxes with auto_resume: they wake when they are used");
                return Err(Refusal { error, retry_after: Some(ASLEEP_RETRY) });
            }
            State::Absent | State::Creating { .. } => {
                return Err(not_awake("the sandbox is still being created"));
            }
            State::Lost { .. } | State::Destroying { .. } | State::Destroyed => {
                return Err(disabled().into());
            }
        }
        let limit = Duration::from_secs(u64::from(self.shared.limits.wake_secs_max));
        let woken = async {
            ask(&self.shared, &target.entry, |done| Message::Resume { done }).await?;
            taken_over(&target.entry).await
        };
        match timeout(limit, woken).await {
            Ok(Ok(())) => Ok(false),
            Ok(Err(error)) => Err(match error.code {
                Code::SandboxNotFound => disabled().into(),
                Code::SandboxNotReady => not_awake(error.message),
                _ => Refusal { error, retry_after: Some(ASLEEP_RETRY) },
            }),
            Err(_) => {
                let message = format!("the sandbox did not wake within {} seconds", limit.as_secs());
                Err(not_awake(message))
            }
        }
    }
}

#[async_trait]
impl Edge for Control {
    async fn admit(&self, request: Admission) -> Result<Admitted, Refusal> {
        let (Destination::Host { port, .. } | Destination::Local { port, .. }) = &request.destination;
        if is_reserved(*port) {
            return Err(unsupported(*port).into());
        }
        let Some(target) = self.target(&request.destination) else {
            return Err(self.nowhere(&request).await.into());
        };
        let mut pass = self.judge(&target, &request).await?;
        match self.running_or_woken(&target).await {
            Ok(true) => {}
            // Much may have changed meanwhile.
            Ok(false) => pass = self.judge(&target, &request).await?,
            Err(refusal) => {
                if let Some(facts) = &pass.grant {
                    Edge::failed(self, facts.grant.id, refusal.error.code);
                }
                return Err(refusal);
            }
        }
        let now = self.shared.clock.now();
        let cookie = pass.grant.as_ref().filter(|_| pass.cookie).map(|facts| {
            let kind = EdgeKind::Cookie;
            let token = self.shared.access.tokens.issue(&subject(&facts.grant), kind, TokenTransport::Query);
            let left = facts.grant.expires_at.duration_since(now);
            (token, Duration::try_from(left).unwrap_or_default())
        });
        let grant = pass.grant.map(|facts| facts.grant.id);
        if let Some(grant) = grant {
            self.shared.grants.used(grant, request.transport, now);
        }
        Ok(Admitted {
            sandbox_id: target.id,
            port: target.port,
            host: pass.host,
            grant,
            cookie,
            ended: pass.ended,
        })
    }

    async fn connect(&self, sandbox_id: SandboxId, port: u16) -> Result<Stream, Refusal> {
        let connected = self.shared.node.connect(sandbox_id, Door::Port(port), PATIENCE).await;
        Ok(connected.map_err(|error| match error.code {
            // The machine is gone, and the news is on its way.
            Code::SandboxNotFound => {
                Error::new(Code::EdgeRuntimeHostUnreachable, "the sandbox's machine is gone").context(error)
            }
            _ => error,
        })?)
    }

    fn passed(&self, grant: PreviewGrantId, traffic: Traffic) {
        self.shared.grants.passed(grant, traffic);
    }

    fn failed(&self, grant: PreviewGrantId, code: Code) {
        self.shared.grants.failed(grant, code, self.shared.clock.now());
    }
}

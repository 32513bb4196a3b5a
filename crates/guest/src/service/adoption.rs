//! What the machine is, and how it becomes that: once, and anew each time it was captured and restored.
//!
//! Owned here: the identity in force, which the next adoption replaces as a whole, and the order in which
//! an adoption happens. Its parts that change the system are in `adopt`, the authority that the machine
//! trusts in `authority`, the programs that the machine's owner has run in `hooks`.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Instant;

use nullspace_guest_proto as pb;
use tonic::{Request, Status};

use super::Place;
use super::process::environment;
use crate::account::Account;
use crate::authority::Authority;
use crate::bulk::Tickets;
use crate::console::say;
use crate::freezer::Freezer;
use crate::hooks::Hooks;
use crate::links::{LinkId, Links};
use crate::process::table::Table;
use crate::serve::Arrived;
use crate::token::{Tokens, same};
use crate::{adopt, authority, path};

/// What an agent that is hosted takes for the machine's root, among its logs, where it would change the
/// system's own files.
const HOSTED_ROOT: &str = "root";

/// What an adoption said.
pub struct Adopted {
    pub sandbox_id: String,
    pub envs: HashMap<String, String>,
    pub cwd: Option<String>,
    token: String,
    hostname: String,
}

impl Adopted {
    /// Whether a request is the one that was done, again.
    fn is(&self, request: &pb::AdoptRequest) -> bool {
        self.sandbox_id == request.sandbox_id && self.has_token(request)
    }

    fn has_token(&self, request: &pb::AdoptRequest) -> bool {
        same(self.token.as_bytes(), request.token.as_bytes())
    }
}

/// Who adopts.
pub struct Caller {
    authorization: Option<Vec<u8>>,
    link: LinkId,
    arrived: Instant,
}

impl Caller {
    /// Of a call that came through the agent's door.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let authorization = request.metadata().get("authorization").map(|value| value.as_bytes().to_vec());
        let (link, arrived) = (request.extensions().get(), request.extensions().get());
        match (link, arrived) {
            (Some(link), Some(Arrived(arrived))) => {
                Ok(Self { authorization, link: *link, arrived: *arrived })
            }
            _ => Err(Status::internal("the call came through no door")),
        }
    }
}

/// See the module.
pub struct Adoption {
    place: Place,
    tokens: Arc<Tokens>,
    links: Arc<Links>,
    tickets: Arc<Tickets>,
    table: Arc<Table>,
    freezer: Arc<Freezer>,
    hooks: Hooks,
    authority: Authority,
    current: RwLock<Option<Arc<Adopted>>>,
    /// Held by the one adoption that is being done; the answer of the last.
    answered: tokio::sync::Mutex<pb::AdoptReply>,
}

impl Adoption {
    /// Not adopted yet.
    pub fn new(
        place: Place,
        tokens: Arc<Tokens>,
        links: Arc<Links>,
        tickets: Arc<Tickets>,
        table: Arc<Table>,
        freezer: Arc<Freezer>,
        hooks: Hooks,
    ) -> Self {
        let (current, answered) = (RwLock::default(), tokio::sync::Mutex::default());
        let authority = Authority::new(match place {
            Place::Machine => "/".into(),
            Place::Hosted => table.directory().join(HOSTED_ROOT),
        });
        Self { place, tokens, links, tickets, table, freezer, hooks, authority, current, answered }
    }

    /// Sets the clock of a machine that stood still forward; with 0 it stays.
    pub fn catch_up(&self, unix_time_ns: u64, arrived: Instant) {
        if self.place == Place::Machine && unix_time_ns != 0 {
            adopt::catch_up(unix_time_ns, arrived);
        }
    }

    /// The authority that the machine trusts.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What the machine is now.
    pub fn current(&self) -> Option<Arc<Adopted>> {
        self.current.read().expect("no holder panics").clone()
    }

    /// Does an adoption, or answers as it was answered before.
    pub async fn adopt(
        self: Arc<Self>,
        request: pb::AdoptRequest,
        caller: Caller,
    ) -> Result<pb::AdoptReply, Status> {
        // Whatever becomes of this, what stood still since the capture goes on at its end and not before.
        let mut held = self.freezer.hold().await;
        adopt::validate(&request)?;
        authority::check(&request.authority_pem)?;
        let cwd = match request.cwd.as_str() {
            "" => None,
            cwd => Some(path::resolve(cwd, path::WORKSPACE)?.to_string_lossy().into_owned()),
        };
        let mut answered = self.answered.lock().await;
        let before = self.current();
        if let Some(before) = &before {
            if before.is(&request) {
                return Ok(answered.clone());
            }
            // Looked at here and not only at the door: while this waited, another one may have been done.
            let may_again = self.tokens.is_in_force(caller.authorization.as_deref());
            if !may_again || before.has_token(&request) {
                return Err(Status::failed_precondition(format!(
                    "already adopted as {}; it is adopted again only by who has its token, and with another",
                    before.sandbox_id
                )));
            }
        }
        if request.resumed && before.as_ref().is_none_or(|own| own.sandbox_id != request.sandbox_id) {
            return Err(Status::failed_precondition(format!(
                "resumed: this machine was never sandbox {}",
                request.sandbox_id
            )));
        }
        let hostname = before.as_ref().map(|before| before.hostname.as_str());
        let mut reply = match self.place {
            Place::Machine => adopt::adopt(&request, caller.arrived, hostname).await,
            Place::Hosted => pb::AdoptReply::default(),
        };
        reply.authority = match self.authority.set(&request.authority_pem).await {
            Ok(()) => true,
            Err(error) => {
                say!("adopt: authority: {}", error.message());
                false
            }
        };
        reply.environment = true;
        reply.token = true;
        let adopted = Arc::new(Adopted {
            sandbox_id: request.sandbox_id,
            envs: request.envs,
            cwd,
            token: request.token.clone(),
            hostname: hostname.filter(|_| request.resumed).unwrap_or(&request.hostname).into(),
        });
        self.tokens.replace(request.token);
        *self.current.write().expect("no holder panics") = Some(Arc::clone(&adopted));
        if before.is_none() {
            // What prepared the machine is nobody's business from here on.
            self.table.forget_ended();
        } else {
            self.links.end_others(caller.link);
            self.tickets.forget();
            let told = HashMap::from([
                ("NULLSPACE_SANDBOX_ID".to_string(), adopted.sandbox_id.clone()),
                ("NULLSPACE_REASON".to_string(), "restore".to_string()),
            ]);
            held.let_hooks_run();
            let trusted = self.authority.environment();
            let environment = environment(&Account::root(), trusted, &adopted.envs, &told);
            reply.hooks = self.hooks.run(&environment).await;
        }
        *answered = reply.clone();
        Ok(reply)
    }
}

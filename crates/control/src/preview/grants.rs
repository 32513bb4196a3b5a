//! The grants in use: what of each decides over a request, what it holds open, and how it was used since
//! that was last written. The rows are the store's; what is here may be forgotten at any time, but a grant
//! that is forgotten takes along what it held open, so that none escapes its revocation.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use nullspace_edge_api::Traffic;
use nullspace_store::Store;
use nullspace_store::preview::{GrantRow, GrantUse, NewGrant};
use nullspace_types::Code;
use nullspace_types::id::{PreviewGrantId, SandboxId, TenantId};
use nullspace_types::preview::PreviewTransport;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::life::Life;
use crate::shared::Shared;

/// Grants that are remembered.
const REMEMBERED: usize = 10_000;
/// How many are forgotten at once when there is no room: those that were used longest ago.
const FORGOTTEN_AT_ONCE: usize = REMEMBERED / 16;
/// Grants whose use waits to be written. More only come to be while the store cannot be written.
const UNWRITTEN_MAX: usize = 2 * REMEMBERED;
/// How often use is written.
const FLUSH: Duration = Duration::from_secs(5);
/// The longest sleep before the wall clock is looked at again.
const CLOCK_LOOK: Duration = Duration::from_secs(3600);

/// What of a grant decides over a request.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) grant: Arc<NewGrant>,
    pub(super) revoked: bool,
    pub(super) disabled: bool,
}

struct Known {
    facts: Facts,
    /// What it let pass: with the sandbox's traffic token besides, and without.
    held: [Option<CancellationToken>; 2],
    used_at: u64,
}

impl Known {
    fn cut(&mut self) {
        for held in self.held.iter_mut().filter_map(Option::take) {
            held.cancel();
        }
    }
}

#[derive(Default)]
struct Table {
    known: HashMap<PreviewGrantId, Known>,
    /// Use that is not written yet.
    unwritten: HashMap<PreviewGrantId, GrantUse>,
    /// Counts uses, to tell which grant was used last.
    uses: u64,
    /// Grows with every revocation: what was read before one is not remembered after it.
    epoch: u64,
}

impl Table {
    fn remember(&mut self, row: GrantRow) -> Facts {
        if self.known.len() >= REMEMBERED {
            let mut ages: Vec<_> = self.known.iter().map(|(id, known)| (known.used_at, *id)).collect();
            ages.sort_unstable_by_key(|(used_at, _)| *used_at);
            for (_, id) in ages.into_iter().take(FORGOTTEN_AT_ONCE) {
                self.forget(id);
            }
        }
        let facts = Facts {
            revoked: row.revoked_at.is_some(),
            disabled: row.disabled_at.is_some(),
            grant: Arc::new(row.grant),
        };
        let known = Known { facts: facts.clone(), held: [None, None], used_at: self.uses };
        if let Some(mut before) = self.known.insert(facts.grant.id, known) {
            before.cut();
        }
        facts
    }

    fn forget(&mut self, id: PreviewGrantId) {
        if let Some(mut known) = self.known.remove(&id) {
            known.cut();
        }
    }

    fn unwritten(&mut self, id: PreviewGrantId) -> Option<&mut GrantUse> {
        if self.unwritten.len() >= UNWRITTEN_MAX && !self.unwritten.contains_key(&id) {
            tracing::warn!(grant = %id, "the use of a preview grant is not counted: too much waits to be written");
            return None;
        }
        Some(self.unwritten.entry(id).or_default())
    }
}

/// Puts a later use on top of an earlier one.
fn add(to: &mut GrantUse, later: GrantUse) {
    to.http_requests += later.http_requests;
    to.websockets += later.websockets;
    to.bytes_in += later.bytes_in;
    to.bytes_out += later.bytes_out;
    to.first_used_at = to.first_used_at.or(later.first_used_at);
    to.last_used_at = later.last_used_at.or(to.last_used_at);
    if later.last_error.is_some() {
        to.last_error = later.last_error;
    }
}

/// All of them.
#[derive(Default)]
pub(crate) struct Grants {
    table: Mutex<Table>,
    /// Held while use is written, and while it is read: so nothing is counted twice or not at all.
    writing: tokio::sync::Mutex<()>,
    /// Told when a grant is remembered, which may end sooner than all others.
    remembered: Notify,
}

// See `Registry` on poisoned locks.
impl Grants {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A grant, from here or from the store.
    pub(super) async fn find(
        &self,
        store: &dyn Store,
        id: PreviewGrantId,
    ) -> nullspace_store::Result<Option<Facts>> {
        loop {
            let epoch = {
                let table = self.table();
                if let Some(known) = table.known.get(&id) {
                    return Ok(Some(known.facts.clone()));
                }
                table.epoch
            };
            let Some(row) = store.grant_find(id).await? else { return Ok(None) };
            let mut table = self.table();
            // Somebody else has looked it up meanwhile, and holds on to what is known of it.
            if let Some(known) = table.known.get(&id) {
                return Ok(Some(known.facts.clone()));
            }
            if table.epoch == epoch {
                let facts = table.remember(row);
                self.remembered.notify_one();
                return Ok(Some(facts));
            }
        }
    }

    /// What is cancelled when the grant or this life ends. None if the grant is not remembered, or revoked.
    pub(super) fn hold(
        &self,
        id: PreviewGrantId,
        life: &Life,
        with_traffic_token: bool,
    ) -> Option<CancellationToken> {
        let mut table = self.table();
        table.uses += 1;
        let uses = table.uses;
        let known = table.known.get_mut(&id).filter(|known| !known.facts.revoked)?;
        known.used_at = uses;
        let parent = if with_traffic_token { &life.running } else { &life.public };
        let held = &mut known.held[usize::from(with_traffic_token)];
        match held {
            Some(token) if !token.is_cancelled() => Some(token.clone()),
            // Of an earlier life, or none yet.
            Some(_) | None => Some(held.insert(parent.child_token()).clone()),
        }
    }

    /// Counts a request that passed.
    pub(super) fn used(&self, id: PreviewGrantId, transport: PreviewTransport, now: Timestamp) {
        let mut table = self.table();
        let Some(used) = table.unwritten(id) else { return };
        match transport {
            PreviewTransport::Http => used.http_requests += 1,
            PreviewTransport::Websocket => used.websockets += 1,
        }
        used.first_used_at.get_or_insert(now);
        used.last_used_at = Some(now);
    }

    /// Counts bytes.
    pub(super) fn passed(&self, id: PreviewGrantId, traffic: Traffic) {
        if let Some(used) = self.table().unwritten(id) {
            used.bytes_in += traffic.bytes_in;
            used.bytes_out += traffic.bytes_out;
        }
    }

    /// Notes a refusal or a failure.
    pub(super) fn failed(&self, id: PreviewGrantId, code: Code, now: Timestamp) {
        if let Some(used) = self.table().unwritten(id) {
            used.last_error = Some((code.to_string(), now));
        }
    }

    /// The grants of a sandbox, their use up to now.
    pub(super) async fn list(
        &self,
        store: &dyn Store,
        tenant: TenantId,
        sandbox: SandboxId,
        port: Option<u16>,
    ) -> nullspace_store::Result<Vec<GrantRow>> {
        let _turn = self.writing.lock().await;
        let mut rows = store.grant_list(tenant, sandbox, port).await?;
        let table = self.table();
        for row in &mut rows {
            if let Some(unwritten) = table.unwritten.get(&row.grant.id) {
                add(&mut row.used, unwritten.clone());
            }
        }
        Ok(rows)
    }

    /// Revokes a grant, and cuts what it holds open.
    pub(super) async fn revoke(
        &self,
        store: &dyn Store,
        tenant: TenantId,
        sandbox: SandboxId,
        id: PreviewGrantId,
        now: Timestamp,
    ) -> nullspace_store::Result<GrantRow> {
        let _turn = self.writing.lock().await;
        let revoked = store.grant_revoke(tenant, sandbox, id, now).await;
        let mut table = self.table();
        match revoked {
            Ok(mut row) => {
                table.epoch += 1;
                if let Some(known) = table.known.get_mut(&id) {
                    known.facts.revoked = true;
                    known.cut();
                }
                if let Some(unwritten) = table.unwritten.get(&id) {
                    add(&mut row.used, unwritten.clone());
                }
                Ok(row)
            }
            // It is not this tenant's or sandbox's, so nothing changed.
            Err(error @ nullspace_store::Error::NotFound(_)) => Err(error),
            Err(error) => {
                // It may have failed after the database did it.
                table.epoch += 1;
                let own = table.known.get(&id).is_some_and(|known| known.facts.grant.tenant_id == tenant);
                if own {
                    table.forget(id);
                }
                Err(error)
            }
        }
    }

    /// Writes how grants were used. What cannot be written waits.
    async fn flush(&self, store: &dyn Store, now: Timestamp) {
        let _turn = self.writing.lock().await;
        let used: Vec<_> = std::mem::take(&mut self.table().unwritten).into_iter().collect();
        if used.is_empty() {
            return;
        }
        let Err(error) = store.grants_used(&used, now).await else { return };
        tracing::warn!(%error, grants = used.len(), "the use of preview grants could not be written; trying again");
        let mut table = self.table();
        for (id, mut earlier) in used {
            if let Some(later) = table.unwritten.remove(&id) {
                add(&mut earlier, later);
            }
            table.unwritten.insert(id, earlier);
        }
    }

    /// Forgets the grants whose time is over, and cuts what they hold open; answers when the next one ends.
    fn expire(&self, now: Timestamp) -> Option<Duration> {
        let mut table = self.table();
        let over: Vec<_> = table
            .known
            .iter()
            .filter(|(_, known)| known.facts.grant.expires_at <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            table.forget(id);
        }
        let next = table.known.values().map(|known| known.facts.grant.expires_at).min()?;
        Some(Duration::try_from(next.duration_since(now)).unwrap_or_default().min(CLOCK_LOOK))
    }
}

/// Ends grants at their time and writes how they were used, until the server ends.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let grants = &shared.grants;
    let mut flush = Instant::now() + FLUSH;
    loop {
        let now = shared.clock.now();
        let next = grants.expire(now).map(|left| Instant::now() + left);
        tokio::select! {
            () = shared.stop.cancelled() => break,
            () = grants.remembered.notified() => {}
            () = sleep_until(next.map_or(flush, |next| next.min(flush))) => {}
        }
        if Instant::now() >= flush {
            grants.flush(&*shared.store, shared.clock.now()).await;
            flush = Instant::now() + FLUSH;
        }
    }
    grants.flush(&*shared.store, shared.clock.now()).await;
}

#[cfg(test)]
mod tests {
    use nullspace_types::id::KeyId;
    use nullspace_types::preview::{AuthMode, TokenKind};

    use super::*;

    fn row(expires_at: Timestamp) -> GrantRow {
        let now = Timestamp::now();
        GrantRow {
            grant: NewGrant {
                id: PreviewGrantId::new(),
                tenant_id: TenantId::new(),
                key_id: KeyId::new(),
                sandbox_id: SandboxId::new(),
                port: 80,
                auth_mode: AuthMode::Direct,
                token_kinds: vec![TokenKind::HttpPort],
                issued_at: now,
                expires_at,
            },
            revoked_at: None,
            disabled_at: None,
            used: GrantUse::default(),
            updated_at: now,
        }
    }

    #[test]
    fn a_grant_that_is_forgotten_for_room_or_time_takes_along_what_it_held_open() {
        let grants = Grants::default();
        let running = CancellationToken::new();
        let life = Life { public: running.child_token(), running };
        let now = Timestamp::now();
        let end = now + Duration::from_secs(60);
        let first = grants.table().remember(row(end)).grant.id;
        let held = grants.hold(first, &life, false).unwrap();
        assert!(grants.hold(PreviewGrantId::new(), &life, false).is_none());
        for _ in 0..REMEMBERED {
            grants.table().remember(row(end));
        }
        assert!(held.is_cancelled() && grants.table().known.len() <= REMEMBERED);

        let short = grants.table().remember(row(now + Duration::from_secs(1))).grant.id;
        let (with, without) = (grants.hold(short, &life, true).unwrap(), grants.hold(short, &life, false));
        assert_eq!(grants.expire(now), Some(Duration::from_secs(1)));
        assert!(!with.is_cancelled());
        life.public.cancel();
        assert!(without.unwrap().is_cancelled() && !with.is_cancelled(), "the traffic token lets on");
        assert_eq!(grants.expire(now + Duration::from_secs(1)), Some(Duration::from_secs(59)));
        assert!(with.is_cancelled() && !life.running.is_cancelled());
    }
}

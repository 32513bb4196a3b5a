//! Reading sandboxes: pages for users, and what the server's own loops look for.

use jiff::Timestamp;
use nullspace_types::id::{SandboxId, TenantId};
use sqlx::{QueryBuilder, Row as _};

use super::sandbox_row::{columns, desired_state, observed_state, sandbox};
use super::{Db, Engine, from_micros};
use crate::canonical::pair_digest;
use crate::sandbox::{DesiredState, ObservedState, SandboxCounts, SandboxFilter, SandboxRow, StateFilter};
use crate::{Error, Result};

/// The states as a condition of constant words. When history is out of the question it says so in the words
/// of the partial index.
fn push_states(query: &mut QueryBuilder<Db>, states: &[StateFilter]) {
    if states.iter().all(|state| state.desired != DesiredState::Destroyed) {
        query.push(" AND desired <> 'destroyed'");
    }
    for (index, state) in states.iter().enumerate() {
        query.push(if index == 0 { " AND (" } else { " OR " });
        query.push("(desired = '").push(state.desired.as_str()).push("'");
        if let Some(observed) = state.observed {
            query.push(" AND observed_state = '").push(observed.as_str()).push("'");
        }
        query.push(")");
    }
    query.push(")");
}

impl Engine {
    pub(super) async fn list(&self, tenant: TenantId, filter: &SandboxFilter) -> Result<Vec<SandboxRow>> {
        if filter.states.as_ref().is_some_and(Vec::is_empty)
            // No stored template has one, and PostgreSQL refuses to be asked.
            || filter.template.as_ref().is_some_and(|template| template.contains('\0'))
        {
            return Ok(vec![]);
        }
        let mut pairs = filter.metadata.iter().map(|(name, value)| pair_digest(name, value));
        let mut query = QueryBuilder::<Db>::new(concat!("SELECT ", columns!(), " FROM "));
        // With a pair, its index leads the way in the order of the page; CROSS JOIN keeps SQLite from
        // choosing the other way round. `found` and `sandboxes` share no other column that is selected.
        let order = match pairs.next() {
            None => {
                query.push("sandboxes WHERE tenant_id = ").push_bind(tenant.to_string());
                "id"
            }
            Some(pair) => {
                query
                    .push(
                        "(SELECT tenant_id AS owner, pair, sandbox_id FROM sandbox_metadata) AS found \
                         CROSS JOIN sandboxes WHERE id = found.sandbox_id AND found.owner = ",
                    )
                    .push_bind(tenant.to_string())
                    .push(" AND found.pair = ")
                    .push_bind(pair.to_vec())
                    .push(" AND tenant_id = ")
                    .push_bind(tenant.to_string());
                "found.sandbox_id"
            }
        };
        for pair in pairs {
            query
                .push(" AND EXISTS (SELECT 1 FROM sandbox_metadata AS m WHERE m.tenant_id = ")
                .push_bind(tenant.to_string())
                .push(" AND m.pair = ")
                .push_bind(pair.to_vec())
                .push(" AND m.sandbox_id = sandboxes.id)");
        }
        if let Some(states) = &filter.states {
            push_states(&mut query, states);
        }
        if let Some(template) = &filter.template {
            query.push(" AND template = ").push_bind(template.clone());
        }
        if let Some(after) = filter.after {
            query.push(" AND ").push(order).push(" < ").push_bind(after.to_string());
        }
        query.push(" ORDER BY ").push(order).push(" DESC LIMIT ").push_bind(i64::from(filter.limit));
        let rows = query.build().fetch_all(self.reader()).await?;
        rows.iter().map(sandbox).collect()
    }

    pub(super) async fn get(&self, tenant: TenantId, id: SandboxId) -> Result<SandboxRow> {
        let row =
            sqlx::query(concat!("SELECT ", columns!(), " FROM sandboxes WHERE id = $1 AND tenant_id = $2"))
                .bind(id.to_string())
                .bind(tenant.to_string())
                .fetch_optional(self.reader())
                .await?;
        sandbox(&row.ok_or(Error::NotFound("sandbox"))?)
    }

    /// Of one tenant, or of all.
    pub(super) async fn counts(&self, tenant: Option<TenantId>) -> Result<SandboxCounts> {
        let mut query = QueryBuilder::<Db>::new(
            "SELECT desired, observed_state, count(*) AS number FROM sandboxes WHERE destroyed_at IS NULL",
        );
        if let Some(tenant) = tenant {
            query.push(" AND tenant_id = ").push_bind(tenant.to_string());
        }
        query.push(" GROUP BY desired, observed_state");
        let rows = query.build().fetch_all(self.reader()).await?;
        let mut counts = SandboxCounts::default();
        for row in &rows {
            use {DesiredState as Wanted, ObservedState as Seen};
            let place = match (desired_state(row)?, observed_state(row)?) {
                (Wanted::Running, Seen::None) => &mut counts.creating,
                (Wanted::Running, Seen::Running) => &mut counts.running,
                (Wanted::Running, Seen::Lost) => &mut counts.lost,
                (Wanted::Paused, Seen::None | Seen::Running | Seen::Paused | Seen::Lost)
                | (Wanted::Running, Seen::Paused) => &mut counts.paused,
                (Wanted::Destroyed, Seen::None | Seen::Running | Seen::Paused | Seen::Lost) => {
                    &mut counts.destroying
                }
            };
            *place += super::number::<u64>(row, "number")?;
        }
        Ok(counts)
    }

    pub(super) async fn descendants(
        &self,
        tenant: TenantId,
        root: SandboxId,
        limit: u32,
    ) -> Result<Vec<SandboxRow>> {
        // UNION rather than UNION ALL: it ends whatever the rows say.
        let rows = sqlx::query(concat!(
            "WITH RECURSIVE relatives (relative) AS (",
            "SELECT id FROM sandboxes WHERE id = $2 AND tenant_id = $1 UNION ",
            "SELECT child.id FROM relatives JOIN sandboxes child ON child.parent_id = relatives.relative ",
            "WHERE child.tenant_id = $1) SELECT ",
            columns!(),
            " FROM sandboxes WHERE id IN (SELECT relative FROM relatives) ORDER BY id LIMIT $3"
        ))
        .bind(tenant.to_string())
        .bind(root.to_string())
        .bind(i64::from(limit))
        .fetch_all(self.reader())
        .await?;
        rows.iter().map(sandbox).collect()
    }

    pub(super) async fn expired(&self, now: Timestamp, limit: u32) -> Result<Vec<SandboxRow>> {
        let rows = sqlx::query(concat!(
            "SELECT ",
            columns!(),
            " FROM sandboxes WHERE desired = 'running' AND timeout_at <= $1 ORDER BY timeout_at, id LIMIT $2"
        ))
        .bind(now.as_microsecond())
        .bind(i64::from(limit))
        .fetch_all(self.reader())
        .await?;
        rows.iter().map(sandbox).collect()
    }

    pub(super) async fn next_timeout(&self) -> Result<Option<Timestamp>> {
        let row = sqlx::query("SELECT min(timeout_at) AS next FROM sandboxes WHERE desired = 'running'")
            .fetch_one(self.reader())
            .await?;
        row.try_get::<Option<i64>, _>("next")?.map(from_micros).transpose()
    }

    pub(super) async fn unfinished(&self, after: Option<SandboxId>, limit: u32) -> Result<Vec<SandboxRow>> {
        let rows = sqlx::query(concat!(
            "SELECT ",
            columns!(),
            " FROM sandboxes WHERE destroyed_at IS NULL AND id > $1 ORDER BY id LIMIT $2"
        ))
        // The empty text is smaller than every ID.
        .bind(after.map(|id| id.to_string()).unwrap_or_default())
        .bind(i64::from(limit))
        .fetch_all(self.reader())
        .await?;
        rows.iter().map(sandbox).collect()
    }
}

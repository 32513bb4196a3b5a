//! Preview grants.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::id::{PreviewGrantId, SandboxId, TenantId};
use nullspace_types::preview::AuthMode;
use sqlx::Row as _;

use super::{
    Engine, Row, Transaction, json, lock_sandbox, number, parsed, prose, retried, signed, time, time_option,
    to_json, word,
};
use crate::preview::{GrantRow, GrantUse, LocalPort, NewGrant, PreviewStore};
use crate::{Error, Result};

/// Grants of a sandbox that are kept.
const GRANTS_MAX: i64 = 1000;

macro_rules! columns {
    () => {
        "id, tenant_id, key_id, sandbox_id, port, auth_mode, token_kinds, issued_at, expires_at, revoked_at, \
         disabled_at, http_requests, websockets, bytes_in, bytes_out, first_used_at, last_used_at, last_error, \
         last_error_at, updated_at"
    };
}

const fn auth_mode(mode: AuthMode) -> &'static str {
    match mode {
        AuthMode::Direct => "direct",
        AuthMode::Proxy => "proxy",
    }
}

fn grant(row: &Row) -> Result<GrantRow> {
    let modes = [AuthMode::Direct, AuthMode::Proxy].map(|mode| (auth_mode(mode), mode));
    let last_error: Option<String> = row.try_get("last_error")?;
    Ok(GrantRow {
        grant: NewGrant {
            id: parsed(row, "id")?,
            tenant_id: parsed(row, "tenant_id")?,
            key_id: parsed(row, "key_id")?,
            sandbox_id: parsed(row, "sandbox_id")?,
            port: number(row, "port")?,
            auth_mode: word(row, "auth_mode", &modes)?,
            token_kinds: json(row, "token_kinds")?,
            issued_at: time(row, "issued_at")?,
            expires_at: time(row, "expires_at")?,
        },
        revoked_at: time_option(row, "revoked_at")?,
        disabled_at: time_option(row, "disabled_at")?,
        used: GrantUse {
            http_requests: number(row, "http_requests")?,
            websockets: number(row, "websockets")?,
            bytes_in: number(row, "bytes_in")?,
            bytes_out: number(row, "bytes_out")?,
            first_used_at: time_option(row, "first_used_at")?,
            last_used_at: time_option(row, "last_used_at")?,
            last_error: last_error.zip(time_option(row, "last_error_at")?),
        },
        updated_at: time(row, "updated_at")?,
    })
}

/// Holds a sandbox as it is until the end of the transaction, if it is wanted: one that is not is about to
/// give back all that it was given. Answers whose it is.
pub(super) async fn hold_wanted(transaction: &mut Transaction, sandbox: SandboxId) -> Result<TenantId> {
    lock_sandbox(transaction, sandbox).await?;
    let row = sqlx::query("SELECT tenant_id FROM sandboxes WHERE id = $1 AND desired <> 'destroyed'")
        .bind(sandbox.to_string())
        .fetch_optional(&mut **transaction)
        .await?;
    parsed(&row.ok_or(Error::NotFound("sandbox"))?, "tenant_id")
}

/// Makes room for one more grant of a sandbox: the oldest of those that are good no more goes.
async fn make_room(transaction: &mut Transaction, sandbox: SandboxId, now: Timestamp) -> Result<()> {
    let row = sqlx::query("SELECT count(*) AS number FROM preview_grants WHERE sandbox_id = $1")
        .bind(sandbox.to_string())
        .fetch_one(&mut **transaction)
        .await?;
    let beyond = number::<i64>(&row, "number")? + 1 - GRANTS_MAX;
    if beyond <= 0 {
        return Ok(());
    }
    let removed = sqlx::query(
        "DELETE FROM preview_grants WHERE id IN (SELECT id FROM preview_grants WHERE sandbox_id = $1 \
         AND (revoked_at IS NOT NULL OR disabled_at IS NOT NULL OR expires_at <= $2) ORDER BY id LIMIT $3)",
    )
    .bind(sandbox.to_string())
    .bind(now.as_microsecond())
    .bind(beyond)
    .execute(&mut **transaction)
    .await?;
    if removed.rows_affected() < beyond.unsigned_abs() {
        return Err(Error::invalid(format!("a sandbox has at most {GRANTS_MAX} active preview grants")));
    }
    Ok(())
}

impl Engine {
    async fn grant_insert_once(&self, new: &NewGrant) -> Result<GrantRow> {
        if new.token_kinds.is_empty() {
            return Err(Error::invalid("a preview grant is good for at least one kind of token"));
        }
        let mut transaction = self.begin().await?;
        if hold_wanted(&mut transaction, new.sandbox_id).await? != new.tenant_id {
            return Err(Error::NotFound("sandbox"));
        }
        make_room(&mut transaction, new.sandbox_id, new.issued_at).await?;
        let row = sqlx::query(concat!(
            "INSERT INTO preview_grants (id, tenant_id, key_id, sandbox_id, port, auth_mode, token_kinds, ",
            "issued_at, expires_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $8) RETURNING ",
            columns!()
        ))
        .bind(new.id.to_string())
        .bind(new.tenant_id.to_string())
        .bind(new.key_id.to_string())
        .bind(new.sandbox_id.to_string())
        .bind(i64::from(new.port))
        .bind(auth_mode(new.auth_mode))
        .bind(to_json(&new.token_kinds)?)
        .bind(new.issued_at.as_microsecond())
        .bind(new.expires_at.as_microsecond())
        .fetch_one(&mut *transaction)
        .await?;
        transaction.commit().await?;
        grant(&row)
    }

    async fn grant_revoke_once(
        &self,
        tenant: TenantId,
        sandbox: SandboxId,
        id: PreviewGrantId,
        at: Timestamp,
    ) -> Result<GrantRow> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "UPDATE preview_grants SET revoked_at = $4, updated_at = $4 \
             WHERE id = $1 AND sandbox_id = $2 AND tenant_id = $3 AND revoked_at IS NULL",
        )
        .bind(id.to_string())
        .bind(sandbox.to_string())
        .bind(tenant.to_string())
        .bind(at.as_microsecond())
        .execute(&mut *transaction)
        .await?;
        let row = sqlx::query(concat!(
            "SELECT ",
            columns!(),
            " FROM preview_grants WHERE id = $1 AND sandbox_id = $2 AND tenant_id = $3"
        ))
        .bind(id.to_string())
        .bind(sandbox.to_string())
        .bind(tenant.to_string())
        .fetch_optional(&mut *transaction)
        .await?;
        transaction.commit().await?;
        grant(&row.ok_or(Error::NotFound("preview grant"))?)
    }

    async fn grants_disable_once(&self, sandbox: SandboxId, at: Timestamp) -> Result<()> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "UPDATE preview_grants SET disabled_at = $2, updated_at = $2 \
             WHERE sandbox_id = $1 AND disabled_at IS NULL",
        )
        .bind(sandbox.to_string())
        .bind(at.as_microsecond())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    async fn grants_used_once(&self, used: &[(PreviewGrantId, GrantUse)], at: Timestamp) -> Result<()> {
        let mut transaction = self.begin().await?;
        for (id, used) in used {
            let (error, error_at) = used.last_error.as_ref().map(|(code, at)| (prose(code), *at)).unzip();
            sqlx::query(
                "UPDATE preview_grants SET http_requests = http_requests + $2, websockets = websockets + $3, \
                 bytes_in = bytes_in + $4, bytes_out = bytes_out + $5, \
                 first_used_at = coalesce(first_used_at, $6), last_used_at = coalesce($7, last_used_at), \
                 last_error = coalesce($8, last_error), last_error_at = coalesce($9, last_error_at), \
                 updated_at = $10 WHERE id = $1",
            )
            .bind(id.to_string())
            .bind(signed(used.http_requests, "http_requests")?)
            .bind(signed(used.websockets, "websockets")?)
            .bind(signed(used.bytes_in, "bytes_in")?)
            .bind(signed(used.bytes_out, "bytes_out")?)
            .bind(used.first_used_at.map(Timestamp::as_microsecond))
            .bind(used.last_used_at.map(Timestamp::as_microsecond))
            .bind(error)
            .bind(error_at.map(Timestamp::as_microsecond))
            .bind(at.as_microsecond())
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}

#[async_trait]
impl PreviewStore for Engine {
    async fn grant_insert(&self, new: &NewGrant) -> Result<GrantRow> {
        retried!(self.grant_insert_once(new))
    }

    async fn grant_find(&self, id: PreviewGrantId) -> Result<Option<GrantRow>> {
        let row = sqlx::query(concat!("SELECT ", columns!(), " FROM preview_grants WHERE id = $1"))
            .bind(id.to_string())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(grant).transpose()
    }

    async fn grant_list(
        &self,
        tenant: TenantId,
        sandbox: SandboxId,
        port: Option<u16>,
    ) -> Result<Vec<GrantRow>> {
        let rows = sqlx::query(concat!(
            "SELECT ",
            columns!(),
            " FROM preview_grants WHERE sandbox_id = $1 AND tenant_id = $2 AND port = coalesce($3, port) ",
            "ORDER BY id DESC"
        ))
        .bind(sandbox.to_string())
        .bind(tenant.to_string())
        .bind(port.map(i64::from))
        .fetch_all(self.reader())
        .await?;
        rows.iter().map(grant).collect()
    }

    async fn grant_revoke(
        &self,
        tenant: TenantId,
        sandbox: SandboxId,
        id: PreviewGrantId,
        at: Timestamp,
    ) -> Result<GrantRow> {
        retried!(self.grant_revoke_once(tenant, sandbox, id, at))
    }

    async fn grants_disable(&self, sandbox: SandboxId, at: Timestamp) -> Result<()> {
        retried!(self.grants_disable_once(sandbox, at))
    }

    async fn grants_used(&self, used: &[(PreviewGrantId, GrantUse)], at: Timestamp) -> Result<()> {
        retried!(self.grants_used_once(used, at))
    }

    async fn local_port_assign(&self, candidate: LocalPort) -> Result<LocalPort> {
        retried!(self.assign_once(candidate))
    }

    async fn local_port_list(&self) -> Result<Vec<LocalPort>> {
        self.local_ports().await
    }

    async fn local_port_release(&self, local: u16) -> Result<()> {
        retried!(self.release_once(local))
    }

    async fn local_ports_release(&self, sandbox: SandboxId) -> Result<Vec<LocalPort>> {
        retried!(self.release_all_once(sandbox))
    }
}

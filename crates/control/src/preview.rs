//! What can be done with ports as others reach them: hosts, preview URLs, proxy targets, grants. `address`
//! says where a port is reached, `grants` holds the grants in use, `readiness` waits for services, and
//! `admit` judges what the gateway lets in.
//!
//! A token is derived, never stored: the row of its grant says the rest. Deliberately absent: listening and
//! forwarding, which are the gateway's.

mod address;
mod admit;
mod grants;
mod readiness;

use nullspace_auth::{EdgeKind, TokenSubject};
use nullspace_domain::lifecycle::{Rejected, State};
use nullspace_domain::preview::{grant_time, port, port_text, token_kinds};
use nullspace_store::preview::{GrantRow, NewGrant};
use nullspace_types::id::{PreviewGrantId, SandboxId, TenantId};
use nullspace_types::key::Principal;
use nullspace_types::preview::{
    AuthMode, EDGE_TOKEN_PARAMETER, GrantStatus, HostInfo, HostRequest, PROXY_TOKEN_HEADER, PreviewGrant,
    PreviewGrantList, PreviewGrantQuery, PreviewGrantRevoked, PreviewProxyTarget, PreviewUrl,
    ProxyTargetRequest, SignedPreviewRequest, TRAFFIC_TOKEN_HEADER, TRANSPORT_PARAMETER, TokenKind,
    TokenTransport,
};
use nullspace_types::{Code, Error, Result};

use crate::Control;
use crate::access::refusal;
use crate::registry::Entry;

pub(crate) use address::{LocalPorts, release, restore};
pub(crate) use grants::{Grants, keep};

/// What a customer's proxy is to send along.
const FORWARDED_HEADERS: [&str; 3] = ["x-forwarded-host", "x-forwarded-proto", "x-forwarded-for"];

fn subject(grant: &NewGrant) -> TokenSubject {
    TokenSubject {
        grant: grant.id,
        sandbox_id: grant.sandbox_id,
        port: grant.port,
        expires_at: grant.expires_at,
    }
}

fn grant_not_found(id: PreviewGrantId) -> Error {
    Error::new(Code::PreviewGrantNotFound, format!("preview grant {id} does not exist"))
        .suggest("list the sandbox's preview URLs")
}

impl Control {
    /// A grant as its owner sees it.
    fn grant_shown(&self, row: GrantRow) -> PreviewGrant {
        let GrantRow { grant, revoked_at, disabled_at, used, updated_at } = row;
        let status = match (revoked_at, disabled_at) {
            (Some(_), _) => GrantStatus::Revoked,
            (None, Some(_)) => GrantStatus::Disabled,
            (None, None) if grant.expires_at <= self.shared.clock.now() => GrantStatus::Expired,
            (None, None) => GrantStatus::Active,
        };
        let (last_error_code, last_error_at) = used.last_error.unzip();
        PreviewGrant {
            id: grant.id,
            sandbox_id: grant.sandbox_id,
            port: grant.port,
            auth_mode: grant.auth_mode,
            bootstrap_transport: match grant.auth_mode {
                AuthMode::Direct => TokenTransport::Query,
                AuthMode::Proxy => TokenTransport::Header,
            },
            status,
            token_kinds: grant.token_kinds,
            principal_kind: "user".to_owned(),
            principal_id: Some(grant.key_id.to_string()),
            issued_at: grant.issued_at,
            expires_at: grant.expires_at,
            revoked_at,
            first_used_at: used.first_used_at,
            last_used_at: used.last_used_at,
            use_count: used.http_requests + used.websockets,
            http_request_count: used.http_requests,
            websocket_connection_count: used.websockets,
            bytes_in_count: used.bytes_in,
            bytes_out_count: used.bytes_out,
            last_error_code,
            last_error_at,
            disabled_at,
            created_at: grant.issued_at,
            updated_at,
        }
    }

    /// A living sandbox that may be given addresses and grants. One that is still being made may not: it may
    /// come to nothing, and would leave them behind.
    fn reachable(&self, tenant_id: TenantId, id: SandboxId) -> Result<Entry> {
        let entry = self.living(tenant_id, id)?;
        let record = entry.view.borrow().record.clone();
        match record.state {
            State::Absent | State::Creating { .. } => Err(refusal(&record, Rejected::NotRunning)),
            State::Running { .. }
            | State::Hibernating { .. }
            | State::Paused { .. }
            | State::Resuming { .. }
            | State::Lost { .. }
            | State::Destroying { .. }
            | State::Destroyed => Ok(entry),
        }
    }

    /// Writes a grant.
    async fn grant(
        &self,
        caller: Principal,
        sandbox_id: SandboxId,
        port: u16,
        auth_mode: AuthMode,
        token_kinds: Vec<TokenKind>,
        seconds: Option<i64>,
    ) -> Result<GrantRow> {
        let shared = &self.shared;
        let issued_at = shared.clock.now();
        let time = grant_time(seconds, &shared.limits);
        let grant = NewGrant {
            id: PreviewGrantId::new(),
            tenant_id: caller.tenant_id,
            key_id: caller.key_id,
            sandbox_id,
            port,
            auth_mode,
            token_kinds,
            issued_at,
            expires_at: issued_at.checked_add(time).map_err(Error::internal)?,
        };
        shared.store.grant_insert(&grant).await.map_err(|error| match error {
            nullspace_store::Error::NotFound(_) => Error::sandbox_not_found(sandbox_id),
            nullspace_store::Error::Invalid(_) => {
                let message = format!("sandbox {sandbox_id} has as many preview grants as it may have");
                Error::new(Code::QuotaExceeded, message).suggest("revoke those that are not needed")
            }
            error => error.into(),
        })
    }

    /// Where a port is reached.
    pub async fn preview_host(
        &self,
        caller: Principal,
        id: SandboxId,
        request: HostRequest,
    ) -> Result<HostInfo> {
        self.reachable(caller.tenant_id, id)?;
        let port = port(request.port)?;
        let address = address::of(&self.shared, id, port).await?;
        Ok(HostInfo { url: address.http(), websocket_url: address.websocket(), host: address.host })
    }

    /// Makes a grant and a preview URL of the default length of time.
    pub async fn preview_url(&self, caller: Principal, id: SandboxId, port: String) -> Result<PreviewUrl> {
        self.preview_url_signed(caller, id, port, SignedPreviewRequest::default()).await
    }

    /// Makes a grant and a preview URL.
    pub async fn preview_url_signed(
        &self,
        caller: Principal,
        id: SandboxId,
        port: String,
        request: SignedPreviewRequest,
    ) -> Result<PreviewUrl> {
        self.reachable(caller.tenant_id, id)?;
        let port = port_text(&port)?;
        let address = address::of(&self.shared, id, port).await?;
        let kinds = token_kinds(None)?;
        let seconds = request.expires_in_seconds;
        let row = self.grant(caller, id, port, AuthMode::Direct, kinds, seconds).await?;
        let subject = subject(&row.grant);
        let token = |kind| {
            let token = self.shared.access.tokens.issue(&subject, kind, TokenTransport::Query);
            format!("/?{EDGE_TOKEN_PARAMETER}={token}")
        };
        Ok(PreviewUrl {
            url: address.http() + &token(EdgeKind::Http),
            websocket_url: address.websocket() + &token(EdgeKind::Websocket),
            access_token_expires_at: row.grant.expires_at,
            access_token_transport: TokenTransport::Query,
            grant: self.grant_shown(row),
        })
    }

    /// Makes a grant for a customer's own proxy.
    pub async fn preview_proxy_target(
        &self,
        caller: Principal,
        id: SandboxId,
        port: String,
        request: ProxyTargetRequest,
    ) -> Result<PreviewProxyTarget> {
        let entry = self.reachable(caller.tenant_id, id)?;
        let port = port_text(&port)?;
        let kinds = token_kinds(request.transports.as_deref())?;
        let address = address::of(&self.shared, id, port).await?;
        let row = self.grant(caller, id, port, AuthMode::Proxy, kinds, request.expires_in_seconds).await?;
        let subject = subject(&row.grant);
        let has = |kind| row.grant.token_kinds.contains(&kind);
        let token = |kind| self.shared.access.tokens.issue(&subject, kind, TokenTransport::Header);
        let marked = |url: String| format!("{url}/?{TRANSPORT_PARAMETER}=header");
        let (http, websocket) = (has(TokenKind::HttpPort), has(TokenKind::WebsocketPort));
        let private = !entry.view.borrow().record.row.desired.network.allow_public_traffic;
        let hint = request.include_traffic_token_hint.unwrap_or(true);
        let mut warnings = Vec::new();
        if private && hint {
            warnings.push(format!(
                "the sandbox's ports are private: send its traffic token in {TRAFFIC_TOKEN_HEADER} too"
            ));
        }
        if address.only_from_this_host {
            warnings.push("the address is reached from the server's own host only".to_owned());
        }
        Ok(PreviewProxyTarget {
            sandbox_id: id,
            port,
            token_header_name: PROXY_TOKEN_HEADER.to_owned(),
            expires_at: Some(row.grant.expires_at),
            token_transport: TokenTransport::Header,
            http_url: http.then(|| marked(address.http())),
            websocket_url: websocket.then(|| marked(address.websocket())),
            http_token: http.then(|| token(EdgeKind::Http)),
            websocket_token: websocket.then(|| token(EdgeKind::Websocket)),
            required_forwarded_headers: FORWARDED_HEADERS.map(str::to_owned).to_vec(),
            traffic_access_required: hint.then_some(private),
            traffic_access_header_name: (hint && private).then(|| TRAFFIC_TOKEN_HEADER.to_owned()),
            warnings,
            grant: self.grant_shown(row),
        })
    }

    /// Grants of a sandbox, newest first. Those of one that is gone can still be looked at.
    pub async fn preview_grant_list(
        &self,
        caller: Principal,
        id: SandboxId,
        query: PreviewGrantQuery,
    ) -> Result<PreviewGrantList> {
        let port = query.port.as_deref().map(port_text).transpose()?;
        self.ever_lived(caller.tenant_id, id).await?;
        let rows = self.shared.grants.list(&*self.shared.store, caller.tenant_id, id, port).await?;
        Ok(PreviewGrantList { items: rows.into_iter().map(|row| self.grant_shown(row)).collect() })
    }

    /// Revokes a grant, and cuts what it holds open.
    pub async fn preview_grant_revoke(
        &self,
        caller: Principal,
        id: SandboxId,
        grant: PreviewGrantId,
    ) -> Result<PreviewGrantRevoked> {
        self.ever_lived(caller.tenant_id, id).await?;
        // Whoever asked may go away: what is written must also be cut.
        let (shared, now) = (self.shared.clone(), self.shared.clock.now());
        let revoking = self.shared.tasks.spawn(async move {
            shared.grants.revoke(&*shared.store, caller.tenant_id, id, grant, now).await
        });
        let row = revoking.await.map_err(Error::internal)?.map_err(|error| match error {
            nullspace_store::Error::NotFound(_) => grant_not_found(grant),
            error => error.into(),
        })?;
        Ok(PreviewGrantRevoked { success: row.revoked_at.is_some(), grant: self.grant_shown(row) })
    }

    /// Refuses a sandbox that the tenant never had.
    pub(crate) async fn ever_lived(&self, tenant_id: TenantId, id: SandboxId) -> Result<()> {
        if self.living(tenant_id, id).is_ok() {
            return Ok(());
        }
        match self.shared.store.sandbox_get(tenant_id, id).await {
            Ok(_) => Ok(()),
            Err(nullspace_store::Error::NotFound(_)) => Err(Error::sandbox_not_found(id)),
            Err(error) => Err(error.into()),
        }
    }
}

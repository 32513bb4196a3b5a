//! The same for ports, access and networks.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_api::{NetworkApi, PreviewApi};
use nullspace_types::id::{PreviewGrantId, SandboxId, SshAccessId};
use nullspace_types::key::Principal;
use nullspace_types::network::*;
use nullspace_types::preview::*;
use nullspace_types::ssh::{SshAccess, SshAccessRequest};
use nullspace_types::vault::{StoredSecret, StoredSecretCreate, StoredSecretList};
use nullspace_types::{Code, Error, Result};
use serde_json::{Map, Value};

use crate::fake::Fake;

impl Fake {
    /// The one grant.
    pub fn grant(&self) -> PreviewGrant {
        PreviewGrant {
            id: self.named(PreviewGrantId::PREFIX),
            sandbox_id: self.id,
            port: 8080,
            auth_mode: AuthMode::Direct,
            bootstrap_transport: TokenTransport::Query,
            status: GrantStatus::Active,
            token_kinds: vec![TokenKind::HttpPort, TokenKind::WebsocketPort],
            principal_kind: "user".into(),
            principal_id: None,
            issued_at: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::UNIX_EPOCH,
            revoked_at: None,
            first_used_at: None,
            last_used_at: None,
            use_count: 0,
            http_request_count: 0,
            websocket_connection_count: 0,
            bytes_in_count: 0,
            bytes_out_count: 0,
            last_error_code: None,
            last_error_at: None,
            disabled_at: None,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn url(&self) -> PreviewUrl {
        PreviewUrl {
            grant: self.grant(),
            url: "http://127.0.0.1:20000/?edge_token=nsp_h".into(),
            websocket_url: "ws://127.0.0.1:20000/?edge_token=nsp_w".into(),
            access_token_expires_at: Timestamp::UNIX_EPOCH,
            access_token_transport: TokenTransport::Query,
        }
    }

    fn network(&self) -> SandboxNetwork {
        SandboxNetwork { internet_access: true, settings: NetworkSettings::default() }
    }
}

/// The one port.
fn port(text: &str) -> Result<u16> {
    match text {
        "8080" => Ok(8080),
        _ => Err(Error::invalid(format!("port must be between 1 and 65535, got {text}"))),
    }
}

#[async_trait]
impl PreviewApi for Fake {
    async fn preview_host(&self, caller: Principal, id: SandboxId, request: HostRequest) -> Result<HostInfo> {
        self.ask(caller, Some(id), request.port)?;
        if request.port == Some(22) {
            return Err(Error::new(Code::UnsupportedPreviewPort, "port 22 is reserved"));
        }
        Ok(HostInfo {
            host: "127.0.0.1:20000".into(),
            url: "http://127.0.0.1:20000".into(),
            websocket_url: "ws://127.0.0.1:20000".into(),
        })
    }

    async fn preview_url(&self, caller: Principal, id: SandboxId, text: String) -> Result<PreviewUrl> {
        self.ask(caller, Some(id), &text)?;
        port(&text).map(|_| self.url())
    }

    async fn preview_url_signed(
        &self,
        caller: Principal,
        id: SandboxId,
        text: String,
        request: SignedPreviewRequest,
    ) -> Result<PreviewUrl> {
        self.ask(caller, Some(id), request.expires_in_seconds)?;
        port(&text).map(|_| self.url())
    }

    async fn preview_proxy_target(
        &self,
        caller: Principal,
        id: SandboxId,
        text: String,
        request: ProxyTargetRequest,
    ) -> Result<PreviewProxyTarget> {
        self.ask(caller, Some(id), (request.transports, request.include_traffic_token_hint))?;
        Ok(PreviewProxyTarget {
            grant: self.grant(),
            sandbox_id: id,
            port: port(&text)?,
            token_header_name: PROXY_TOKEN_HEADER.into(),
            expires_at: None,
            token_transport: TokenTransport::Header,
            http_url: None,
            websocket_url: None,
            http_token: Some("nsp_h".into()),
            websocket_token: None,
            required_forwarded_headers: Vec::new(),
            traffic_access_required: None,
            traffic_access_header_name: None,
            warnings: Vec::new(),
        })
    }

    async fn preview_readiness(
        &self,
        caller: Principal,
        id: SandboxId,
        text: String,
        request: ReadinessRequest,
    ) -> Result<PreviewReadiness> {
        self.ask(caller, Some(id), (request.kind, request.timeout_secs))?;
        Ok(PreviewReadiness {
            ready: false,
            route_ready: true,
            service_ready: false,
            sandbox_id: id,
            port: port(&text)?,
            kind: "tcp".into(),
            checked_at: Timestamp::UNIX_EPOCH,
            elapsed_ms: 1,
            attempts: 1,
            path: None,
            code: Some("preview_service_not_ready".into()),
            error: None,
            suggested_action: None,
        })
    }

    async fn preview_grant_list(
        &self,
        caller: Principal,
        id: SandboxId,
        query: PreviewGrantQuery,
    ) -> Result<PreviewGrantList> {
        self.ask(caller, Some(id), query.port)?;
        Ok(PreviewGrantList { items: vec![self.grant()] })
    }

    async fn preview_grant_revoke(
        &self,
        caller: Principal,
        id: SandboxId,
        grant: PreviewGrantId,
    ) -> Result<PreviewGrantRevoked> {
        self.ask(caller, Some(id), "revoke")?;
        let missing = || Error::new(Code::PreviewGrantNotFound, "no such preview grant");
        let found = (grant == self.grant().id).then(|| self.grant()).ok_or_else(missing)?;
        Ok(PreviewGrantRevoked { success: true, grant: found })
    }

    async fn ssh_access(
        &self,
        caller: Principal,
        id: SandboxId,
        request: SshAccessRequest,
    ) -> Result<SshAccess> {
        self.ask(caller, Some(id), (request.public_key, request.expires_in_minutes, request.ttl_seconds))?;
        Ok(SshAccess {
            host: "127.0.0.1".into(),
            port: 3022,
            user: "root".into(),
            access_id: self.named(SshAccessId::PREFIX),
            certificate: "certificate".into(),
            expires_at: Timestamp::UNIX_EPOCH,
            command: "ssh -p 3022 root@127.0.0.1".into(),
            host_key: "key".into(),
            host_ca: "authority".into(),
            relay_host_key: "key".into(),
            relay_host_ca: "authority".into(),
        })
    }
}

#[async_trait]
impl NetworkApi for Fake {
    async fn network_get(&self, caller: Principal, id: SandboxId) -> Result<SandboxNetwork> {
        self.ask(caller, Some(id), "network_get")?;
        Ok(self.network())
    }

    async fn network_update(
        &self,
        caller: Principal,
        id: SandboxId,
        change: Map<String, Value>,
    ) -> Result<SandboxNetwork> {
        self.ask(caller, Some(id), Value::Object(change).to_string())?;
        Ok(self.network())
    }

    async fn network_denied(
        &self,
        caller: Principal,
        id: SandboxId,
        query: DenialQuery,
    ) -> Result<DenialPage> {
        self.ask(caller, Some(id), (query.offset, query.limit))?;
        let target = DeniedTarget {
            protocol: DeniedProtocol::Tcp,
            address: "192.0.2.1".parse().ok(),
            port: Some(443),
            name: None,
            reason: DenyReason::DeniedAddress,
        };
        let (first_at, last_at) = (Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH);
        let items = vec![Denial { target, count: 2, first_at, last_at }];
        Ok(DenialPage { sandbox_id: id, items, has_more: false })
    }

    async fn secret_create(&self, caller: Principal, request: StoredSecretCreate) -> Result<StoredSecret> {
        self.ask(caller, None, ("secret_create", &request.name))?;
        let name = request.name.ok_or_else(|| Error::invalid("name is missing"))?;
        Ok(StoredSecret { name, created_at: Timestamp::UNIX_EPOCH })
    }

    async fn secret_list(&self, caller: Principal) -> Result<StoredSecretList> {
        self.ask(caller, None, "secret_list")?;
        Ok(StoredSecretList { items: Vec::new() })
    }

    async fn secret_delete(&self, caller: Principal, name: String) -> Result<()> {
        self.ask(caller, None, ("secret_delete", &name))?;
        let missing = || Error::new(Code::SecretNotFound, format!("secret {name} does not exist"));
        if name == "token" { Ok(()) } else { Err(missing()) }
    }
}

//! Ports of a sandbox as others reach them: hosts, preview URLs and their grants, proxy targets, readiness.
//! The objects' fields are exactly those of the wire contract (§9.2): the public client refuses others.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{PreviewGrantId, SandboxId};

/// The header that carries a proxy's token.
pub const PROXY_TOKEN_HEADER: &str = "x-nullspace-preview-proxy-token";
/// The header that carries a sandbox's traffic token.
pub const TRAFFIC_TOKEN_HEADER: &str = "x-nullspace-traffic-access-token";
/// The parameter of a URL's query that carries a preview token.
pub const EDGE_TOKEN_PARAMETER: &str = "edge_token";
/// The parameter of a URL's query that says that a proxy will send its token in a header.
pub const TRANSPORT_PARAMETER: &str = "__ns_preview_transport";

/// Over which protocol somebody comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PreviewTransport {
    /// HTTP requests.
    Http,
    /// WebSockets.
    Websocket,
}

/// A port to reach.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct HostRequest {
    /// 1 to 65535, without those that are reserved.
    pub port: Option<i64>,
}

/// Where a port is reached, without any token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HostInfo {
    /// Host, with its port where that is not the scheme's own.
    pub host: String,
    /// The same as a URL.
    pub url: String,
    /// The same for WebSockets.
    pub websocket_url: String,
}

/// A signed preview URL to make.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct SignedPreviewRequest {
    /// Seconds until it ends: what is below 60 counts as 60, what is above 86400 as 86400; 900 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<i64>,
}

/// A proxy target to make.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ProxyTargetRequest {
    /// As for a signed preview URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<i64>,
    /// `http`, `websocket`; both when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transports: Option<Vec<String>>,
    /// Whether to say if the traffic token is needed besides; true when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include_traffic_token_hint: Option<bool>,
}

/// How somebody proves a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum AuthMode {
    /// By the URL itself.
    Direct,
    /// By a header that a proxy adds.
    Proxy,
}

/// Where the token of a grant stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum TokenTransport {
    /// In the URL's query.
    Query,
    /// In a header.
    Header,
}

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// HTTP requests to one port.
    HttpPort,
    /// WebSockets to one port.
    WebsocketPort,
}

/// What a grant is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum GrantStatus {
    /// It works.
    Active,
    /// Its sandbox is gone.
    Disabled,
    /// Its time is over.
    Expired,
    /// It was revoked.
    Revoked,
}

/// A grant: what makes tokens good. It never shows them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PreviewGrant {
    /// `pvg_` and 32 hexadecimal digits.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub id: PreviewGrantId,
    /// For which sandbox.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub sandbox_id: SandboxId,
    /// For which of its ports.
    pub port: u16,
    /// How it is proved.
    pub auth_mode: AuthMode,
    /// Where its token stands.
    pub bootstrap_transport: TokenTransport,
    /// What it is worth now.
    pub status: GrantStatus,
    /// What its tokens are good for.
    pub token_kinds: Vec<TokenKind>,
    /// Always `user`.
    pub principal_kind: String,
    /// The API key that asked for it, by its ID.
    pub principal_id: Option<String>,
    /// When it was made.
    pub issued_at: Timestamp,
    /// When its time is over.
    pub expires_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// When it was first used.
    pub first_used_at: Option<Timestamp>,
    /// When it was last used.
    pub last_used_at: Option<Timestamp>,
    /// Requests and WebSockets.
    pub use_count: u64,
    /// Requests.
    pub http_request_count: u64,
    /// WebSockets.
    pub websocket_connection_count: u64,
    /// Bytes towards the sandbox.
    pub bytes_in_count: u64,
    /// Bytes from the sandbox.
    pub bytes_out_count: u64,
    /// The last refusal or failure of a request that showed its token.
    pub last_error_code: Option<String>,
    /// When that was.
    pub last_error_at: Option<Timestamp>,
    /// When its sandbox ended.
    pub disabled_at: Option<Timestamp>,
    /// The same as `issued_at`.
    pub created_at: Timestamp,
    /// When any of this last changed.
    pub updated_at: Timestamp,
}

/// A preview URL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PreviewUrl {
    /// What makes it work.
    pub grant: PreviewGrant,
    /// For HTTP, with its token.
    pub url: String,
    /// For WebSockets, with its own token.
    pub websocket_url: String,
    /// When both end.
    pub access_token_expires_at: Timestamp,
    /// Always `query`.
    pub access_token_transport: TokenTransport,
}

/// What a customer's own proxy needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PreviewProxyTarget {
    /// What makes it work.
    pub grant: PreviewGrant,
    /// For which sandbox.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub sandbox_id: SandboxId,
    /// For which of its ports.
    pub port: u16,
    /// The header that carries the token.
    pub token_header_name: String,
    /// When the tokens end.
    pub expires_at: Option<Timestamp>,
    /// Always `header`.
    pub token_transport: TokenTransport,
    /// Where requests go.
    pub http_url: Option<String>,
    /// Where WebSockets go.
    pub websocket_url: Option<String>,
    /// For requests.
    pub http_token: Option<String>,
    /// For WebSockets.
    pub websocket_token: Option<String>,
    /// Headers that the proxy is to send.
    pub required_forwarded_headers: Vec<String>,
    /// Whether the traffic token is needed besides.
    pub traffic_access_required: Option<bool>,
    /// The header that carries that.
    pub traffic_access_header_name: Option<String>,
    /// What to think of.
    pub warnings: Vec<String>,
}

/// A wait for a service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ReadinessRequest {
    /// `tcp` (it takes connections) or `http` (it answers with a status below 500); `tcp` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// How long to wait, 0 to 300; 30 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<i64>,
    /// The longest pause between two attempts, 10 to 60000; 500 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<i64>,
    /// The path to ask for; `/` when absent. With `http` alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// How a wait for a service ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PreviewReadiness {
    /// Whether it can be used.
    pub ready: bool,
    /// Whether the sandbox can be reached.
    pub route_ready: bool,
    /// Whether the service answers.
    pub service_ready: bool,
    /// Of which sandbox.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub sandbox_id: SandboxId,
    /// Which port.
    pub port: u16,
    /// `tcp` or `http`.
    pub kind: String,
    /// When the wait ended.
    pub checked_at: Timestamp,
    /// How long it took.
    pub elapsed_ms: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// The path that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The same for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suggested_action: Option<String>,
}

/// Grants, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PreviewGrantList {
    /// The grants.
    pub items: Vec<PreviewGrant>,
}

/// Which grants.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "schema", into_params(parameter_in = Query))]
#[serde(default)]
pub struct PreviewGrantQuery {
    /// Only those of this port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
}

/// A grant that is revoked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PreviewGrantRevoked {
    /// Whether it is revoked now.
    pub success: bool,
    /// As it is now.
    pub grant: PreviewGrant,
}

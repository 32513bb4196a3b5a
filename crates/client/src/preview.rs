//! Ports of a sandbox as others reach them: hosts, preview URLs and their grants, proxy targets, readiness.

use std::time::Duration;

use nullspace_types::preview::{
    HostInfo, HostRequest, PreviewGrantList, PreviewGrantQuery, PreviewGrantRevoked, PreviewProxyTarget,
    PreviewReadiness, PreviewUrl, ProxyTargetRequest, ReadinessRequest, SignedPreviewRequest,
};
use reqwest::Method;

use crate::error::Result;
use crate::sandbox::path;
use crate::transport::{Call, Client, segment};

/// How long a server waits for a service when nothing is said.
const READINESS_SECS: u64 = 30;
/// How much longer than the server itself its answer is waited for.
const READINESS_MARGIN: Duration = Duration::from_secs(30);

impl Client {
    /// Where a port is reached, without any token.
    ///
    /// # Errors
    /// `unsupported_preview_port`; see [`crate::Error`].
    pub async fn preview_host(&self, sandbox: &str, port: u16) -> Result<HostInfo> {
        let request = HostRequest { port: Some(port.into()) };
        self.json(Call::new(Method::POST, path(sandbox, "/host")?).body(&request)?).await
    }

    /// Makes a grant, and a preview URL that is good for the server's usual length of time.
    ///
    /// # Errors
    /// `unsupported_preview_port`; see [`crate::Error`].
    pub async fn preview_url(&self, sandbox: &str, port: u16) -> Result<PreviewUrl> {
        self.json(Call::new(Method::GET, below(sandbox, port, "preview-url")?)).await
    }

    /// Makes a grant, and a preview URL that is good for as long as is asked for.
    ///
    /// # Errors
    /// `unsupported_preview_port`; see [`crate::Error`].
    pub async fn preview_url_signed(
        &self,
        sandbox: &str,
        port: u16,
        request: &SignedPreviewRequest,
    ) -> Result<PreviewUrl> {
        self.json(Call::new(Method::POST, below(sandbox, port, "signed-preview-url")?).body(request)?).await
    }

    /// Makes a grant for a proxy of one's own.
    ///
    /// # Errors
    /// `unsupported_preview_port`; see [`crate::Error`].
    pub async fn preview_proxy_target(
        &self,
        sandbox: &str,
        port: u16,
        request: &ProxyTargetRequest,
    ) -> Result<PreviewProxyTarget> {
        self.json(Call::new(Method::POST, below(sandbox, port, "preview-proxy-target")?).body(request)?).await
    }

    /// Waits until a service answers, or until it has not for as long as is asked for: that is no error.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn preview_readiness(
        &self,
        sandbox: &str,
        port: u16,
        request: &ReadinessRequest,
    ) -> Result<PreviewReadiness> {
        let secs = request.timeout_secs.and_then(|secs| secs.try_into().ok()).unwrap_or(READINESS_SECS);
        let timeout = Duration::from_secs(secs).saturating_add(READINESS_MARGIN);
        let call = Call::new(Method::POST, below(sandbox, port, "readiness")?).body(request)?;
        self.json(call.at_least(timeout)).await
    }

    /// Grants of a sandbox with how they were used, newest first.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn preview_grant_list(
        &self,
        sandbox: &str,
        query: &PreviewGrantQuery,
    ) -> Result<PreviewGrantList> {
        self.json(Call::new(Method::GET, path(sandbox, "/preview-urls")?).query(query)?).await
    }

    /// Revokes a grant, and cuts what it holds open.
    ///
    /// # Errors
    /// `preview_grant_not_found`; see [`crate::Error`].
    pub async fn preview_grant_revoke(&self, sandbox: &str, grant: &str) -> Result<PreviewGrantRevoked> {
        let path = format!("{}/{}", path(sandbox, "/preview-urls")?, segment("preview grant ID", grant)?);
        self.json(Call::new(Method::DELETE, path)).await
    }
}

fn below(sandbox: &str, port: u16, what: &str) -> Result<String> {
    path(sandbox, &format!("/ports/{port}/{what}"))
}

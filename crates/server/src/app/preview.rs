use async_trait::async_trait;
use nullspace_api::PreviewApi;
use nullspace_types::Result;
use nullspace_types::id::{PreviewGrantId, SandboxId};
use nullspace_types::key::Principal;
use nullspace_types::preview::{
    HostInfo, HostRequest, PreviewGrantList, PreviewGrantQuery, PreviewGrantRevoked, PreviewProxyTarget,
    PreviewReadiness, PreviewUrl, ProxyTargetRequest, ReadinessRequest, SignedPreviewRequest,
};
use nullspace_types::ssh::{SshAccess, SshAccessRequest};

use super::App;

#[async_trait]
impl PreviewApi for App {
    async fn preview_host(&self, caller: Principal, id: SandboxId, request: HostRequest) -> Result<HostInfo> {
        self.control()?.preview_host(caller, id, request).await
    }

    async fn preview_url(&self, caller: Principal, id: SandboxId, port: String) -> Result<PreviewUrl> {
        self.control()?.preview_url(caller, id, port).await
    }

    async fn preview_url_signed(
        &self,
        caller: Principal,
        id: SandboxId,
        port: String,
        request: SignedPreviewRequest,
    ) -> Result<PreviewUrl> {
        self.control()?.preview_url_signed(caller, id, port, request).await
    }

    async fn preview_proxy_target(
        &self,
        caller: Principal,
        id: SandboxId,
        port: String,
        request: ProxyTargetRequest,
    ) -> Result<PreviewProxyTarget> {
        self.control()?.preview_proxy_target(caller, id, port, request).await
    }

    async fn preview_readiness(
        &self,
        caller: Principal,
        id: SandboxId,
        port: String,
        request: ReadinessRequest,
    ) -> Result<PreviewReadiness> {
        self.control()?.preview_readiness(caller, id, port, request).await
    }

    async fn preview_grant_list(
        &self,
        caller: Principal,
        id: SandboxId,
        query: PreviewGrantQuery,
    ) -> Result<PreviewGrantList> {
        self.control()?.preview_grant_list(caller, id, query).await
    }

    async fn preview_grant_revoke(
        &self,
        caller: Principal,
        id: SandboxId,
        grant: PreviewGrantId,
    ) -> Result<PreviewGrantRevoked> {
        self.control()?.preview_grant_revoke(caller, id, grant).await
    }

    async fn ssh_access(
        &self,
        caller: Principal,
        id: SandboxId,
        request: SshAccessRequest,
    ) -> Result<SshAccess> {
        self.control()?.ssh_access(caller, id, request).await
    }
}

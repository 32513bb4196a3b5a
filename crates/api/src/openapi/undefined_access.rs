//! The same for ports, access and networks.

use async_trait::async_trait;
use nullspace_types::Result;
use nullspace_types::id::{PreviewGrantId, SandboxId};
use nullspace_types::key::Principal;
use nullspace_types::network::{DenialPage, DenialQuery, SandboxNetwork};
use nullspace_types::preview::{
    HostInfo, HostRequest, PreviewGrantList, PreviewGrantQuery, PreviewGrantRevoked, PreviewProxyTarget,
    PreviewReadiness, PreviewUrl, ProxyTargetRequest, ReadinessRequest, SignedPreviewRequest,
};
use nullspace_types::ssh::{SshAccess, SshAccessRequest};
use nullspace_types::vault::{StoredSecret, StoredSecretCreate, StoredSecretList};
use serde_json::{Map, Value};

use super::undefined::Undefined;
use crate::{NetworkApi, PreviewApi};

#[async_trait]
impl PreviewApi for Undefined {
    async fn preview_host(&self, _: Principal, _: SandboxId, _: HostRequest) -> Result<HostInfo> {
        match *self {}
    }

    async fn preview_url(&self, _: Principal, _: SandboxId, _: String) -> Result<PreviewUrl> {
        match *self {}
    }

    async fn preview_url_signed(
        &self,
        _: Principal,
        _: SandboxId,
        _: String,
        _: SignedPreviewRequest,
    ) -> Result<PreviewUrl> {
        match *self {}
    }

    async fn preview_proxy_target(
        &self,
        _: Principal,
        _: SandboxId,
        _: String,
        _: ProxyTargetRequest,
    ) -> Result<PreviewProxyTarget> {
        match *self {}
    }

    async fn preview_readiness(
        &self,
        _: Principal,
        _: SandboxId,
        _: String,
        _: ReadinessRequest,
    ) -> Result<PreviewReadiness> {
        match *self {}
    }

    async fn preview_grant_list(
        &self,
        _: Principal,
        _: SandboxId,
        _: PreviewGrantQuery,
    ) -> Result<PreviewGrantList> {
        match *self {}
    }

    async fn preview_grant_revoke(
        &self,
        _: Principal,
        _: SandboxId,
        _: PreviewGrantId,
    ) -> Result<PreviewGrantRevoked> {
        match *self {}
    }

    async fn ssh_access(&self, _: Principal, _: SandboxId, _: SshAccessRequest) -> Result<SshAccess> {
        match *self {}
    }
}

#[async_trait]
impl NetworkApi for Undefined {
    async fn network_get(&self, _: Principal, _: SandboxId) -> Result<SandboxNetwork> {
        match *self {}
    }

    async fn network_update(
        &self,
        _: Principal,
        _: SandboxId,
        _: Map<String, Value>,
    ) -> Result<SandboxNetwork> {
        match *self {}
    }

    async fn network_denied(&self, _: Principal, _: SandboxId, _: DenialQuery) -> Result<DenialPage> {
        match *self {}
    }

    async fn secret_create(&self, _: Principal, _: StoredSecretCreate) -> Result<StoredSecret> {
        match *self {}
    }

    async fn secret_list(&self, _: Principal) -> Result<StoredSecretList> {
        match *self {}
    }

    async fn secret_delete(&self, _: Principal, _: String) -> Result<()> {
        match *self {}
    }
}

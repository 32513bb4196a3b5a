//! Access by SSH: certificates for it. `machines` is what the relay asks for who shows one.

mod machines;

use nullspace_domain::ssh::validate;
use nullspace_types::id::{SandboxId, SshAccessId};
use nullspace_types::key::Principal;
use nullspace_types::ssh::{SshAccess, SshAccessRequest};
use nullspace_types::{Code, Error, Result};

use crate::Control;

impl Control {
    /// Certifies a key for a sandbox. Nothing of it is kept: the certificate says all, and ends with its
    /// time, with the sandbox, or with the API key that asked for it.
    pub async fn ssh_access(
        &self,
        caller: Principal,
        id: SandboxId,
        request: SshAccessRequest,
    ) -> Result<SshAccess> {
        self.living(caller.tenant_id, id)?;
        let spec = validate(&request)?;
        let access = &self.shared.access;
        let Some((host, port)) = access.relay.clone() else {
            return Err(Error::new(Code::Unavailable, "this server does not serve SSH")
                .suggest("set [ssh] enabled in the server's configuration"));
        };
        let (access_id, now) = (SshAccessId::new(), self.shared.clock.now());
        let expires_at =
            now.checked_add(jiff::SignedDuration::from_secs(spec.seconds)).map_err(Error::internal)?;
        let certificate =
            access.ssh.certify(&spec.public_key, access_id, id, caller, &spec.user, now, expires_at)?;
        let (host_key, authority) = (access.ssh.host_key(), access.ssh.authority());
        Ok(SshAccess {
            command: format!("ssh -p {port} {}@{host}", spec.user),
            host,
            port,
            user: spec.user,
            access_id,
            certificate,
            expires_at,
            host_key: host_key.clone(),
            host_ca: authority.clone(),
            relay_host_key: host_key,
            relay_host_ca: authority,
        })
    }
}

//! What a certificate says, and whether it lets anybody in (OpenSSH's PROTOCOL.certkeys). That whoever shows
//! it holds its key has been proved by then: `russh` asks for that.

use std::time::{SystemTime, UNIX_EPOCH};

use nullspace_edge_api::Claims;
use nullspace_types::key::Principal;
use nullspace_types::ssh::SshKeyId;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Certificate, HashAlg};

/// Somebody who may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Admission {
    pub(crate) claims: Claims,
    /// Whether terminals are allowed.
    pub(crate) pty: bool,
    /// Whether ports may be forwarded.
    pub(crate) forwarding: bool,
}

/// Judges a certificate that was shown to log in as `user`; or says, for the log, why it is not good.
pub(crate) fn judge(
    certificate: &Certificate,
    user: &str,
    authority: &KeyData,
    now: SystemTime,
) -> Result<Admission, &'static str> {
    let now = now.duration_since(UNIX_EPOCH).map_err(|_| "the clock stands before 1970")?.as_secs();
    certificate
        .validate_at(now, &[authority.fingerprint(HashAlg::Sha256)])
        .map_err(|_| "it is not signed by the authority, not yet good, or expired")?;
    if !certificate.cert_type().is_user() {
        return Err("it is for a host");
    }
    // The authority sets none. A server must refuse those that it does not know, and knows none.
    if !certificate.critical_options().is_empty() {
        return Err("it has critical options");
    }
    // None would stand for everybody.
    if !certificate.valid_principals().iter().any(|principal| principal == user) {
        return Err("it is for another user");
    }
    let claims = claims(certificate.key_id(), user).ok_or("its key ID is not of our form")?;
    let extension = |name| certificate.extensions().contains_key(name);
    Ok(Admission { claims, pty: extension("permit-pty"), forwarding: extension("permit-port-forwarding") })
}

fn claims(key_id: &str, user: &str) -> Option<Claims> {
    let SshKeyId { access_id, sandbox_id, tenant_id, key_id } = key_id.parse().ok()?;
    Some(Claims { access_id, sandbox_id, principal: Principal { tenant_id, key_id }, user: user.to_owned() })
}

#[cfg(test)]
mod tests {
    use nullspace_types::id::{KeyId, SandboxId, SshAccessId, TenantId};

    use super::*;

    #[test]
    fn a_key_id_names_all_four_or_nothing() {
        let (access, sandbox) = (SshAccessId::new(), SandboxId::new());
        let (tenant, key) = (TenantId::new(), KeyId::new());
        let read = claims(&format!("{access}:{sandbox}:{tenant}:{key}"), "root").expect("ours");
        assert_eq!((read.access_id, read.sandbox_id, read.user.as_str()), (access, sandbox, "root"));
        assert_eq!(read.principal, Principal { tenant_id: tenant, key_id: key });
        for wrong in [
            String::new(),
            format!("{access}:{sandbox}:{tenant}"),
            format!("{access}:{sandbox}:{tenant}:{key}:"),
            format!("{sandbox}:{access}:{tenant}:{key}"),
            format!("{access}:{sandbox} :{tenant}:{key}"),
        ] {
            assert_eq!(claims(&wrong, "root"), None, "{wrong}");
        }
    }
}

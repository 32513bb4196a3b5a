//! The authority for access by SSH: the relay's own host key, and certificates (OpenSSH's PROTOCOL.certkeys)
//! for the keys of people. Both keys are made from seeds that the store keeps, so that all servers on it, and
//! every later one, are the same to those who trust them.

use jiff::Timestamp;
use nullspace_store::Store;
use nullspace_types::id::{SandboxId, SshAccessId};
use nullspace_types::key::Principal;
use nullspace_types::ssh::SshKeyId;
use nullspace_types::{Error, Result};
use ssh_key::certificate::{Builder, CertType};
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::public::KeyData;
use ssh_key::{LineEnding, PrivateKey, PublicKey};

use crate::secret::{random, server_secret};

/// Longest public key that is taken, as text.
const PUBLIC_KEY_BYTES_MAX: usize = 16 << 10;
/// Least bits of an RSA key.
const RSA_BITS_MIN: usize = 2048;
/// Random bytes in a certificate: whoever asks for it cannot choose what is signed.
const NONCE_BYTES: usize = 32;
/// Seconds before now from which a certificate is good: clocks differ.
const BEFORE_SECS: i64 = 60;

/// The two keys.
pub struct SshAuthority {
    key: PrivateKey,
    authority: String,
    host_key: String,
    host_key_private: String,
}

impl SshAuthority {
    /// From the store's seeds, which the first server on it makes.
    pub async fn load(store: &dyn Store) -> Result<Self> {
        let authority = server_secret(store, "ssh_authority").await?;
        let host = server_secret(store, "ssh_host_key").await?;
        Self::new(&authority, &host)
    }

    fn new(authority: &[u8; 32], host: &[u8; 32]) -> Result<Self> {
        let key = |seed: &[u8; 32], comment: &str| {
            let pair = Ed25519Keypair::from_seed(seed);
            PrivateKey::new(KeypairData::Ed25519(pair), comment).map_err(Error::internal)
        };
        let (key_of_authority, host) =
            (key(authority, "nullspace-authority")?, key(host, "nullspace-relay")?);
        let line = |key: &PrivateKey| key.public_key().to_openssh().map_err(Error::internal);
        Ok(Self {
            authority: line(&key_of_authority)?,
            host_key: line(&host)?,
            host_key_private: host.to_openssh(LineEnding::LF).map_err(Error::internal)?.to_string(),
            key: key_of_authority,
        })
    }

    /// The relay's private key, as OpenSSH writes it.
    pub fn host_key_private(&self) -> String {
        self.host_key_private.clone()
    }

    /// The relay's public key, one line as OpenSSH writes it.
    pub fn host_key(&self) -> String {
        self.host_key.clone()
    }

    /// The authority's public key, one line as OpenSSH writes it.
    pub fn authority(&self) -> String {
        self.authority.clone()
    }

    /// A certificate for a public key: one line as OpenSSH writes it. It lets whoever holds the private key log
    /// in to one sandbox as one user, from a minute before `now` until `expires_at`.
    #[allow(clippy::too_many_arguments, reason = "each is a line of the certificate")]
    pub fn certify(
        &self,
        public_key: &str,
        access_id: SshAccessId,
        sandbox_id: SandboxId,
        principal: Principal,
        user: &str,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<String> {
        let key = accepted(public_key)?;
        let Principal { tenant_id, key_id } = principal;
        let id = SshKeyId { access_id, sandbox_id, tenant_id, key_id };
        let nonce: [u8; NONCE_BYTES] = random()?;
        let second = |time: i64| u64::try_from(time).map_err(Error::internal);
        let (from, until) = (second(now.as_second() - BEFORE_SECS)?, second(expires_at.as_second())?);
        let mut certificate =
            Builder::new(nonce, KeyData::from(&key), from, until).map_err(Error::internal)?;
        let filled = certificate
            .cert_type(CertType::User)
            .and_then(|certificate| certificate.key_id(id.to_string()))
            .and_then(|certificate| certificate.valid_principal(user))
            .and_then(|certificate| certificate.extension("permit-port-forwarding", ""))
            .and_then(|certificate| certificate.extension("permit-pty", ""))
            .map(drop);
        filled.map_err(Error::internal)?;
        let signed = certificate.sign(&self.key).map_err(Error::internal)?;
        signed.to_openssh().map_err(Error::internal)
    }
}

/// A public key that may be certified.
fn accepted(text: &str) -> Result<PublicKey> {
    let text = text.trim();
    let wrong = |why: String| {
        Error::invalid(format!("public_key {why}"))
            .suggest("send the line of a .pub file, such as ssh-keygen -t ed25519 makes")
    };
    if text.len() > PUBLIC_KEY_BYTES_MAX {
        return Err(wrong(format!("must be at most {PUBLIC_KEY_BYTES_MAX} bytes long, got {}", text.len())));
    }
    let malformed = || wrong("must be one line in the format of OpenSSH's .pub files".into());
    if text.chars().any(char::is_control) {
        return Err(malformed());
    }
    let key = PublicKey::from_openssh(text).map_err(|_| malformed())?;
    match key.key_data() {
        KeyData::Ed25519(_) | KeyData::Ecdsa(_) | KeyData::SkEd25519(_) | KeyData::SkEcdsaSha2NistP256(_) => {
            Ok(key)
        }
        KeyData::Rsa(rsa) => {
            let modulus = rsa.n().as_positive_bytes().unwrap_or_default();
            let spare = modulus.first().map_or(0, |first| first.leading_zeros() as usize);
            let bits = modulus.len() * 8 - spare;
            if bits < RSA_BITS_MIN {
                return Err(wrong(format!(
                    "must have at least {RSA_BITS_MIN} bits if it is RSA, got {bits}"
                )));
            }
            Ok(key)
        }
        _ => Err(wrong("must be an Ed25519, ECDSA or RSA key, and no certificate".into())),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use nullspace_types::id::{KeyId, TenantId};
    use nullspace_types::ssh::NoKeyId;
    use ssh_key::{Certificate, HashAlg};

    use super::*;

    fn id() -> SshKeyId {
        SshKeyId {
            access_id: SshAccessId::new(),
            sandbox_id: SandboxId::new(),
            tenant_id: TenantId::new(),
            key_id: KeyId::new(),
        }
    }

    fn authority() -> SshAuthority {
        SshAuthority::new(&[1; 32], &[2; 32]).unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Good from 2026-01-01 00:00:00 for ten minutes.
    fn certify(key: &str, id: &SshKeyId) -> Result<String> {
        let principal = Principal { tenant_id: id.tenant_id, key_id: id.key_id };
        let (from, until) = (at(1_767_225_660), at(1_767_226_200));
        authority().certify(key, id.access_id, id.sandbox_id, principal, "someone", from, until)
    }

    /// The public half of a new key; none where there is no `ssh-keygen`.
    #[allow(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn keygen(directory: &Path, options: &[&str]) -> Option<String> {
        let file = directory.join(options.join("-"));
        let mut keygen = Command::new("ssh-keygen");
        let Ok(made) = keygen.args(["-q", "-N", "", "-t"]).args(options).arg("-f").arg(&file).status() else {
            eprintln!("SKIP: there is no ssh-keygen");
            return None;
        };
        assert!(made.success(), "{options:?}");
        Some(std::fs::read_to_string(file.with_extension("pub")).unwrap())
    }

    #[test]
    fn a_key_id_is_read_back_and_nothing_else_is_one() {
        let id = id();
        let text = id.to_string();
        assert_eq!(text.parse(), Ok(id));
        let (SshKeyId { access_id, sandbox_id, tenant_id, key_id }, none) = (id, Err(NoKeyId));
        for other in [
            String::new(),
            format!("{text}:"),
            format!("{access_id}:{sandbox_id}:{tenant_id}"),
            format!("{sandbox_id}:{access_id}:{tenant_id}:{key_id}"),
            text.to_uppercase(),
        ] {
            assert_eq!(other.parse::<SshKeyId>(), none, "{other}");
        }
    }

    #[test]
    fn the_same_seeds_are_the_same_keys() {
        let (one, two) = (authority(), authority());
        assert_eq!(one.host_key(), two.host_key());
        assert_ne!(one.host_key(), one.authority());
        let private = PrivateKey::from_openssh(one.host_key_private()).unwrap();
        assert_eq!(private.public_key().to_openssh().unwrap(), one.host_key());
    }

    #[test]
    fn a_certificate_is_signed_by_the_authority_for_its_time_and_user() {
        let (id, authority) = (id(), authority());
        // Any key will do: here the relay's own.
        let certificate: Certificate = certify(&authority.host_key(), &id).unwrap().parse().unwrap();
        let trusted: PublicKey = authority.authority().parse().unwrap();
        let trusted = [trusted.fingerprint(HashAlg::Sha256)];
        for (time, good) in
            [(1_767_225_599, false), (1_767_225_600, true), (1_767_226_199, true), (1_767_226_200, false)]
        {
            assert_eq!(certificate.validate_at(time, &trusted).is_ok(), good, "{time}");
        }
        let other: PublicKey = authority.host_key().parse().unwrap();
        let other = [other.fingerprint(HashAlg::Sha256)];
        assert!(certificate.validate_at(1_767_225_600, &other).is_err());
        assert_eq!(certificate.key_id().parse(), Ok(id));
        assert_eq!(certificate.valid_principals(), ["someone"]);
        assert!(certificate.cert_type().is_user() && certificate.critical_options().is_empty());
        let allowed: Vec<_> = certificate.extensions().keys().collect();
        assert_eq!(allowed, ["permit-port-forwarding", "permit-pty"]);
        // A certificate is no key to certify again.
        let again = certify(&certificate.to_openssh().unwrap(), &id).unwrap_err();
        assert!(again.message.starts_with("public_key "), "{again}");
    }

    #[test]
    fn openssh_reads_the_certificate_of_every_kind_of_key() {
        let directory = tempfile::tempdir().unwrap();
        for options in [
            &["ed25519"][..],
            &["ecdsa", "-b256"],
            &["ecdsa", "-b384"],
            &["ecdsa", "-b521"],
            &["rsa", "-b2048"],
        ] {
            let Some(public) = keygen(directory.path(), options) else { return };
            let id = id();
            let file = directory.path().join("certificate.pub");
            std::fs::write(&file, certify(&public, &id).unwrap()).unwrap();
            let shown = Command::new("ssh-keygen").env("TZ", "UTC").arg("-Lf").arg(&file).output().unwrap();
            let shown = String::from_utf8(shown.stdout).unwrap();
            let lines: Vec<_> = shown.lines().map(str::trim).collect();
            let key_id = format!("Key ID: \"{id}\"");
            for line in [
                &*key_id,
                "Valid: from 2026-01-01T00:00:00 to 2026-01-01T00:10:00",
                "someone",
                "Critical Options: (none)",
                "permit-port-forwarding",
                "permit-pty",
            ] {
                assert!(lines.contains(&line), "{line}: {shown}");
            }
            assert!(shown.contains("user certificate") && !shown.contains("agent"), "{shown}");
        }
    }

    #[test]
    fn what_is_no_good_key_is_refused_by_its_field() {
        let directory = tempfile::tempdir().unwrap();
        let weak = keygen(directory.path(), &["rsa", "-b1024"]);
        let good = authority().host_key();
        let texts = [
            String::new(),
            "nonsense".into(),
            "ssh-ed25519 AAAA".into(),
            format!("{good}\n{good}"),
            good.replace("ssh-ed25519", "ssh-rsa"),
            good.replace("AAAAC3", "AAAAC4"),
            "x".repeat(20_000),
        ];
        for text in texts.into_iter().chain(weak) {
            let error = certify(&text, &id()).unwrap_err();
            assert_eq!(error.code, nullspace_types::Code::InvalidRequest);
            assert!(error.message.starts_with("public_key must "), "{error}");
        }
    }
}

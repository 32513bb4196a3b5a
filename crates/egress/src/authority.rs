//! A sandbox's own certificate authority: what the guest trusts where TLS is ended on the way.
//!
//! It signs for whatever name it is asked for, and is asked only for hosts that the sandbox's policy adds
//! headers for. Its key is told to nobody but the node that keeps it. The certificates it has signed are kept
//! as long as they are of today.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::civil::Date;
use jiff::{Timestamp, ToSpan, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::ServerConfig;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, crypto};

/// Longest name of an authority (X.520's bound on a common name).
const NAME_BYTES_MAX: usize = 64;
/// Most certificates that are kept. A policy has fewer hosts to add headers for.
const LEAVES_MAX: usize = 64;
/// For how long an authority signs: longer than any sandbox sleeps.
const AUTHORITY_YEARS: i32 = 20;
/// For how long a certificate is good.
const LEAF_DAYS: i32 = 30;

/// Why an authority cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name does not fit into a certificate.
    #[error("an authority's name is 1 to 64 printable characters, got {0:?}")]
    Name(String),
    /// What was kept is not a key with its certificate.
    #[error("this is not an authority's key and certificate: {0}")]
    Pem(String),
    /// A certificate cannot be made.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// TLS does not take what was made.
    #[error("cannot use a certificate")]
    Tls(#[from] rustls::Error),
}

/// A certificate authority with an ECDSA key on P-256, which signs certificates of one host each itself.
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
    /// The key of all its hosts. They are one party: the node.
    leaf_key: KeyPair,
    leaves: Mutex<HashMap<String, Leaf>>,
}

struct Leaf {
    made_on: Date,
    certified: Arc<CertifiedKey>,
}

impl Authority {
    /// Makes one.
    pub fn generate(name: &str) -> Result<Self, Error> {
        if name.is_empty()
            || name.len() > NAME_BYTES_MAX
            || !name.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
        {
            return Err(Error::Name(name.to_owned()));
        }
        let key = KeyPair::generate()?;
        let params = authority_params(name)?;
        let certificate = params.self_signed(&key)?;
        Self::new(certificate.pem(), Issuer::new(params, key))
    }

    /// Reads one back from what [`Self::to_pem`] gave.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let wrong = |why: &dyn std::fmt::Display| Error::Pem(why.to_string());
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| wrong(&error))?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| wrong(&error))?;
        // Refuses a certificate of another key.
        let provider = crypto::ring::default_provider();
        CertifiedKey::from_der(vec![certificate.clone()], PrivateKeyDer::Pkcs8(key.clone_key()), &provider)
            .map_err(|error| wrong(&error))?;
        let name = common_name(&certificate).ok_or_else(|| wrong(&"its certificate is of another form"))?;
        let begin = pem.find("-----BEGIN CERTIFICATE").ok_or_else(|| wrong(&"there is no certificate"))?;
        let key = KeyPair::try_from(&key)?;
        Self::new(pem[begin..].to_owned(), Issuer::new(authority_params(&name)?, key))
    }

    fn new(certificate_pem: String, issuer: Issuer<'static, KeyPair>) -> Result<Self, Error> {
        let leaf_key = KeyPair::generate()?;
        Ok(Self { certificate_pem, issuer, leaf_key, leaves: Mutex::default() })
    }

    /// Key and certificate. Whoever has it can speak for any host towards the sandbox.
    pub fn to_pem(&self) -> String {
        self.issuer.key().serialize_pem() + &self.certificate_pem
    }

    /// The certificate, which the guest has to trust.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// How to end TLS for a host, if `alpn` are the protocols that may be spoken in it.
    pub(crate) fn server_config(&self, host: &str, alpn: Vec<Vec<u8>>) -> Result<ServerConfig, Error> {
        let certified = self.certified(host)?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = alpn;
        // The configuration is of one connection: nobody could come back to its sessions.
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    fn certified(&self, host: &str) -> Result<Arc<CertifiedKey>, Error> {
        let today = today();
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leaf) = leaves.get(host).filter(|leaf| leaf.made_on == today) {
            return Ok(leaf.certified.clone());
        }
        let certificate = leaf_params(host, today)?.signed_by(&self.leaf_key, &self.issuer)?;
        let key = PrivatePkcs8KeyDer::from(self.leaf_key.serialize_der());
        let provider = crypto::ring::default_provider();
        let certified =
            CertifiedKey::from_der(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key), &provider)?;
        let certified = Arc::new(certified);
        if leaves.len() >= LEAVES_MAX {
            leaves.clear();
        }
        leaves.insert(host.to_owned(), Leaf { made_on: today, certified: certified.clone() });
        Ok(certified)
    }
}

fn today() -> Date {
    Timestamp::now().to_zoned(TimeZone::UTC).date()
}

fn base_params(name: &str, made_on: Date, last_day: Date) -> CertificateParams {
    let date = |date: Date| {
        date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    // All certificates of an authority are of one key, and so have to differ in their numbers (RFC 5280, 4.1.2.2).
    let mut serial: [u8; 16] = rand::random();
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    // A guest's clock may be a little behind.
    params.not_before = date(made_on.saturating_sub(1.day()));
    params.not_after = date(last_day);
    params
}

fn authority_params(name: &str) -> Result<CertificateParams, Error> {
    let today = today();
    let mut params = base_params(name, today, today.saturating_add(AUTHORITY_YEARS.years()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

fn leaf_params(host: &str, today: Date) -> Result<CertificateParams, Error> {
    let mut params = base_params("Nullspace", today, today.saturating_add(LEAF_DAYS.days()));
    params.subject_alt_names = CertificateParams::new([host.to_owned()])?.subject_alt_names;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

/// The subject's common name, if that is all of the subject, as [`Authority::generate`] writes it: a sequence
/// of one set of one pair of an object identifier and a short UTF-8 text, in DER.
fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let mut store = RootCertStore::empty();
    store.add(certificate.clone()).ok()?;
    let subject = store.roots.first()?.subject.to_vec();
    let length = u8::try_from(subject.len()).ok()?.checked_sub(11)?;
    let begin = [0x31, length + 9, 0x30, length + 7, 0x06, 3, 0x55, 4, 3, 0x0c, length];
    String::from_utf8(subject.strip_prefix(&begin)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_read_back_signs_what_the_first_ones_certificate_vouches_for() {
        let first = Authority::generate("Nullspace sb_0123").unwrap();
        let again = Authority::from_pem(&first.to_pem()).unwrap();
        assert_eq!(again.to_pem(), first.to_pem());
        assert!(!first.certificate_pem().contains("PRIVATE"));

        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(first.certificate_pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(crypto::ring::default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.build().unwrap();
        let leaf = again.certified("api.example.com").unwrap();
        let verify = |name: &str| {
            let now = rustls::pki_types::UnixTime::now();
            let name = name.to_owned().try_into().unwrap();
            use rustls::client::danger::ServerCertVerifier as _;
            verifier.verify_server_cert(&leaf.cert[0], &[], &name, &[], now)
        };
        verify("api.example.com").unwrap();
        verify("other.example.com").unwrap_err();
    }

    #[test]
    fn a_certificate_of_another_key_is_no_authority() {
        let (one, other) = (Authority::generate("one").unwrap(), Authority::generate("other").unwrap());
        let mixed = one.issuer.key().serialize_pem() + other.certificate_pem();
        assert!(matches!(Authority::from_pem(&mixed), Err(Error::Pem(_))));
        assert!(matches!(Authority::from_pem(one.certificate_pem()), Err(Error::Pem(_))));
        assert!(matches!(Authority::from_pem(""), Err(Error::Pem(_))));
        assert!(matches!(Authority::generate(&"x".repeat(65)), Err(Error::Name(_))));
    }

    #[test]
    fn certificates_are_kept_and_bounded() {
        let authority = Authority::generate("one").unwrap();
        let first = authority.certified("0.example.com").unwrap();
        assert!(Arc::ptr_eq(&first, &authority.certified("0.example.com").unwrap()));
        for n in 1..=LEAVES_MAX + 1 {
            authority.certified(&format!("{n}.example.com")).unwrap();
        }
        assert!(authority.leaves.lock().unwrap().len() <= LEAVES_MAX);
    }
}

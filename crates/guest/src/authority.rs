//! The authority of certificates that the machine trusts beside those of its disk: the node's, when it looks
//! into connections to hosts for which it holds a credential.
//!
//! It stands in three places: a file of its own among the machine's local authorities, where
//! `update-ca-certificates` finds it; the bundles that programs read, in a block between two lines of its
//! own; and the environment of what is started from then on, for programs that bring bundles of their own.
//! Whoever runs `update-ca-certificates` has it in the bundle without those lines, so it is also known by its
//! text. Owned here: which authority is in place. Deliberately absent: any look into a certificate.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use memchr::memmem;
use nix::errno::Errno;
use tonic::Status;

use crate::account::Accounts;
use crate::file::write::Writer;
use crate::file::{open_to_read, status};
use crate::mounts::elsewhere;

/// Among the machine's local authorities.
const OWN: &str = "usr/local/share/ca-certificates/nullspace.crt";
/// Where distributions have what programs trust.
const BUNDLES: [&str; 2] = ["etc/ssl/certs/ca-certificates.crt", "etc/pki/tls/certs/ca-bundle.crt"];
const BUNDLE_BYTES: u64 = 16 << 20;
const BEGIN: &str = "# nullspace: the authority of this sandbox's node\n";
const END: &str = "# nullspace: end\n";

/// Bytes of a certificate.
const LONGEST: usize = 16 << 10;
const PEM_BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const PEM_END: &str = "-----END CERTIFICATE-----";

/// What names the bundle to a program, whichever library it has.
const BUNDLE_VARIABLES: [&str; 4] =
    ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"];
/// What names further authorities beside the library's own.
const EXTRA_VARIABLE: &str = "NODE_EXTRA_CA_CERTS";

/// See the module.
pub struct Authority {
    root: PathBuf,
    /// What programs that are started now are told.
    environment: std::sync::Mutex<Vec<(String, String)>>,
    /// The one in place; none: empty. Held while it is changed.
    current: tokio::sync::Mutex<String>,
}

impl Authority {
    /// None yet. `root`: the directory that is the machine's root.
    pub fn new(root: PathBuf) -> Self {
        Self { root, environment: Default::default(), current: Default::default() }
    }

    /// Puts another authority in place of the one before; an empty one: none. Nothing is done for the one
    /// that is there already. When it fails some places may have it: it can be asked for again.
    pub async fn set(&self, certificate: &str) -> Result<(), Status> {
        check(certificate)?;
        let mut current = self.current.lock().await;
        if *current == certificate {
            return Ok(());
        }
        let (root, before, now) = (self.root.clone(), current.clone(), certificate.to_string());
        let bundle = elsewhere(move || write(&root, &before, &now)).await??;
        let mut environment = Vec::new();
        if !certificate.is_empty() {
            let own = self.root.join(OWN).to_string_lossy().into_owned();
            environment.push((EXTRA_VARIABLE.to_string(), own));
            if let Some(bundle) = bundle {
                let bundle = bundle.to_string_lossy().into_owned();
                environment.extend(BUNDLE_VARIABLES.map(|name| (name.to_string(), bundle.clone())));
            }
        }
        *self.environment.lock().expect("no holder panics") = environment;
        *current = certificate.into();
        Ok(())
    }

    /// Variables for programs that are started now.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.environment.lock().expect("no holder panics").clone()
    }
}

/// Refuses what would be more in a bundle than one certificate.
pub fn check(certificate: &str) -> Result<(), Status> {
    if certificate.is_empty() {
        return Ok(());
    }
    if certificate.len() > LONGEST {
        let len = certificate.len();
        return Err(Status::invalid_argument(format!("the certificate has {len} bytes; at most {LONGEST}")));
    }
    let body = certificate.trim().strip_prefix(PEM_BEGIN).and_then(|rest| rest.strip_suffix(PEM_END));
    let is_body = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=\r\n".contains(&byte);
    if body.is_some_and(|body| body.bytes().all(is_body)) {
        Ok(())
    } else {
        Err(Status::invalid_argument("the certificate is no single PEM block"))
    }
}

/// Writes all places. Gives the first of the bundles that are there. May block.
fn write(root: &Path, before: &str, now: &str) -> Result<Option<PathBuf>, Status> {
    let own = root.join(OWN);
    if now.is_empty() {
        match std::fs::remove_file(&own) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(status(&error, &own)),
            _ => {}
        }
    } else {
        put(&own, format!("{}\n", now.trim()).as_bytes())?;
    }
    let mut first = None;
    for bundle in BUNDLES.map(|bundle| root.join(bundle)) {
        let Some(content) = read(&bundle)? else { continue };
        let changed = with(without(content.clone(), before.trim()), now.trim());
        if changed != content {
            put(&bundle, &changed)?;
        }
        first.get_or_insert(bundle);
    }
    Ok(first)
}

/// The content of a bundle; none where there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, Status> {
    let failed = |error: io::Error| status(&error, path);
    let file = match open_to_read(path, 0) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.len() > BUNDLE_BYTES {
        return Err(failed(Errno::EFBIG.into()));
    }
    let mut content = Vec::with_capacity(metadata.len() as usize);
    file.take(BUNDLE_BYTES).read_to_end(&mut content).map_err(failed)?;
    Ok(Some(content))
}

fn put(path: &Path, content: &[u8]) -> Result<(), Status> {
    let mut writer = Writer::create(path, None)?;
    writer.write_all(content).map_err(|error| status(&error, path))?;
    // Nobody asked for names of users.
    writer.finish(&Accounts::default()).map(drop)
}

/// A bundle with the authority at its end.
fn with(mut bundle: Vec<u8>, certificate: &str) -> Vec<u8> {
    if !certificate.is_empty() {
        if bundle.last().is_some_and(|last| *last != b'\n') {
            bundle.push(b'\n');
        }
        bundle.extend_from_slice(format!("{BEGIN}{certificate}\n{END}").as_bytes());
    }
    bundle
}

/// A bundle without what was added, and without that certificate, wherever it stands.
fn without(mut bundle: Vec<u8>, certificate: &str) -> Vec<u8> {
    while let Some(begin) = memmem::find(&bundle, BEGIN.as_bytes()) {
        // A block that somebody has cut is no block: its text is found below.
        let end = memmem::find(&bundle[begin..], END.as_bytes()).map_or(BEGIN.len(), |at| at + END.len());
        bundle.drain(begin..begin + end);
    }
    while !certificate.is_empty()
        && let Some(begin) = memmem::find(&bundle, certificate.as_bytes())
    {
        let line = usize::from(bundle.get(begin + certificate.len()) == Some(&b'\n'));
        bundle.drain(begin..begin + certificate.len() + line);
    }
    bundle
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn certificate(body: &str) -> String {
        format!("{PEM_BEGIN}\n{body}\n{PEM_END}\n")
    }

    #[tokio::test]
    async fn an_authority_is_added_replaced_and_removed_and_the_bundle_is_then_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let bundle = root.join(BUNDLES[1]);
        let behind = root.join("etc/pki/extracted.pem");
        fs::create_dir_all(bundle.parent().unwrap()).unwrap();
        let original = [b"# Gr\xfc\xdfe\n", certificate("AAAA").as_bytes()].concat();
        fs::write(&behind, &original).unwrap();
        fs::set_permissions(&behind, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("../../extracted.pem", &bundle).unwrap();

        let authority = Authority::new(root.into());
        let (one, two) = (certificate("BBBB"), certificate("CCCC"));
        authority.set(&one).await.unwrap();
        assert_eq!(fs::read_to_string(root.join(OWN)).unwrap(), one);
        let text = fs::read(&behind).unwrap();
        assert!(text.starts_with(&original) && memmem::find(&text, one.as_bytes()).is_some());
        let told = authority.environment();
        assert_eq!(told.len(), 5);
        assert!(told.contains(&("SSL_CERT_FILE".into(), bundle.to_str().unwrap().into())));

        // As `update-ca-certificates` leaves it: the local authority, and no lines of ours.
        fs::write(&behind, [&original, one.as_bytes()].concat()).unwrap();
        authority.set(&two).await.unwrap();
        let text = fs::read(&behind).unwrap();
        assert!(memmem::find(&text, b"BBBB").is_none() && memmem::find(&text, b"CCCC").is_some());
        authority.set("").await.unwrap();
        assert_eq!(fs::read(&behind).unwrap(), original);
        assert_eq!(fs::metadata(&behind).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(bundle.is_symlink() && !root.join(OWN).exists() && authority.environment().is_empty());
    }

    #[tokio::test]
    async fn what_is_in_place_already_is_not_written_and_what_is_no_certificate_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new(directory.path().into());
        let one = certificate("BBBB");
        authority.set(&one).await.unwrap();
        fs::remove_file(directory.path().join(OWN)).unwrap();
        authority.set(&one).await.unwrap();
        assert!(!directory.path().join(OWN).exists());
        assert_eq!(authority.environment().len(), 1, "there is no bundle to name");
        let (twice, long) = (one.repeat(2), certificate(&"A".repeat(LONGEST)));
        for wrong in ["x", &one[1..], &format!("{one}# more"), &twice, &long] {
            let refused = authority.set(wrong).await.unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{wrong:.40}");
        }
    }
}

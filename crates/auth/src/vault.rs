//! Seals what has to be stored and read back: under a key in a file, so that the database alone, or a backup
//! of it, tells nothing. ChaCha20-Poly1305 (RFC 8439) with a random nonce before the text; tenant and name
//! are bound to it, so that a row moved to another name opens no more.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use nullspace_types::id::TenantId;
use nullspace_types::{Code, Error, Result};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::secret::random;

const KEY_BYTES: usize = 32;

/// The key. It is never shown.
pub struct Vault(LessSafeKey);

impl Vault {
    /// The key in a file, which is made if it is not there. A file that others can read, or that is no key, is
    /// refused and left as it is: what is sealed under another key could not be read.
    pub fn open(file: &Path) -> Result<Self> {
        let unusable = |why: &dyn std::fmt::Display| {
            let message = format!("the key of the secrets in {} cannot be used: {why}", file.display());
            Error::new(Code::Unavailable, message)
        };
        let found = match read(file) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                make(file).map_err(|error| unusable(&error))?;
                read(file)
            }
            found => found,
        };
        let (mode, key) = found.map_err(|error| unusable(&error))?;
        if mode & 0o077 != 0 {
            return Err(unusable(&"others can open it")
                .suggest("make it its owner's alone (chmod 600), and consider the secrets known"));
        }
        let key = UnboundKey::new(&CHACHA20_POLY1305, &key).map_err(|_| {
            unusable(&format_args!("it is not {KEY_BYTES} bytes long"))
                .suggest("put the right file back, or delete it and store the secrets anew")
        })?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Seals a value for this tenant and name.
    pub fn seal(&self, tenant: TenantId, name: &str, value: &str) -> Result<Vec<u8>> {
        let nonce: [u8; NONCE_LEN] = random()?;
        let mut text = value.as_bytes().to_vec();
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), bound(tenant, name), &mut text)
            .map_err(|_| Error::internal("a secret cannot be sealed"))?;
        Ok([&nonce[..], &text].concat())
    }

    /// Opens what was sealed for this tenant and name.
    pub fn unseal(&self, tenant: TenantId, name: &str, sealed: &[u8]) -> Result<String> {
        let wrong =
            || Error::internal(format_args!("the stored secret {name:?} does not fit the key of secrets"));
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN).ok_or_else(wrong)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| wrong())?;
        let mut text = text.to_vec();
        let opened = self.0.open_in_place(nonce, bound(tenant, name), &mut text).map_err(|_| wrong())?;
        String::from_utf8(opened.to_vec()).map_err(|_| wrong())
    }
}

fn bound(tenant: TenantId, name: &str) -> Aad<Vec<u8>> {
    Aad::from(format!("{tenant}/{name}").into_bytes())
}

/// Mode and content of a file, of which no more is read than tells that it is too long.
fn read(file: &Path) -> io::Result<(u32, Vec<u8>)> {
    let opened = std::fs::File::open(file)?;
    let mode = opened.metadata()?.mode();
    let mut key = Vec::new();
    opened.take(KEY_BYTES as u64 + 1).read_to_end(&mut key)?;
    Ok((mode, key))
}

/// Makes the file whole or not at all, and on the disk before anything is sealed under it.
fn make(file: &Path) -> io::Result<()> {
    let directory = file.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    let mut made = tempfile::Builder::new()
        .prefix(".secrets.key.")
        .permissions(std::fs::Permissions::from_mode(0o600))
        .tempfile_in(directory)?;
    made.write_all(&random::<KEY_BYTES>().map_err(io::Error::other)?)?;
    made.as_file().sync_all()?;
    match made.persist_noclobber(file) {
        Ok(_) => std::fs::File::open(directory)?.sync_all(),
        // Another server was first: there is one key.
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error.error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(file: &Path) -> u32 {
        std::fs::metadata(file).unwrap().mode() & 0o777
    }

    #[test]
    fn what_is_sealed_opens_for_the_same_name_and_tenant_under_the_same_key() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secrets.key");
        let (vault, again) = (Vault::open(&file).unwrap(), Vault::open(&file).unwrap());
        assert_eq!(mode(&file), 0o600);
        let (tenant, other) = (TenantId::new(), TenantId::new());
        let sealed = vault.seal(tenant, "name", "value").unwrap();
        assert!(!sealed.windows(5).any(|window| window == b"value"));
        assert_ne!(sealed, vault.seal(tenant, "name", "value").unwrap());
        assert_eq!(again.unseal(tenant, "name", &sealed).unwrap(), "value");
        for (tenant, name) in [(other, "name"), (tenant, "other")] {
            assert!(vault.unseal(tenant, name, &sealed).is_err());
        }
        for at in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[at] ^= 1;
            assert!(vault.unseal(tenant, "name", &flipped).is_err());
            assert!(vault.unseal(tenant, "name", &sealed[..at]).is_err());
        }
        let elsewhere = Vault::open(&directory.path().join("other.key")).unwrap();
        let error = elsewhere.unseal(tenant, "name", &sealed).unwrap_err();
        assert_eq!(error.code, Code::InternalError);
        assert!(error.context.unwrap().contains("does not fit the key"));
    }

    #[test]
    fn servers_that_begin_at_once_have_one_key() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secrets.key");
        let vaults: Vec<Vault> = std::thread::scope(|scope| {
            let opening: Vec<_> = (0..8).map(|_| scope.spawn(|| Vault::open(&file).unwrap())).collect();
            opening.into_iter().map(|vault| vault.join().unwrap()).collect()
        });
        let tenant = TenantId::new();
        let sealed = vaults[0].seal(tenant, "name", "value").unwrap();
        for vault in &vaults {
            assert_eq!(vault.unseal(tenant, "name", &sealed).unwrap(), "value");
        }
        // Nothing half-made is left.
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_others_can_open_or_that_is_no_key_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secrets.key");
        Vault::open(&file).unwrap();
        let key = std::fs::read(&file).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Vault::open(&file).err().unwrap().message.contains("others can open it"));
        assert_eq!((std::fs::read(&file).unwrap(), mode(&file)), (key, 0o640));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        for content in [&b""[..], b"short", &[7; 33]] {
            std::fs::write(&file, content).unwrap();
            assert!(Vault::open(&file).err().unwrap().message.contains("not 32 bytes"));
            assert_eq!(std::fs::read(&file).unwrap(), content);
        }
        // What leads nowhere is not followed to make one there.
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path().join("nowhere"), &link).unwrap();
        assert!(Vault::open(&link).is_err());
        assert!(Vault::open(&directory.path().join("no/such/place")).is_err());
    }
}

//! The SSH host key of a machine. It is made here and given at adoption: making one under emulation would
//! cost the guest more than everything else that a create does, and no two machines may share one.

use nullspace_types::Error;
use ring::signature::{Ed25519KeyPair, KeyPair};
use ssh_key::LineEnding;
use ssh_key::private::{Ed25519Keypair, Ed25519PrivateKey, KeypairData, PrivateKey};
use ssh_key::public::Ed25519PublicKey;

/// A key pair in the formats of OpenSSH's files.
pub struct HostKey {
    /// The private key.
    pub private: String,
    /// The line of the public key.
    pub public: String,
}

impl HostKey {
    /// A new one, Ed25519 (RFC 8709).
    pub fn generate(comment: &str) -> Result<Self, Error> {
        let seed: [u8; 32] = crate::random_bytes(32).try_into().expect("as many as were asked for");
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(Error::internal)?;
        let public = pair.public_key().as_ref().try_into().expect("Ed25519 keys have 32 bytes");
        let pair = Ed25519Keypair {
            public: Ed25519PublicKey(public),
            private: Ed25519PrivateKey::from_bytes(&seed),
        };
        let key = PrivateKey::new(KeypairData::Ed25519(pair), comment).map_err(Error::internal)?;
        Ok(Self {
            private: key.to_openssh(LineEnding::LF).map_err(Error::internal)?.to_string(),
            public: key.public_key().to_openssh().map_err(Error::internal)? + "\n",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_as_it_was_written_and_no_two_are_alike() {
        let key = HostKey::generate("sandbox-1").unwrap();
        let read = PrivateKey::from_openssh(&key.private).unwrap();
        assert_eq!(read.public_key().to_openssh().unwrap() + "\n", key.public);
        assert!(key.public.starts_with("ssh-ed25519 ") && key.public.ends_with(" sandbox-1\n"));
        assert_ne!(HostKey::generate("sandbox-1").unwrap().public, key.public);
    }
}

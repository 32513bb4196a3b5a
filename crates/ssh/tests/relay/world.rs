//! A relay over machines of the test's own, certificates for them, and clients that show these.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nullspace_ssh::{Config, Keys};
use nullspace_types::id::{KeyId, SandboxId, SshAccessId, TenantId};
use russh::client::{self, Handle};
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::{Certificate, PrivateKey, PublicKey, PublicKeyOrCertificate};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpSocket};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::machines::Fake;

/// Longer than anything takes that does not hang.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn key(seed: u8) -> PrivateKey {
    let pair = Ed25519Keypair::from_seed(&[seed; 32]);
    PrivateKey::new(KeypairData::Ed25519(pair), "test").unwrap()
}

/// What a certificate says.
pub struct Wish {
    pub user: &'static str,
    pub authority: PrivateKey,
    pub from: i64,
    pub until: i64,
    pub kind: CertType,
    pub key_id: Option<String>,
    pub critical: bool,
    pub extensions: &'static [&'static str],
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            user: "root",
            authority: key(1),
            from: -60,
            until: 600,
            kind: CertType::User,
            key_id: None,
            critical: false,
            extensions: &["permit-port-forwarding", "permit-pty"],
        }
    }
}

impl Wish {
    pub fn certify(&self, sandbox: SandboxId, key: &PublicKey) -> Certificate {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let time = |offset: i64| (now + offset) as u64;
        let (from, until) = (time(self.from), time(self.until));
        let mut builder = Builder::new(vec![7; 32], key.key_data().clone(), from, until).unwrap();
        let ours = || format!("{}:{sandbox}:{}:{}", SshAccessId::new(), TenantId::new(), KeyId::new());
        builder.cert_type(self.kind).unwrap();
        builder.key_id(self.key_id.clone().unwrap_or_else(ours)).unwrap();
        builder.valid_principal(self.user).unwrap();
        if self.critical {
            builder.critical_option("source-address", "127.0.0.1/32").unwrap();
        }
        for name in self.extensions {
            builder.extension(*name, "").unwrap();
        }
        builder.sign(&self.authority).unwrap()
    }
}

pub struct World {
    pub address: SocketAddr,
    pub machines: Fake,
    pub sandbox: SandboxId,
    pub paused: CancellationToken,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
    pub place: TempDir,
}

impl World {
    pub async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub async fn with(config: Config) -> Self {
        let place = tempfile::tempdir().unwrap();
        let home = place.path().join("home");
        std::fs::create_dir(&home).unwrap();
        let machines = Fake::new(home);
        let (sandbox, paused) = (SandboxId::new(), CancellationToken::new());
        machines.0.sandboxes.lock().unwrap().insert(sandbox, paused.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let keys = Keys {
            host_key: key(2).to_openssh(LineEnding::LF).unwrap().to_string(),
            authority: key(1).public_key().to_openssh().unwrap(),
        };
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let serving =
            nullspace_ssh::serve(listener, config, keys, machines.clone(), stop.clone(), tasks.clone());
        tasks.spawn(serving);
        let world = Self { address, machines, sandbox, paused, stop, tasks, place };
        world.write(
            "known_hosts",
            &format!("[127.0.0.1]:{} {}\n", address.port(), key(2).public_key().to_openssh().unwrap()),
        );
        world.write("key", &key(3).to_openssh(LineEnding::LF).unwrap());
        world.identify(&Wish::default().certify(sandbox, key(3).public_key()));
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    pub fn home(&self, name: &str) -> PathBuf {
        self.machines.0.home.join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(self.path(name), text).unwrap();
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// What OpenSSH shows from now on.
    pub fn identify(&self, certificate: &Certificate) {
        self.write("key-cert.pub", &certificate.to_openssh().unwrap());
    }

    /// The options that make `ssh`, `scp` and `rsync` reach the relay.
    pub fn options(&self) -> Vec<String> {
        let option = |name: &str, value: &str| ["-o".to_owned(), format!("{name}={value}")];
        let path = |name: &str| self.path(name).to_str().unwrap().to_owned();
        [
            ["-F".to_owned(), "none".to_owned()],
            ["-i".to_owned(), path("key")],
            option("CertificateFile", &path("key-cert.pub")),
            option("UserKnownHostsFile", &path("known_hosts")),
            option("GlobalKnownHostsFile", "none"),
            option("StrictHostKeyChecking", "yes"),
            option("IdentitiesOnly", "yes"),
            option("IdentityAgent", "none"),
            option("BatchMode", "yes"),
            option("LogLevel", "INFO"),
            option("Port", &self.address.port().to_string()),
        ]
        .concat()
    }

    pub fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(self.options()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs `ssh OPTIONS root@relay ARGUMENTS` with such an input.
    pub async fn ssh(&self, options: &[&str], arguments: &[&str], input: &[u8]) -> Output {
        let mut command = self.client("ssh");
        command.args(options).arg("root@127.0.0.1").args(arguments).stdin(Stdio::piped());
        finish(command.spawn().unwrap(), input).await
    }

    /// A client of `russh`'s that has not logged in yet, from an address of this host.
    pub async fn connect(&self, from: &str) -> Result<Handle<Trusting>, russh::Error> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from.parse().unwrap(), 0))?;
        let socket = socket.connect(self.address).await?;
        client::connect_stream(Arc::new(client::Config::default()), socket, Trusting).await
    }

    /// One that has.
    pub async fn enter(&self) -> Handle<Trusting> {
        let mut client = self.connect("127.0.0.1").await.unwrap();
        let certificate = Wish::default().certify(self.sandbox, key(3).public_key());
        let entered = client.authenticate_openssh_cert("root", Arc::new(key(3)), certificate).await;
        assert!(entered.unwrap().success());
        client
    }

    /// Waits until so many programs run, and so many have been hung up.
    pub async fn programs(&self, running: usize, hung_up: usize) {
        let mut programs = self.machines.0.programs.subscribe();
        let reached = programs.wait_for(|now| *now == (running, hung_up));
        tokio::time::timeout(PATIENCE, reached).await.expect("the programs never came to that").unwrap();
    }
}

/// Gives a program its input, and waits for its end.
pub async fn finish(mut child: Child, input: &[u8]) -> Output {
    let mut stdin = child.stdin.take();
    let typing = async {
        if let Some(stdin) = &mut stdin {
            // A program that does not read its input closes it.
            let _ = stdin.write_all(input).await;
        }
        drop(stdin);
    };
    let both = async { tokio::join!(typing, child.wait_with_output()).1 };
    tokio::time::timeout(PATIENCE, both).await.expect("the client hangs").unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Bytes that no compression and no text mode leaves as they are.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(len)
    .collect()
}

/// Whether there is such a program here; if not, the test is skipped.
pub fn has(program: &str) -> bool {
    let found =
        ["/usr/bin", "/bin", "/usr/local/bin"].iter().any(|place| Path::new(place).join(program).exists());
    if !found {
        eprintln!("SKIP: there is no {program} here");
    }
    found
}

/// Trusts every host.
pub struct Trusting;

impl client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

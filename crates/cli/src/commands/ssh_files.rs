//! What `nullspace ssh` keeps in `~/.nullspace/ssh`: one key of its own, and for each sandbox and user a
//! certificate with the relay's host key. Keys are made and read by OpenSSH's own `ssh-keygen`: whoever logs
//! in has it.

use std::fs::{DirBuilder, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use crate::failure::Failure;

/// The file of the key that is made here.
const OWN_KEY: &str = "nullspace_cli_ed25519";
/// How the files end that are written for one log-in.
const CERTIFICATE: &str = "-cert.pub";
const KNOWN_HOSTS: &str = ".known_hosts";
/// After so long nobody logs in with a certificate any more: they are good for an hour at most.
const OLD: Duration = Duration::from_secs(24 * 60 * 60);

/// What was written for one log-in.
pub(super) struct Written {
    pub(super) certificate: PathBuf,
    pub(super) known_hosts: PathBuf,
}

/// The directory, made for its owner alone if it is not there.
pub(super) fn directory() -> Result<PathBuf, Failure> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let home = home.ok_or_else(|| Failure::usage("HOME is not set: there is no place for a key"))?;
    let directory = PathBuf::from(home).join(".nullspace/ssh");
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    made.map_err(Failure::io(format!("make {}", directory.display())))?;
    Ok(directory)
}

/// The key that is made here, made now if it is not there. Of two that make it at once one's is kept.
pub(super) fn own_key(directory: &Path) -> Result<PathBuf, Failure> {
    let key = directory.join(OWN_KEY);
    if key.exists() {
        return Ok(key);
    }
    let making = || format!("make {}", key.display());
    let draft = tempfile::tempdir_in(directory).map_err(Failure::io(making()))?;
    let made = draft.path().join("key");
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "nullspace", "-f"]).arg(&made);
    run(&mut command)?;
    match std::fs::hard_link(&made, &key) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Failure::io(making())(error)),
        _ => Ok(key),
    }
}

/// The public half of a key, one line. If it stands beside the private one that is not read, which may need
/// a passphrase.
pub(super) fn public_key(identity: &Path) -> Result<String, Failure> {
    let mut beside = identity.to_owned().into_os_string();
    beside.push(".pub");
    match std::fs::read_to_string(&beside) {
        Ok(text) => return Ok(text.trim().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Failure::io(format!("read {}", Path::new(&beside).display()))(error)),
    }
    let mut command = Command::new("ssh-keygen");
    command.arg("-y").arg("-f").arg(identity);
    run(&mut command)
}

/// Writes certificate and host key. Both appear whole or not at all: another log-in may be reading them.
pub(super) fn write(
    directory: &Path,
    place: &str,
    certificate: &str,
    host: &str,
    host_key: &str,
) -> Result<Written, Failure> {
    sweep(directory).map_err(Failure::io(format!("read {}", directory.display())))?;
    let written = Written {
        certificate: directory.join(format!("{place}{CERTIFICATE}")),
        known_hosts: directory.join(format!("{place}{KNOWN_HOSTS}")),
    };
    for (path, text) in [
        (&written.certificate, format!("{}\n", certificate.trim_end())),
        (&written.known_hosts, format!("{host} {}\n", host_key.trim_end())),
    ] {
        let put = || {
            let mut draft = tempfile::NamedTempFile::new_in(directory)?;
            draft.as_file().set_permissions(Permissions::from_mode(0o600))?;
            draft.write_all(text.as_bytes())?;
            draft.persist(path).map_err(|error| error.error)
        };
        put().map_err(Failure::io(format!("write {}", path.display())))?;
    }
    Ok(written)
}

/// Removes what earlier log-ins left.
fn sweep(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours =
            name.to_str().is_some_and(|name| name.ends_with(CERTIFICATE) || name.ends_with(KNOWN_HOSTS));
        // Another log-in may be sweeping too.
        let Ok(changed) = entry.metadata().and_then(|metadata| metadata.modified()) else { continue };
        let age = SystemTime::now().duration_since(changed).unwrap_or_default();
        if ours && age > OLD {
            // What stays now goes the next time.
            drop(std::fs::remove_file(entry.path()));
        }
    }
    Ok(())
}

/// Runs a program to its end and gives the line that it writes. It may ask the person for a passphrase.
fn run(command: &mut Command) -> Result<String, Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stderr(Stdio::inherit()).output().map_err(|error| cannot_run(&program, error))?;
    if !output.status.success() {
        return Err(Failure::Local {
            code: "cli_error",
            message: format!("{program} failed: {}", output.status),
            hint: None,
            details: None,
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// What a program of OpenSSH's that does not start comes to.
pub(super) fn cannot_run(program: &str, error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound => Failure::Local {
            code: "cli_error",
            message: format!("{program} is not installed here"),
            hint: Some(
                "install OpenSSH's client (openssh-client), or run the command of --print-command elsewhere"
                    .to_owned(),
            ),
            details: None,
        },
        _ => Failure::io(format!("run {program}"))(error),
    }
}

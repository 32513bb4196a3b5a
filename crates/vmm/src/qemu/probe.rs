//! Finding out what this host can do: which QEMU, and whether its KVM runs the guest's kernel.
//!
//! `/dev/kvm` can open and still be unable to run a stock kernel, so the only proof is a boot: the
//! guest's own kernel and first file system, under KVM, with a deadline, until the agent says its
//! first word on the console. What was found is cached with the identity of the host.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use super::{Acceleration, command_line};
use crate::Error;

/// The oldest QEMU that is supported.
pub const OLDEST: (u32, u32) = (7, 2);

/// How long the agent may take to say its first word under KVM.
const DEADLINE: Duration = Duration::from_secs(10);

/// What the agent's every line on the console begins with.
const FIRST_WORD: &str = "nullspace-guest:";

/// What QEMU says when KVM gives up on a guest; the machine then stands still for good.
const INTERNAL_ERROR: &str = "KVM internal error";

/// The QEMU that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Absolute, no links left.
    pub path: PathBuf,
    /// As it calls itself, such as `7.2.19`.
    pub version: String,
}

/// What was found about this host's acceleration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// What machines run with.
    pub acceleration: Acceleration,
    /// Why, for people.
    pub reason: String,
}

#[derive(Serialize, Deserialize)]
struct Cached {
    host: String,
    found: Found,
}

/// Finds QEMU on the search path.
pub async fn program() -> Result<Program, Error> {
    const NAME: &str = "qemu-system-x86_64";
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/bin"), PathBuf::from("/usr/local/bin")])
        .map(|directory| directory.join(NAME))
        .find_map(|candidate| fs_err::canonicalize(candidate).ok())
        .ok_or_else(|| Error::Unusable(format!("{NAME} is not installed: install qemu-system-x86")))?;
    let output = tokio::process::Command::new(&path)
        .arg("--version")
        .output()
        .await
        .map_err(|source| Error::File { what: format!("{} cannot be run", path.display()), source })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text
        .split_ascii_whitespace()
        .skip_while(|word| *word != "version")
        .nth(1)
        .ok_or_else(|| Error::Unusable(format!("{} does not tell its version", path.display())))?
        .trim_end_matches(|c: char| !c.is_ascii_digit())
        .to_owned();
    let mut numbers = version.split('.').map(|n| n.parse().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < OLDEST {
        return Err(Error::Unusable(format!(
            "QEMU {version} is too old: {}.{} or newer is needed",
            OLDEST.0, OLDEST.1
        )));
    }
    Ok(Program { path, version })
}

/// What machines run with here. `cache` keeps the answer for the next start on the same host.
pub async fn acceleration(
    program: &Program,
    kernel: &Path,
    initrd: &Path,
    cache: &Path,
) -> Result<Found, Error> {
    let host = host_identity(program);
    if let Ok(text) = fs_err::tokio::read(cache).await
        && let Ok(cached) = serde_json::from_slice::<Cached>(&text)
        && cached.host == host
    {
        return Ok(cached.found);
    }
    let found = match try_kvm(program, kernel, initrd).await {
        Ok(()) => {
            Found { acceleration: Acceleration::Kvm, reason: "the guest's kernel boots under KVM".into() }
        }
        Err(reason) => Found { acceleration: Acceleration::Tcg, reason },
    };
    let text = serde_json::to_vec_pretty(&Cached { host, found: found.clone() })
        .map_err(|error| Error::Unusable(error.to_string()))?;
    fs_err::tokio::write(cache, text)
        .await
        .map_err(|source| Error::File { what: "the probe's result cannot be kept".into(), source })?;
    Ok(found)
}

/// Kernel, processor and QEMU: what the answer depends on.
fn host_identity(program: &Program) -> String {
    let read = |path: &str| fs_err::read_to_string(path).unwrap_or_default();
    let cpu =
        read("/proc/cpuinfo").lines().find(|line| line.starts_with("model name")).unwrap_or("").to_owned();
    format!("{} | {cpu} | {} {}", read("/proc/version").trim(), program.path.display(), program.version)
}

/// Boots once under KVM; says why it cannot be used.
async fn try_kvm(program: &Program, kernel: &Path, initrd: &Path) -> Result<(), String> {
    if let Err(error) = fs_err::File::options().read(true).write(true).open("/dev/kvm") {
        return Err(format!("/dev/kvm cannot be used: {}", error.kind()));
    }
    let mut child = tokio::process::Command::new(&program.path)
        .args(["-accel", command_line::accelerator(Acceleration::Kvm), "-machine", command_line::MACHINE])
        .args([
            "-cpu",
            command_line::cpu_model(Acceleration::Kvm),
            "-m",
            "256",
            "-nodefaults",
            "-no-user-config",
        ])
        .args(["-display", "none", "-no-reboot", "-serial", "stdio", "-kernel"])
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", "console=ttyS0 quiet reboot=t panic=-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("QEMU cannot be started: {error}"))?;
    let (console, errors) = (child.stdout.take(), child.stderr.take());
    let (console, errors) = console.zip(errors).ok_or("QEMU has no console")?;
    let outcome = tokio::select! {
        spoke = says(console, FIRST_WORD) => match spoke {
            true => Ok(()),
            false => Err("the guest's kernel ends under KVM before the agent starts".to_owned()),
        },
        true = says(errors, INTERNAL_ERROR) => {
            Err("KVM cannot run the guest's kernel: it gives up with an internal error".to_owned())
        }
        () = tokio::time::sleep(DEADLINE) => {
            Err(format!("the guest's kernel does not start the agent under KVM in {} s", DEADLINE.as_secs()))
        }
    };
    child.kill().await.map_err(|error| format!("the probe cannot be ended: {error}"))?;
    outcome
}

/// Whether a stream, before its end, has a line with these words.
async fn says(stream: impl tokio::io::AsyncRead + Unpin, words: &str) -> bool {
    let mut lines = BufReader::new(stream.take(1 << 20)).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        if String::from_utf8_lossy(&line).contains(words) {
            return true;
        }
    }
    false
}

//! Runs `ip` and `nft` with a script on standard input, within a deadline.
//!
//! Both are run in batch mode, once for many steps: a process costs about two milliseconds. They act
//! in the network namespace of the thread that calls.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::error::{Doing, Error, Result};

/// Far beyond what a loaded host needs; a guard against a hang, not a limit on work.
const DEADLINE: Duration = Duration::from_secs(30);
/// How much of what a tool complains about is kept.
const COMPLAINT_LIMIT: usize = 2048;

/// Runs `ip -batch`.
pub(crate) fn ip(script: &str) -> Result<()> {
    run("ip", "iproute2", &["-batch", "-"], script).map(drop)
}

/// Runs `nft` with a script as one transaction: all of it, or nothing.
pub(crate) fn nft(script: &str) -> Result<()> {
    run("nft", "nftables", &["-f", "-"], script).map(drop)
}

/// What `nft list chains` prints: the chains of every table, without their rules.
pub(crate) fn nft_chains() -> Result<String> {
    let output = run("nft", "nftables", &["--terse", "list", "chains"], "")?;
    Ok(String::from_utf8_lossy(&output).into_owned())
}

fn run(tool: &'static str, package: &'static str, args: &[&str], script: &str) -> Result<Vec<u8>> {
    let mut child = match Command::new(tool)
        .args(args)
        .stdin(input(script).doing(|| format!("cannot hand a script to {tool}"))?)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::ToolMissing { tool, package });
        }
        Err(error) => return Err(Error::io(format!("cannot start {tool}"), error)),
    };
    let spoken = converse(&mut child);
    if !matches!(spoken, Ok(Some(_))) {
        // Already gone is as good as killed.
        child.kill().or_else(gone).doing(|| format!("cannot kill {tool}"))?;
    }
    let status = child.wait().doing(|| format!("cannot wait for {tool}"))?;
    match spoken.doing(|| format!("cannot talk to {tool}"))? {
        None => Err(Error::ToolTimeout { tool, seconds: DEADLINE.as_secs() }),
        Some((answer, _)) if status.success() => Ok(answer),
        Some((_, complaint)) => {
            let complaint = String::from_utf8_lossy(&complaint);
            let message = match complaint.trim() {
                "" => status.to_string(),
                text => text.to_owned(),
            };
            Err(Error::Tool { tool, message })
        }
    }
}

fn gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::InvalidInput { Ok(()) } else { Err(error) }
}

/// A script as standard input, in memory: however long it is, nobody waits to write it.
fn input(script: &str) -> io::Result<Stdio> {
    let mut file = File::from(memfd_create("script", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(script.as_bytes())?;
    file.rewind()?;
    Ok(file.into())
}

/// Reads both outputs to their end; `None` when the deadline passed.
fn converse(child: &mut Child) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let deadline = Instant::now() + DEADLINE;
    let (mut output, mut complaint) = (Vec::new(), Vec::new());
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    while stdout.is_some() || stderr.is_some() {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(timeout) = PollTimeout::try_from(left) else { return Ok(None) };
        if left.is_zero() {
            return Ok(None);
        }
        let readable = {
            let mut waiting: Vec<PollFd<'_>> = Vec::with_capacity(2);
            waiting.extend(stdout.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
            waiting.extend(stderr.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
            match nix::poll::poll(&mut waiting, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut ready = waiting.iter().map(|fd| fd.any().unwrap_or(false));
            let out = stdout.is_some() && ready.next().unwrap_or(false);
            let err = stderr.is_some() && ready.next().unwrap_or(false);
            (out, err)
        };
        if readable.0 {
            drain(&mut stdout, &mut output, 1 << 20)?;
        }
        if readable.1 {
            drain(&mut stderr, &mut complaint, COMPLAINT_LIMIT)?;
        }
    }
    Ok(Some((output, complaint)))
}

/// Reads once; at the end of the pipe, closes it. What goes beyond the limit is read and dropped.
fn drain(pipe: &mut Option<impl Read>, into: &mut Vec<u8>, limit: usize) -> io::Result<()> {
    let Some(reader) = pipe else { return Ok(()) };
    let mut buffer = [0; 4096];
    let count = match reader.read(&mut buffer) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
        other => other?,
    };
    if count == 0 {
        *pipe = None;
        return Ok(());
    }
    let room = limit.saturating_sub(into.len()).min(count);
    into.extend_from_slice(&buffer[..room]);
    Ok(())
}

//! Starting a jailed process from the server.

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::{Error, Process, Spec};

/// Jails and starts a program. `fds` become its descriptors 3, 4, … in order; `log` takes its
/// standard output and error. Answers when the program has been executed. Blocks for some
/// milliseconds.
pub fn launch(spec: &Spec, fds: &[OwnedFd], log: &File) -> Result<Process, Error> {
    let (mut ours, theirs) = UnixStream::pair().map_err(Error::Start)?;
    let mut child = Command::new("/proc/self/exe")
        .arg("jail")
        .env_clear()
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::piped())
        .stderr(log.try_clone().map_err(Error::Start)?)
        .spawn()
        .map_err(Error::Start)?;
    let sent = send(&mut ours, spec, fds);
    let mut answer = String::new();
    let read = child.stdout.take().map_or(Ok(0), |mut stdout| stdout.read_to_string(&mut answer));
    let status = child.wait().map_err(Error::Start)?;
    match answer.trim().strip_prefix("pid ").and_then(|pid| pid.parse().ok()) {
        Some(pid) if status.success() => Process::find(pid),
        // Its own words say more than a broken pipe on our side.
        _ if !answer.trim().is_empty() => Err(Error::Build(answer.trim().to_owned())),
        _ => {
            sent.and(read.map(drop)).map_err(Error::Start)?;
            Err(Error::Build(format!("the jail ended with {status}")))
        }
    }
}

/// One byte with the descriptors beside it, then the description.
fn send(stream: &mut UnixStream, spec: &Spec, fds: &[OwnedFd]) -> std::io::Result<()> {
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&[0])], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    stream.write_all(&serde_json::to_vec(spec)?)?;
    stream.shutdown(Shutdown::Write)
}

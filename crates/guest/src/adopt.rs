//! Makes a clone its own machine: clock, entropy, names, identifiers, SSH host key, disk size.
//!
//! A machine that was captured after its adoption goes through all of it again after each restore; one
//! that goes on as the same sandbox keeps its names, identifiers and keys, and whatever its owner has made
//! of them. Entropy is credited and the kernel's generator is reseeded: that raises the generation which
//! every processor's own generator compares before it gives out anything, so from then on no call draws
//! what the captured machine draws.
//!
//! Every part is read back before it is confirmed. This is the hot path of a create, and under
//! emulation each page of code that runs here first must be translated; so nothing is written that
//! has the right value already, the files written are on a memory file system (`boot::identity` has
//! put them there), and nothing is flushed.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime, clock_settime};
use nullspace_guest_proto as pb;

use crate::boot::{disk, identity};
use crate::console::say;

/// How far the clock may be from what was set when it is read back.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(1);

/// How far a clock may be behind after a pause: less than what a call's way may take is not worth a step.
const CLOCK_SLACK: Duration = Duration::from_millis(2);

/// More than any file has that says which machine this is.
const SMALL: usize = 1024;

/// How long the device's new size may take to arrive.
const RESIZE_WAIT: Duration = Duration::from_secs(5);

mod call {
    use nix::{ioctl_none, ioctl_write_ptr_bad, request_code_write};

    /// `struct rand_pool_info` with room for what the protocol allows.
    #[repr(C)]
    pub struct Pool {
        pub bits: libc::c_int,
        pub bytes: libc::c_int,
        pub data: [u8; super::ENTROPY_MAX],
    }

    ioctl_write_ptr_bad!(add_entropy, request_code_write!(b'R', 0x03, 2 * size_of::<libc::c_int>()), Pool);
    ioctl_none!(reseed, b'R', 0x07);
}

/// Bytes of entropy that a request may carry.
pub const ENTROPY_MIN: usize = 32;
/// See [`ENTROPY_MIN`].
pub const ENTROPY_MAX: usize = 512;

/// Does all parts that need PID 1's rights; a part that fails is said on the console and is false in
/// the reply. `arrived`: when the request did. `before`: the host name of the adoption before, if there was
/// one.
pub async fn adopt(request: &pb::AdoptRequest, arrived: Instant, before: Option<&str>) -> pb::AdoptReply {
    let started = Instant::now();
    let kept = request.resumed;
    let mut reply = pb::AdoptReply {
        clock: done("clock", set_clock(request.unix_time_ns, arrived)),
        entropy: done("entropy", add_entropy(&request.entropy)),
        hostname: kept || done("hostname", set_hostname(&request.hostname, before)),
        machine_id: kept || done("machine_id", set_machine_id(&request.machine_id)),
        boot_id: kept || done("boot_id", set_boot_id(&request.boot_id)),
        ssh_host_key: kept || done("ssh_host_key", set_ssh_host_key(request)),
        ..Default::default()
    };
    let grown = disk::grow(request.disk_bytes, RESIZE_WAIT).await;
    reply.disk = done("disk", grown);
    reply.duration_us = started.elapsed().as_micros() as u64;
    reply
}

fn done(part: &str, result: io::Result<()>) -> bool {
    match result {
        Ok(()) => true,
        Err(error) => {
            say!("adopt: {part}: {error}");
            false
        }
    }
}

/// The time at sending was right when the request came; under emulation it may be long ago.
fn set_clock(unix_time_ns: u64, arrived: Instant) -> io::Result<()> {
    let wanted = Duration::from_nanos(unix_time_ns).saturating_add(arrived.elapsed());
    clock_settime(ClockId::CLOCK_REALTIME, wanted.into())?;
    let now = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?);
    if now.abs_diff(wanted) > CLOCK_TOLERANCE {
        return Err(io::Error::other(format!("is {now:?} after it was set to {wanted:?}")));
    }
    Ok(())
}

/// Sets a clock that stood still forward; one that is right, or ahead, stays.
pub fn catch_up(unix_time_ns: u64, arrived: Instant) {
    let behind = || {
        let wanted = Duration::from_nanos(unix_time_ns).saturating_add(arrived.elapsed());
        let now = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?);
        Ok::<_, io::Error>(wanted.saturating_sub(now) > CLOCK_SLACK)
    };
    let caught_up =
        behind().and_then(|behind| if behind { set_clock(unix_time_ns, arrived) } else { Ok(()) });
    if let Err(error) = caught_up {
        say!("the clock could not be set after a pause: {error}");
    }
}

fn add_entropy(entropy: &[u8]) -> io::Result<()> {
    let mut pool = call::Pool { bits: 0, bytes: 0, data: [0; ENTROPY_MAX] };
    let Some(room) = pool.data.get_mut(..entropy.len()) else {
        return Err(io::Error::other("too long"));
    };
    room.copy_from_slice(entropy);
    pool.bits = entropy.len() as i32 * 8;
    pool.bytes = entropy.len() as i32;
    let device = File::open("/dev/urandom")?;
    // SAFETY: the pool is what the kernel expects, with as many bytes as it says; the descriptor is
    // the random device's.
    unsafe {
        call::add_entropy(device.as_raw_fd(), &raw const pool)?;
        call::reseed(device.as_raw_fd())?;
    }
    Ok(())
}

fn set_hostname(name: &str, before: Option<&str>) -> io::Result<()> {
    nix::unistd::sethostname(name)?;
    if nix::unistd::gethostname()? != name {
        return Err(io::Error::other("the kernel has another name"));
    }
    replace(identity::HOSTNAME, &format!("{name}\n"))?;
    let line = host_line(name);
    match before {
        None => {
            let mut hosts = OpenOptions::new().append(true).create(true).open(identity::HOSTS)?;
            hosts.write_all(line.as_bytes())?;
        }
        Some(before) => {
            let text = renamed(&std::fs::read_to_string(identity::HOSTS)?, before, name);
            let hosts = OpenOptions::new().write(true).open(identity::HOSTS)?;
            hosts.write_all_at(text.as_bytes(), 0)?;
            hosts.set_len(text.len() as u64)?;
        }
    }
    if !std::fs::read_to_string(identity::HOSTS)?.ends_with(&line) {
        return Err(io::Error::other(format!("{} does not hold it", identity::HOSTS)));
    }
    Ok(())
}

/// The line of `/etc/hosts` by which the machine finds itself.
fn host_line(name: &str) -> String {
    format!("127.0.1.1 {name}\n")
}

/// The hosts, with the line of the name before gone and that of the new one at the end.
fn renamed(hosts: &str, before: &str, name: &str) -> String {
    let (old, new) = (host_line(before), host_line(name));
    let mut text: String = hosts.split_inclusive('\n').filter(|line| *line != old && *line != new).collect();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text + &new
}

fn set_machine_id(id: &str) -> io::Result<()> {
    replace(identity::MACHINE_ID, &format!("{id}\n"))
}

fn set_boot_id(id: &str) -> io::Result<()> {
    let line = format!("{id}\n");
    replace(identity::BOOT_ID, &line)?;
    let mut shown = [0; 64];
    let len = File::open(identity::BOOT_ID_SHOWN)?.read_at(&mut shown, 0)?;
    if shown[..len] != *line.as_bytes() {
        return Err(io::Error::other(format!("{} shows another", identity::BOOT_ID_SHOWN)));
    }
    Ok(())
}

fn set_ssh_host_key(request: &pb::AdoptRequest) -> io::Result<()> {
    // A file that others can read is refused by the SSH server, and would be theirs.
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(identity::SSH_HOST_KEY)?;
    replace(identity::SSH_HOST_KEY, &request.ssh_host_key)?;
    replace(identity::SSH_HOST_KEY_PUBLIC, &request.ssh_host_key_public)
}

/// Overwrites a small file and reads it back.
fn replace(path: &str, content: &str) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(content.as_bytes(), 0)?;
    let mut back = [0; SMALL];
    let len = file.read_at(&mut back, 0)?;
    if len > content.len() {
        file.set_len(content.len() as u64)?;
    }
    if len < content.len() || back[..content.len()] != *content.as_bytes() {
        return Err(io::Error::other(format!("{path} does not hold it")));
    }
    Ok(())
}

/// Refuses what could not be done, before anything is.
pub fn validate(request: &pb::AdoptRequest) -> Result<(), tonic::Status> {
    let refuse = |why: &str| Err(tonic::Status::invalid_argument(why));
    if request.sandbox_id.is_empty() || request.sandbox_id.len() > 128 {
        return refuse("sandbox_id must have 1 to 128 bytes");
    }
    if request.token.len() < 16
        || request.token.len() > 1024
        || !request.token.bytes().all(|b| b.is_ascii_graphic())
    {
        return refuse("token must be 16 to 1024 visible ASCII characters");
    }
    let host = request.hostname.as_bytes();
    if host.is_empty()
        || host.len() > 63
        || !host.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        || host[0] == b'-'
    {
        return refuse("hostname must be 1 to 63 letters, digits, dots and hyphens");
    }
    if !(ENTROPY_MIN..=ENTROPY_MAX).contains(&request.entropy.len()) {
        return refuse("entropy must have 32 to 512 bytes");
    }
    if request.machine_id.len() != 32 || !request.machine_id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return refuse("machine_id must be 32 hexadecimal digits");
    }
    let uuid = |(index, byte): (usize, u8)| match index {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    };
    if request.boot_id.len() != 36 || !request.boot_id.bytes().enumerate().all(uuid) {
        return refuse("boot_id must be a UUID");
    }
    for (name, key) in
        [("ssh_host_key", &request.ssh_host_key), ("ssh_host_key_public", &request.ssh_host_key_public)]
    {
        if key.is_empty() || key.len() >= SMALL {
            return refuse(&format!("{name} must have 1 to {} bytes", SMALL - 1));
        }
    }
    crate::service::check_environment(&request.envs)?;
    if !request.cwd.is_empty() && !request.cwd.starts_with('/') {
        return refuse("cwd must be absolute");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> pb::AdoptRequest {
        pb::AdoptRequest {
            sandbox_id: "sb_1".into(),
            token: "t".repeat(32),
            hostname: "sb-1".into(),
            entropy: vec![7; 64].into(),
            machine_id: "0123456789abcdef0123456789abcdef".into(),
            boot_id: "01234567-89ab-cdef-0123-456789abcdef".into(),
            ssh_host_key: "private".into(),
            ssh_host_key_public: "public".into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_new_host_name_takes_the_place_of_the_one_before_and_of_nothing_else() {
        let hosts = "127.0.0.1 localhost\n127.0.1.1 old\n127.0.1.1 older\n10.0.0.9 old";
        let renamed_once = "127.0.0.1 localhost\n127.0.1.1 older\n10.0.0.9 old\n127.0.1.1 new\n";
        assert_eq!(renamed(hosts, "old", "new"), renamed_once);
        assert_eq!(renamed(renamed_once, "old", "new"), renamed_once);
        assert_eq!(renamed("", "old", "new"), "127.0.1.1 new\n");
    }

    #[test]
    fn a_request_that_cannot_be_done_is_refused_whole() {
        assert!(validate(&request()).is_ok());
        let broken: [fn(&mut pb::AdoptRequest); 10] = [
            |r| r.sandbox_id.clear(),
            |r| r.token = "short".into(),
            |r| r.token.push('\n'),
            |r| r.hostname = "a b".into(),
            |r| r.entropy = vec![1; 8].into(),
            |r| r.machine_id.push('0'),
            |r| r.boot_id = "0123456789abcdef0123456789abcdef0123".into(),
            |r| r.cwd = "relative".into(),
            |r| r.ssh_host_key = "x".repeat(SMALL),
            |r| {
                r.envs.insert("A=B".into(), String::new());
            },
        ];
        for (index, change) in broken.into_iter().enumerate() {
            let mut request = request();
            change(&mut request);
            assert!(validate(&request).is_err(), "case {index}");
        }
    }
}

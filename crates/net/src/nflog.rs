//! The firewall's log of one slot: what it denied, read from the kernel and noted.
//!
//! The rules log the beginning of a denied packet to a group of the namespace ([`firewall::LOG_GROUP`]),
//! with the reason as prefix; how much is logged is bounded by the rules. What is logged is the machine's
//! to choose: [`message`] reads it in bounds.

mod message;

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvfrom, sendto, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use crate::denials::SlotDenials;
use crate::error::{Doing, Result};
use crate::firewall;

/// Room for a datagram of the kernel's: it collects entries up to a page.
const DATAGRAM: usize = 16 << 10;
/// How long a pause is after the log could not be read.
const PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// The group of a namespace, taken; given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Log {
    socket: OwnedFd,
}

impl Log {
    /// Takes the group in the namespace of the calling thread.
    pub(crate) fn open() -> Result<Self> {
        Self::bind().doing(|| "cannot read the firewall's log (kernel module nfnetlink_log)".into())
    }

    fn bind() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkNetFilter,
        )?;
        let kernel = NetlinkAddr::new(0, 0);
        let request = message::configuration(firewall::LOG_GROUP, firewall::LOGGED_BYTES);
        sendto(socket.as_raw_fd(), &request, &kernel, MsgFlags::empty())?;
        // The kernel answers before it returns from the request.
        let mut answer = [0; 512];
        let length = receive(&socket, &mut answer)?;
        message::acknowledged(&answer[..length])?;
        Ok(Self { socket })
    }
}

/// Reads one datagram, or nothing of one that is not the kernel's.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    let (length, from) = recvfrom::<NetlinkAddr>(socket.as_raw_fd(), buffer)?;
    Ok(if from.is_some_and(|from| from.pid() == 0) { length } else { 0 })
}

/// The task that reads it; ends when this is dropped or stopped.
#[derive(Debug)]
pub(crate) struct Reader {
    task: JoinHandle<()>,
}

impl Reader {
    /// Begins to read, on the current runtime. `uplink` is the slot's address towards the host.
    #[allow(unsafe_code)]
    pub(crate) fn start(log: Log, uplink: Ipv4Addr, denials: SlotDenials) -> io::Result<Self> {
        // SAFETY: the descriptor is owned by what is registered, open, and always the same.
        let socket = unsafe { AsyncFd::register_with_interest(log.socket, Interest::READABLE) }?;
        Ok(Self { task: tokio::spawn(read(socket, uplink, denials)) })
    }

    /// Ends it; when this returns the socket is closed.
    pub(crate) async fn stop(mut self) {
        self.task.abort();
        if let Err(error) = (&mut self.task).await
            && error.is_panic()
        {
            tracing::error!("the reader of a network slot's log had panicked");
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn read(socket: AsyncFd<OwnedFd>, uplink: Ipv4Addr, denials: SlotDenials) {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let received = match socket.readable().await {
            Ok(mut ready) => match ready.try_io(|socket| receive(socket.get_ref(), &mut buffer)) {
                Ok(received) => received,
                Err(_) => continue,
            },
            Err(error) => Err(error),
        };
        match received {
            Ok(length) => message::denied(&buffer[..length], uplink).for_each(|target| denials.add(target)),
            // Entries came faster than they were read; those that follow are whole again.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                tracing::debug!("entries of a network slot's log were lost");
            }
            Err(error) => {
                tracing::warn!(%error, "the log of a network slot cannot be read");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

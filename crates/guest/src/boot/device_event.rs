//! The kernel's announcements of devices that come, change and go.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// The multicast group of the kernel itself; others carry what a device daemon has to say.
const KERNEL: u32 = 1;

/// Begins to listen.
pub fn listen() -> nix::Result<OwnedFd> {
    let events = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, KERNEL))?;
    Ok(events)
}

/// Takes what has come. What it says does not matter: after any news the device is looked at.
pub fn discard(events: &OwnedFd) {
    let mut message = [0; 8192];
    // An overrun is news as well, and ends at the first call that has nothing.
    loop {
        match recv(events.as_raw_fd(), &mut message, MsgFlags::empty()) {
            Ok(_) | Err(nix::errno::Errno::ENOBUFS | nix::errno::Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

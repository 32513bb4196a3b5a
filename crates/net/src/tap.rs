//! The tap device, in the namespace of the calling thread.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};

use fs_err as fs;

use crate::error::{Doing, Error, Result};

const DEVICE: &str = "/dev/net/tun";

// The numbers of linux/if_tun.h: both take their argument where others take a pointer's size.
nix::ioctl_write_ptr_bad!(tun_set_interface, libc::TUNSETIFF, libc::ifreq);
nix::ioctl_write_int_bad!(tun_set_persist, libc::TUNSETPERSIST);

/// Opens the tap `name`, made if it is not there. Packets carry a virtio header and no protocol
/// number, as QEMU wants them.
pub(crate) fn open(name: &str) -> Result<OwnedFd> {
    let file = fs::OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            let problem = format!("{DEVICE} is missing: load the kernel module tun (modprobe tun)");
            return Error::Io { doing: problem, source: error };
        }
        Error::io("cannot open a tap", error)
    })?;
    // SAFETY: an ifreq is plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero: the name is one of ours and short.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).expect("three flags of the lower 15 bits");
    // SAFETY: the descriptor is open, and the request lives and is whole until the call returns.
    unsafe { tun_set_interface(file.as_raw_fd(), &raw const request) }
        .doing(|| format!("cannot attach to the tap {name}"))?;
    Ok(OwnedFd::from(file.into_parts().0))
}

/// Makes the tap `name`, to stay when nobody has it open.
pub(crate) fn create(name: &str) -> Result<()> {
    let tap = open(name)?;
    // SAFETY: the descriptor is open and attached; the argument is a plain number.
    unsafe { tun_set_persist(tap.as_raw_fd(), 1) }.doing(|| format!("cannot make the tap {name} stay"))?;
    Ok(())
}

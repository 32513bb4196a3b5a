//! The network: loopback, and the one link to the node.
//!
//! Address, route and neighbour are constants of the protocol, the same in every machine, so they
//! are set once at boot and stay true in every clone.
#![allow(unsafe_code)]

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nullspace_guest_proto::{GATEWAY_ADDRESS, GATEWAY_MAC, GUEST_ADDRESS, LINK_PREFIX};

/// The name of the link inside the machine.
pub const DEVICE: &str = "eth0";

/// Brings both devices up.
pub fn bring_up() -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    raise(&socket, "lo")?;
    let mut request = request(DEVICE);
    request.ifr_ifru.ifru_addr = address(GUEST_ADDRESS);
    call(&socket, libc::SIOCSIFADDR, &mut request, "address")?;
    let mask = Ipv4Addr::from(u32::MAX << (32 - LINK_PREFIX));
    request.ifr_ifru.ifru_netmask = address(mask);
    call(&socket, libc::SIOCSIFNETMASK, &mut request, "netmask")?;
    raise(&socket, DEVICE)?;
    add_default_route(&socket)?;
    add_neighbour(&socket)
}

fn raise(socket: &OwnedFd, device: &str) -> io::Result<()> {
    let mut request = request(device);
    call(socket, libc::SIOCGIFFLAGS, &mut request, device)?;
    // SAFETY: the kernel has just written the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    call(socket, libc::SIOCSIFFLAGS, &mut request, device)
}

fn add_default_route(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: all zeros is a valid value of this plain C structure.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = address(GATEWAY_ADDRESS);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    call(socket, libc::SIOCADDRT, &mut route, "default route")
}

/// A fixed entry for the node's end: a clone answers its first packet without asking who is there.
fn add_neighbour(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: all zeros is a valid value of this plain C structure.
    let mut entry: libc::arpreq = unsafe { std::mem::zeroed() };
    entry.arp_pa = address(GATEWAY_ADDRESS);
    entry.arp_ha.sa_family = libc::ARPHRD_ETHER;
    for (target, byte) in entry.arp_ha.sa_data.iter_mut().zip(GATEWAY_MAC) {
        *target = byte as libc::c_char;
    }
    entry.arp_flags = libc::ATF_PERM | libc::ATF_COM;
    for (target, byte) in entry.arp_dev.iter_mut().zip(DEVICE.bytes()) {
        *target = byte as libc::c_char;
    }
    call(socket, libc::SIOCSARP, &mut entry, "neighbour")
}

fn request(device: &str) -> libc::ifreq {
    // SAFETY: all zeros is a valid value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero: names of devices are shorter than the field.
    for (target, byte) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *target = byte as libc::c_char;
    }
    request
}

fn address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (target, byte) in data[2..6].iter_mut().zip(address.octets()) {
        *target = byte as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

fn call<T>(socket: &OwnedFd, number: libc::c_ulong, argument: &mut T, what: &str) -> io::Result<()> {
    // SAFETY: every caller passes the structure that its number is defined for, alive and writable.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), number as _, argument as *mut T) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return Err(io::Error::new(error.kind(), format!("{what}: {error}")));
    }
    Ok(())
}

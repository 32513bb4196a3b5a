//! The messages of nfnetlink_log (linux/netfilter/nfnetlink_log.h), and what of a logged packet is told.

use std::io;
use std::net::Ipv4Addr;

use nullspace_types::network::{DeniedProtocol, DeniedTarget};

use crate::firewall;

/// Both headers: netlink's, and that of netfilter's messages.
const NETLINK_HEADER: usize = 16;
const HEADERS: usize = NETLINK_HEADER + 4;

const SUBSYSTEM: u16 = 4 << 8;
const PACKET: u16 = SUBSYSTEM;
const CONFIGURATION: u16 = SUBSYSTEM | 1;
/// NLMSG_ERROR, also an acknowledgement.
const ERROR: u16 = 2;
/// NLM_F_REQUEST and NLM_F_ACK.
const ASK: u16 = 1 | 4;

const COMMAND: u16 = 1;
const BIND: u8 = 1;
const MODE: u16 = 2;
const COPY_PACKET: u8 = 2;
const TIMEOUT: u16 = 4;
/// After so many hundredths of a second the kernel sends what it has collected.
const TIMEOUT_HUNDREDTHS: u32 = 10;

const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;
/// The upper bits of an attribute's type are flags.
const TYPE: u16 = 0x3fff;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The request for a group, with so much of each packet.
pub(super) fn configuration(group: u16, copied: u32) -> Vec<u8> {
    let [a, b, c, d] = copied.to_be_bytes();
    let mut attributes = attribute(COMMAND, &[BIND]);
    attributes.extend(attribute(MODE, &[a, b, c, d, COPY_PACKET, 0]));
    attributes.extend(attribute(TIMEOUT, &TIMEOUT_HUNDREDTHS.to_be_bytes()));
    let length = u32::try_from(HEADERS + attributes.len()).expect("three short attributes");

    let mut message = Vec::with_capacity(HEADERS + attributes.len());
    message.extend(length.to_ne_bytes());
    message.extend(CONFIGURATION.to_ne_bytes());
    message.extend(ASK.to_ne_bytes());
    // Sequence and sender: the kernel fills in what it needs.
    message.extend([0; 8]);
    // Family unspecified, version 0.
    message.extend([0, 0]);
    message.extend(group.to_be_bytes());
    message.extend(attributes);
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("a short value");
    let mut bytes = Vec::with_capacity(aligned(4 + value.len()));
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(aligned(bytes.len()), 0);
    bytes
}

const fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Whether the kernel did what it was asked for.
pub(super) fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is no acknowledgement");
    let (kind, body) = pieces(answer).next().ok_or_else(short)?;
    let code = body.first_chunk().filter(|_| kind == ERROR).ok_or_else(short)?;
    match i32::from_ne_bytes(*code) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

/// What was denied, of all entries of a datagram that can be read. `uplink` is the slot's own address: what
/// goes there came from the outside, and is told by whom it came from.
pub(super) fn denied(datagram: &[u8], uplink: Ipv4Addr) -> impl Iterator<Item = DeniedTarget> {
    pieces(datagram).filter(|(kind, _)| *kind == PACKET).filter_map(move |(_, body)| {
        let (mut prefix, mut payload) = (None, None);
        for (kind, value) in attributes(body.get(HEADERS - NETLINK_HEADER..)?) {
            match kind {
                PREFIX => prefix = Some(value),
                PAYLOAD => payload = Some(value),
                _ => {}
            }
        }
        let prefix = prefix?;
        let reason = firewall::reason(prefix.strip_suffix(&[0]).unwrap_or(prefix))?;
        let Packet { protocol, address, port } = packet(payload?, uplink)?;
        Some(DeniedTarget { protocol, address: Some(address), port, name: None, reason })
    })
}

/// The messages of a datagram: type and body of each.
fn pieces(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*rest.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(*rest.get(4..)?.first_chunk()?);
        let body = rest.get(NETLINK_HEADER..length)?;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The attributes of a message: type and value of each.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?) & TYPE;
        let value = rest.get(4..length)?;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

struct Packet {
    protocol: DeniedProtocol,
    address: Ipv4Addr,
    port: Option<u16>,
}

/// Where an IPv4 packet goes, or where it comes from if it goes to `uplink`. Of a later fragment the ports
/// are not known.
fn packet(bytes: &[u8], uplink: Ipv4Addr) -> Option<Packet> {
    let first = *bytes.first()?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < 20 {
        return None;
    }
    let address = |at: usize| Some(Ipv4Addr::from(*bytes.get(at..)?.first_chunk::<4>()?));
    let number = |at: usize| Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    let (source, destination) = (address(12)?, address(16)?);
    let inward = destination == uplink;
    let later_fragment = number(6)? & 0x1fff != 0;
    let port = || number(if inward { header } else { header + 2 }).filter(|_| !later_fragment);
    let (protocol, port) = match *bytes.get(9)? {
        ICMP => (DeniedProtocol::Icmp, None),
        TCP => (DeniedProtocol::Tcp, port()),
        UDP => (DeniedProtocol::Udp, port()),
        _ => (DeniedProtocol::Other, None),
    };
    Some(Packet { protocol, address: if inward { source } else { destination }, port })
}

#[cfg(test)]
mod tests {
    use nullspace_types::network::DenyReason;
    use proptest::prelude::*;

    use super::*;

    const UPLINK: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 2);

    /// A datagram with one entry.
    fn entry(prefix: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut body = vec![2, 0, 0, 5];
        body.extend(attribute(1, &[8, 0, 1, 0]));
        body.extend(attribute(PREFIX, prefix));
        body.extend(attribute(PAYLOAD | 0x8000, payload));
        let mut message = u32::try_from(NETLINK_HEADER + body.len()).unwrap().to_ne_bytes().to_vec();
        message.extend(PACKET.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message
    }

    fn syn(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, TCP, 0, 0];
        bytes.extend(from);
        bytes.extend(to);
        bytes.extend([0x30, 0x39, 1, 187, 0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn an_entry_says_where_the_packet_would_have_gone_and_why_it_did_not() {
        let mut datagram = entry(b"denied_address\0", &syn([10, 200, 0, 2], [203, 0, 113, 9]));
        datagram.extend(entry(b"limit_reached\0", &syn([203, 0, 113, 9], UPLINK.octets())));
        datagram.extend(entry(b"somebody else's\0", &syn([10, 200, 0, 2], [203, 0, 113, 9])));
        let expected = |port, reason| DeniedTarget {
            protocol: DeniedProtocol::Tcp,
            address: Some([203, 0, 113, 9].into()),
            port: Some(port),
            name: None,
            reason,
        };
        assert_eq!(
            denied(&datagram, UPLINK).collect::<Vec<_>>(),
            [expected(443, DenyReason::DeniedAddress), expected(12345, DenyReason::Limit)]
        );
    }

    #[test]
    fn the_ports_of_a_later_fragment_or_a_cut_packet_are_unknown() {
        let mut fragment = syn([10, 200, 0, 2], [203, 0, 113, 9]);
        fragment[7] = 1;
        assert_eq!(packet(&fragment, UPLINK).unwrap().port, None);
        assert_eq!(packet(&syn([10, 200, 0, 2], [203, 0, 113, 9])[..22], UPLINK).unwrap().port, None);
    }

    proptest! {
        #[test]
        fn no_packet_of_a_machine_and_no_datagram_is_misread(
            payload in prop::collection::vec(any::<u8>(), 0..96),
            cut in 0..200usize,
            change in (0..200usize, any::<u8>()),
        ) {
            let mut datagram = entry(b"no_name\0", &payload);
            prop_assert!(denied(&datagram, UPLINK).count() <= 1);
            if let Some(byte) = datagram.get_mut(change.0) {
                *byte = change.1;
            }
            datagram.truncate(cut);
            // However it is cut and changed, it is read in bounds and to an end.
            prop_assert!(denied(&datagram, UPLINK).count() <= datagram.len());
            let _ = acknowledged(&datagram);
        }
    }
}

//! What a host's name means to a program in the machine: an address, a line of `/etc/hosts`, or what the
//! machine's resolvers say.
//!
//! The C library's way would have the agent, which is linked statically, load whatever libraries
//! `/etc/nsswitch.conf` names into its own memory. So this asks itself, and understands no more of RFC 1035
//! than it takes to ask one server for the IPv4 addresses of one name: machines have no other way out.
//! Deliberately absent: search domains, and asking again over TCP.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tonic::Status;

const HOSTS: &str = "/etc/hosts";
const RESOLVERS: &str = "/etc/resolv.conf";
/// How many resolvers are asked, as the C library has it, and how long each is waited for.
const ASKED: usize = 3;
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of a name, and of one part of it.
const NAME_BYTES: usize = 253;
const LABEL_BYTES: usize = 63;
/// More than any answer over UDP has that was not asked to be longer.
const ANSWER_BYTES: usize = 4096;
const HEADER: usize = 12;

/// The addresses of a host, at least one. Errors: the name means nothing, or no resolver answers.
pub async fn addresses(host: &str) -> Result<Vec<IpAddr>, Status> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse() {
        return Ok(vec![address]);
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let question = question(name).ok_or_else(|| {
        Status::invalid_argument(format!("host {:.80} is no name of a host", host.escape_debug()))
    })?;
    let known = std::fs::read_to_string(HOSTS).map(|hosts| in_hosts(&hosts, name)).unwrap_or_default();
    if !known.is_empty() {
        return Ok(known);
    }
    if name.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let resolvers = resolvers(&std::fs::read_to_string(RESOLVERS).unwrap_or_default());
    let mut silent = None;
    for resolver in resolvers {
        match ask(resolver, &question).await {
            Ok(found) if found.is_empty() => {
                return Err(Status::invalid_argument(format!("host {name} has no address")));
            }
            Ok(found) => return Ok(found.into_iter().map(IpAddr::V4).collect()),
            Err(error) => silent = Some(error),
        }
    }
    let why = silent.map_or_else(|| "there is no resolver".into(), |error| error.to_string());
    Err(Status::unavailable(format!("host {name} cannot be looked up: {why}")))
}

/// Addresses that a line gives this name, IPv4 first.
fn in_hosts(hosts: &str, name: &str) -> Vec<IpAddr> {
    let lines = hosts.lines().filter_map(|line| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let address: IpAddr = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    });
    let mut found: Vec<_> = lines.collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found.dedup();
    found
}

fn resolvers(configuration: &str) -> Vec<SocketAddr> {
    let lines = configuration.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address: IpAddr = (words.next()? == "nameserver").then(|| words.next())??.parse().ok()?;
        Some(SocketAddr::new(address, 53))
    });
    lines.take(ASKED).collect()
}

/// A query without its ID: the IPv4 addresses of a name, by recursion. None for what is no name.
fn question(name: &str) -> Option<Vec<u8>> {
    if name.len() > NAME_BYTES {
        return None;
    }
    let mut query = vec![1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        let sound = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        if label.is_empty() || label.len() > LABEL_BYTES || !sound {
            return None;
        }
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    Some(query)
}

async fn ask(resolver: SocketAddr, question: &[u8]) -> io::Result<Vec<Ipv4Addr>> {
    let mut id = [0; 2];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut id)?;
    let query = [&id, question].concat();
    let any: IpAddr =
        if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Answers of others are not received.
    socket.connect(resolver).await?;
    socket.send(&query).await?;
    let answered = async {
        let mut answer = vec![0; ANSWER_BYTES];
        loop {
            let len = socket.recv(&mut answer).await?;
            if let Some(found) = answer_to(&query, &answer[..len]) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, answered).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The addresses of an answer, none where the name does not exist. `None`: it is no answer to this query.
fn answer_to(query: &[u8], answer: &[u8]) -> Option<io::Result<Vec<Ipv4Addr>>> {
    const RESPONSE: u8 = 0x80;
    const NO_SUCH_NAME: u8 = 3;
    let asked = query.get(HEADER..)?;
    if answer.get(..2)? != query.get(..2)? || answer.get(2)? & RESPONSE == 0 {
        return None;
    }
    match answer.get(3)? & 0x0f {
        0 => {}
        NO_SUCH_NAME => return Some(Ok(Vec::new())),
        code => return Some(Err(io::Error::other(format!("the resolver answers with code {code}")))),
    }
    let mut rest = answer.get(HEADER..)?;
    if rest.len() < asked.len() || !rest[..asked.len()].eq_ignore_ascii_case(asked) {
        return None;
    }
    rest = &rest[asked.len()..];
    let count = u16::from_be_bytes([*answer.get(6)?, *answer.get(7)?]);
    let mut found = Vec::new();
    for _ in 0..count {
        // Cut where it did not fit: what is whole counts.
        let Some((address, next)) = record(rest) else { break };
        found.extend(address);
        rest = next;
    }
    Some(Ok(found))
}

/// The first record: its address if it has one, and what follows. That it is of the name which was asked for,
/// or of one to which that leads, is the resolver's business.
fn record(mut bytes: &[u8]) -> Option<(Option<Ipv4Addr>, &[u8])> {
    const POINTER: u8 = 0xc0;
    loop {
        let len = *bytes.first()?;
        if len & POINTER == POINTER {
            bytes = bytes.get(2..)?;
            break;
        }
        bytes = bytes.get(1 + usize::from(len)..)?;
        if len == 0 {
            break;
        }
    }
    let (fixed, rest) = bytes.split_at_checked(10)?;
    let len = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    let (data, rest) = rest.split_at_checked(len)?;
    let address = (fixed[..4] == [0, 1, 0, 1]).then(|| <[u8; 4]>::try_from(data).ok()).flatten();
    Some((address.map(Ipv4Addr::from), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query(name: &str) -> Vec<u8> {
        [&[7, 9][..], &question(name).unwrap()].concat()
    }

    /// An answer with these records behind the question.
    fn answer(query: &[u8], code: u8, records: &[&[u8]]) -> Vec<u8> {
        let head = [query[0], query[1], 0x81, 0x80 | code, 0, 1, 0, records.len() as u8, 0, 0, 0, 0];
        [&head, &query[HEADER..], &records.concat()].concat()
    }

    const ALIAS: &[u8] = &[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 3, 1, b'x', 0];
    const ADDRESS: &[u8] = &[1, b'x', 0, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 7];

    #[test]
    fn addresses_are_read_through_aliases_and_only_of_the_answer_to_the_question() {
        let asked = query("www.example.com");
        let address = Ipv4Addr::new(192, 0, 2, 7);
        let read = |bytes: &[u8]| answer_to(&asked, bytes).map(|found| found.unwrap());
        assert_eq!(read(&answer(&asked, 0, &[ALIAS, ADDRESS])), Some(vec![address]));
        assert_eq!(read(&answer(&asked, 0, &[ADDRESS, &ADDRESS[..9]])), Some(vec![address]), "cut");
        assert_eq!(read(&answer(&asked, 3, &[])), Some(vec![]));
        assert!(answer_to(&asked, &answer(&asked, 2, &[])).unwrap().is_err());
        assert_eq!(read(&answer(&query("www.example.org"), 0, &[ADDRESS])), None);
        assert_eq!(read(&asked), None, "a query");
    }

    #[test]
    fn hosts_and_resolvers_are_read_as_the_c_library_reads_them() {
        let hosts =
            "::1 localhost ip6\n127.0.0.1\tLocalHost # one\n# 10.0.0.1 db\n10.0.0.2 db db.local\nx db\n";
        assert_eq!(
            in_hosts(hosts, "localhost"),
            [Ipv4Addr::LOCALHOST.into(), IpAddr::V6(Ipv6Addr::LOCALHOST)]
        );
        assert_eq!(in_hosts(hosts, "db"), [IpAddr::from([10, 0, 0, 2])]);
        assert!(in_hosts(hosts, "one").is_empty());
        let found = resolvers("search x\nnameserver 10.200.0.1\n#nameserver 1.1.1.1\nnameserver x\n");
        assert_eq!(found, [SocketAddr::from(([10, 200, 0, 1], 53))]);
    }

    #[test]
    fn what_is_no_name_is_not_asked_for() {
        for name in ["", ".", "a..b", "a b", "ü", &"a".repeat(64), &"a.".repeat(127), "a\0b"] {
            assert_eq!(question(name), None, "{name}");
        }
        assert!(question("_srv.a-b.c0").is_some());
    }

    proptest! {
        #[test]
        fn no_answer_is_read_beyond_its_end(bytes in proptest::collection::vec(any::<u8>(), 0..64), code in 0..4_u8) {
            let asked = query("a.b");
            let _ = answer_to(&asked, &bytes);
            let _ = answer_to(&asked, &answer(&asked, code, &[&bytes]));
        }
    }
}

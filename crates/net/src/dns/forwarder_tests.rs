use std::sync::atomic::{AtomicU32, Ordering};

use nullspace_types::network::{DeniedProtocol, DeniedTarget, DenyReason, DomainPattern, EgressPolicy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::lookup::Lookups;
use super::super::message::tests::query;
use super::super::resolv_conf::Resolvers;
use super::*;
use crate::denials::{Denials, SlotDenials};
use crate::way::Way;

/// An address of the loopback that is this test's alone: a port that is free over UDP is then free over TCP.
fn guest() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    thread_local! {
        static OURS: u32 = std::process::id() << 5 | NEXT.fetch_add(1, Ordering::Relaxed);
    }
    Ipv4Addr::from_bits(0x7f01_0000 + OURS.with(|ours| ours % 0xfd_0000))
}

const ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// Names for a slot with this policy.
fn names(servers: Vec<SocketAddr>, policy: EgressPolicy) -> (Arc<NameService>, Arc<Way>, Arc<Denials>) {
    let (way, denials) = (Arc::new(Way::with(policy)), Arc::new(Denials::default()));
    let lookups = Arc::new(Lookups::new(Arc::new(Resolvers::at(servers))));
    let names = NameService::new(way.clone(), SlotDenials::new(0, denials.clone()), lookups);
    (Arc::new(names), way, denials)
}

fn serve(names: Arc<NameService>) -> (Forwarder, SocketAddr) {
    let sockets = Sockets::bind_to((guest(), 0).into()).unwrap();
    let address = sockets.udp.local_addr().unwrap();
    (Forwarder::start(0, sockets, guest(), names).unwrap(), address)
}

/// A forwarder on a free port of the loopback, and its address.
fn forwarder(servers: Vec<SocketAddr>) -> (Forwarder, SocketAddr) {
    serve(names(servers, EgressPolicy::default()).0)
}

/// A resolver for which every name has one address; it tells how often it was asked.
async fn resolver() -> (SocketAddr, tokio::sync::watch::Receiver<u32>) {
    let socket = UdpSocket::bind((guest(), 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    let (asked, seen) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            asked.send_modify(|count| *count += 1);
            let mut answer = buffer[..length].to_vec();
            (answer[2], answer[7]) = (0x81, 1);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(ADDRESS.octets());
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    (address, seen)
}

fn query_for(name: &str, kind: u8) -> Vec<u8> {
    let mut bytes = Query::for_addresses(name).unwrap().bytes().to_vec();
    let at = bytes.len() - 3;
    bytes[at] = kind;
    bytes
}

fn only(pattern: &str) -> EgressPolicy {
    let allow_domains = vec![DomainPattern::from_normal(pattern.into())];
    EgressPolicy { internet_access: false, allow_domains, ..EgressPolicy::default() }
}

async fn ask_udp(address: SocketAddr, query: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind((guest(), 0)).await.unwrap();
    socket.send_to(query, address).await.unwrap();
    let mut answer = vec![0; 5000];
    let length = socket.recv(&mut answer).await.unwrap();
    answer.truncate(length);
    answer
}

async fn connect(address: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((guest(), 0).into()).unwrap();
    socket.connect(address).await.unwrap()
}

fn answer_to(query: &[u8], extra: usize) -> Vec<u8> {
    let mut answer = query.to_vec();
    answer[2] = 0x81;
    answer.resize(answer.len() + extra, b'x');
    answer
}

#[tokio::test]
async fn only_the_resolvers_answer_to_that_query_is_relayed() {
    let resolver = UdpSocket::bind((guest(), 0)).await.unwrap();
    let (_forwarder, address) = forwarder(vec![resolver.local_addr().unwrap()]);
    let resolved = tokio::spawn(async move {
        let mut buffer = [0; 512];
        let (length, from) = resolver.recv_from(&mut buffer).await.unwrap();
        let good = answer_to(&buffer[..length], 20);
        let mut another_id = good.clone();
        another_id[0] ^= 0xff;
        let mut another_name = good.clone();
        another_name[14] = b'Z';
        for answer in [&another_id, &another_name, &good] {
            resolver.send_to(answer, from).await.unwrap();
        }
    });
    let asked = query([1, 2]);
    assert_eq!(ask_udp(address, &asked).await, answer_to(&asked, 20));
    resolved.await.unwrap();
}

#[tokio::test]
async fn an_answer_too_long_for_a_datagram_is_asked_for_over_tcp() {
    let resolver = UdpSocket::bind((guest(), 0)).await.unwrap();
    let server = resolver.local_addr().unwrap();
    let stream_resolver = TcpListener::bind(server).await.unwrap();
    let (_forwarder, address) = forwarder(vec![server]);
    let resolved = tokio::spawn(async move {
        let mut buffer = [0; 512];
        let (length, from) = resolver.recv_from(&mut buffer).await.unwrap();
        resolver.send_to(&answer_to(&buffer[..length], 5000), from).await.unwrap();
        let (mut stream, _) = stream_resolver.accept().await.unwrap();
        let asked = relay::read_message(&mut stream).await.unwrap().unwrap();
        relay::write_message(&mut stream, &answer_to(&asked, 5000)).await.unwrap();
    });
    let asked = query([3, 4]);
    let short = ask_udp(address, &asked).await;
    assert_eq!((short.len(), short[2]), (asked.len(), 0x83), "truncated");

    let mut stream = connect(address).await;
    relay::write_message(&mut stream, &asked).await.unwrap();
    let whole = relay::read_message(&mut stream).await.unwrap().unwrap();
    assert_eq!(whole, answer_to(&asked, 5000));
    resolved.await.unwrap();
}

#[tokio::test]
async fn without_a_resolver_the_answer_is_servfail() {
    // A port that was free a moment ago: asking there is refused at once.
    let nobody = UdpSocket::bind((guest(), 0)).await.unwrap().local_addr().unwrap();
    let (_forwarder, address) = forwarder(vec![nobody]);
    let answer = ask_udp(address, &query([5, 6])).await;
    assert_eq!((&answer[..2], answer[3] & 0x0f), (&[5, 6][..], 2));
}

#[tokio::test]
async fn a_broken_query_ends_the_connection_and_a_stopped_forwarder_frees_its_port() {
    let (forwarder, address) = forwarder(vec![]);
    let mut stream = connect(address).await;
    stream.write_all(&[0, 3, 1, 2, 3]).await.unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0);
    drop(stream);
    forwarder.stop().await;
    UdpSocket::bind(address).await.unwrap();
}

#[tokio::test]
async fn a_name_that_is_not_allowed_does_not_exist_and_is_asked_of_nobody() {
    let (resolver, asked) = resolver().await;
    let (names, _, denials) = names(vec![resolver], only("*.good.test"));
    let (_forwarder, address) = serve(names.clone());
    let answer = ask_udp(address, &query_for("Data.Evil.test", 1)).await;
    assert_eq!(answer[3], 3, "no such name");
    let mut dotted = query_for("a-good.test", 1);
    dotted[14] = b'.';
    assert_eq!(ask_udp(address, &dotted).await[3], 3, "a label with a dot in it is no way around");
    assert_eq!(*asked.borrow(), 0);
    let denied = |name: Option<&str>| DeniedTarget {
        protocol: DeniedProtocol::Dns,
        address: None,
        port: None,
        name: name.map(str::to_owned),
        reason: DenyReason::NameNotAllowed,
    };
    let seen: Vec<_> = denials.next().await.into_iter().map(|(_, denial)| denial.target).collect();
    assert!(
        seen.len() == 2 && seen.contains(&denied(Some("data.evil.test"))) && seen.contains(&denied(None))
    );

    assert!(!names.knows(ADDRESS));
    assert_eq!(ask_udp(address, &query_for("shop.good.test", 1)).await.last(), Some(&1));
    assert!(names.knows(ADDRESS), "what was given is remembered");
    assert!(names.gives("shop.good.test", ADDRESS).await);
    assert_eq!(*asked.borrow(), 1);
    // What would lead around the rules is as if it were not there.
    for kind in [28, 64, 65, 255] {
        let answer = ask_udp(address, &query_for("shop.good.test", kind)).await;
        assert_eq!((answer[3], &answer[6..8]), (0, &[0, 0][..]), "{kind}");
    }
    assert_eq!(*asked.borrow(), 1);
}

#[tokio::test]
async fn an_address_that_was_not_given_is_looked_up_once() {
    let (resolver, asked) = resolver().await;
    let (names, ..) = names(vec![resolver], only("*"));
    let looked: Vec<_> = (0..20)
        .map(|_| {
            let names = names.clone();
            tokio::spawn(async move { names.gives("shop.test", ADDRESS).await })
        })
        .collect();
    for look in looked {
        assert!(look.await.unwrap());
    }
    assert!(!names.gives("shop.test", Ipv4Addr::new(203, 0, 113, 2)).await);
    assert_eq!(*asked.borrow(), 1);
    assert!(!names.knows(ADDRESS), "the machine did not ask for it");
}

#[tokio::test]
async fn a_closed_way_and_a_closed_policy_refuse_every_name() {
    let (resolver, asked) = resolver().await;
    let closed = EgressPolicy { internet_access: false, ..EgressPolicy::default() };
    for (policy, close) in [(closed, false), (EgressPolicy::default(), true)] {
        let (names, way, _) = names(vec![resolver], policy);
        let (_forwarder, address) = serve(names);
        if close {
            way.close().unwrap();
        }
        assert_eq!(ask_udp(address, &query_for("good.test", 1)).await[3], 5);
    }
    assert_eq!(*asked.borrow(), 0);
}

#[tokio::test]
async fn a_machine_that_asks_too_often_is_told_so_and_noted() {
    let (resolver, asked) = resolver().await;
    let (names, _, denials) = names(vec![resolver], EgressPolicy::default());
    let refused = (0..1000)
        .filter_map(|_| names.answer_at_once(&Query::parse(&query_for("data.evil.test", 16)).unwrap()))
        .filter(|answer| answer[3] == 2)
        .count();
    assert!(refused > 500, "{refused}");
    assert_eq!(*asked.borrow(), 0);
    let [(0, denial)] = &denials.next().await[..] else { panic!("one denial") };
    assert_eq!((denial.target.reason, denial.count), (DenyReason::Limit, refused as u64));
}

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::message::tests::query;
use super::*;

const GUEST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A forwarder on a free port of the loopback, and its address.
fn forwarder(servers: Vec<SocketAddr>) -> (Forwarder, SocketAddr) {
    let sockets = Sockets::bind_to((GUEST, 0).into()).unwrap();
    let address = sockets.udp.local_addr().unwrap();
    let forwarder = Forwarder::start(0, sockets, GUEST, Arc::new(Resolvers::at(servers))).unwrap();
    (forwarder, address)
}

async fn ask_udp(address: SocketAddr, query: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind((GUEST, 0)).await.unwrap();
    socket.send_to(query, address).await.unwrap();
    let mut answer = vec![0; 5000];
    let length = socket.recv(&mut answer).await.unwrap();
    answer.truncate(length);
    answer
}

fn answer_to(query: &[u8], extra: usize) -> Vec<u8> {
    let mut answer = query.to_vec();
    answer[2] = 0x81;
    answer.resize(answer.len() + extra, b'x');
    answer
}

#[tokio::test]
async fn only_the_resolvers_answer_to_that_query_is_relayed() {
    let resolver = UdpSocket::bind((GUEST, 0)).await.unwrap();
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
    let resolver = UdpSocket::bind((GUEST, 0)).await.unwrap();
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

    let mut stream = TcpStream::connect(address).await.unwrap();
    relay::write_message(&mut stream, &asked).await.unwrap();
    let whole = relay::read_message(&mut stream).await.unwrap().unwrap();
    assert_eq!(whole, answer_to(&asked, 5000));
    resolved.await.unwrap();
}

#[tokio::test]
async fn without_a_resolver_the_answer_is_servfail() {
    // A port that was free a moment ago: asking there is refused at once.
    let nobody = UdpSocket::bind((GUEST, 0)).await.unwrap().local_addr().unwrap();
    let (_forwarder, address) = forwarder(vec![nobody]);
    let answer = ask_udp(address, &query([5, 6])).await;
    assert_eq!((&answer[..2], answer[3] & 0x0f), (&[5, 6][..], 2));
}

#[tokio::test]
async fn a_broken_query_ends_the_connection_and_a_stopped_forwarder_frees_its_port() {
    let (forwarder, address) = forwarder(vec![]);
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&[0, 3, 1, 2, 3]).await.unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0);
    drop(stream);
    forwarder.stop().await;
    UdpSocket::bind(address).await.unwrap();
}

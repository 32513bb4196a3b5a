//! Asks the host's resolvers, from the host's namespace.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use super::message::Query;
use super::resolv_conf::Resolvers;

/// How long one resolver is waited for before the next is asked.
const ONE: Duration = Duration::from_secs(2);
/// How long a query may take in all. The machine's own resolver gives up at about the same time.
const ALL: Duration = Duration::from_secs(5);
/// Longest answer over UDP that is relayed; the machine is told to ask for a longer one over TCP.
const LONGEST: usize = 4096;

/// How the query came, and so how it is relayed: what fits a machine's UDP fits the relay's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// The answer to a query: of the first resolver that has one, or SERVFAIL.
pub(super) async fn answer(query: &Query, transport: Transport, resolvers: &Arc<Resolvers>) -> Vec<u8> {
    let Some(_one) = resolvers.admit() else { return query.servfail() };
    let servers = resolvers.current().await;
    let deadline = Instant::now() + ALL;
    // Twice around: a lost packet is not a dead resolver.
    for server in servers.iter().chain(&servers) {
        if Instant::now() >= deadline {
            break;
        }
        // An ID of our own: what a machine chooses is no secret from it.
        let asked = query.with_id(rand::random());
        let asking = async {
            match transport {
                Transport::Udp => over_udp(&asked, *server).await,
                Transport::Tcp => over_tcp(&asked, *server).await,
            }
        };
        match timeout_at(deadline, timeout(ONE, asking)).await {
            Ok(Ok(Ok(mut answer))) => {
                answer[..2].copy_from_slice(&query.id());
                return answer;
            }
            Ok(Ok(Err(error))) => tracing::debug!(%server, %error, "a resolver cannot be asked"),
            Ok(Err(_)) | Err(_) => tracing::debug!(%server, "a resolver did not answer in time"),
        }
    }
    query.servfail()
}

/// Whether a resolver answers, whatever it says: asked once, over UDP, for the name servers of the
/// root, which every resolver knows.
pub async fn ask(server: SocketAddr, patience: Duration) -> io::Result<()> {
    let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    bytes[..2].copy_from_slice(&rand::random::<[u8; 2]>());
    let query = Query::parse(&bytes).expect("a query as RFC 1035 has it");
    timeout(patience, over_udp(&query, server)).await?.map(drop)
}

async fn over_udp(query: &Query, server: SocketAddr) -> io::Result<Vec<u8>> {
    // A socket for each query: its port is chosen by the kernel, and an answer must come from the
    // resolver, to that port, with that ID.
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query.bytes()).await?;
    let mut buffer = vec![0; LONGEST + 1];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if query.is_answered_by(&buffer[..length]) {
            if length > LONGEST {
                return Ok(query.truncated());
            }
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(query: &Query, server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    write_message(&mut stream, query.bytes()).await?;
    let answer = read_message(&mut stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    if !query.is_answered_by(&answer) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question"));
    }
    Ok(answer)
}

/// Reads a message with its length before it; `None` at the end of the stream.
pub(super) async fn read_message(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Writes a message with its length before it.
pub(super) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the message is too long"))?;
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend(length.to_be_bytes());
    framed.extend(message);
    stream.write_all(&framed).await
}

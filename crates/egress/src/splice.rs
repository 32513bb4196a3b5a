//! Passes bytes between two connections as they are.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::first::Unreadable;
use crate::hello::{self, HANDSHAKE, Hello, RECORD_HEADER};

/// Bytes on their way in one direction.
const ON_THE_WAY: usize = 16 << 10;
/// Longest content of a record (RFC 8446, 5.2), with what TLS 1.2 allows beyond it.
const RECORD_BYTES_MAX: usize = (16 << 10) + 2048;
/// The random that says that a server's hello asks for another hello (RFC 8446, 4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
    0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];
/// Where that random is, in the record of a server's hello.
const RETRY_AT: usize = RECORD_HEADER + 4 + 2;

/// Copies both ways until both sides have said that they end. Each side's end is passed on by itself.
pub async fn copy<A, B>(one: &mut A, other: &mut B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin + ?Sized,
    B: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    tokio::io::copy_bidirectional_with_sizes(one, other, ON_THE_WAY, ON_THE_WAY).await.map(drop)
}

/// Sends what the guest sent first, and copies.
pub async fn pass(guest: &mut TcpStream, outside: &mut TcpStream, first: &[u8]) -> io::Result<()> {
    outside.write_all(first).await?;
    copy(guest, outside).await
}

/// How a TLS connection ended.
pub enum Tls {
    /// As connections do.
    Done,
    /// By a second hello with another name.
    OtherName(Option<String>),
}

/// Passes a TLS connection whose hello was judged. A server may ask for a second hello, and may then go by the
/// name in that one: so the guest's bytes are held back until the server has answered, and if it asks again,
/// the second hello must show the same name. What comes after that is encrypted.
pub async fn pass_tls(
    guest: &mut TcpStream,
    outside: &mut TcpStream,
    hello: Hello,
    mut first: BytesMut,
) -> io::Result<Tls> {
    let held = first.split_off(hello.length);
    outside.write_all(&first).await?;
    let mut answer = BytesMut::new();
    while answer.len() < RETRY_AT + RETRY.len() {
        if outside.read_buf(&mut answer).await? == 0 {
            break;
        }
    }
    guest.write_all(&answer).await?;
    let again =
        answer.first() == Some(&HANDSHAKE) && answer.get(RETRY_AT..).is_some_and(|at| at.starts_with(&RETRY));
    let mut rest = held;
    if again && let Some(other) = second_hello(guest, outside, &hello, &mut rest).await? {
        return Ok(Tls::OtherName(other));
    }
    pass(guest, outside, &rest).await?;
    Ok(Tls::Done)
}

/// Sends the records before the second hello on, and that hello if it shows the name of the first; otherwise
/// answers what it shows. What was read beyond is left in `bytes`.
async fn second_hello(
    guest: &mut TcpStream,
    outside: &mut TcpStream,
    hello: &Hello,
    bytes: &mut BytesMut,
) -> io::Result<Option<Option<String>>> {
    loop {
        let taken = match bytes.first() {
            Some(&HANDSHAKE) => match hello::read(bytes) {
                Err(Unreadable) => return Ok(Some(None)),
                Ok(Some(second)) if second.name != hello.name => return Ok(Some(second.name)),
                Ok(Some(second)) => {
                    outside.write_all(&bytes.split_to(second.length)).await?;
                    return Ok(None);
                }
                Ok(None) => None,
            },
            // Early data, or a change of ciphers that changes nothing: the server skips them.
            _ => match bytes[..] {
                [_, _, _, high, low, ..] => {
                    let length = usize::from(u16::from_be_bytes([high, low]));
                    if length > RECORD_BYTES_MAX {
                        return Ok(Some(None));
                    }
                    (bytes.len() >= RECORD_HEADER + length).then_some(RECORD_HEADER + length)
                }
                _ => None,
            },
        };
        if let Some(taken) = taken {
            outside.write_all(&bytes.split_to(taken)).await?;
            continue;
        }
        bytes.reserve(4096);
        if guest.read_buf(bytes).await? == 0 {
            return Ok(None);
        }
    }
}

/// Waits until the other end has said something, or that it ends. Readiness alone may be told without a reason.
pub async fn speaks(stream: &TcpStream) -> io::Result<()> {
    stream.peek(&mut [0]).await.map(drop)
}

/// Ends a connection so that the other end learns that it failed.
pub fn reset(stream: TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "a connection could not be reset, and is closed");
    }
}

/// Lets the kernel find out when the other end is gone.
pub fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let pace = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    SockRef::from(stream).set_tcp_keepalive(&pace)?;
    stream.set_nodelay(true)
}

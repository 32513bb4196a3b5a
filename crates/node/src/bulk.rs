//! The node's end of the lane for bulk data: a plain connection beside the gRPC one, that carries the bytes
//! of one call and nothing else. Why there is one, and how a call and its connection find each other, is
//! told in the guest's `bulk` module. A guest whose link has no such lane is sent messages instead.
//!
//! The guest is hostile: what is read here is bounded by what the call asked for, and a connection that
//! ends early is an error of the call, never a short file.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use nullspace_guest_proto::{BULK_FROM_BYTES, TICKET_BYTES};
use nullspace_node_api::ByteStream;
use nullspace_types::Result;
use nullspace_vmm::LinkStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::guest::PATIENCE;
use crate::running::Running;

/// Bytes that are read at once.
const PIECE: usize = 256 << 10;

/// A connection that has shown its ticket.
pub struct Lane(Box<dyn LinkStream>);

/// A new ticket.
pub fn ticket() -> Bytes {
    crate::random_bytes(TICKET_BYTES).into()
}

impl Lane {
    /// Opens a connection and shows the ticket.
    pub async fn open(machine: &Running, ticket: &[u8]) -> io::Result<Self> {
        let mut stream = machine.guest().dial_bulk().await?;
        stream.write_all(ticket).await?;
        Ok(Self(stream))
    }

    /// The connection itself, for as long as both sides want it.
    pub fn into_stream(self) -> nullspace_node_api::Stream {
        Box::new(self.0)
    }

    /// Sends some more; a guest that takes nothing for [`PATIENCE`] is not there.
    pub async fn send(&mut self, data: &[u8]) -> io::Result<()> {
        patient(self.0.write_all(data)).await
    }

    /// That was all.
    pub async fn end(mut self) -> io::Result<()> {
        patient(self.0.shutdown()).await
    }

    /// What comes, until the other side ends; at most `most` bytes.
    pub fn receive(self, most: u64) -> BoxStream<'static, io::Result<Bytes>> {
        stream::try_unfold((self.0, most, BytesMut::new()), |(mut lane, left, mut buffer)| async move {
            if left == 0 {
                return Ok(None);
            }
            buffer.reserve(PIECE);
            let mut room = (&mut buffer).limit((PIECE as u64).min(left) as usize);
            let len = patient(lane.read_buf(&mut room)).await?;
            if len == 0 {
                return Ok(None);
            }
            let piece = buffer.split().freeze();
            Ok(Some((piece, (lane, left - len as u64, buffer))))
        })
        .boxed()
    }
}

async fn patient<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// A body of which enough was read to know whether it is a large one.
pub enum Body {
    /// All of it, in its pieces.
    Small(Vec<Bytes>),
    /// Its first pieces, and the rest.
    Large(Vec<Bytes>, ByteStream),
}

/// Reads so much of a body as says whether it is worth a lane.
pub async fn look(mut body: ByteStream) -> Result<Body> {
    let (mut pieces, mut length) = (Vec::new(), 0);
    while length < BULK_FROM_BYTES {
        match body.next().await {
            None => return Ok(Body::Small(pieces)),
            Some(piece) => {
                let piece = piece?;
                length += piece.len() as u64;
                pieces.push(piece);
            }
        }
    }
    Ok(Body::Large(pieces, body))
}

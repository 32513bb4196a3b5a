//! What goes to a client on a channel: never more than the client's window has room for, so that a slow reader
//! slows the program and nothing piles up here.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use russh::server::Msg;
use russh::{Channel, ChannelWriteHalf, Error};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::inlet::Inlets;

/// Bytes that are read at once.
const CHUNK: usize = 32 << 10;

/// Which of a channel's two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Output,
    /// Extended data of type 1 (RFC 4254, 5.2).
    Errors,
}

/// The way to the client.
pub(crate) struct Outlet {
    half: ChannelWriteHalf<Msg>,
    inlets: Arc<Inlets>,
}

impl Outlet {
    /// What the client sends comes by the handler into an inlet, not by the channel: its other half is dropped.
    pub(crate) fn new(channel: Channel<Msg>, inlets: Arc<Inlets>) -> Self {
        let (_, half) = channel.split();
        Self { half, inlets }
    }

    /// Sends all of `data`; waits for the client's window.
    pub(crate) async fn send(&self, stream: Stream, data: Bytes) -> Result<(), Error> {
        self.inlets.touch();
        let _starved = match self.half.writable_packet_size().await {
            0 => Some(self.inlets.starve()),
            _ => None,
        };
        match stream {
            Stream::Output => self.half.data_bytes(data).await,
            Stream::Errors => self.half.extended_data_bytes(1, data).await,
        }
    }

    /// Sends what is read, to its end.
    pub(crate) async fn send_all(
        &self,
        stream: Stream,
        mut from: impl AsyncRead + Unpin,
    ) -> Result<(), Error> {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK);
            if from.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            self.send(stream, buffer.split().freeze()).await?;
        }
    }

    /// The end of both streams.
    pub(crate) async fn eof(&self) -> Result<(), Error> {
        self.half.eof().await
    }

    /// How the program ended.
    pub(crate) async fn exit_status(&self, status: u32) -> Result<(), Error> {
        self.half.exit_status(status).await
    }

    /// The end of the channel.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        self.half.close().await
    }
}

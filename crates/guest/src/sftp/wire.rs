//! Packets, as bytes: numbers are big-endian, texts and bytes have a length of four bytes before them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of the length of a packet.
pub const LENGTH_BYTES: usize = 4;
/// Most that a client may send as one packet, as OpenSSH's server has it.
pub const PACKET_BYTES: usize = 256 << 10;
/// Most that one request reads or writes: a packet's worth, less its other fields.
pub const DATA_BYTES: usize = PACKET_BYTES - 1024;

/// Types of packets.
pub mod kind {
    pub const INIT: u8 = 1;
    pub const VERSION: u8 = 2;
    pub const OPEN: u8 = 3;
    pub const CLOSE: u8 = 4;
    pub const READ: u8 = 5;
    pub const WRITE: u8 = 6;
    pub const LSTAT: u8 = 7;
    pub const FSTAT: u8 = 8;
    pub const SETSTAT: u8 = 9;
    pub const FSETSTAT: u8 = 10;
    pub const OPENDIR: u8 = 11;
    pub const READDIR: u8 = 12;
    pub const REMOVE: u8 = 13;
    pub const MKDIR: u8 = 14;
    pub const RMDIR: u8 = 15;
    pub const REALPATH: u8 = 16;
    pub const STAT: u8 = 17;
    pub const RENAME: u8 = 18;
    pub const READLINK: u8 = 19;
    pub const SYMLINK: u8 = 20;
    pub const STATUS: u8 = 101;
    pub const HANDLE: u8 = 102;
    pub const DATA: u8 = 103;
    pub const NAME: u8 = 104;
    pub const ATTRS: u8 = 105;
    pub const EXTENDED: u8 = 200;
    pub const EXTENDED_REPLY: u8 = 201;
}

/// What came is not what the protocol says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// The same, for a client with whom there is nothing more to say.
pub fn malformed(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Fields of a packet that have not been read yet.
#[derive(Clone, Copy)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn byte(&mut self) -> Result<u8, Malformed> {
        self.take().map(|[byte]| byte)
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_be_bytes)
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()? as usize;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*bytes)
    }
}

/// Replies that wait to be sent. Its memory is kept and never cleared: zeroing what is then read over costs
/// as much as reading it.
#[derive(Default)]
pub struct Replies {
    buffer: Vec<u8>,
    filled: usize,
}

impl Replies {
    /// All of them.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }

    pub fn clear(&mut self) {
        self.filled = 0;
    }

    /// Begins a reply to the request with this ID.
    pub fn begin(&mut self, kind: u8, id: u32) -> Reply<'_> {
        let begin = self.filled;
        let mut reply = Reply { replies: self, begin };
        reply.u32(0).byte(kind).u32(id);
        reply
    }

    fn room(&mut self, length: usize) -> &mut [u8] {
        let end = self.filled + length;
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        &mut self.buffer[self.filled..end]
    }
}

/// A reply that is being written. It is complete, with its length, when this is dropped.
pub struct Reply<'a> {
    replies: &'a mut Replies,
    begin: usize,
}

impl Reply<'_> {
    pub fn byte(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// With its length. What is given here is bounded, by a path's or a packet's length.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.u32(value.len() as u32).raw(value)
    }

    /// Up to `length` bytes of a file, with their length. Gives how many; with none, the reply is none.
    pub fn file(mut self, file: &File, offset: u64, length: usize) -> io::Result<usize> {
        let at = self.replies.filled;
        let read = loop {
            match file.read_at(&mut self.replies.room(LENGTH_BYTES + length)[LENGTH_BYTES..], offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        match read {
            Ok(read @ 1..) => {
                self.u32(read as u32);
                self.replies.filled = at + LENGTH_BYTES + read;
                Ok(read)
            }
            nothing => {
                self.forget();
                nothing
            }
        }
    }

    /// There is none.
    fn forget(self) {
        self.replies.filled = self.begin;
    }

    fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.replies.room(value.len()).copy_from_slice(value);
        self.replies.filled += value.len();
        self
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        if let Some(length) = self.replies.filled.checked_sub(self.begin + LENGTH_BYTES) {
            let place = &mut self.replies.buffer[self.begin..self.begin + LENGTH_BYTES];
            place.copy_from_slice(&(length as u32).to_be_bytes());
        }
    }
}

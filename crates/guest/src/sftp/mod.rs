//! An SFTP server, version 3 (draft-ietf-secsh-filexfer-02), with OpenSSH's extensions (`PROTOCOL` in its
//! sources): what `sftp`, `scp` and programs that mount a directory speak to.
//!
//! It is a process of its own, of the user whom it serves, who may do with files what that user may; so
//! nothing is checked here that the kernel checks. It answers one request after the other, in their order,
//! from one buffer into another: what is written goes from where it was received to the file, and what is
//! read from the file to where it is sent. The protocol library of the SSH server next door copies each
//! piece several times and brings a runtime with it, and under emulation every copy is paid for.
//!
//! - `wire` is the packets; `attributes` what they say of a file, also as a line of a list.
//! - `handles` owns what is open; `requests` is what each request means.
//!
//! Deliberately absent: versions 4 to 6, which no client of note speaks.

mod attributes;
mod handles;
mod requests;
#[cfg(test)]
mod tests;
mod wire;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use requests::Server;
use wire::{LENGTH_BYTES, PACKET_BYTES, Replies};

/// The argument that makes the agent's program this server.
pub const ARGUMENT: &str = "--sftp";
/// What it calls itself.
pub const NAME: &str = "nullspace-sftp";

/// What is received at once, and may wait: several of the longest packets.
const RECEIVED: usize = 1 << 20;
/// Replies are sent when so many bytes of them wait, or nothing else is to be done.
const SENT: usize = 256 << 10;

/// Serves whoever is at the other end of standard input and output.
pub fn serve_standard_streams() -> io::Result<()> {
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    serve(input, output)
}

/// Serves until the client ends. Errors: a side broke, or what came is no SFTP.
pub fn serve(mut input: impl Read, mut output: impl Write) -> io::Result<()> {
    let mut server = Server::default();
    let mut replies = Replies::default();
    let mut buffer = vec![0; RECEIVED];
    let (mut begin, mut end) = (0, 0);
    loop {
        while let Some(packet) = whole_packet(&buffer[begin..end])? {
            begin += LENGTH_BYTES + packet.len();
            server.answer(packet, &mut replies)?;
            if replies.bytes().len() >= SENT {
                output.write_all(replies.bytes())?;
                replies.clear();
            }
        }
        if !replies.bytes().is_empty() {
            output.write_all(replies.bytes())?;
            replies.clear();
        }
        buffer.copy_within(begin..end, 0);
        (begin, end) = (0, end - begin);
        match input.read(&mut buffer[end..]) {
            Ok(0) if end > 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(0) => return Ok(()),
            Ok(read) => end += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The first packet, without its length, once it is there.
fn whole_packet(received: &[u8]) -> io::Result<Option<&[u8]>> {
    let Some((length, rest)) = received.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if !(1..=PACKET_BYTES).contains(&length) {
        return Err(wire::malformed("the length of a packet is out of bounds"));
    }
    Ok(rest.get(..length))
}

//! The name in a TLS hello (RFC 8446, 4.1.2; RFC 6066, 3), read strictly and without changing a byte.
//!
//! A reader of our own: rustls's refuses hellos that it would not answer, such as one without a cipher suite
//! of its own, and does not say where a hello ends, which whoever passes it on must know. It is open to others
//! so that it can be driven with arbitrary bytes (`fuzz/`).
//!
//! What is known of Encrypted Client Hello: the name outside is the one that counts. Browsers send the extension
//! with noise in it where a host has none, so that its presence says nothing. Where it is meant, the name
//! outside is that of the front that decrypts it, at an address that DNS gave for that name; whoever allows a
//! front allows what is behind it, just as with one that serves many names by their HTTP hosts.

use crate::first::{Unreadable, shown_name};

/// Most bytes of a hello, with the headers of its records.
pub const HELLO_BYTES_MAX: usize = 16 << 10;
/// The type of a record that carries a handshake.
pub const HANDSHAKE: u8 = 22;
/// Bytes before a record's content.
pub const RECORD_HEADER: usize = 5;

const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;

/// What a hello says that matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The server's name, in lower case.
    pub name: Option<String>,
    /// How many bytes it takes up, with the headers of its records.
    pub length: usize,
}

/// Reads a hello that begins these bytes; none if more of them are needed.
pub fn read(bytes: &[u8]) -> Result<Option<Hello>, Unreadable> {
    let mut rest = Reader(bytes);
    let mut message = Vec::new();
    loop {
        if let [kind, ..] = message[..]
            && kind != CLIENT_HELLO
        {
            return Err(Unreadable);
        }
        if let [_, high, middle, low, ref body @ ..] = message[..] {
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            if length > HELLO_BYTES_MAX || body.len() > length {
                return Err(Unreadable);
            }
            let taken = bytes.len() - rest.0.len();
            if body.len() == length && taken <= HELLO_BYTES_MAX {
                return Ok(Some(Hello { name: name(body)?, length: taken }));
            }
        }
        match record(&mut rest)? {
            Some(content) => message.extend_from_slice(content),
            None if bytes.len() >= HELLO_BYTES_MAX => return Err(Unreadable),
            None => return Ok(None),
        }
    }
}

/// The content of the next record, if all of it is there. One of nothing would let a hello go on for ever.
fn record<'a>(rest: &mut Reader<'a>) -> Result<Option<&'a [u8]>, Unreadable> {
    let [kind, major, ..] = *rest.0 else {
        return if matches!(rest.0, [] | [HANDSHAKE]) { Ok(None) } else { Err(Unreadable) };
    };
    if kind != HANDSHAKE || major != 3 {
        return Err(Unreadable);
    }
    let [_, _, _, high, low, ref content @ ..] = *rest.0 else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length == 0 || length > HELLO_BYTES_MAX {
        return Err(Unreadable);
    }
    let Some((content, after)) = content.split_at_checked(length) else { return Ok(None) };
    *rest = Reader(after);
    Ok(Some(content))
}

fn name(body: &[u8]) -> Result<Option<String>, Unreadable> {
    let mut body = Reader(body);
    let [major, _] = body.array()?;
    let _random: [u8; 32] = body.array()?;
    let session = body.short()?;
    let suites = body.long()?;
    let compressions = body.short()?;
    if major != 3 || session.0.len() > 32 || suites.0.is_empty() || compressions.0.is_empty() {
        return Err(Unreadable);
    }
    if body.0.is_empty() {
        return Ok(None);
    }
    let mut extensions = body.long()?;
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = u16::from_be_bytes(extensions.array()?);
        let content = extensions.long()?;
        // Which of two a server takes nobody knows.
        if kind == SERVER_NAME && found.replace(content).is_some() {
            return Err(Unreadable);
        }
    }
    if !body.0.is_empty() {
        return Err(Unreadable);
    }
    found.map_or(Ok(None), server_name)
}

/// The one name in the extension: RFC 6066 knows one type of name, and one name of a type.
fn server_name(mut extension: Reader<'_>) -> Result<Option<String>, Unreadable> {
    let mut names = extension.long()?;
    let [kind] = names.array()?;
    let name = names.long()?;
    if kind != 0 || !names.0.is_empty() || !extension.0.is_empty() {
        return Err(Unreadable);
    }
    shown_name(str::from_utf8(name.0).map_err(|_| Unreadable)?)
}

/// Bytes that are taken from the front.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Unreadable)?;
        self.0 = rest;
        Ok(*taken)
    }

    /// A vector behind a length of one byte.
    fn short(&mut self) -> Result<Self, Unreadable> {
        let [length] = self.array()?;
        self.take(length.into())
    }

    /// A vector behind a length of two bytes.
    fn long(&mut self) -> Result<Self, Unreadable> {
        let length = u16::from_be_bytes(self.array()?);
        self.take(length.into())
    }

    fn take(&mut self, length: usize) -> Result<Self, Unreadable> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Unreadable)?;
        self.0 = rest;
        Ok(Self(taken))
    }
}

#[cfg(test)]
#[path = "hello_tests.rs"]
mod tests;

//! Bytes that come in pieces, as the inside of a JSON string.

/// Decodes UTF-8 that comes in pieces, replacing what is none, and escapes it for JSON.
#[derive(Default)]
pub(crate) struct TextWriter {
    /// The beginning of a character whose end has not come yet.
    carry: [u8; 4],
    carried: usize,
}

impl TextWriter {
    /// Writes the text of some more bytes; what may be the beginning of a character waits.
    pub fn write(&mut self, input: &[u8], out: &mut Vec<u8>) {
        let mut at = 0;
        while self.carried > 0 && at < input.len() {
            self.carry[self.carried] = input[at];
            self.carried += 1;
            at += 1;
            match std::str::from_utf8(&self.carry[..self.carried]) {
                Ok(text) => {
                    escape(text, out);
                    self.carried = 0;
                }
                Err(error) => {
                    if let Some(wrong) = error.error_len() {
                        replace(out);
                        // The byte that broke the character may begin another one.
                        at -= self.carried - wrong;
                        self.carried = 0;
                    }
                }
            }
        }
        let mut input = &input[at..];
        while !input.is_empty() {
            match std::str::from_utf8(input) {
                Ok(text) => {
                    escape(text, out);
                    return;
                }
                Err(error) => {
                    let (good, bad) = input.split_at(error.valid_up_to());
                    escape(std::str::from_utf8(good).expect("valid up to here"), out);
                    match error.error_len() {
                        Some(wrong) => {
                            replace(out);
                            input = &bad[wrong..];
                        }
                        None => {
                            self.carry[..bad.len()].copy_from_slice(bad);
                            self.carried = bad.len();
                            return;
                        }
                    }
                }
            }
        }
    }

    /// There is no more: what still waits is no character.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if self.carried > 0 {
            replace(out);
            self.carried = 0;
        }
    }
}

fn replace(out: &mut Vec<u8>) {
    out.extend_from_slice("\u{fffd}".as_bytes());
}

/// Escapes text as RFC 8259 §7 asks, and no more than that.
fn escape(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bytes = text.as_bytes();
    let mut written = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[written..at]);
        written = at + 1;
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0x08 => out.extend_from_slice(b"\\b"),
            0x09 => out.extend_from_slice(b"\\t"),
            0x0a => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            0x0d => out.extend_from_slice(b"\\r"),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
    }
    out.extend_from_slice(&bytes[written..]);
}

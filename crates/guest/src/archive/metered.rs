//! A reader that gives no more than was allowed.
//!
//! What describes an entry (long names, PAX records) is read into memory whole by the `tar` crate, and may
//! say any size of itself. So the bytes that may pass while it looks for the next entry are limited.

use std::cell::Cell;
use std::io::{self, Read};

/// See the module. Reading past the allowance is an error.
pub struct Metered<'a, R> {
    inner: R,
    allowed: &'a Cell<u64>,
}

impl<'a, R: Read> Metered<'a, R> {
    /// `allowed`: bytes that may still be read; counted down here, and set anew by the caller.
    pub fn new(inner: R, allowed: &'a Cell<u64>) -> Self {
        Self { inner, allowed }
    }
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let allowed = self.allowed.get();
        if allowed == 0 && !buffer.is_empty() {
            return Err(io::Error::other("what describes an entry is too long"));
        }
        let len = (buffer.len() as u64).min(allowed) as usize;
        let read = self.inner.read(&mut buffer[..len])?;
        self.allowed.set(allowed - read as u64);
        Ok(read)
    }
}

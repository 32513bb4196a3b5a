//! Bytes that some readers have still to take, and how far the slowest of them is.
//!
//! Positions count from the first byte that ever came. Only what a reader has not passed yet is kept, so
//! without readers nothing is; whoever appends asks first how far the slowest is behind, and waits. That
//! is the bound. Deliberately absent: any waiting, and any knowledge of who the readers are.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

/// Room that is kept when everything has been taken.
const IDLE_BYTES: usize = 16 << 10;

/// See the module.
#[derive(Default)]
pub struct Window {
    bytes: VecDeque<u8>,
    /// The position of the first of them.
    start: u64,
    readers: Vec<Reader>,
    next: u64,
}

struct Reader {
    number: u64,
    at: u64,
    moved: Instant,
}

impl Window {
    /// The position after the last byte.
    pub fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// The position of the first byte that is kept.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// A new reader, which has passed everything before `at`. Returns its number.
    pub fn join(&mut self, at: u64) -> u64 {
        self.next += 1;
        self.readers.push(Reader { number: self.next, at, moved: Instant::now() });
        self.next
    }

    /// A reader no longer counts.
    pub fn leave(&mut self, number: u64) {
        self.readers.retain(|reader| reader.number != number);
        self.trim();
    }

    /// Where a reader stands; none for one that no longer counts.
    pub fn position(&self, number: u64) -> Option<u64> {
        self.readers.iter().find(|reader| reader.number == number).map(|reader| reader.at)
    }

    /// A reader has passed everything before `to`.
    pub fn advance(&mut self, number: u64, to: u64) {
        if let Some(reader) = self.readers.iter_mut().find(|reader| reader.number == number) {
            (reader.at, reader.moved) = (to, Instant::now());
        }
        self.trim();
    }

    /// Whether anybody reads.
    pub fn is_read(&self) -> bool {
        !self.readers.is_empty()
    }

    /// How far the slowest reader is behind.
    pub fn behind(&self) -> u64 {
        self.readers.iter().map(|reader| self.end().saturating_sub(reader.at)).max().unwrap_or(0)
    }

    /// Readers that are at least so far behind, and when they moved last.
    pub fn laggards(&self, limit: u64) -> impl Iterator<Item = (u64, Instant)> {
        let end = self.end();
        self.readers
            .iter()
            .filter(move |reader| end.saturating_sub(reader.at) >= limit)
            .map(|reader| (reader.number, reader.moved))
    }

    /// Bytes come that the readers find elsewhere. Only while nothing is kept.
    pub fn skip(&mut self, len: usize) {
        debug_assert!(self.bytes.is_empty());
        self.start += len as u64;
    }

    /// Bytes come.
    pub fn push(&mut self, data: &[u8]) {
        if self.is_read() {
            self.bytes.extend(data);
        } else {
            self.start += data.len() as u64;
        }
    }

    /// At most `limit` bytes from `at` on, which no reader may have passed.
    pub fn read(&self, at: u64, limit: usize) -> Bytes {
        let (front, back) = self.bytes.as_slices();
        let begin = (at.saturating_sub(self.start) as usize).min(self.bytes.len());
        let end = self.bytes.len().min(begin.saturating_add(limit));
        let mut data = Vec::with_capacity(end - begin);
        data.extend_from_slice(&front[begin.min(front.len())..end.min(front.len())]);
        data.extend_from_slice(&back[begin.saturating_sub(front.len())..end.saturating_sub(front.len())]);
        data.into()
    }

    fn trim(&mut self) {
        let slowest = self.readers.iter().map(|reader| reader.at).min().unwrap_or(u64::MAX);
        let passed = slowest.saturating_sub(self.start).min(self.bytes.len() as u64);
        self.bytes.drain(..passed as usize);
        self.start += passed;
        if self.bytes.is_empty() && self.bytes.capacity() > IDLE_BYTES {
            self.bytes = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_nobody_reads_is_not_kept() {
        let mut window = Window::default();
        window.push(b"before anybody came");
        assert_eq!((window.start(), window.end()), (19, 19));
        let reader = window.join(window.end());
        window.push(b"abc");
        window.leave(reader);
        assert_eq!((window.start(), window.end(), window.behind()), (22, 22, 0));
        assert_eq!(window.position(reader), None);
    }

    proptest! {
        #[test]
        fn readers_of_any_pace_see_every_byte_once_and_no_more_is_kept_than_the_slowest_needs(
            steps in prop::collection::vec((0..3_usize, 0..40_usize), 0..200),
        ) {
            let mut window = Window::default();
            let mut all = Vec::new();
            let readers = [window.join(0), window.join(0)];
            let mut seen = [Vec::new(), Vec::new()];
            for (who, len) in steps {
                if who == 2 {
                    let data: Vec<u8> = (0..len).map(|n| (all.len() + n) as u8).collect();
                    window.push(&data);
                    all.extend(data);
                } else {
                    let at = window.position(readers[who]).unwrap();
                    let data = window.read(at, len);
                    window.advance(readers[who], at + data.len() as u64);
                    seen[who].extend_from_slice(&data);
                }
                let slowest = seen[0].len().min(seen[1].len());
                prop_assert_eq!(window.behind() as usize, all.len() - slowest);
                prop_assert_eq!(window.start() as usize, slowest);
                prop_assert!(seen.iter().all(|seen| all.starts_with(seen)));
            }
        }
    }
}

//! Followers whom a process waits for.
//!
//! Each stands somewhere in the process's output, counted in the order in which it came. Who is too far
//! behind holds the process back: its pipes are not read, and so it blocks in its next write. What the
//! log no longer takes is kept here until they have passed it; a follower that comes after that gets the
//! log with its mark, and holds nothing back.

use std::collections::VecDeque;

use bytes::Bytes;

use super::output::Channel;
use super::window::Window;

/// How far a follower may be behind before the process waits.
pub const WINDOW_BYTES: u64 = 1 << 20;
/// What a change of the stream counts for in that, so that many small ones are bounded too.
const RUN_BYTES: u64 = 64;

/// See the module.
#[derive(Default)]
pub struct Pace {
    window: Window,
    /// Whose bytes those in the window are, and where each run of them ends.
    runs: VecDeque<(Channel, u64)>,
    over: bool,
}

impl Pace {
    /// All output that has come, until the process ended.
    pub fn came(&self) -> u64 {
        self.window.end()
    }

    /// A follower that has passed nothing yet. Returns its number.
    pub fn join(&mut self) -> u64 {
        self.window.join(0)
    }

    /// A follower no longer counts.
    pub fn leave(&mut self, follower: u64) {
        self.window.leave(follower);
        self.trim();
    }

    /// A follower has passed everything before `to`.
    pub fn advance(&mut self, follower: u64, to: u64) {
        self.window.advance(follower, to);
        self.trim();
    }

    /// Whether the process is to wait.
    pub fn holds(&self) -> bool {
        !self.over && self.window.behind() + self.runs.len() as u64 * RUN_BYTES >= WINDOW_BYTES
    }

    /// Output came and is in the log.
    pub fn recorded(&mut self, len: usize) {
        if !self.over {
            self.window.skip(len);
        }
    }

    /// Output came for which the log has no room.
    pub fn left_out(&mut self, channel: Channel, data: &[u8]) {
        if self.over {
            return;
        }
        self.window.push(data);
        if self.window.is_read() {
            match self.runs.back_mut() {
                Some((last, end)) if *last == channel => *end = self.window.end(),
                _ => self.runs.push_back((channel, self.window.end())),
            }
        }
    }

    /// The process has ended: what its descendants write is not waited for.
    pub fn end(&mut self) {
        self.over = true;
    }

    /// The output from `at` on that is not in the log, at most `limit` bytes of one stream.
    pub fn next(&self, at: u64, limit: usize) -> Option<(Channel, Bytes)> {
        let run = self.runs.partition_point(|(_, end)| *end <= at);
        let (channel, end) = *self.runs.get(run)?;
        let data = self.window.read(at, limit.min((end - at) as usize));
        Some((channel, data))
    }

    fn trim(&mut self) {
        while self.runs.front().is_some_and(|(_, end)| *end <= self.window.start()) {
            self.runs.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_counts_and_small_pieces_count_for_more() {
        let mut pace = Pace::default();
        assert!(!pace.holds(), "nobody is waited for");
        let (fast, slow) = (pace.join(), pace.join());
        pace.recorded(WINDOW_BYTES as usize);
        pace.advance(fast, WINDOW_BYTES);
        assert!(pace.holds());
        pace.advance(slow, 1);
        assert!(!pace.holds());
        pace.advance(slow, WINDOW_BYTES);
        let mut pieces = 0;
        while !pace.holds() {
            pace.left_out(if pieces % 2 == 0 { Channel::Stdout } else { Channel::Stderr }, b"x");
            pieces += 1;
        }
        assert!((1000..WINDOW_BYTES / RUN_BYTES + 1).contains(&pieces));
        pace.leave(slow);
        assert!(pace.holds(), "the other one has not passed them either");
        pace.leave(fast);
        assert!(!pace.holds() && pace.runs.is_empty());
    }

    #[test]
    fn after_the_end_nothing_is_held_back_or_kept() {
        let mut pace = Pace::default();
        let follower = pace.join();
        pace.left_out(Channel::Stderr, &[0; WINDOW_BYTES as usize]);
        assert!(pace.holds());
        pace.end();
        pace.left_out(Channel::Stderr, b"of a descendant");
        assert!(!pace.holds() && pace.came() == WINDOW_BYTES);
        assert_eq!(pace.next(7, 2), Some((Channel::Stderr, Bytes::from_static(&[0; 2]))));
        pace.advance(follower, WINDOW_BYTES);
        assert_eq!(pace.next(WINDOW_BYTES, 2), None);
    }
}

//! The recorded output of one process.
//!
//! Two byte streams, and a third store with the order in which they came: one 32-bit entry for each
//! run of bytes of the same stream. All three are append-only, so a reader's cursor stays good for
//! ever. Together they are bounded; what comes after that is counted and left out, and once the
//! process has ended a last line says how much that was.
//!
//! Nothing here is asynchronous and nothing waits: the owner of the pipes appends, readers take.

use std::io;
use std::path::Path;

use bytes::Bytes;

use super::store::{Reserved, Store};

/// Recorded bytes of one process, all stores together.
pub const OUTPUT_BYTES: u64 = 256 << 20;

/// Which of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    Stdout = 0,
    Stderr = 1,
}

const RUN_BYTES: u64 = 4;
const LONGEST_RUN: u32 = i32::MAX as u32;

/// See the module.
pub struct Output {
    streams: [Store; 2],
    runs: Store,
    /// The newest run, which still grows.
    open: Option<(Channel, u32)>,
    cut: Option<Cut>,
    limit: u64,
}

struct Cut {
    channel: Channel,
    /// Bytes that were recorded before it.
    at: u64,
    left_out: u64,
    marked: bool,
}

/// Where a reader stands. Bytes before the given offsets are passed over.
#[derive(Clone, Default)]
pub struct Cursor {
    run: u64,
    in_run: u32,
    at: [u64; 2],
    from: [u64; 2],
}

impl Cursor {
    /// Begins at these offsets of the two streams.
    pub fn from_offsets(stdout: u64, stderr: u64) -> Self {
        Self { from: [stdout, stderr], ..Self::default() }
    }

    /// Bytes of output that lie behind it, of both streams.
    pub fn passed(&self) -> u64 {
        self.at.iter().sum()
    }

    /// Takes what comes next and is in no store; what is to be passed over of it is.
    pub fn take(&mut self, channel: Channel, mut data: Bytes) -> Bytes {
        let index = channel as usize;
        let skip = self.from[index].saturating_sub(self.at[index]).min(data.len() as u64);
        self.at[index] += data.len() as u64;
        data.split_off(skip as usize)
    }
}

/// What is to be done with data before it is committed.
pub enum Plan {
    /// Nothing.
    Commit,
    /// Write it here; it may block.
    Write(Reserved),
    /// There is no room: count it.
    LeaveOut,
}

impl Output {
    pub fn new(limit: u64) -> Self {
        Self { streams: Default::default(), runs: Store::default(), open: None, cut: None, limit }
    }

    pub fn len(&self, channel: Channel) -> u64 {
        self.streams[channel as usize].len()
    }

    /// Bytes of output that were recorded before the record was cut; none as long as it has room.
    pub fn cut_at(&self) -> Option<u64> {
        self.cut.as_ref().map(|cut| cut.at)
    }

    fn stores(&self) -> [&Store; 3] {
        [&self.streams[0], &self.streams[1], &self.runs]
    }

    pub fn memory_bytes(&self) -> u64 {
        self.stores().iter().map(|store| store.memory_bytes()).sum()
    }

    pub fn disk_bytes(&self) -> u64 {
        self.stores().iter().map(|store| store.disk_bytes()).sum()
    }

    /// What to do with `len` bytes that came.
    pub fn plan(&mut self, channel: Channel, len: usize, directory: &Path) -> Plan {
        let used = self.memory_bytes() + self.disk_bytes() + RUN_BYTES;
        if self.cut.is_some() || used + len as u64 > self.limit {
            return Plan::LeaveOut;
        }
        match self.streams[channel as usize].reserve(len, directory) {
            Ok(None) => Plan::Commit,
            Ok(Some(reserved)) => Plan::Write(reserved),
            // No space for the file: the same as no room.
            Err(_) => Plan::LeaveOut,
        }
    }

    /// Records data that was planned and, where that was asked for, written. Whether there was room.
    pub fn commit(&mut self, channel: Channel, data: &[u8], directory: &Path) -> bool {
        let recorded = self.record_run(channel, data.len() as u32, directory).is_ok();
        if recorded {
            self.streams[channel as usize].commit(data);
        } else {
            self.leave_out(channel, data.len());
        }
        recorded
    }

    fn record_run(&mut self, channel: Channel, len: u32, directory: &Path) -> io::Result<()> {
        match &mut self.open {
            Some((open, run)) if *open == channel && *run <= LONGEST_RUN - len => *run += len,
            open => {
                if let Some((closed, run)) = *open {
                    self.runs.append(&(run << 1 | closed as u32).to_le_bytes(), directory)?;
                }
                *open = Some((channel, len));
            }
        }
        Ok(())
    }

    /// Counts data for which there is no room. From now on nothing more is recorded.
    pub fn leave_out(&mut self, channel: Channel, len: usize) {
        let at = self.len(Channel::Stdout) + self.len(Channel::Stderr);
        let cut = self.cut.get_or_insert(Cut { channel, at, left_out: 0, marked: false });
        if !cut.marked {
            cut.left_out += len as u64;
        }
    }

    /// The process has ended: says how much was left out. Output that descendants write after that
    /// to a log that was cut is neither recorded nor counted.
    pub fn mark(&mut self, directory: &Path) {
        let Some(cut) = &mut self.cut else { return };
        if std::mem::replace(&mut cut.marked, true) {
            return;
        }
        let (channel, left_out) = (cut.channel, cut.left_out);
        let line = format!("\n[nullspace: output cut here, {left_out} bytes left out]\n");
        // A full disk may refuse even this line once memory is used up; the cut then shows in the
        // counts alone.
        if self.streams[channel as usize].append(line.as_bytes(), directory).is_ok() {
            let _ = self.record_run(channel, line.len() as u32, directory);
        }
    }

    /// Bytes of one stream, at most `limit`; empty at the end.
    pub fn read(&self, channel: Channel, offset: u64, limit: usize) -> io::Result<Bytes> {
        self.streams[channel as usize].read(offset, limit)
    }

    /// The next bytes in the order in which they came, at most `limit`.
    pub fn next(&self, cursor: &mut Cursor, limit: usize) -> io::Result<Option<(Channel, Bytes)>> {
        loop {
            let closed = cursor.run < self.runs.len() / RUN_BYTES;
            let (channel, len) = if closed {
                let entry = self.runs.read(cursor.run * RUN_BYTES, RUN_BYTES as usize)?;
                let entry = u32::from_le_bytes(entry.as_ref().try_into().map_err(io::Error::other)?);
                (if entry & 1 == 0 { Channel::Stdout } else { Channel::Stderr }, entry >> 1)
            } else {
                match self.open {
                    Some(open) => open,
                    None => return Ok(None),
                }
            };
            let index = channel as usize;
            if cursor.in_run == len {
                if !closed {
                    return Ok(None);
                }
                (cursor.run, cursor.in_run) = (cursor.run + 1, 0);
                continue;
            }
            let left = len - cursor.in_run;
            let skip = cursor.from[index].saturating_sub(cursor.at[index]).min(left.into()) as u32;
            if skip > 0 {
                cursor.in_run += skip;
                cursor.at[index] += u64::from(skip);
                continue;
            }
            let data = self.read(channel, cursor.at[index], limit.min(left as usize))?;
            if data.is_empty() {
                return Ok(None);
            }
            cursor.in_run += data.len() as u32;
            cursor.at[index] += data.len() as u64;
            return Ok(Some((channel, data)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::MEMORY_BYTES;
    use super::*;

    fn push(output: &mut Output, channel: Channel, data: &[u8], directory: &Path) {
        match output.plan(channel, data.len(), directory) {
            Plan::Commit => {
                output.commit(channel, data, directory);
            }
            Plan::Write(reserved) => match reserved.write(data) {
                Ok(()) => {
                    output.commit(channel, data, directory);
                }
                Err(_) => output.leave_out(channel, data.len()),
            },
            Plan::LeaveOut => output.leave_out(channel, data.len()),
        }
    }

    fn collect(output: &Output, cursor: &mut Cursor, limit: usize) -> Vec<(Channel, Vec<u8>)> {
        let mut all: Vec<(Channel, Vec<u8>)> = Vec::new();
        while let Some((channel, data)) = output.next(cursor, limit).unwrap() {
            match all.last_mut() {
                Some((last, bytes)) if *last == channel => bytes.extend_from_slice(&data),
                _ => all.push((channel, data.to_vec())),
            }
        }
        all
    }

    #[test]
    fn a_reader_sees_every_byte_once_in_the_order_it_came_however_it_reads() {
        let directory = tempfile::tempdir().unwrap();
        for step in [1, 7, 1 << 20] {
            let mut output = Output::new(OUTPUT_BYTES);
            let mut early = Cursor::default();
            let mut seen = Vec::new();
            let mut sent = Vec::new();
            for round in 0..40_000_u32 {
                let channel = if round % 3 == 0 { Channel::Stderr } else { Channel::Stdout };
                let data = round.to_le_bytes();
                push(&mut output, channel, &data, directory.path());
                sent.extend(data.map(|byte| (channel, byte)));
                if round % 1000 == 0 {
                    seen.extend(collect(&output, &mut early, step));
                }
            }
            seen.extend(collect(&output, &mut early, step));
            let flat = |runs: Vec<(Channel, Vec<u8>)>| -> Vec<_> {
                runs.into_iter()
                    .flat_map(|(channel, data)| data.into_iter().map(move |b| (channel, b)))
                    .collect()
            };
            assert!(flat(seen) == sent, "followed while it grew, {step} bytes at a time");
            assert!(flat(collect(&output, &mut Cursor::default(), step)) == sent, "read afterwards");
            assert!(output.disk_bytes() > 0, "the index alone is larger than memory");
        }
    }

    #[test]
    fn a_cursor_with_offsets_passes_over_what_was_seen() {
        let directory = tempfile::tempdir().unwrap();
        let mut output = Output::new(OUTPUT_BYTES);
        for (channel, data) in [
            (Channel::Stdout, "abc"),
            (Channel::Stderr, "123"),
            (Channel::Stdout, "def"),
            (Channel::Stderr, "4"),
        ] {
            push(&mut output, channel, data.as_bytes(), directory.path());
        }
        let mut cursor = Cursor::from_offsets(4, 1);
        assert_eq!(
            collect(&output, &mut cursor, 9),
            [
                (Channel::Stderr, b"23".to_vec()),
                (Channel::Stdout, b"ef".to_vec()),
                (Channel::Stderr, b"4".to_vec())
            ]
        );
        let mut beyond = Cursor::from_offsets(100, 100);
        assert_eq!(collect(&output, &mut beyond, 9), []);
    }

    #[test]
    fn a_log_is_cut_at_its_bound_and_says_so_at_the_end_only() {
        let directory = tempfile::tempdir().unwrap();
        let mut output = Output::new(200_000);
        let block = [b'x'; 1000];
        for _ in 0..500 {
            push(&mut output, Channel::Stdout, &block, directory.path());
        }
        push(&mut output, Channel::Stderr, b"late", directory.path());
        let recorded = output.len(Channel::Stdout);
        assert_eq!(recorded, 199_000);
        output.mark(directory.path());
        output.mark(directory.path());
        push(&mut output, Channel::Stdout, b"later", directory.path());
        let text = collect(&output, &mut Cursor::default(), 4096);
        let mark = format!("\n[nullspace: output cut here, {} bytes left out]\n", 500_000 - recorded + 4);
        assert_eq!(text.len(), 1);
        assert_eq!(text[0].1[recorded as usize..], *mark.as_bytes());
        assert_eq!(output.len(Channel::Stdout), recorded + mark.len() as u64);
    }

    #[test]
    fn no_place_for_the_file_is_a_cut() {
        let missing = Path::new("/proc/no/such/place");
        let mut output = Output::new(OUTPUT_BYTES);
        for _ in 0..3 {
            push(&mut output, Channel::Stdout, &[b'y'; MEMORY_BYTES / 2], missing);
        }
        push(&mut output, Channel::Stderr, b"e", missing);
        output.mark(missing);
        assert_eq!(output.len(Channel::Stdout), MEMORY_BYTES as u64);
        assert_eq!(output.disk_bytes(), 0);
    }
}

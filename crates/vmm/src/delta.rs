//! What a restored machine has changed of its memory: the pages that are no longer those of the sealed
//! memory it was restored over. With that memory, a delta is the whole; never with another delta, so
//! that no chain of them grows.
//!
//! The bytes are held as they were copied out of the machine, in one piece. On a disk a delta is, with
//! all numbers little-endian:
//!
//! | Bytes | What |
//! |---|---|
//! | 8 | `nullsdlt` |
//! | 4 | version of this format |
//! | 4 | bytes of a page |
//! | 8 | MiB of the machine's memory |
//! | 8 | number of runs |
//! | 8 | number of pages in all runs |
//! | 8 | checksum: XXH3 of all other bytes of the file |
//! | 8 a run | its first page (4) and how many there are (4); in ascending order, none touching |
//! | | zeros up to a multiple of the page size |
//! | | the pages; what is all zeros is left out as a hole |
//!
//! The checksum is there for disks that lie and copies that end early, not for enemies: whoever can write
//! the file can write any memory. XXH3 keeps up with memory, so that reading costs no more for it, and
//! its 64 bits are enough for gigabytes in one go.

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use xxhash_rust::xxh3::Xxh3Default;

use crate::Error;
use crate::memory::PIECE;

/// Bytes of a page. Machines are x86-64, and so are their hosts.
pub(crate) const PAGE: usize = 4096;

const MAGIC: [u8; 8] = *b"nullsdlt";
const VERSION: u32 = 1;
/// Bytes before the runs.
const FIXED: usize = 48;
/// Where among them the checksum is.
const CHECKSUM: std::ops::Range<usize> = 40..48;
/// Bytes of one run.
const RUN: usize = 8;

/// Pages that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// Number of the first.
    pub first: u32,
    /// How many.
    pub pages: u32,
}

impl Run {
    fn end(self) -> u64 {
        u64::from(self.first) + u64::from(self.pages)
    }

    pub fn bytes(self) -> usize {
        self.pages as usize * PAGE
    }
}

/// Adds pages behind all that are there, to the last run if they touch it.
pub(crate) fn add_run(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.end() == u64::from(run.first) => last.pages += run.pages,
        _ => runs.push(run),
    }
}

/// Room for a delta that is yet to be copied.
pub struct Buffer {
    /// Memory of the machine, in MiB.
    pub(crate) memory_mb: u32,
    bytes: Vec<u8>,
}

impl Buffer {
    /// Room for so many pages, and for some that are changed until they are copied. Blocks.
    pub(crate) fn new(memory_mb: u32, pages: u64) -> Self {
        let pages = (pages + pages / 8 + 64).min(memory_pages(memory_mb));
        // Zeros would only be promised: what is written is given out by the kernel now.
        Self { memory_mb, bytes: vec![0xff; pages as usize * PAGE] }
    }

    /// As many bytes of it as runs have.
    pub(crate) fn into_bytes(mut self, runs: &[Run]) -> Vec<u8> {
        self.bytes.resize(runs.iter().map(|run| run.bytes()).sum(), 0);
        self.bytes.shrink_to_fit();
        self.bytes
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes of {} MiB)", self.bytes.len(), self.memory_mb)
    }
}

/// The changed pages of a machine's memory.
#[derive(PartialEq, Eq)]
pub struct Delta {
    memory_mb: u32,
    runs: Vec<Run>,
    data: Vec<u8>,
}

impl Delta {
    /// Pages of runs that are ascending, within the memory, and have together the bytes of `data`.
    pub(crate) fn new(memory_mb: u32, runs: Vec<Run>, data: Vec<u8>) -> Self {
        debug_assert_eq!(data.len(), runs.iter().map(|run| run.bytes()).sum::<usize>());
        Self { memory_mb, runs, data }
    }

    /// Memory of the machine, in MiB.
    pub fn memory_mb(&self) -> u32 {
        self.memory_mb
    }

    /// Bytes of the pages.
    pub fn bytes(&self) -> u64 {
        self.data.len() as u64
    }

    /// The bytes of each run, with their offset in the machine's memory.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut rest = &self.data[..];
        self.runs.iter().map(move |run| {
            let (piece, after) = rest.split_at(run.bytes());
            rest = after;
            (u64::from(run.first) * PAGE as u64, piece)
        })
    }

    /// Refuses a machine whose memory has another size.
    pub fn check_size(&self, memory_mb: u32) -> Result<(), Error> {
        same_size(self.memory_mb, memory_mb)
    }

    /// Writes it to a new file, and to the disk. Blocks.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let mut head = self.head();
        let checksum = checksum(&head, &self.data);
        head[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
        let write = || {
            let mut file = fs_err::File::create_new(path)?.into_parts().0;
            file.set_len((head.len() + self.data.len()) as u64)?;
            file.write_all(&head)?;
            for (number, piece) in self.data.chunks(PIECE).enumerate() {
                if piece.iter().any(|byte| *byte != 0) {
                    file.write_all_at(piece, (head.len() + number * PIECE) as u64)?;
                }
            }
            file.sync_all()
        };
        write()
            .map_err(|source| Error::File { what: format!("{} cannot be written", path.display()), source })
    }

    /// Reads what [`Delta::save`] wrote of a machine with this much memory, which also bounds what is
    /// taken from the file. Blocks.
    pub fn load(path: &Path, memory_mb: u32) -> Result<Self, Error> {
        let unreadable = |source| Error::File { what: format!("{} cannot be read", path.display()), source };
        let corrupted = |reason| Error::Corrupted { path: path.to_owned(), reason };
        let mut file = fs_err::File::open(path).map_err(unreadable)?.into_parts().0;
        let length = file.metadata().map_err(unreadable)?.len();
        if length < FIXED as u64 {
            return Err(corrupted(format!("it has only {length} bytes")));
        }
        let mut head = vec![0; FIXED];
        file.read_exact(&mut head).map_err(unreadable)?;
        let counts = Counts::parse(&head).map_err(corrupted)?;
        same_size(counts.memory_mb, memory_mb)?;
        let (expected, data) = (counts.head_bytes(), counts.pages as usize * PAGE);
        if length != (expected + data) as u64 {
            return Err(corrupted(format!("it has {length} bytes in place of {}", expected + data)));
        }
        head.resize(expected, 0);
        file.read_exact(&mut head[FIXED..]).map_err(unreadable)?;
        let runs = counts.parse_runs(&head[FIXED..]).map_err(corrupted)?;
        let mut data = vec![0; data];
        file.read_exact(&mut data).map_err(unreadable)?;
        head[CHECKSUM].fill(0);
        if checksum(&head, &data) != counts.checksum {
            return Err(corrupted("its checksum is another than that of its content".into()));
        }
        Ok(Self { memory_mb, runs, data })
    }

    /// All before the pages, the checksum left out.
    fn head(&self) -> Vec<u8> {
        let numbers = [self.memory_mb.into(), self.runs.len() as u64, (self.data.len() / PAGE) as u64, 0];
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend((PAGE as u32).to_le_bytes());
        head.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        for run in &self.runs {
            head.extend(run.first.to_le_bytes());
            head.extend(run.pages.to_le_bytes());
        }
        head.resize(head.len().next_multiple_of(PAGE), 0);
        head
    }
}

impl std::fmt::Debug for Delta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (runs, bytes) = (self.runs.len(), self.data.len());
        write!(f, "Delta({bytes} bytes in {runs} runs of {} MiB)", self.memory_mb)
    }
}

fn same_size(captured: u32, machine: u32) -> Result<(), Error> {
    if captured == machine {
        return Ok(());
    }
    let text = format!("it was captured with {captured} MiB of memory and is to be restored with {machine}");
    Err(Error::Incompatible(text))
}

fn checksum(head: &[u8], data: &[u8]) -> u64 {
    let mut sum = Xxh3Default::new();
    sum.update(head);
    sum.update(data);
    sum.digest()
}

/// What the first bytes of a file say of the rest.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    memory_mb: u32,
    runs: u64,
    pages: u64,
    checksum: u64,
}

impl Counts {
    /// Reads [`FIXED`] bytes. What it answers is within the bounds of the memory's size.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes[..8] != MAGIC {
            return Err("it is no delta of a memory".into());
        }
        let (version, page) = (four(&bytes[8..]), four(&bytes[12..]));
        if version != VERSION || page as usize != PAGE {
            let text =
                format!("it has version {version} and pages of {page} bytes, not {VERSION} and {PAGE}");
            return Err(text);
        }
        let [memory_mb, runs, pages, checksum] = [16, 24, 32, CHECKSUM.start].map(|at| eight(&bytes[at..]));
        let memory_mb = u32::try_from(memory_mb).map_err(|_| format!("no machine has {memory_mb} MiB"))?;
        if runs > pages || pages > memory_pages(memory_mb) {
            return Err(format!("{runs} runs with {pages} pages are not possible in {memory_mb} MiB"));
        }
        Ok(Self { memory_mb, runs, pages, checksum })
    }

    fn head_bytes(&self) -> usize {
        (FIXED + self.runs as usize * RUN).next_multiple_of(PAGE)
    }

    /// Reads the runs, which are followed by zeros.
    fn parse_runs(&self, bytes: &[u8]) -> Result<Vec<Run>, String> {
        let bytes = bytes.get(..self.runs as usize * RUN).ok_or("its runs are not all there")?;
        let (mut end, mut pages) = (None, 0);
        let mut runs = Vec::with_capacity(self.runs as usize);
        for (index, bytes) in bytes.chunks_exact(RUN).enumerate() {
            let run = Run { first: four(bytes), pages: four(&bytes[4..]) };
            let behind = end.is_none_or(|end| u64::from(run.first) > end);
            if run.pages == 0 || !behind || run.end() > memory_pages(self.memory_mb) {
                return Err(format!("run {index}, {} pages from {}, is not possible", run.pages, run.first));
            }
            end = Some(run.end());
            pages += u64::from(run.pages);
            runs.push(run);
        }
        if pages != self.pages {
            return Err(format!("its runs have {pages} pages in place of {}", self.pages));
        }
        Ok(runs)
    }
}

/// The number in the first four bytes.
fn four(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"))
}

/// The number in the first eight bytes.
fn eight(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"))
}

/// How many pages there are in so many MiB.
pub(crate) fn memory_pages(memory_mb: u32) -> u64 {
    (u64::from(memory_mb) << 20) / PAGE as u64
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const MEMORY_MB: u32 = 1;

    /// Any delta of a machine of one MiB: for each page whether it changed, and to what.
    fn deltas() -> impl Strategy<Value = Delta> {
        vec(proptest::option::weighted(0.3, any::<u8>()), memory_pages(MEMORY_MB) as usize).prop_map(
            |pages| {
                let (mut runs, mut data) = (Vec::new(), Vec::new());
                for (first, byte) in (0..).zip(pages) {
                    if let Some(byte) = byte {
                        add_run(&mut runs, Run { first, pages: 1 });
                        data.extend([byte; PAGE]);
                    }
                }
                Delta::new(MEMORY_MB, runs, data)
            },
        )
    }

    /// What is read from a file with these bytes.
    fn read(bytes: &[u8]) -> Result<Delta, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("delta");
        std::fs::write(&path, bytes).unwrap();
        Delta::load(&path, MEMORY_MB)
    }

    fn written(delta: &Delta) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        delta.save(&dir.path().join("delta")).unwrap();
        std::fs::read(dir.path().join("delta")).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_delta_is_read_as_it_was_written(delta in deltas()) {
            prop_assert_eq!(read(&written(&delta)).unwrap(), delta);
        }

        #[test]
        fn a_file_that_was_cut_or_changed_anywhere_is_refused(
            delta in deltas(), at in any::<prop::sample::Index>(), bit in 0_u8..8,
        ) {
            let whole = written(&delta);
            let at = at.index(whole.len());
            let refused = read(&whole[..at]);
            prop_assert!(matches!(refused, Err(Error::Corrupted { .. })), "cut at {}: {:?}", at, refused);
            let mut changed = whole;
            changed[at] ^= 1_u8 << bit;
            let refused = read(&changed);
            let known = matches!(refused, Err(Error::Corrupted { .. } | Error::Incompatible(_)));
            prop_assert!(known, "changed at {}: {:?}", at, refused);
        }

        #[test]
        fn whatever_a_head_says_its_runs_are_within_the_memory_and_in_order(
            numbers in (0_u64..4, 0_u64..6, 0_u64..600), bytes in vec(any::<[u8; RUN]>(), 0..6),
            small in vec((0_u32..300, 0_u32..40), 0..6), use_small in any::<bool>(),
        ) {
            let (memory_mb, count, pages) = numbers;
            let mut head = Delta::new(0, Vec::new(), Vec::new()).head();
            for (at, number) in [(16, memory_mb), (24, count), (32, pages)] {
                head[at..at + 8].copy_from_slice(&number.to_le_bytes());
            }
            let runs: Vec<u8> = match use_small {
                true => small.iter().flat_map(|(a, b)| [a.to_le_bytes(), b.to_le_bytes()].concat()).collect(),
                false => bytes.concat(),
            };
            if let Ok(counts) = Counts::parse(&head[..FIXED])
                && let Ok(runs) = counts.parse_runs(&runs)
            {
                prop_assert!(runs.windows(2).all(|pair| pair[0].end() < u64::from(pair[1].first)));
                prop_assert!(runs.iter().all(|run| run.end() <= memory_pages(counts.memory_mb)));
                prop_assert_eq!(runs.iter().map(|run| u64::from(run.pages)).sum::<u64>(), pages);
            }
        }

        #[test]
        fn bytes_that_were_never_a_delta_are_refused(bytes in vec(any::<u8>(), FIXED..FIXED + 64)) {
            prop_assert!(Counts::parse(&bytes[..FIXED]).is_err());
            prop_assert!(read(&bytes).is_err());
        }
    }

    #[test]
    fn zeros_take_no_room_on_the_disk_and_another_size_is_refused() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("delta");
        let delta = Delta::new(64, vec![Run { first: 3, pages: 4096 }], vec![0; 16 << 20]);
        delta.save(&path).unwrap();
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20);
        assert_eq!(Delta::load(&path, 64).unwrap(), delta);
        let refused = Delta::load(&path, 128).unwrap_err().to_string();
        assert!(refused.contains("64 MiB") && refused.contains("with 128"), "{refused}");
    }
}

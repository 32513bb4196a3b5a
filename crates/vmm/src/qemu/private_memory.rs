//! The guest's memory in the process of a running QEMU: where it is mapped, which of its pages are no
//! longer those of the file beneath, copying them out, and writing others in.
//!
//! Everything here blocks, and is done by the kernel to a process that knows nothing of it. QEMU may be
//! under a guest's control: a memory that is not mapped as it was at its start is refused, and no more is
//! taken than the machine has. What a page holds is the guest's business alone.
//!
//! Sources: Linux, "Examining Process Page Tables" (Documentation/admin-guide/mm/pagemap.rst);
//! process_vm_readv(2); proc_pid_mem(5).
#![allow(unsafe_code, reason = "one ioctl has no safe form")]

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZero;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use nullspace_jail::Process;

use crate::delta::{Buffer, Delta, PAGE, Run, add_run, memory_pages};
use crate::{Error, memory};

/// Pieces that are copied by one system call: as many as the kernel takes.
const PIECES: usize = 1024;
/// The most bytes of one piece.
const PIECE_BYTES: usize = 1 << 20;
/// The least that is worth a thread of its own.
const SHARE_BYTES: usize = 8 << 20;
/// Regions of changed pages that the kernel tells at once.
const REGIONS: usize = 4096;
/// Entries of the page map that are read at once: those of 512 MiB.
const ENTRIES: u64 = 128 << 10;

/// Room for what a process has changed by now of its private view of `memory_mb` MiB.
pub fn make_buffer(process: &Process, memory_mb: u32) -> Result<Buffer, Error> {
    let (_, runs) = changed_pages(process, memory_mb)?;
    Ok(Buffer::new(memory_mb, runs.iter().map(|run| u64::from(run.pages)).sum()))
}

/// Copies what a stopped process has changed.
pub fn changed(process: &Process, buffer: Buffer) -> Result<Delta, Error> {
    let (begun, memory_mb) = (Instant::now(), buffer.memory_mb);
    let (start, runs) = changed_pages(process, memory_mb)?;
    let scanned = begun.elapsed();
    let mut data = buffer.into_bytes(&runs);
    copy(process, start, &runs, &mut data).map_err(cannot_copy)?;
    // Its PID was its own all the time only if it is there still.
    if process.ended() {
        return Err(Error::Monitor("it ended while its memory was copied".into()));
    }
    let copied = begun.elapsed() - scanned;
    tracing::debug!(?scanned, ?copied, bytes = data.len(), runs = runs.len(), "changed memory is copied");
    Ok(Delta::new(memory_mb, runs, data))
}

/// Puts the pages of a delta into a process's private view of the memory they were once changed in.
pub fn write(process: &Process, delta: &Delta) -> Result<(), Error> {
    let failed = |source| Error::File { what: "the machine's memory cannot be written".into(), source };
    let start = find(process, delta.memory_mb())?;
    // Not process_vm_writev: a descriptor cannot come to mean another process.
    let memory = File::options().write(true).open(in_proc(process, "mem")).map_err(failed)?;
    if process.ended() {
        return Err(Error::Monitor("it ended before its memory was written".into()));
    }
    let pieces: Vec<(u64, &[u8])> = delta
        .pieces()
        .flat_map(|(offset, run)| {
            let parts = run.chunks(PIECE_BYTES).enumerate();
            parts.map(move |(number, part)| (offset + (number * PIECE_BYTES) as u64, part))
        })
        .collect();
    let memory = &memory;
    let parts = shares(&pieces, |(_, piece)| piece.len()).into_iter().map(|(own, _)| {
        move || own.iter().try_for_each(|(offset, piece)| memory.write_all_at(piece, start + offset))
    });
    at_once(parts.collect()).map_err(failed)
}

fn in_proc(process: &Process, name: &str) -> String {
    format!("/proc/{}/{name}", process.pid())
}

/// The address of the guest's memory.
fn find(process: &Process, memory_mb: u32) -> Result<u64, Error> {
    let maps = fs_err::read_to_string(in_proc(process, "maps"))
        .map_err(|source| Error::File { what: "the monitor's mappings cannot be read".into(), source })?;
    find_private(&maps, u64::from(memory_mb) << 20).map_err(Error::Monitor)
}

/// The address of the one private mapping of a whole memory file of so many bytes, which the kernel may
/// list in several parts.
fn find_private(maps: &str, bytes: u64) -> Result<u64, String> {
    let name = format!("/memfd:{} (deleted)", memory::NAME.to_string_lossy());
    let mut parts = maps.lines().filter_map(|line| line.strip_suffix(&name)).peekable();
    if parts.peek().is_none() {
        return Err("it has no memory file mapped".into());
    }
    let (mut begin, mut length) = (None, 0);
    for part in parts {
        let mut words = part.split_ascii_whitespace();
        let mut word = || words.next().unwrap_or_default();
        let (range, access, offset) = (word(), word(), word());
        let (from, to) = range.split_once('-').unwrap_or_default();
        let number = |text| u64::from_str_radix(text, 16).map_err(|_| format!("{part:?} is no mapping"));
        let (from, to, offset) = (number(from)?, number(to)?, number(offset)?);
        if !access.ends_with('p') {
            return Err("its memory is shared: only a restored machine has changes of its own".into());
        }
        if offset != length || from != *begin.get_or_insert(from) + length {
            return Err("its memory is not mapped as it was at its start".into());
        }
        length += to.saturating_sub(from);
    }
    match begin {
        Some(begin) if length == bytes => Ok(begin),
        _ => Err(format!("it has {length} bytes of memory mapped, not {bytes}")),
    }
}

/// The address of the guest's memory, and its pages that are not the file's any more. The kernel's own
/// search passes over what was never touched, where the whole page map of a large machine takes many times
/// as long to read; kernels before 6.7 do not have it.
fn changed_pages(process: &Process, memory_mb: u32) -> Result<(u64, Vec<Run>), Error> {
    let (start, pages) = (find(process, memory_mb)?, memory_pages(memory_mb));
    let map = File::open(in_proc(process, "pagemap")).map_err(cannot_copy)?;
    let runs = match search_page_map(&map, start, pages) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => read_page_map(&map, start, pages),
        searched => searched,
    };
    Ok((start, runs.map_err(cannot_copy)?))
}

fn cannot_copy(source: io::Error) -> Error {
    Error::File { what: "the machine's memory cannot be copied".into(), source }
}

/// Reads the whole page map: an entry of 64 bits a page.
fn read_page_map(map: &File, start: u64, pages: u64) -> io::Result<Vec<Run>> {
    const ENTRY: usize = size_of::<u64>();
    const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;
    const OF_A_FILE: u64 = 1 << 61;
    let mut runs = Vec::new();
    let mut buffer = vec![0; ENTRIES.min(pages) as usize * ENTRY];
    for first in (0..pages).step_by(ENTRIES as usize) {
        let piece = &mut buffer[..ENTRIES.min(pages - first) as usize * ENTRY];
        map.read_exact_at(piece, (start / PAGE as u64 + first) * ENTRY as u64)?;
        for (page, entry) in (first as u32..).zip(piece.chunks_exact(ENTRY)) {
            let entry = u64::from_ne_bytes(entry.try_into().expect("chunks of this size"));
            if entry & PRESENT_OR_SWAPPED != 0 && entry & OF_A_FILE == 0 {
                add_run(&mut runs, Run { first: page, pages: 1 });
            }
        }
    }
    Ok(runs)
}

// The categories of linux/fs.h that matter here.
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// `struct page_region` of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct Search {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_len: u64,
    max_pages: u64,
    inverted: u64,
    all_of: u64,
    any_of: u64,
    told: u64,
}

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, Search);

/// Has the kernel search: PAGEMAP_SCAN.
fn search_page_map(map: &File, start: u64, pages: u64) -> io::Result<Vec<Run>> {
    let mut regions = vec![Region::default(); REGIONS];
    let (mut from, end) = (start, start + pages * PAGE as u64);
    let mut runs = Vec::new();
    while from < end {
        let mut search = Search {
            size: size_of::<Search>() as u64,
            start: from,
            end,
            regions: regions.as_mut_ptr() as u64,
            regions_len: REGIONS as u64,
            inverted: PAGE_IS_FILE,
            all_of: PAGE_IS_FILE,
            any_of: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            // The same of all that is found, so that neighbours are told as one.
            told: PAGE_IS_FILE,
            ..Default::default()
        };
        // SAFETY: the descriptor is open; the search and the regions it points to, of which it says how
        // many there are, live and are nobody else's until the call returns.
        let found = unsafe { pagemap_scan(map.as_raw_fd(), &raw mut search) }?;
        for region in regions.iter().take(found as usize) {
            let number = |address: u64| ((address - start) / PAGE as u64) as u32;
            let (first, end) = (number(region.start), number(region.end));
            add_run(&mut runs, Run { first, pages: end - first });
        }
        if search.walk_end <= from {
            return Err(io::Error::other("the search of the page map does not go on"));
        }
        from = search.walk_end;
    }
    Ok(runs)
}

/// Copies runs of pages out of a process, many with each call.
fn copy(process: &Process, start: u64, runs: &[Run], data: &mut [u8]) -> io::Result<()> {
    let pid = Pid::from_raw(process.pid().cast_signed());
    let pieces = runs.iter().flat_map(|run| {
        let base = start as usize + run.first as usize * PAGE;
        (0..run.bytes()).step_by(PIECE_BYTES).map(move |offset| RemoteIoVec {
            base: base + offset,
            len: PIECE_BYTES.min(run.bytes() - offset),
        })
    });
    let pieces: Vec<RemoteIoVec> = pieces.collect();
    let mut rest = data;
    let parts = shares(&pieces, |piece| piece.len).into_iter().map(|(own, bytes)| {
        let (room, after) = std::mem::take(&mut rest).split_at_mut(bytes);
        rest = after;
        move || copy_pieces(pid, own, room)
    });
    at_once(parts.collect())
}

fn copy_pieces(pid: Pid, pieces: &[RemoteIoVec], data: &mut [u8]) -> io::Result<()> {
    let mut rest = data;
    for batch in pieces.chunks(PIECES) {
        let bytes: usize = batch.iter().map(|piece| piece.len).sum();
        let (room, after) = rest.split_at_mut(bytes);
        rest = after;
        match process_vm_readv(pid, &mut [IoSliceMut::new(room)], batch) {
            Ok(read) if read == bytes => {}
            // A page that was there a moment ago is not: the process is not standing still.
            Ok(_) => return Err(Errno::EFAULT.into()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Divides what is to be copied among as many threads as are worth it: what each has, and its bytes.
fn shares<T>(pieces: &[T], bytes_of: impl Fn(&T) -> usize) -> Vec<(&[T], usize)> {
    let all: usize = pieces.iter().map(&bytes_of).sum();
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let share = all.div_ceil(processors.min(all / SHARE_BYTES).max(1));
    let mut shares = Vec::new();
    let mut rest = pieces;
    while !rest.is_empty() {
        let (mut count, mut bytes) = (0, 0);
        while count < rest.len() && bytes < share {
            bytes += bytes_of(&rest[count]);
            count += 1;
        }
        let (own, after) = rest.split_at(count);
        rest = after;
        shares.push((own, bytes));
    }
    shares
}

/// Does all parts at the same time, the last one in this thread.
fn at_once(mut parts: Vec<impl FnOnce() -> io::Result<()> + Send>) -> io::Result<()> {
    let Some(last) = parts.pop() else { return Ok(()) };
    std::thread::scope(|scope| {
        let others: Vec<_> = parts.into_iter().map(|part| scope.spawn(part)).collect();
        let mut outcome = last();
        for other in others {
            let done = other.join().unwrap_or_else(|_| Err(io::Error::other("a copying thread panicked")));
            outcome = outcome.and(done);
        }
        outcome
    })
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;

    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

    use super::*;
    use crate::Memory;

    const MEMORY_MB: u32 = 16;
    const BYTES: usize = (MEMORY_MB as usize) << 20;

    /// A private view of a memory, in this process.
    struct View(NonNull<u8>);

    impl View {
        fn new(memory: &Memory) -> Self {
            let (access, file) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, memory.descriptor().unwrap());
            let length = BYTES.try_into().unwrap();
            // SAFETY: a new mapping, at an address of the kernel's choice.
            let address = unsafe { mmap(None, length, access, MapFlags::MAP_PRIVATE, file, 0) };
            Self(address.unwrap().cast())
        }

        fn bytes(&mut self) -> &mut [u8] {
            // SAFETY: mapped for reading and writing for as long as this lives, and reached only by it.
            unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr(), BYTES) }
        }
    }

    impl Drop for View {
        fn drop(&mut self) {
            // SAFETY: what `new` mapped; nothing borrowed from it is left.
            unsafe { munmap(self.0.cast(), BYTES) }.unwrap();
        }
    }

    #[test]
    fn changed_pages_are_found_copied_and_written_over_another_view_of_the_same_memory() {
        let memory = Memory::new(MEMORY_MB).unwrap();
        let template = File::from(memory.descriptor().unwrap());
        template.write_all_at(&[1; 8 << 20], 0).unwrap();
        memory.seal().unwrap();
        let me = Process::find(std::process::id()).unwrap();

        let mut view = View::new(&memory);
        let bytes = view.bytes();
        assert_eq!((bytes[2 * PAGE], bytes[BYTES - PAGE]), (1, 0), "what is only read is not changed");
        bytes[0] = 2;
        // A run longer than a piece, zeros over what was not, and the last page.
        bytes[40 * PAGE..600 * PAGE].fill(3);
        bytes[700 * PAGE..701 * PAGE].fill(0);
        bytes[BYTES - 1] = 4;
        let expected = bytes.to_vec();

        let map = File::open("/proc/self/pagemap").unwrap();
        let (start, pages) = (view.0.as_ptr() as u64, memory_pages(MEMORY_MB));
        let runs = read_page_map(&map, start, pages).unwrap();
        let last = pages as u32 - 1;
        let known = [(0, 1), (40, 560), (700, 1), (last, 1)];
        assert_eq!(runs, known.map(|(first, pages)| Run { first, pages }));
        match search_page_map(&map, start, pages) {
            Ok(found) => assert_eq!(found, runs),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOTTY)),
        }

        // Too little room is none that is missing: what is not there is made.
        let [delta, other] = [make_buffer(&me, MEMORY_MB).unwrap(), Buffer::new(MEMORY_MB, 0)]
            .map(|buffer| changed(&me, buffer).unwrap());
        assert_eq!((delta.bytes(), &delta), (563 * PAGE as u64, &other));
        assert!(make_buffer(&me, MEMORY_MB * 2).is_err());
        drop(view);
        let mut child = View::new(&memory);
        write(&me, &delta).unwrap();
        assert!(child.bytes() == expected);
    }

    #[test]
    fn a_memory_is_used_only_where_it_is_mapped_privately_once_and_whole() {
        let other = "7f0000000000-7f0000001000 rw-p 00000000 00:01 7    /memfd:other (deleted)\n";
        let line = |from: u64, to: u64, access: &str, offset: u64| {
            format!("{from:x}-{to:x} {access} {offset:08x} 00:01 9    /memfd:nullspace-memory (deleted)\n")
        };
        let whole = format!("{other}{}{other}", line(0x10000, 0x30000, "rw-p", 0));
        assert_eq!(find_private(&whole, 0x20000), Ok(0x10000));
        let parts = line(0x10000, 0x20000, "rw-p", 0) + &line(0x20000, 0x30000, "r--p", 0x10000);
        assert_eq!(find_private(&parts, 0x20000), Ok(0x10000));
        for (maps, words) in [
            (other.to_owned(), "no memory file"),
            (line(0x10000, 0x30000, "rw-s", 0), "only a restored machine"),
            (line(0x10000, 0x20000, "rw-p", 0), "65536 bytes of memory mapped, not 131072"),
            (line(0x10000, 0x30000, "rw-p", 0x1000), "not mapped as it was"),
            (format!("{whole}{}", line(0x50000, 0x70000, "rw-p", 0)), "not mapped as it was"),
        ] {
            let refused = find_private(&maps, 0x20000).unwrap_err();
            assert!(refused.contains(words), "{refused}");
        }
    }
}

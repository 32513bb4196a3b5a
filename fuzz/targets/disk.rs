//! Disks of hostile guests: whatever the bytes are, comparing two ends, and tells what is true of both ways to
//! ask.
//!
//! An input is a row of blocks of 1 KiB, each after its number; those with the highest bit are the layer's,
//! the others the base's.
#![no_main]

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use nullspace_disk::{Chain, Differences, Error, diff};

const BLOCK: u64 = 1024;
const BASE_BYTES: u64 = 4 << 20;
const LAYER: u16 = 1 << 15;
/// Far more than so small a disk needs.
const STEPS_MAX: u32 = 1_000_000;

fuzz_target!(|input: &[u8]| {
    // In memory, where there is such a file system.
    let shared = Path::new("/dev/shm");
    let place = if shared.is_dir() { shared.into() } else { std::env::temp_dir() };
    let directory = tempfile::tempdir_in(place).expect("a directory can be made");
    let path = |name: &str| directory.path().join(name);
    let create = |name: &str| File::create(path(name)).expect("a file can be made");
    let (base, layer) = (create("base"), create("layer"));
    base.set_len(BASE_BYTES).expect("there is room");
    for record in input.chunks(2 + BLOCK as usize) {
        let Some((number, block)) = record.split_first_chunk() else { break };
        let number = u16::from_le_bytes(*number);
        let file = if number & LAYER != 0 { &layer } else { &base };
        let at = u64::from(number & !LAYER) * BLOCK;
        // The base has its size; one that is cut is for the reader of layers to find.
        let end = if number & LAYER != 0 { u64::MAX } else { BASE_BYTES };
        if at < end {
            file.write_all_at(block, at).expect("there is room");
        }
    }

    let alone = Chain::open(&path("base"), &[]).expect("it is a file");
    assert_eq!(compare(&alone, &alone).unwrap_or_default(), Differences::default());
    let Ok(chain) = Chain::open(&path("base"), &[path("layer")]) else { return };
    if let (Ok(forth), Ok(back)) = (compare(&chain, &alone), compare(&alone, &chain)) {
        let paths =
            |found: &Differences| found.items.iter().map(|item| item.path.clone()).collect::<Vec<_>>();
        assert_eq!(paths(&forth), paths(&back));
    }
});

fn compare(of: &Chain, against: &Chain) -> Result<Differences, Error> {
    let steps = Cell::new(0);
    let found = diff(of, against, 100, &|| steps.replace(steps.get() + 1) > STEPS_MAX);
    assert!(!matches!(found, Err(Error::Cancelled)), "it does not end");
    if let Ok(found) = &found {
        assert!(found.items.len() <= 100);
    }
    found
}

//! Layers, and making one of several.

use std::path::PathBuf;

use nullspace_disk::{Chain, Error};
use proptest::prelude::*;

use crate::tools::{CLUSTER, World, io, json, read, read_by_qemu, run, text};

const SECTOR: u64 = 512;
/// Of the base; layers are as large, or larger by whole clusters.
const BASE: u64 = 8 * CLUSTER as u64 + 3 * SECTOR;

/// What a guest does to its disk, in sectors; the disk's end cuts it.
#[derive(Debug, Clone)]
enum Change {
    Write(u64, u64, u8),
    Zero(u64, u64),
    Discard(u64, u64),
}

impl Change {
    fn command(&self, bytes: u64) -> String {
        let (Self::Write(at, length, _) | Self::Zero(at, length) | Self::Discard(at, length)) = self;
        let at = at * SECTOR % bytes;
        let length = (length * SECTOR).min(bytes - at);
        match self {
            Self::Write(.., pattern) => format!("write -q -P {pattern} {at} {length}"),
            Self::Zero(..) => format!("write -q -z {at} {length}"),
            Self::Discard(..) => format!("discard -q {at} {length}"),
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let at = 0..12 * CLUSTER as u64 / SECTOR;
    let length = 1..3 * CLUSTER as u64 / SECTOR;
    prop_oneof![
        (at.clone(), length.clone(), 1..=255u8)
            .prop_map(|(at, length, pattern)| Change::Write(at, length, pattern)),
        (at.clone(), length.clone()).prop_map(|(at, length)| Change::Zero(at, length)),
        (at, length).prop_map(|(at, length)| Change::Discard(at, length)),
    ]
}

/// Layers, each with by how many clusters it is larger than what is below, and what was done to it.
fn layers() -> impl Strategy<Value = Vec<(u64, Vec<Change>)>> {
    prop::collection::vec((0..3u64, prop::collection::vec(change(), 0..6)), 1..5)
}

fn build(world: &World, layers: &[(u64, Vec<Change>)]) -> (PathBuf, Vec<PathBuf>) {
    let content: Vec<u8> = (0..BASE).map(|at| (at / SECTOR + 1) as u8).collect();
    let base = world.write("base", &content);
    let mut bytes = BASE.next_multiple_of(CLUSTER as u64);
    let mut paths = Vec::new();
    for (number, (larger, changes)) in layers.iter().enumerate() {
        bytes += larger * CLUSTER as u64;
        paths.push(world.layer(&format!("layer-{number}"), bytes));
        let commands: Vec<_> = changes.iter().map(|change| change.command(bytes)).collect();
        if !commands.is_empty() {
            io(json(&base, &paths), &commands);
        }
    }
    (base, paths)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_chain_reads_as_qemu_reads_it(layers in layers()) {
        let Some(world) = World::with(&["qemu-img", "qemu-io"]) else { return Ok(()) };
        let (base, layers) = build(&world, &layers);
        let expected = read_by_qemu(&world, &base, &layers);
        prop_assert!(read(&base, &layers) == expected, "the chain reads otherwise");
    }
}

#[test]
fn a_disk_that_grew_does_not_show_what_an_older_larger_layer_had_there() {
    let Some(world) = World::with(&["qemu-img", "qemu-io"]) else { return };
    let base = world.write("base", &vec![1; 4 * CLUSTER]);
    let layers = [world.layer("shorter", 2 * CLUSTER as u64), world.layer("longer", 4 * CLUSTER as u64)];
    let expected = [vec![1; 2 * CLUSTER], vec![0; 2 * CLUSTER]].concat();
    assert!(read_by_qemu(&world, &base, &layers) == expected);
    assert!(read(&base, &layers) == expected);
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let Some(world) = World::with(&["qemu-img", "qemu-io"]) else { return };
    let base = world.write("base", &vec![1; 4 * CLUSTER]);
    let reason = |layer: &PathBuf| {
        let outcome = Chain::open(&base, std::slice::from_ref(layer))
            .and_then(|chain| chain.read_at(0, &mut [0; 4096]));
        match outcome {
            Err(Error::Layer { path, reason }) if path == *layer => reason,
            other => panic!("{other:?}"),
        }
    };
    let compressed = world.path("compressed");
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&base), text(&compressed)]);
    assert_eq!(reason(&compressed), "cluster 0: it is compressed");

    let split = world.path("split");
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "extended_l2=on", text(&split), "1M"]);
    assert_eq!(reason(&split), "it has features that are not known: 0x10");

    let data = world.path("data");
    let outside = world.path("outside");
    let options = format!("data_file={}", text(&data));
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, text(&outside), "1M"]);
    assert_eq!(reason(&outside), "it has features that are not known: 0x4");

    assert_eq!(reason(&world.write("raw", &[7; 4096])), "it is not qcow2");
    assert_eq!(reason(&world.write("empty", &[])), "it is not qcow2");
}

#[test]
fn nothing_is_read_beyond_the_end() {
    let Some(world) = World::with(&[]) else { return };
    let base = world.write("base", &[1; 1000]);
    let chain = Chain::open(&base, &[]).unwrap();
    assert_eq!(chain.len_bytes(), 1000);
    for (offset, length) in [(999, 2), (1000, 1), (u64::MAX, 1), (u64::MAX, 1000)] {
        let outcome = chain.read_at(offset, &mut vec![0; length]);
        assert!(matches!(outcome, Err(Error::PastEnd { .. })), "{length} bytes at {offset}: {outcome:?}");
    }
    let mut last = [0; 1];
    chain.read_at(999, &mut last).unwrap();
    assert_eq!(last, [1]);
}

//! Disks that a guest or a failing host has damaged: each gets an answer or an error, in bounded time, and
//! never a panic.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nullspace_disk::{Chain, diff};
use proptest::prelude::*;

use crate::tools::{World, read, run, text};

/// What is damaged: a small base with a journal, and a layer.
struct Whole {
    world: World,
    base: Content,
    layer: Content,
}

struct Content {
    bytes: Vec<u8>,
    /// Where it has something else than zeros.
    used: Vec<usize>,
}

impl Content {
    fn of(bytes: Vec<u8>) -> Self {
        let used = bytes.iter().enumerate().filter(|(_, byte)| **byte != 0).map(|(at, _)| at).collect();
        Self { bytes, used }
    }
}

fn whole() -> Option<&'static Whole> {
    static WHOLE: OnceLock<Option<Whole>> = OnceLock::new();
    let make = || {
        let world = World::with(&["mke2fs", "debugfs", "qemu-img", "qemu-io"])?;
        let tree = world.path("tree");
        fs::create_dir_all(tree.join("directory/below")).unwrap();
        for name in ["file", "directory/other", "directory/below/third"] {
            fs::write(tree.join(name), name.repeat(1000)).unwrap();
        }
        std::os::unix::fs::symlink("file", tree.join("link")).unwrap();
        let base = world.path("base");
        // No checksums: what is damaged is to get as far as it can.
        let form = ["-q", "-t", "ext4", "-b", "1024", "-N", "64", "-J", "size=1", "-O", "^metadata_csum"];
        run("mke2fs", &[&form[..], &["-d", text(&tree), text(&base), "4M"]].concat());
        let before = fs::read(&base).unwrap();
        let content = world.write("content", &before[10 << 10..14 << 10]);
        let script = world
            .write("script", format!("jo\njw -b 10,11,12,13 {}\njw -r 11\njc\n", text(&content)).as_bytes());
        run("debugfs", &["-w", "-f", text(&script), text(&base)]);
        let base = fs::read(base).unwrap();
        let after: Vec<u8> = before.iter().map(|byte| if *byte == b'f' { b'g' } else { *byte }).collect();
        let layer = fs::read(world.difference("layer", &base, &after)).unwrap();
        Some(Whole { world, base: Content::of(base), layer: Content::of(layer) })
    };
    WHOLE.get_or_init(make).as_ref()
}

/// Bytes that are changed, by which of those that are not zero they are; and where it is cut.
#[derive(Debug, Clone)]
struct Damage {
    bytes: Vec<(prop::sample::Index, u8)>,
    end: Option<prop::sample::Index>,
}

impl Damage {
    fn apply(&self, whole: &Content) -> Vec<u8> {
        let mut damaged = whole.bytes.clone();
        for (at, change) in &self.bytes {
            damaged[whole.used[at.index(whole.used.len())]] ^= change;
        }
        if let Some(end) = &self.end {
            damaged.truncate(end.index(damaged.len()));
        }
        damaged
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let bytes = prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 0..8);
    (bytes, prop::option::weighted(0.2, any::<prop::sample::Index>()))
        .prop_map(|(bytes, end)| Damage { bytes, end })
}

/// Everything that can be done with a disk.
fn use_all(world: &World, base: &Path, layers: &[PathBuf]) {
    let Ok(chain) = Chain::open(base, layers) else { return };
    let mut buffer = vec![0; 64 << 10];
    for at in 0..(chain.len_bytes() / buffer.len() as u64).min(64) {
        let _refused = chain.read_at(at * buffer.len() as u64, &mut buffer);
    }
    let Ok(against) = Chain::open(&world.path("base"), &[]) else { return };
    let steps = std::cell::Cell::new(0);
    let too_long = || steps.replace(steps.get() + 1) > 1_000_000;
    for (of, against) in [(&chain, &against), (&against, &chain), (&chain, &chain)] {
        if let Err(error) = diff(of, against, 1000, &too_long) {
            assert!(!matches!(error, nullspace_disk::Error::Cancelled), "it does not end");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_layer_gets_an_answer_or_an_error(damage in damage()) {
        let Some(Whole { world, layer, .. }) = whole() else { return Ok(()) };
        let damaged = world.write("damaged-layer", &damage.apply(layer));
        use_all(world, &world.path("base"), &[damaged]);
    }

    #[test]
    fn a_damaged_file_system_gets_an_answer_or_an_error(damage in damage()) {
        let Some(Whole { world, base, .. }) = whole() else { return Ok(()) };
        let damaged = world.write("damaged-base", &damage.apply(base));
        use_all(world, &damaged, &[]);
    }
}

#[test]
fn what_is_damaged_was_whole() {
    let Some(Whole { world, base, .. }) = whole() else { return };
    let (path, layer) = (world.path("base"), world.path("layer"));
    assert!(read(&path, &[]) == base.bytes);
    let (before, after) = (Chain::open(&path, &[]).unwrap(), Chain::open(&path, &[layer]).unwrap());
    let found = diff(&after, &before, 10, &|| false).unwrap();
    assert!(!found.items.is_empty() && !found.truncated, "{found:?}");
}

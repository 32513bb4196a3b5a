//! Which files differ, told of file systems that e2fsprogs makes: those of our guest image, and such as
//! Debian makes by itself.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nullspace_disk::{Chain, Differences, Error, diff};
use nullspace_types::snapshot::FileDifference::{Added, Modified, Removed};

use crate::tools::{World, run, text};

const PROGRAMS: [&str; 5] = ["mke2fs", "debugfs", "e2fsck", "qemu-img", "qemu-io"];
/// As `guest-image/make-root` makes it; and with checksums, and small blocks and inodes.
const OURS: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize";
const FORMS: [&[&str]; 2] = [
    &["-b", "4096", "-J", "size=4", "-O", OURS],
    &["-b", "1024", "-J", "size=1", "-I", "128", "-O", "metadata_csum,metadata_csum_seed,64bit"],
];
const LONG: &str = "/a/target/that/is/longer/than/what/an/inode/has/room/for/which/is/sixty/bytes";

/// A file system, and the same after the changes of [`what_differs_is_told`].
struct Disks {
    world: World,
    before: PathBuf,
    after: PathBuf,
}

/// In order.
const EXPECTED: [(&str, &str, &str); 22] = [
    ("modified", "file", "/content"),
    ("modified", "other", "/device"),
    ("removed", "dir", "/gone"),
    ("removed", "file", "/gone/below"),
    ("modified", "file", "/in-place"),
    ("modified", "dir", "/kind"),
    ("added", "file", "/kind/below"),
    ("modified", "symlink", "/long"),
    ("modified", "file", "/many/250"),
    ("modified", "file", "/mode"),
    ("modified", "symlink", "/name"),
    ("added", "dir", "/new"),
    ("added", "dir", "/new-"),
    ("added", "file", "/new/below"),
    ("added", "dir", "/new/deep"),
    ("added", "file", "/new/deep/below"),
    ("modified", "file", "/one-name"),
    ("modified", "file", "/other-name"),
    ("modified", "dir", "/owned"),
    ("modified", "file", "/owner"),
    ("modified", "file", "/pieces"),
    ("modified", "file", "/size"),
];

fn make(form: &[&str]) -> Option<Disks> {
    let world = World::with(&PROGRAMS)?;
    let tree = world.path("tree");
    for directory in ["gone", "owned", "times", "many", "unchanged/deep"] {
        fs::create_dir_all(tree.join(directory)).unwrap();
    }
    for name in
        ["content", "gone/below", "in-place", "kind", "mode", "one-name", "owner", "size", "times/file"]
    {
        fs::write(tree.join(name), format!("what {name} was\n").repeat(500)).unwrap();
    }
    fs::hard_link(tree.join("one-name"), tree.join("other-name")).unwrap();
    for number in 0..500 {
        fs::write(tree.join(format!("many/{number}")), number.to_string()).unwrap();
        fs::write(tree.join(format!("unchanged/deep/{number}")), number.to_string()).unwrap();
    }
    fs::write(tree.join("pieces"), [7; 200 << 10]).unwrap();
    std::os::unix::fs::symlink(LONG, tree.join("long")).unwrap();
    std::os::unix::fs::symlink("old", tree.join("name")).unwrap();
    let before = world.path("before");
    let arguments = [&["-q", "-t", "ext4"], form, &["-d", text(&tree), text(&before), "24M"]].concat();
    run("mke2fs", &arguments);
    // More extents than an inode has room for.
    let punched: String = (0..24).map(|n| format!("punch /pieces {0} {0}\n", n * 2 + 1)).collect();
    edit(&world, &before, &format!("mknod device c 1 3\n{punched}"));
    // Directories with trees of hashes.
    let checked = Command::new("e2fsck").args(["-fyD", text(&before)]).output().unwrap();
    assert!(checked.status.code() < Some(4), "{checked:?}");

    let after = world.path("after");
    fs::copy(&before, &after).unwrap();
    let other = text(&world.write("other", "what is there now\n".repeat(500).as_bytes())).to_owned();
    let short = text(&world.write("short", b"short")).to_owned();
    edit(
        &world,
        &after,
        &format!(
            "rm /content\nwrite {other} content\nrm /size\nwrite {short} size\n\
             rm /device\nmknod device c 1 5\nrm /gone/below\nrmdir /gone\n\
             rm /kind\nmkdir /kind\nwrite {other} /kind/below\n\
             rm /long\nsymlink /long {}\nrm /name\nsymlink /name new\n\
             rm /many/250\nwrite {short} /many/250\nsif /mode mode 0100600\n\
             mkdir /new\nwrite {other} /new/below\nmkdir /new/deep\nwrite {other} /new/deep/below\nmkdir /new-\n\
             sif /owned uid 7\nsif /owner gid 70000\n\
             sif /times mtime 20300101\nsif /times/file mtime 20300101\nsif /times/file ctime 20300101\n\
             write {other} /lost+found/not-the-users\n",
            LONG.replace("target", "tarred")
        ),
    );
    // As it is written by programs that hide it: no time, no inode changes. The first is what a journal must
    // not have at the beginning of a block.
    let file = fs::File::options().write(true).open(&after).unwrap();
    for (name, block, content) in
        [("in-place", 0, &[0xc0, 0x3b, 0x39, 0x98][..]), ("one-name", 1, b"!"), ("pieces", 100, b"!")]
    {
        let block_bytes: u64 = form[1].parse().unwrap();
        let block = if name == "pieces" { 200 * 1024 / block_bytes - 1 } else { block };
        let found = run("debugfs", &["-R", &format!("bmap /{name} {block}"), text(&after)]);
        let at: u64 = found.trim().parse().unwrap();
        file.write_all_at(content, at * block_bytes).unwrap();
    }
    Some(Disks { world, before, after })
}

/// Has debugfs do what a script says, all of it.
fn edit(world: &World, disk: &Path, script: &str) {
    let script = world.write("script", script.as_bytes());
    let output = Command::new("debugfs").args(["-w", "-f", text(&script), text(disk)]).output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert_eq!(complaints.lines().count(), 1, "{complaints}");
}

fn chain(base: &Path, layers: &[PathBuf]) -> Chain {
    Chain::open(base, layers).unwrap()
}

fn compare(of: &Chain, against: &Chain) -> Differences {
    diff(of, against, 1000, &|| false).unwrap()
}

fn told(differences: &Differences) -> Vec<(&str, &str, &str)> {
    let change = |change| match change {
        Added => "added",
        Removed => "removed",
        Modified => "modified",
    };
    let items = differences.items.iter();
    items.map(|item| (change(item.change), item.r#type.as_str(), item.path.as_str())).collect()
}

#[test]
fn what_differs_is_told_in_the_order_of_paths_and_nothing_else_is() {
    for form in FORMS {
        let Some(Disks { world, before, after }) = make(form) else { return };
        let (one, other) = (fs::read(&before).unwrap(), fs::read(&after).unwrap());
        let layer = world.difference("layer", &one, &other);
        let before = chain(&before, &[]);
        for after in [chain(&after, &[]), chain(&world.path("before"), &[layer])] {
            let found = compare(&after, &before);
            assert_eq!(told(&found), EXPECTED);
            assert!(!found.truncated);
            let sizes = |path: &str| found.items.iter().find(|item| item.path == path).unwrap().size;
            assert_eq!((sizes("/size"), sizes("/gone/below"), sizes("/name")), (5, 20 * 500, 3));

            let back = compare(&before, &after);
            let turned: Vec<_> = EXPECTED
                .map(|(change, kind, path)| match (change, path) {
                    ("added", _) => ("removed", kind, path),
                    ("removed", _) => ("added", kind, path),
                    (_, "/kind") => ("modified", "file", path),
                    _ => (change, kind, path),
                })
                .into();
            assert_eq!(told(&back), turned);
            assert_eq!(compare(&after, &after), Differences::default());
        }
    }
}

#[test]
fn what_only_the_journal_has_yet_counts() {
    for (form, checksums) in [(0, ""), (0, "-c -v 2"), (0, "-c -v 3"), (1, "-c -v 3")] {
        let Some(Disks { world, before, after }) = make(FORMS[form]) else { return };
        let block_bytes: usize = FORMS[form][1].parse().unwrap();
        let (one, other) = (fs::read(&before).unwrap(), fs::read(&after).unwrap());
        let blocks = || one.chunks(block_bytes).zip(other.chunks(block_bytes)).enumerate();
        let changed: Vec<_> = blocks().filter(|(_, (one, other))| one != other).collect();
        let content: Vec<u8> = changed.iter().flat_map(|(_, (_, other))| other.iter().copied()).collect();
        let content = text(&world.write("content", &content)).to_owned();
        let numbers: Vec<_> = changed.iter().map(|(number, _)| number.to_string()).collect();
        // In a block that no change touches: what was revoked, and what was not committed.
        let stale = run("debugfs", &["-R", "bmap /unchanged/deep/250 0", text(&before)]).trim().to_owned();
        let garbage = text(&world.write("garbage", &vec![0xff; block_bytes])).to_owned();
        let written = numbers.chunks(20).enumerate().map(|(number, blocks)| {
            let part = world.path(&format!("part-{number}"));
            let all = fs::read(&content).unwrap();
            let from = number * 20 * block_bytes;
            fs::write(&part, &all[from..(from + 20 * block_bytes).min(all.len())]).unwrap();
            format!("jw -b {} {}\n", blocks.join(","), text(&part))
        });
        let written: String = written.collect();
        edit(
            &world,
            &before,
            &format!(
                "jo {checksums}\njw -b {stale} {garbage}\njw -r {stale}\n{written}\
                 jw -b {stale} -c {garbage}\njc\n"
            ),
        );
        let recovered = chain(&before, &[]);
        let untouched = world.write("untouched", &one);
        assert_eq!(told(&compare(&recovered, &chain(&untouched, &[]))), EXPECTED, "{form}, {checksums}");
        assert_eq!(compare(&recovered, &chain(&after, &[])), Differences::default());
    }
}

#[test]
fn the_first_are_told_if_there_are_more_than_are_wanted() {
    let Some(Disks { before, after, world: _world }) = make(FORMS[0]) else { return };
    let (before, after) = (chain(&before, &[]), chain(&after, &[]));
    for limit in [0, 1, 7, EXPECTED.len() - 1] {
        let found = diff(&after, &before, limit, &|| false).unwrap();
        assert_eq!(told(&found), EXPECTED[..limit]);
        assert!(found.truncated);
    }
    assert!(!diff(&after, &before, EXPECTED.len(), &|| false).unwrap().truncated);
}

#[test]
fn it_ends_when_nobody_waits_for_it() {
    let Some(Disks { before, after, world: _world }) = make(FORMS[0]) else { return };
    let (before, after) = (chain(&before, &[]), chain(&after, &[]));
    let asked = Cell::new(0);
    let cancelled = || asked.replace(asked.get() + 1) >= 10;
    assert!(matches!(diff(&after, &before, 1000, &cancelled), Err(Error::Cancelled)));
    assert_eq!(asked.get(), 11);
}

#[test]
fn what_is_no_file_system_that_is_known_is_refused_by_name() {
    let Some(world) = World::with(&PROGRAMS) else { return };
    let reason = |disk: &Path| match diff(&chain(disk, &[]), &chain(disk, &[]), 1, &|| false) {
        Err(Error::FileSystem(reason)) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(&world.write("zeros", &[0; 1 << 20])), "it is not ext4");
    let inline = world.path("inline");
    run("mke2fs", &["-q", "-t", "ext4", "-O", "inline_data", text(&inline), "4M"]);
    assert_eq!(reason(&inline), "it has features that are not known: 0x8000");
    let cut = world.path("cut");
    run("mke2fs", &["-q", "-t", "ext4", text(&cut), "4M"]);
    fs::File::options().write(true).open(&cut).unwrap().set_len(1 << 20).unwrap();
    assert_eq!(reason(&cut), "its 4096 blocks do not fit a disk of 1048576 bytes");
}

//! A running machine captured and restored, with real QEMU: one boot, and what becomes of it.
//!
//! Needs root, QEMU and a guest image (`make image`); says `SKIP` without. With `--nocapture` it prints
//! how long each part took; with `RUST_LOG=nullspace_vmm=debug` also what a capture's copying consists of.
#![allow(clippy::print_stderr, missing_docs)]

mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use nullspace_vmm::{Delta, Error};
use world::{MEMORY_MB, Machine, Template, World, measured};

fn main() -> ExitCode {
    // A monitor's jail is this program again, under this name.
    if std::env::args().nth(1).is_some_and(|word| word == "jail") {
        return nullspace_jail::main();
    }
    let trials = vec![Trial::test("a_running_machine_is_captured_and_its_copies_go_their_own_ways", || {
        world::run(|world| Box::pin(body(world))).map_err(Failed::from)
    })];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// What a checkpoint of a running machine consists of.
struct Captured {
    delta: Arc<Delta>,
    devices: PathBuf,
    /// Its frozen layers over the template's.
    layers: Vec<PathBuf>,
}

/// Captures a running machine, which goes on over a new top layer of `disk_bytes`.
async fn capture(world: &World, machine: &mut Machine, disk_bytes: u64) -> Captured {
    let (monitor, new_top) = (&machine.monitor, world.layer(disk_bytes).await);
    let devices = world.path("devices");
    let file = std::fs::File::options().write(true).create_new(true).open(&devices).unwrap();
    let layer = measured("add_layer, while it runs", monitor.add_layer(&new_top)).await.unwrap();
    let buffer = measured("make_buffer, while it runs", monitor.make_buffer(MEMORY_MB)).await.unwrap();
    let pause = std::time::Instant::now();
    measured("pause", monitor.pause()).await.unwrap();
    measured("save_devices", monitor.save_devices(file)).await.unwrap();
    let delta = measured("changed_memory", monitor.changed_memory(buffer)).await.unwrap();
    measured("freeze_disk", monitor.freeze_disk(layer)).await.unwrap();
    measured("resume", monitor.resume()).await.unwrap();
    eprintln!("    it stood still for {:?}; {delta:?}", pause.elapsed());

    let frozen = std::mem::replace(&mut machine.top, new_top);
    world::make_read_only(&frozen);
    machine.layers.push(frozen);
    assert!(!world::open_files(machine).contains(&devices), "what was passed is closed once it runs again");
    Captured { delta: Arc::new(delta), devices, layers: machine.layers.clone() }
}

async fn restore(world: &World, template: &Template, captured: &Captured, disk_bytes: u64) -> Machine {
    let Captured { delta, devices, layers } = captured;
    let delta = Some(Arc::clone(delta));
    let machine = world.restore(template, layers.clone(), disk_bytes, delta, devices).await.unwrap();
    machine.monitor.resume().await.unwrap();
    machine
}

/// How far the counter in the memory of a running process is.
async fn counter(machine: &Machine) -> u64 {
    machine.run("cat /run/counter").await.trim().parse().unwrap()
}

/// Reads from the disk what the machine wrote there, not from its memory.
const WHO: &str = "echo 3 > /proc/sys/vm/drop_caches; cat /root/who; sha256sum < /root/data";

async fn body(world: Arc<World>) {
    let template = world.template().await;
    let disk_bytes = world.disk_bytes;
    let parent = world.restore(&template, Vec::new(), disk_bytes, None, &template.devices).await;
    let mut parent = parent.unwrap();
    parent.monitor.resume().await.unwrap();
    parent
        .start("i=0; while :; do i=$((i+1)); echo $i > /run/new; mv /run/new /run/counter; sleep 0.1; done")
        .await;
    parent.run("head -c 3000000 /dev/urandom > /root/data; echo before > /root/who; sync").await;
    parent
        .run("echo not yet on the disk > /root/unsynced; until test -e /run/counter; do sleep 0.1; done")
        .await;
    let data = parent.run("sha256sum < /root/data").await;

    let (before, first) = (counter(&parent).await, capture(&world, &mut parent, disk_bytes).await);
    let frozen = std::fs::read(&first.layers[0]).unwrap();
    parent.run("echo parent > /root/who; sync").await;
    refusals(&world, &template, &first).await;

    let mut child = restore(&world, &template, &first, disk_bytes).await;
    let (now, then) = (counter(&child).await, counter(&parent).await);
    assert!(now >= before, "a process goes on with what it had in memory: {before}, {now}");
    assert_eq!(child.run("cat /root/unsynced").await, "not yet on the disk\n");
    assert_eq!(child.run(WHO).await, format!("before\n{data}"));
    child.run("echo child > /root/who; sync").await;
    child.run(&format!("until test $(cat /run/counter) -gt {now}; do sleep 0.1; done")).await;
    parent.run(&format!("until test $(cat /run/counter) -gt {then}; do sleep 0.1; done")).await;
    assert_eq!(parent.run(WHO).await, format!("parent\n{data}"));

    // A restored machine is captured like any other, always against the template alone.
    let second = capture(&world, &mut child, disk_bytes).await;
    child.run("echo changed > /root/who; sync").await;
    let grandchild = restore(&world, &template, &second, disk_bytes).await;
    assert_eq!(grandchild.run(WHO).await, format!("child\n{data}"));
    assert!(counter(&grandchild).await > now);

    // And again, by a server that has to find out which layer is the top, on a disk that has grown.
    let mut parent = world.reattach(parent).await;
    let grown = disk_bytes + (1 << 30);
    parent.monitor.resize_disk(grown).await.unwrap();
    let third = capture(&world, &mut parent, disk_bytes).await;
    parent.run("echo later > /root/who; sync").await;
    let fourth = capture(&world, &mut parent, grown).await;
    for (captured, who) in [(&third, "parent"), (&fourth, "later")] {
        let copy = restore(&world, &template, captured, grown).await;
        assert_eq!(copy.run(WHO).await, format!("{who}\n{data}"));
        assert_eq!(copy.run("cat /sys/block/vda/size").await, format!("{}\n", grown / 512));
        copy.monitor.end().await.unwrap();
    }
    assert_eq!(parent.run(WHO).await, format!("later\n{data}"));
    assert!(std::fs::read(&first.layers[0]).unwrap() == frozen, "a frozen layer is nobody's to write");
    layers_that_do_not_become_the_top(&world, &mut parent, grown).await;
    let mut merged = layers_are_merged(&world, parent, grown).await;
    let last = capture(&world, &mut merged, grown).await;
    let copy = restore(&world, &template, &last, grown).await;
    assert_eq!(copy.run(WHO).await, format!("merged\n{data}"));
    assert_eq!(copy.run("cat /root/each-*").await, "0\n1\n2\n");
    assert!(std::fs::read(&first.layers[0]).unwrap() == frozen, "what others stand on is not touched");
}

/// What lies in many layers is one layer later, while the machine runs; a capture does not wait for that.
async fn layers_are_merged(world: &World, mut machine: Machine, disk_bytes: u64) -> Machine {
    let had = machine.layers.len();
    // So much that it is not merged before anything else can happen.
    machine.run("head -c 64000000 /dev/urandom > /root/big; sync").await;
    for number in 0..3 {
        machine.run(&format!("echo {number} > /root/each-{number}; sync")).await;
        let captured = capture(world, &mut machine, disk_bytes).await;
        assert_eq!(captured.layers.len(), had + number + 1);
    }
    machine.run("echo merged > /root/who; rm /root/unsynced; sync; fstrim /").await;
    let count = |machine: &Machine| machine.layers.len() + 2;
    assert_eq!(machine.monitor.disk_layers().await.unwrap(), count(&machine));

    // Whoever wants to change the disk goes first.
    let monitor = Arc::clone(&machine.monitor);
    let path = world.layer(disk_bytes).await;
    let layer = monitor.add_layer(&path).await.unwrap();
    assert!(matches!(monitor.merge_layers(1).await, Err(Error::Refused { .. })));
    monitor.drop_layer(layer).await.unwrap();
    let (merged, ()) = tokio::join!(monitor.merge_layers(1), async {
        monitor.pause().await.unwrap();
        monitor.resume().await.unwrap();
    });
    assert!(matches!(merged, Err(Error::Refused { .. })), "{merged:?}");
    assert_eq!(monitor.disk_layers().await.unwrap(), count(&machine));

    // A server that was killed in the middle of one finds the disk as it was.
    tokio::select! {
        biased;
        merged = monitor.merge_layers(1) => panic!("{merged:?}"),
        // It waits until the merge has begun.
        layers = monitor.disk_layers() => assert_eq!(layers.unwrap(), count(&machine)),
    }
    drop(monitor);
    let machine = world.reattach(machine).await;
    assert_eq!(machine.monitor.disk_layers().await.unwrap(), count(&machine));
    measured("merge_layers, while it runs", machine.monitor.merge_layers(1)).await.unwrap();
    assert_eq!(machine.monitor.disk_layers().await.unwrap(), 2);
    measured("merge_layers, with nothing to merge", machine.monitor.merge_layers(1)).await.unwrap();
    machine.monitor.pause().await.unwrap();
    machine.monitor.resume().await.unwrap();
    let open = world::open_files(&machine);
    assert!(machine.layers.iter().all(|layer| !open.contains(layer)), "what was merged is closed");
    let mut machine = world.reattach(machine).await;
    machine.layers.clear();
    assert_eq!(machine.monitor.disk_layers().await.unwrap(), 2);
    machine
}

/// What does not fit, or is no longer what it was, is refused before anything is started.
async fn refusals(world: &World, template: &Template, captured: &Captured) {
    let path = world.path("delta");
    measured("save", async { captured.delta.save(&path) }).await.unwrap();
    assert_eq!(measured("load", async { Delta::load(&path, MEMORY_MB) }).await.unwrap(), *captured.delta);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let refused = Delta::load(&path, MEMORY_MB).unwrap_err();
    assert!(refused.to_string().contains(&*path.to_string_lossy()), "{refused}");
    assert!(matches!(refused, Error::Corrupted { .. }));

    let smaller = Template { memory_mb: MEMORY_MB / 2, ..template.clone() };
    let delta = Some(Arc::clone(&captured.delta));
    let layers = captured.layers.clone();
    let refused = world.restore(&smaller, layers, world.disk_bytes, delta, &captured.devices).await;
    assert!(matches!(refused.err(), Some(Error::Incompatible(_))));
}

/// A layer that is not used leaves the disk as it was, and so does one that no longer fits.
async fn layers_that_do_not_become_the_top(world: &World, machine: &mut Machine, disk_bytes: u64) {
    let monitor = Arc::clone(&machine.monitor);
    let path = world.layer(disk_bytes).await;
    let layer = monitor.add_layer(&path).await.unwrap();
    monitor.drop_layer(layer).await.unwrap();
    let layer = monitor.add_layer(&path).await.unwrap();
    monitor.resize_disk(disk_bytes + (1 << 20)).await.unwrap();
    let refused = monitor.freeze_disk(layer).await.unwrap_err();
    assert!(refused.to_string().contains("was resized"), "{refused}");
    assert!(matches!(monitor.add_layer(&world.path("devices")).await, Err(Error::File { .. })));
    let text = world.path("text");
    std::fs::write(&text, [b'x'; 64]).unwrap();
    assert!(matches!(monitor.add_layer(&text).await, Err(Error::Corrupted { .. })));
    monitor.pause().await.unwrap();
    monitor.resume().await.unwrap();
    assert!(!world::open_files(machine).contains(&path), "a layer that is not used is closed");
    capture(world, machine, disk_bytes + (1 << 20)).await;
    machine.run("sync").await;
}

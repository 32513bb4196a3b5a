//! QEMU's command line, as a pure function of what the machine is made of.
//!
//! The minimal set of devices: a serial port (kept in memory), one virtio disk, one virtio network
//! device. The machine type is `pc` for every acceleration: `microvm` hangs in a part of its boots
//! under TCG. What a checkpoint leaves out (memory) and how it is laid out depends on two options:
//! `send-configuration=off` and `suppress-vmdesc=on`; without them `-incoming` does not take what
//! `xen-save-devices-state` writes.

use std::path::PathBuf;

use super::Acceleration;
use crate::Hardware;

/// The machine type.
pub const MACHINE: &str = "pc";

/// MiB of translated code that TCG may keep; each machine has a buffer of its own.
const TRANSLATION_BUFFER_MB: u32 = 128;

/// Descriptors that the process inherits, in the order in which the driver passes them.
mod descriptor {
    pub const QMP: u32 = 3;
    pub const MEMORY: u32 = 4;
    pub const TAP: u32 = 5;
}

/// The device state, as QEMU calls the descriptor that follows.
pub const DEVICES: &str = "fd:6";

/// Where files stand in the jail.
pub mod paths {
    pub const KERNEL: &str = "/machine/kernel";
    pub const INITRD: &str = "/machine/initrd";
    pub const BASE: &str = "/machine/base.raw";
    pub const TOP: &str = "/machine/top.qcow2";
}

/// Where the frozen layers stand in the jail.
pub struct Paths {
    pub layers: Vec<PathBuf>,
}

impl Paths {
    pub fn of(hardware: &Hardware) -> Self {
        let layers = (0..hardware.layers.len()).map(|n| PathBuf::from(format!("/machine/layer-{n}.qcow2")));
        Self { layers: layers.collect() }
    }
}

/// How a machine begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// From power-on, its memory shared with whoever captures it.
    Boot,
    /// From a device state, its memory private, standing still.
    Restore,
    /// The same, but the device state is read only when that is asked for, from [`DEVICES`]: first its
    /// memory is written.
    RestoreLater,
}

/// The processor model: all that the host has, or all that TCG can do but what only costs there: a
/// fifth level of page tables, and protection keys to save at every switch.
pub const fn cpu_model(acceleration: Acceleration) -> &'static str {
    match acceleration {
        Acceleration::Tcg => "max,la57=off,pku=off",
        Acceleration::Kvm => "host,-arch-capabilities",
    }
}

pub const fn accelerator(acceleration: Acceleration) -> &'static str {
    match acceleration {
        Acceleration::Tcg => "tcg,thread=multi,tb-size=",
        Acceleration::Kvm => "kvm",
    }
}

/// What is said to the guest's kernel besides what the machine's owner says. No scheduling group for
/// every session: each command is one. An emulated processor does not speculate: what the kernel does
/// against that only costs there. And it finds translated code again by its address: with a layout of its
/// own for every program, each start translates the whole program anew and takes four times as long.
const fn kernel_parameters(acceleration: Acceleration) -> &'static str {
    match acceleration {
        Acceleration::Tcg => " noautogroup mitigations=off norandmaps",
        Acceleration::Kvm => " noautogroup",
    }
}

/// The node name of the layer that is the top when the machine starts.
pub const TOP_NODE: &str = "top";

/// What is under all layers.
pub const BASE_NODE: &str = "base";

/// The node name of the layer with this number, from the lowest, that is frozen when the machine starts.
pub fn layer_node(number: usize) -> String {
    format!("{LAYER_NODE}{number}")
}

/// What these names begin with.
pub const LAYER_NODE: &str = "layer-";

/// The ring buffer that holds the console's last output.
pub const CONSOLE: &str = "console";

/// The arguments behind the program's name.
pub fn arguments(
    hardware: &Hardware,
    paths: &Paths,
    acceleration: Acceleration,
    start: Start,
) -> Vec<String> {
    let accel = match acceleration {
        Acceleration::Tcg => format!("{}{TRANSLATION_BUFFER_MB}", accelerator(acceleration)),
        Acceleration::Kvm => accelerator(acceleration).to_owned(),
    };
    let (share, size) = (if start == Start::Boot { "on" } else { "off" }, hardware.memory_mb);
    let mac: Vec<String> = hardware.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut words: Vec<String> = Vec::new();
    let mut add = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
    add("-accel", accel);
    add("-machine", format!("{MACHINE},memory-backend=memory,suppress-vmdesc=on,usb=off,vmport=off"));
    add("-global", "migration.send-configuration=off".into());
    add("-cpu", cpu_model(acceleration).into());
    add("-smp", hardware.vcpus.to_string());
    add("-m", size.to_string());
    let memory = format!("/proc/self/fd/{}", descriptor::MEMORY);
    add("-object", format!("memory-backend-file,id=memory,size={size}M,mem-path={memory},share={share}"));
    add("-display", "none".into());
    add("-chardev", format!("ringbuf,id={CONSOLE},size=32768"));
    add("-serial", format!("chardev:{CONSOLE}"));
    add("-chardev", format!("socket,id=qmp,fd={},server=on,wait=off", descriptor::QMP));
    add("-mon", "chardev=qmp,mode=control".into());
    for node in block_nodes(paths) {
        add("-blockdev", node);
    }
    add("-device", format!("virtio-blk-pci,drive={TOP_NODE},werror=enospc,rerror=report"));
    add("-netdev", format!("tap,id=network,fd={}", descriptor::TAP));
    add("-device", format!("virtio-net-pci,netdev=network,mac={},romfile=", mac.join(":")));
    add("-kernel", paths::KERNEL.into());
    add("-initrd", paths::INITRD.into());
    add("-append", format!("{}{}", hardware.kernel_parameters, kernel_parameters(acceleration)));
    add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into());
    if start != Start::Boot {
        add("-incoming", if start == Start::Restore { DEVICES } else { "defer" }.into());
        words.push("-S".into());
    }
    words.extend(["-no-reboot", "-nodefaults", "-no-user-config"].map(str::to_owned));
    words
}

/// The disk from the base up: a raw image, frozen layers, the machine's own layer.
fn block_nodes(paths: &Paths) -> Vec<String> {
    let mut nodes = vec![format!("driver=file,node-name=base-file,filename={},read-only=on", paths::BASE)];
    nodes.push(format!("driver=raw,node-name={BASE_NODE},file=base-file,read-only=on"));
    let mut below = BASE_NODE.to_owned();
    for (n, path) in paths.layers.iter().enumerate() {
        let layer = layer_node(n);
        nodes.push(format!("driver=file,node-name={layer}-file,filename={},read-only=on", path.display()));
        nodes.push(format!("driver=qcow2,node-name={layer},file={layer}-file,backing={below},read-only=on"));
        below = layer;
    }
    nodes.push(format!("driver=file,node-name=top-file,filename={},discard=unmap", paths::TOP));
    nodes.push(format!(
        "driver=qcow2,node-name={TOP_NODE},file=top-file,backing={below},discard=unmap,detect-zeroes=unmap"
    ));
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hardware() -> Hardware {
        Hardware {
            vcpus: 2,
            memory_mb: 512,
            kernel: "/i/vmlinuz".into(),
            initrd: "/i/initrd".into(),
            kernel_parameters: "quiet".into(),
            base: "/i/base.raw".into(),
            layers: vec!["/c/disk.qcow2".into()],
            top: "/m/top.qcow2".into(),
            mac: [2, 0, 0, 0, 0, 2],
        }
    }

    #[test]
    fn a_boot_shares_its_memory_and_a_restore_keeps_it_private_and_waits() {
        let hardware = hardware();
        let paths = Paths::of(&hardware);
        let boot = arguments(&hardware, &paths, Acceleration::Tcg, Start::Boot).join(" ");
        let restore = arguments(&hardware, &paths, Acceleration::Tcg, Start::Restore).join(" ");
        assert!(boot.contains("share=on") && !boot.contains("-incoming"));
        assert!(restore.contains("share=off") && restore.contains("-incoming fd:6 -S"));
        let later = arguments(&hardware, &paths, Acceleration::Tcg, Start::RestoreLater).join(" ");
        assert_eq!(later, restore.replace("fd:6", "defer"));
    }

    #[test]
    fn every_monitor_is_confined_and_nothing_of_the_hosts_paths_is_told_to_it() {
        let hardware = hardware();
        for acceleration in [Acceleration::Tcg, Acceleration::Kvm] {
            let words = arguments(&hardware, &Paths::of(&hardware), acceleration, Start::Restore).join(" ");
            assert!(words.contains(
                "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
            ));
            assert!(words.contains("-nodefaults") && words.contains("-no-user-config"));
            assert!(!words.contains("/i/") && !words.contains("/c/") && !words.contains("/m/"));
        }
    }

    #[test]
    fn the_disk_is_a_chain_of_read_only_layers_under_one_that_is_written() {
        let nodes = block_nodes(&Paths::of(&hardware()));
        assert_eq!(nodes.iter().filter(|node| !node.contains("read-only=on")).count(), 2);
        assert!(
            nodes
                .last()
                .is_some_and(|node| node.contains("node-name=top") && node.contains("backing=layer-0"))
        );
    }
}

//! The programs that make disks, and a place for them.

use std::path::{Path, PathBuf};
use std::process::Command;

use nullspace_disk::Chain;
use tempfile::TempDir;

pub const CLUSTER: usize = 64 << 10;

/// A directory for the disks of one test.
pub struct World {
    directory: TempDir,
}

impl World {
    /// `None`, and says so, if one of the programs is missing.
    pub fn with(programs: &[&str]) -> Option<Self> {
        for program in programs {
            // What it thinks of having no arguments does not matter.
            if let Err(error) = Command::new(program).arg("-V").output() {
                eprintln!("SKIP: {program} cannot be run: {error}");
                return None;
            }
        }
        Some(Self { directory: tempfile::tempdir().expect("a directory can be made") })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).expect("it can be written");
        self.path(name)
    }

    /// An empty layer.
    pub fn layer(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        run(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-o", "cluster_size=64k", text(&path), &bytes.to_string()],
        );
        path
    }

    /// A layer that makes of one disk another of at least its size.
    pub fn difference(&self, name: &str, from: &[u8], to: &[u8]) -> PathBuf {
        let layer = self.layer(name, to.len() as u64);
        let mut commands = Vec::new();
        for (number, cluster) in to.chunks(CLUSTER).enumerate() {
            let at = number * CLUSTER;
            if from.get(at..at + cluster.len()) != Some(cluster) {
                let content = self.write(&format!("{name}-{number}"), cluster);
                commands.push(format!("write -q -s {} {at} {}", text(&content), cluster.len()));
            }
        }
        io(&layer, &commands);
        layer
    }
}

/// Has qemu-io work on a disk. A path, or what QEMU takes for one.
pub fn io(disk: impl AsRef<Path>, commands: &[String]) {
    let mut arguments = vec!["-d", "unmap"];
    arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
    arguments.push(text(disk.as_ref()));
    run("qemu-io", &arguments);
}

/// How QEMU is told of a chain: nothing but this says what lies under a layer.
pub fn json(base: &Path, layers: &[PathBuf]) -> String {
    let file = |path: &Path| format!(r#"{{"driver":"file","filename":"{}"}}"#, path.display());
    let base = format!(r#"{{"driver":"raw","file":{}}}"#, file(base));
    let chain = layers.iter().fold(base, |below, layer| {
        format!(r#"{{"driver":"qcow2","discard":"unmap","file":{},"backing":{below}}}"#, file(layer))
    });
    format!("json:{chain}")
}

/// All that QEMU reads from a chain.
pub fn read_by_qemu(world: &World, base: &Path, layers: &[PathBuf]) -> Vec<u8> {
    let raw = world.path("read-by-qemu");
    run("qemu-img", &["convert", "-O", "raw", &json(base, layers), text(&raw)]);
    std::fs::read(raw).expect("it can be read")
}

/// All that we read from it.
pub fn read(base: &Path, layers: &[PathBuf]) -> Vec<u8> {
    let chain = Chain::open(base, layers).expect("it can be opened");
    let mut bytes = vec![0; chain.len_bytes() as usize];
    chain.read_at(0, &mut bytes).expect("it can be read");
    bytes
}

pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("it can be run");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {stdout}{stderr}");
    stdout.into_owned()
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}

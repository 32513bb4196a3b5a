//! Checkpoints over machines in memory: who shares what of a disk, what a restart of the node finds, what a
//! damaged or foreign checkpoint is answered with, and that nothing is left in the end.

use std::path::{Path, PathBuf};

use nullspace_node::{Config, Driver, LocalNode, NetworkConfig};
use nullspace_node_api::{Captured, CheckpointMode, Command, Machine, MachineSpec, Node, Origin, Shape};
use nullspace_types::Code;
use nullspace_types::id::{IncarnationId, SandboxId, SnapshotId};
use nullspace_types::network::EgressPolicy;
use nullspace_vmm::fake::FakeAgent;
use serde_json::Value;
use tokio::sync::mpsc;

async fn start(directory: &Path) -> LocalNode {
    let config = Config { driver: Driver::Fake, spare_machines: 0, ..Config::default() };
    // Nobody reads the reports: the few that come fit.
    let (reports, _) = mpsc::channel(16);
    let data_dir = directory.to_owned();
    LocalNode::start(config, NetworkConfig::default(), data_dir.clone(), data_dir, reports).await.unwrap()
}

fn spec(sandbox_id: SandboxId, origin: Origin) -> MachineSpec {
    MachineSpec {
        sandbox_id,
        incarnation: IncarnationId::new(),
        template: "base".into(),
        shape: Shape { vcpus: 1, memory_mb: 256 },
        disk_mb: None,
        envs: [].into(),
        cwd: None,
        egress: EgressPolicy { internet_access: false, ..EgressPolicy::default() },
        origin,
    }
}

async fn create(node: &LocalNode, origin: Origin) -> Machine {
    node.machine_create(spec(SandboxId::new(), origin)).await.unwrap()
}

async fn out(node: &LocalNode, id: SandboxId, line: &str) -> String {
    let command = Command { command: line.into(), shell: true, ..Command::default() };
    match node.process_run(id, command).await.unwrap().output {
        Captured::Inline { stdout, .. } => String::from_utf8(stdout).unwrap(),
        Captured::Log => panic!("it is little"),
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn record(directory: &Path, id: SandboxId) -> Value {
    let text = std::fs::read(directory.join(format!("node/machines/{id}/machine.json"))).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn layers(directory: &Path) -> Vec<String> {
    names(&directory.join("node/layers"))
}

async fn nothing_is_left(node: &LocalNode, directory: &Path) {
    for machine in node.machine_list().await.unwrap() {
        node.machine_destroy(machine.sandbox_id).await.unwrap();
    }
    for checkpoint in node.checkpoint_list().await.unwrap() {
        node.checkpoint_delete(checkpoint.id).await.unwrap();
    }
    for part in ["machines", "layers", "checkpoints"] {
        assert_eq!(names(&directory.join("node").join(part)), [""; 0], "{part}");
    }
}

#[tokio::test]
async fn relatives_share_frozen_layers_and_the_last_who_needs_one_removes_it() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path()).await;
    let parent = create(&node, Origin::Template).await;
    let (kept, passing) = (SnapshotId::new(), SnapshotId::new());
    node.checkpoint_create(parent.sandbox_id, kept, CheckpointMode::Keep).await.unwrap();
    node.checkpoint_create(parent.sandbox_id, passing, CheckpointMode::Transient).await.unwrap();
    let (older, newer) =
        (create(&node, Origin::Checkpoint(kept)).await, create(&node, Origin::Checkpoint(passing)).await);
    assert_eq!(layers(directory.path()).len(), 2);
    let [parents, olders, newers] =
        [&parent, &older, &newer].map(|machine| record(directory.path(), machine.sandbox_id));
    assert_eq!(parents["layers"], newers["layers"]);
    assert_eq!(olders["layers"].as_array().unwrap()[..], parents["layers"].as_array().unwrap()[..1]);
    // The child goes by a token of its own.
    assert_ne!(parents["token"], newers["token"]);

    node.checkpoint_delete(passing).await.unwrap();
    node.machine_destroy(parent.sandbox_id).await.unwrap();
    assert_eq!(layers(directory.path()).len(), 2, "the newer child stands on both");
    node.machine_destroy(newer.sandbox_id).await.unwrap();
    assert_eq!(layers(directory.path()).len(), 1, "the older child and the snapshot need the first");
    nothing_is_left(&node, directory.path()).await;
}

/// The agent of a machine, which is in memory.
fn agent(directory: &Path, id: SandboxId) -> FakeAgent {
    let handle = serde_json::from_value(record(directory, id)["handle"].clone()).unwrap();
    nullspace_vmm::fake::agent(&handle).unwrap()
}

#[tokio::test]
async fn programs_stand_still_for_a_capture_and_go_on_in_the_parent_and_in_what_is_restored() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path()).await;
    let parent = create(&node, Origin::Template).await;
    let parents = agent(directory.path(), parent.sandbox_id);
    for count in 1..=2 {
        let snapshot = SnapshotId::new();
        node.checkpoint_create(parent.sandbox_id, snapshot, CheckpointMode::Transient).await.unwrap();
        let child = create(&node, Origin::Checkpoint(snapshot)).await;
        let children = agent(directory.path(), child.sandbox_id);
        assert_eq!((parents.freezes(), children.freezes()), (count, count));
        tokio::join!(parents.goes_on(), children.goes_on());
        node.checkpoint_delete(snapshot).await.unwrap();
    }
    nothing_is_left(&node, directory.path()).await;
}

#[tokio::test]
async fn a_hibernated_machine_is_no_more_and_goes_on_after_a_restart_of_the_node() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path()).await;
    let machine = create(&node, Origin::Template).await;
    let id = machine.sandbox_id;
    let file = async || node.file_exists(id, "/workspace/kept".into(), None).await;
    node.file_mkdir(id, "/workspace/kept".into(), None).await.unwrap();
    let snapshot = SnapshotId::new();
    let first = node.checkpoint_create(id, snapshot, CheckpointMode::Hibernate).await.unwrap();
    let again = node.checkpoint_create(id, snapshot, CheckpointMode::Hibernate).await.unwrap();
    assert_eq!(first, again);
    assert!(first.size_bytes > 0 && first.incarnation == machine.incarnation);
    assert_eq!(file().await.unwrap_err().code, Code::SandboxNotFound);
    assert_eq!(names(&directory.path().join("node/machines")), [""; 0]);
    node.shutdown().await;

    let node = start(directory.path()).await;
    assert_eq!(node.checkpoint_list().await.unwrap(), [first]);
    let resumed = node.machine_create(spec(id, Origin::Checkpoint(snapshot))).await.unwrap();
    assert_ne!(resumed.incarnation, machine.incarnation);
    assert!(node.file_exists(id, "/workspace/kept".into(), None).await.unwrap());
    assert_eq!(out(&node, id, "echo awake").await, "awake\n");
    nothing_is_left(&node, directory.path()).await;
}

#[tokio::test]
async fn a_checkpoint_that_does_not_fit_or_is_damaged_is_refused_by_name_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path()).await;
    let machine = create(&node, Origin::Template).await;
    let snapshot = SnapshotId::new();
    node.checkpoint_create(machine.sandbox_id, snapshot, CheckpointMode::Keep).await.unwrap();
    node.shutdown().await;
    let place = directory.path().join("node/checkpoints").join(snapshot.to_string());

    let refused = async |code: Code, says: &str| {
        let node = start(directory.path()).await;
        let left = || [layers(directory.path()), names(&directory.path().join("node/machines"))];
        let (before, spec) = (left(), spec(SandboxId::new(), Origin::Checkpoint(snapshot)));
        let error = node.machine_create(spec).await.unwrap_err();
        assert_eq!(error.code, code, "{error:?}");
        assert!(error.message.contains(says), "{error:?}");
        assert_eq!(left(), before);
        node.shutdown().await;
    };
    let edited = |name: &str, edit: &dyn Fn(Vec<u8>) -> Vec<u8>| -> (PathBuf, Vec<u8>) {
        let (path, was) = (place.join(name), std::fs::read(place.join(name)).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, edit(was.clone())).unwrap();
        (path, was)
    };
    let replaced = |from: &'static str, to: &'static str| {
        move |was: Vec<u8>| {
            let text = String::from_utf8(was).unwrap();
            assert!(text.contains(from), "{text}");
            text.replacen(from, to, 1).into_bytes()
        }
    };
    for (name, edit, code, says) in [
        (
            "checkpoint.json",
            &replaced(r#""version": "2""#, r#""version": "0""#) as &dyn Fn(Vec<u8>) -> Vec<u8>,
            Code::IncompatibleSnapshot,
            "the version of its monitor was 0 and is 2 here",
        ),
        (
            "checkpoint.json",
            &replaced(r#""memory_mb": 256"#, r#""memory_mb": 512"#),
            Code::IncompatibleSnapshot,
            "512 MiB of memory, not 1 and 256",
        ),
        (
            "memory",
            &|mut was: Vec<u8>| {
                was[30] ^= 1;
                was
            },
            Code::SnapshotCorrupted,
            "memory",
        ),
        (
            "devices",
            &|mut was: Vec<u8>| {
                was.push(b' ');
                was
            },
            Code::SnapshotCorrupted,
            "device state",
        ),
    ] {
        let (path, was) = edited(name, edit);
        refused(code, says).await;
        std::fs::write(path, was).unwrap();
    }
    let node = start(directory.path()).await;
    create(&node, Origin::Checkpoint(snapshot)).await;
    nothing_is_left(&node, directory.path()).await;
}

#[tokio::test]
async fn what_a_crash_left_of_a_checkpoint_is_removed_at_the_next_start_and_shown_as_garbage_before() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path()).await;
    create(&node, Origin::Template).await;
    let left = directory.path().join("node");
    std::fs::write(left.join("layers/0123.qcow2"), b"nobody's").unwrap();
    std::fs::create_dir(left.join(format!("checkpoints/making-{}", SnapshotId::new()))).unwrap();
    std::fs::create_dir(left.join(format!("checkpoints/removing-{}", SnapshotId::new()))).unwrap();
    let kinds = |garbage: Vec<nullspace_node_api::Garbage>| -> Vec<String> {
        garbage.into_iter().map(|one| one.kind).collect()
    };
    let shown = kinds(node.garbage_collect(false).await.unwrap());
    assert_eq!(shown, ["layer", "checkpoint", "checkpoint"]);
    node.shutdown().await;
    let node = start(directory.path()).await;
    assert!(node.garbage_collect(true).await.unwrap().is_empty());
    nothing_is_left(&node, directory.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn captures_restores_and_ends_that_come_together_leave_every_machine_whole() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path()).await;
    let parent = create(&node, Origin::Template).await.sandbox_id;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..24 {
        let node = node.clone();
        tasks.spawn(async move {
            let mode = if number % 2 == 0 { CheckpointMode::Keep } else { CheckpointMode::Transient };
            let snapshot = SnapshotId::new();
            node.checkpoint_create(parent, snapshot, mode).await.unwrap();
            let child = create(&node, Origin::Checkpoint(snapshot)).await.sandbox_id;
            node.checkpoint_delete(snapshot).await.unwrap();
            assert_eq!(out(&node, child, "echo alive").await, "alive\n");
            node.machine_destroy(child).await.unwrap();
        });
    }
    tasks.join_all().await;
    assert_eq!(out(&node, parent, "echo alive").await, "alive\n");
    nothing_is_left(&node, directory.path()).await;
}

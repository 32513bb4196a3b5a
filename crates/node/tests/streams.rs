//! The node over agents in memory whose links break: what was said arrives whole and once, a command is
//! started once, and what is broken off changes nothing.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use nullspace_node::{Config, Driver, LocalNode, NetworkConfig};
use nullspace_node_api::{
    Captured, Command, MachineSpec, Node, Origin, Shape, TerminalSpec, UploadSpec, UploadState,
};
use nullspace_types::file::{BatchPart, FileRange};
use nullspace_types::id::{IncarnationId, SandboxId, SessionId, UploadId};
use nullspace_types::network::EgressPolicy;
use nullspace_types::process::ProcessEvent;
use nullspace_types::socket::FileEventKind;
use nullspace_types::terminal::TerminalEvent;
use nullspace_types::upload::{UploadConflict, UploadKind, UploadReason, UploadStatus};
use nullspace_types::{Code, Error};
use nullspace_vmm::fake::{self, FakeAgent};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

/// A node with one machine, and that machine's agent.
struct World {
    node: LocalNode,
    id: SandboxId,
    agent: FakeAgent,
    _directory: tempfile::TempDir,
}

async fn world() -> World {
    let directory = tempfile::tempdir().unwrap();
    let config = Config { driver: Driver::Fake, spare_machines: 0, ..Config::default() };
    // Nobody reads the reports: the few that come fit.
    let (reports, _) = mpsc::channel(16);
    let data_dir = directory.path().to_owned();
    let node =
        LocalNode::start(config, NetworkConfig::default(), data_dir.clone(), data_dir.clone(), reports)
            .await
            .unwrap();
    let id = SandboxId::new();
    let spec = MachineSpec {
        sandbox_id: id,
        incarnation: IncarnationId::new(),
        template: "base".into(),
        shape: Shape { vcpus: 1, memory_mb: 256 },
        disk_mb: None,
        envs: [].into(),
        cwd: None,
        egress: EgressPolicy { internet_access: false, ..EgressPolicy::default() },
        origin: Origin::Template,
    };
    node.machine_create(spec).await.unwrap();
    let record = std::fs::read(data_dir.join(format!("node/machines/{id}/machine.json"))).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let agent = fake::agent(&serde_json::from_value(record["handle"].clone()).unwrap()).unwrap();
    World { node, id, agent, _directory: directory }
}

fn command(line: &str) -> Command {
    Command { command: line.into(), shell: true, ..Command::default() }
}

/// Output of `count N`.
fn counted(lines: u64) -> Vec<u8> {
    (0..lines).flat_map(|line| format!("{line}\n").into_bytes()).collect()
}

/// All output of a stream, and its exit status.
async fn heard(mut events: nullspace_node_api::ProcessEvents) -> (u32, Vec<u8>, i32) {
    let Some(Ok(ProcessEvent::Started { pid })) = events.next().await else { panic!("it begins so") };
    let mut output = Vec::new();
    while let Some(event) = events.next().await {
        match event.unwrap() {
            ProcessEvent::Output { data, .. } => output.extend_from_slice(&data),
            ProcessEvent::Exited { exit_code, .. } => {
                assert!(events.next().await.is_none(), "nothing comes behind the end");
                return (pid, output, exit_code);
            }
            ProcessEvent::Started { .. } => panic!("it started twice"),
        }
    }
    panic!("the stream ended before the command")
}

#[tokio::test]
async fn a_stream_whose_link_breaks_at_any_moment_loses_and_doubles_nothing() {
    let world = world().await;
    // Some 600 KiB, ten events: the start, the output in pieces, the end.
    let lines = 100_000;
    for breaks in [vec![0], vec![0, 0, 1], vec![1], vec![2], vec![4, 0, 3, 1], vec![9], vec![10]] {
        let before = world.agent.started();
        world.agent.break_links_after(breaks.clone());
        let events = world.node.process_stream(world.id, command(&format!("count {lines}"))).await.unwrap();
        let (_, output, exit_code) = heard(events).await;
        assert!(output == counted(lines), "{} bytes with {breaks:?}", output.len());
        assert_eq!((exit_code, world.agent.started() - before), (0, 1), "{breaks:?}");
    }
}

#[tokio::test]
async fn a_command_whose_link_breaks_before_its_answer_is_run_once() {
    let world = world().await;
    for breaks in [0, 1, 2] {
        let before = world.agent.started();
        world.agent.break_links_after([breaks]);
        let finished = world.node.process_run(world.id, command("count 1000")).await.unwrap();
        let Captured::Inline { stdout, .. } = finished.output else { panic!("it is little") };
        assert!(stdout == counted(1000) && world.agent.started() - before == 1, "{breaks}");
    }
    let before = world.agent.started();
    world.agent.break_links_after([0]);
    let pid = world.node.process_start(world.id, command("cat")).await.unwrap();
    assert_eq!(world.agent.started() - before, 1);
    let listed = world.node.process_list(world.id).await.unwrap();
    assert!(listed.iter().any(|process| process.info.pid == pid && process.info.running));
}

#[tokio::test]
async fn a_process_is_followed_from_where_its_reader_stopped_and_its_input_can_be_ended() {
    let world = world().await;
    let mut events = world.node.process_stream(world.id, command("cat")).await.unwrap();
    let Some(Ok(ProcessEvent::Started { pid })) = events.next().await else { panic!("it begins so") };
    world.node.process_stdin(world.id, pid, Bytes::from_static(b"abc"), false).await.unwrap();
    let Some(Ok(ProcessEvent::Output { data, .. })) = events.next().await else { panic!("it copies") };
    assert_eq!(data, "abc");
    drop(events);
    world.node.process_stdin(world.id, pid, Bytes::from_static(b"def"), true).await.unwrap();
    let events = world.node.process_attach(world.id, pid, 3, 0).await.unwrap();
    assert_eq!(heard(events).await, (pid, b"def".to_vec(), 0));

    let error = world.node.process_attach(world.id, 9999, 0, 0).await.err().unwrap();
    assert_eq!(error.code, Code::ProcessNotFound);
    let error = world.node.process_stream(world.id, command("nonsense")).await.err().unwrap();
    assert_eq!(error.code, Code::ExecFailed);
}

#[tokio::test]
async fn every_stream_ends_with_an_error_when_the_machine_is_gone() {
    let world = world().await;
    let (node, id) = (&world.node, world.id);
    let mut process = node.process_stream(id, command("sleep 1000")).await.unwrap();
    assert!(matches!(process.next().await, Some(Ok(ProcessEvent::Started { .. }))));
    let session_id = SessionId::new();
    let spec = TerminalSpec {
        session_id,
        cols: 80,
        rows: 24,
        cwd: None,
        envs: [].into(),
        user: None,
        command: None,
    };
    node.terminal_start(id, spec).await.unwrap();
    let mut terminal = node.terminal_attach(id, session_id).await.unwrap();
    assert!(matches!(terminal.next().await, Some(Ok(TerminalEvent::Attached(_)))));
    assert!(matches!(terminal.next().await, Some(Ok(TerminalEvent::Output(_)))));
    let mut watch = node.file_watch(id, "/tmp".into(), None, true).await.unwrap();
    node.machine_destroy(id).await.unwrap();
    for error in [
        process.next().await.unwrap().err(),
        terminal.next().await.unwrap().err(),
        watch.next().await.unwrap().err(),
    ] {
        assert!(error.is_some());
    }
    assert!(
        process.next().await.is_none() && terminal.next().await.is_none() && watch.next().await.is_none()
    );
    assert_eq!(node.terminal_list(id).await.unwrap_err().code, Code::SandboxNotFound);
}

#[tokio::test]
async fn a_terminal_outlives_its_viewers_and_tells_each_of_its_end() {
    let world = world().await;
    let (node, id, session_id) = (&world.node, world.id, SessionId::new());
    let spec = TerminalSpec {
        session_id,
        cols: 80,
        rows: 24,
        cwd: None,
        envs: [].into(),
        user: None,
        command: None,
    };
    let info = node.terminal_start(id, spec.clone()).await.unwrap();
    assert_eq!(node.terminal_start(id, spec).await.unwrap(), info);
    drop(node.terminal_attach(id, session_id).await.unwrap());
    node.terminal_resize(id, session_id, 100, 50).await.unwrap();
    node.terminal_write(id, session_id, Bytes::from_static(b"ls\x04")).await.unwrap();
    let events = node.terminal_attach(id, session_id).await.unwrap();
    let events: Vec<_> = events.map(Result::unwrap).collect().await;
    let Some(TerminalEvent::Attached(shown)) = events.first() else { panic!("{events:?}") };
    assert_eq!((shown.cols, shown.rows, shown.pid), (100, 50, info.pid));
    assert_eq!(events.last(), Some(&TerminalEvent::Exited { exit_code: 0 }));
    assert_eq!(node.terminal_list(id).await.unwrap(), []);
    let error = node.terminal_attach(id, SessionId::new()).await.err().unwrap();
    assert_eq!(error.code, Code::TerminalNotFound);
}

fn body(pieces: Vec<Result<Bytes, Error>>) -> nullspace_node_api::ByteStream {
    stream::iter(pieces).boxed()
}

#[tokio::test]
async fn files_are_read_in_part_written_in_batches_and_a_broken_body_writes_nothing() {
    let world = world().await;
    let (node, id) = (&world.node, world.id);
    let content = Bytes::from(counted(200_000));
    node.file_write(id, "/tmp/a".into(), None, body(vec![Ok(content.clone())])).await.unwrap();
    for (range, part) in [
        (FileRange::Whole, &content[..]),
        (FileRange::From { offset: 5, length: Some(7) }, &content[5..12]),
        (FileRange::From { offset: 1 << 40, length: None }, &[]),
        (FileRange::From { offset: 0, length: Some(0) }, &[]),
        (FileRange::Last(100_000), &content[content.len() - 100_000..]),
    ] {
        let read = node.file_read(id, "/tmp/a".into(), None, range).await.unwrap();
        let got: Vec<_> = read.content.map(|piece| piece.unwrap()).collect().await;
        assert!(got.concat() == part && read.size == content.len() as u64, "{range:?}");
    }

    let broken = || Err(Error::new(Code::InvalidRequest, "the client went away"));
    let pieces = vec![Ok(Bytes::from_static(b"new")), broken()];
    let error = node.file_write(id, "/tmp/a".into(), None, body(pieces)).await.unwrap_err();
    assert_eq!(error.message, "the client went away");
    assert_eq!(node.file_info(id, "/tmp/a".into(), None).await.unwrap().size, content.len() as u64);

    let start = |path: &str| Ok(BatchPart::Start { path: path.into() });
    let data = |data: &'static str| Ok(BatchPart::Data(Bytes::from_static(data.as_bytes())));
    let parts = vec![start("/tmp/b"), data("one"), data("two"), start("/tmp"), data("x"), start("/tmp/c")];
    let written = node.file_write_batch(id, None, stream::iter(parts).boxed()).await.unwrap();
    let sizes: Vec<_> = written.iter().map(|file| file.as_ref().map(|info| info.size).ok()).collect();
    assert_eq!(sizes, [Some(6), None, Some(0)]);
    let parts = vec![start("/tmp/d"), data("one"), Err(Error::invalid("no"))];
    node.file_write_batch(id, None, stream::iter(parts).boxed()).await.unwrap_err();
    assert!(!node.file_exists(id, "/tmp/d".into(), None).await.unwrap());
}

#[tokio::test]
async fn a_watch_tells_what_happens_after_it_was_answered() {
    let world = world().await;
    let (node, id) = (&world.node, world.id);
    let mut changes = node.file_watch(id, "/tmp".into(), None, false).await.unwrap();
    node.file_write(id, "/tmp/sub/x".into(), None, body(vec![])).await.unwrap();
    node.file_write(id, "/tmp/a".into(), None, body(vec![])).await.unwrap();
    node.file_remove(id, "/tmp".into(), None).await.unwrap();
    let mut seen = Vec::new();
    let ended = loop {
        match changes.next().await.unwrap() {
            Ok(change) => seen.push((change.event, change.name)),
            Err(error) => break error,
        }
    };
    let file = |event| (event, "a".to_owned());
    let expected =
        [(FileEventKind::Create, "sub".into()), file(FileEventKind::Create), file(FileEventKind::Write)];
    assert_eq!(seen, expected);
    assert_eq!((ended.code, ended.message.contains("/tmp")), (Code::FileNotFound, true));
    let error = node.file_watch(id, "/nowhere".into(), None, false).await.err().unwrap();
    assert_eq!(error.code, Code::FileNotFound);
}

fn upload(length: u64) -> UploadSpec {
    UploadSpec {
        upload_id: UploadId::new(),
        key: None,
        kind: UploadKind::File,
        target_path: "/tmp/whole".into(),
        user: None,
        content_length: length,
        conflict: UploadConflict::Merge,
        whole_sha256: None,
        part_size: 4,
        staging_quota_bytes: 100,
        expires_at: "2100-01-01T00:00:00Z".parse().unwrap(),
        label: "label".into(),
    }
}

#[tokio::test]
async fn a_part_counts_only_when_it_came_whole_with_its_checksum() {
    let world = Arc::new(world().await);
    let (node, id) = (&world.node, world.id);
    let state = node.upload_create(id, upload(6)).await.unwrap();
    assert_eq!((state.part_count, state.next_part, &*state.label), (2, Some(0), "label"));
    let part = async |number, said: &[u8], sent: Vec<Result<Bytes, Error>>| {
        let digest = Sha256::digest(said).into();
        node.upload_part(id, state.upload_id, number, digest, body(sent)).await
    };
    let whole = |data: &'static [u8]| vec![Ok(Bytes::from_static(data))];
    let reason = |refused: Result<UploadState, Error>| refused.unwrap_err().upload.unwrap().reason;
    assert_eq!(reason(part(0, b"abcd", whole(b"abcX")).await), UploadReason::InvalidPartChecksum);
    assert_eq!(reason(part(0, b"abc", whole(b"abc")).await), UploadReason::PartSizeMismatch);
    assert_eq!(reason(part(2, b"", whole(b"")).await), UploadReason::PartOutOfRange);
    let broken = vec![Ok(Bytes::from_static(b"abcd")), Err(Error::invalid("the client went away"))];
    assert_eq!(part(0, b"abcd", broken).await.unwrap_err().message, "the client went away");
    assert_eq!(node.upload_get(id, state.upload_id).await.unwrap().accepted_bytes, 0);

    part(1, b"ef", whole(b"ef")).await.unwrap();
    let error = node.upload_complete(id, state.upload_id, None).await.unwrap_err();
    assert_eq!(error.upload.unwrap().reason, UploadReason::MissingParts);
    world.agent.break_links();
    assert_eq!(node.upload_get(id, state.upload_id).await.unwrap().accepted_bytes, 2);
    let staged = part(0, b"abcd", whole(b"abcd")).await.unwrap();
    assert_eq!((staged.status, staged.next_part), (UploadStatus::Staged, None));
    let published = node.upload_complete(id, state.upload_id, None).await.unwrap();
    assert_eq!((published.bytes, published.files), (6, 1));
    assert_eq!(node.upload_complete(id, state.upload_id, None).await.unwrap(), published);
    assert_eq!(node.file_info(id, "/tmp/whole".into(), None).await.unwrap().size, 6);

    let missing = node.upload_get(id, UploadId::new()).await.unwrap_err();
    assert_eq!(missing.code, Code::UploadNotFound);
    let keyed = |length| UploadSpec { key: Some("k".into()), ..upload(length) };
    let made = node.upload_create(id, keyed(5)).await.unwrap();
    assert_eq!(node.upload_create(id, keyed(5)).await.unwrap(), made);
    assert_eq!(node.upload_create(id, keyed(4)).await.unwrap_err().code, Code::Conflict);
    assert_eq!(node.upload_abort(id, made.upload_id).await.unwrap().status, UploadStatus::Aborted);
}

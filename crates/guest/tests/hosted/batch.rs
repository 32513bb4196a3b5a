//! Writing many files in one call.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;

use nullspace_guest_proto as pb;
use pb::write_files_reply::Outcome;
use tonic::{Code, Status};

use crate::agent::Agent;
use crate::files::{data, start};
use crate::processes::SmallDisk;

impl Agent {
    async fn write_all(&mut self, parts: Vec<pb::WriteFileRequest>) -> Result<Vec<Outcome>, Status> {
        let mut replies = self.client.write_files(tokio_stream::iter(parts)).await?.into_inner();
        let mut outcomes = Vec::new();
        while let Some(reply) = replies.message().await? {
            outcomes.push(reply.outcome.unwrap());
        }
        Ok(outcomes)
    }
}

fn code(outcome: &Outcome) -> Code {
    match outcome {
        Outcome::Written(_) => Code::Ok,
        Outcome::Failed(failure) => Code::from(failure.code),
    }
}

#[tokio::test]
async fn many_files_are_written_in_order_and_a_bad_one_keeps_nobody_else_back() {
    let mut agent = Agent::start().await;
    fs::create_dir_all(agent.cwd.join("dir")).unwrap();
    let large = vec![7; 3 << 20];
    let mut parts = vec![start("a/b/one", ""), data(b"1"), data(b"2"), start("empty", "")];
    for bad in ["dir", "/proc/new-file", "", "/workspace/.nullspace/x", "a/b/one/below"] {
        parts.extend([start(bad, ""), data(b"not "), data(b"written")]);
    }
    parts.extend([start("f", "nobody-of-that-name"), data(b"x")]);
    parts.push(start("large", ""));
    parts.extend(large.chunks(65536).map(data));
    parts.extend((0..1500).flat_map(|n| [start(&format!("many/{}/{n}", n % 3), ""), data(b"small")]));
    let outcomes = agent.write_all(parts).await.unwrap();
    let codes: Vec<_> = outcomes.iter().take(9).map(code).collect();
    let invalid = Code::InvalidArgument;
    assert_eq!(
        codes,
        [Code::Ok, Code::Ok, invalid, Code::PermissionDenied, invalid, invalid, invalid, invalid, Code::Ok]
    );
    assert!(outcomes.len() == 1509 && outcomes[9..].iter().all(|outcome| code(outcome) == Code::Ok));
    let Outcome::Written(info) = &outcomes[0] else { panic!() };
    assert_eq!((info.path.as_str(), info.size), (agent.cwd.join("a/b/one").to_str().unwrap(), 2));
    assert_eq!((info.mode, info.owner.as_str()), (0o644, "root"));
    assert_eq!(fs::read(agent.cwd.join("a/b/one")).unwrap(), b"12");
    assert!(fs::read(agent.cwd.join("large")).unwrap() == large);
    assert_eq!(fs::read_dir(agent.cwd.join("many/2")).unwrap().count(), 500, "nothing temporary is left");
}

#[tokio::test]
async fn a_stream_that_breaks_off_leaves_nothing_of_its_last_file() {
    let agent = Agent::start().await;
    fs::create_dir_all(&agent.cwd).unwrap();
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    // The half is more than what waits for its end.
    for part in [start("whole", ""), data(b"x"), start("half", ""), data(&[b'y'; 100 << 10])] {
        sender.send(part).await.unwrap();
    }
    let mut client = agent.client.clone();
    let write = tokio::spawn(async move {
        client.write_files(tokio_stream::wrappers::ReceiverStream::new(receiver)).await.map(|_| ())
    });
    let names = || -> BTreeSet<_> {
        fs::read_dir(&agent.cwd).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    while !names().contains(OsStr::new("whole")) || names().len() < 2 {
        tokio::task::yield_now().await;
    }
    write.abort();
    assert!(write.await.unwrap_err().is_cancelled());
    while names().len() > 1 {
        tokio::task::yield_now().await;
    }
    // The end of the messages, which comes too late, is not the end of the file.
    drop(sender);
    assert_eq!(
        agent.client.clone().hello(pb::HelloRequest { generation: 1 }).await.unwrap().into_inner().sandbox_id,
        "sb_1"
    );
    assert_eq!(names(), BTreeSet::from(["whole".into()]));
}

#[tokio::test]
async fn a_call_has_a_bound_and_begins_with_a_file() {
    let mut agent = Agent::start().await;
    let same = |count| (0..count).map(|_| start("same", "")).collect();
    assert_eq!(agent.write_all(same(10_000)).await.unwrap().len(), 10_000);
    let error = agent.write_all(same(10_001)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert_eq!(error.message(), "there are more than 10000 files; write the rest in another call");
    assert_eq!(agent.write_all(vec![]).await.unwrap().len(), 0);
    assert_eq!(agent.write_all(vec![data(b"x")]).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_file_for_which_there_is_no_room_is_the_only_one_that_fails() {
    let Some(disk) = SmallDisk::mount() else { return };
    let mut agent = Agent::start().await;
    let place = |name: &str| disk.path().join(name).to_str().unwrap().to_string();
    let mut parts = vec![start(&place("before"), ""), data(b"x"), start(&place("large"), "")];
    parts.extend((0..64).map(|_| data(&[0; 65536])));
    parts.extend([start(&place("after"), ""), data(b"x")]);
    let outcomes = agent.write_all(parts).await.unwrap();
    assert_eq!(outcomes.iter().map(code).collect::<Vec<_>>(), [Code::Ok, Code::ResourceExhausted, Code::Ok]);
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 2);
}

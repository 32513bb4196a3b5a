//! Watching for changes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nullspace_guest_proto as pb;
use pb::watch_event::Kind;
use tonic::{Code, Status, Streaming};

use crate::agent::Agent;

/// The events of a watch; `None` is its end.
struct Watch(Streaming<pb::WatchEvent>);

impl Agent {
    async fn watch_files(&mut self, path: &str, recursive: bool) -> Result<Watch, Status> {
        let request = pb::WatchFilesRequest { path: path.into(), recursive, ..Default::default() };
        let mut events = self.client.watch_files(request).await?.into_inner();
        let first = events.message().await?.unwrap();
        assert_eq!(first.kind(), Kind::Started);
        Ok(Watch(events))
    }
}

impl Watch {
    async fn next(&mut self) -> Option<(Kind, String)> {
        self.0.message().await.unwrap().map(|event| (event.kind(), event.name))
    }

    /// These events come next, and no others between them.
    async fn expect(&mut self, events: &[(Kind, &str)]) {
        for (kind, name) in events {
            assert_eq!(self.next().await, Some((*kind, (*name).to_string())), "of {events:?}");
        }
    }

    /// Up to the named one, which is not among them.
    async fn until(&mut self, name: &str) -> Vec<(Kind, String)> {
        let mut events = Vec::new();
        loop {
            match self.next().await.unwrap() {
                (_, last) if last == name => return events,
                event => events.push(event),
            }
        }
    }
}

#[tokio::test]
async fn what_happens_in_a_directory_is_told_in_order() {
    let mut agent = Agent::start().await;
    let cwd = agent.cwd.clone();
    fs::create_dir_all(cwd.join("sub")).unwrap();
    let mut watch = agent.watch_files(".", false).await.unwrap();
    fs::write(cwd.join("f"), "x").unwrap();
    watch.expect(&[(Kind::Create, "f"), (Kind::Write, "f")]).await;
    fs::set_permissions(cwd.join("f"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(cwd.join("f"), cwd.join("g")).unwrap();
    watch.expect(&[(Kind::Chmod, "f"), (Kind::Rename, "f"), (Kind::Rename, "g")]).await;
    // Out of what is watched, and back.
    fs::rename(cwd.join("g"), cwd.join("sub/g")).unwrap();
    fs::write(cwd.join("sub/unseen"), "x").unwrap();
    fs::rename(cwd.join("sub/g"), cwd.join("h")).unwrap();
    fs::remove_file(cwd.join("h")).unwrap();
    watch.expect(&[(Kind::Remove, "g"), (Kind::Create, "h"), (Kind::Remove, "h")]).await;

    // By the agent itself: as if it were written in place.
    agent.write("api", "", b"1").await.unwrap();
    watch.expect(&[(Kind::Create, "api"), (Kind::Write, "api")]).await;
    agent.write("api", "", b"2").await.unwrap();
    watch.expect(&[(Kind::Write, "api")]).await;
    let request = pb::WatchFilesRequest { path: "api".into(), ..Default::default() };
    let mut file = agent.client.watch_files(request).await.unwrap().into_inner();
    let started = file.message().await.unwrap().unwrap();
    assert_eq!((started.kind(), started.path), (Kind::Started, cwd.join("api").to_str().unwrap().into()));
    fs::write(cwd.join("other"), "").unwrap();
    agent.write("api", "", b"3").await.unwrap();
    fs::remove_file(cwd.join("api")).unwrap();
    for kind in [Kind::Write, Kind::Remove, Kind::Gone] {
        let event = file.message().await.unwrap().unwrap();
        assert_eq!((event.kind(), event.name.as_str()), (kind, "api"));
        assert_eq!(Path::new(&event.path), cwd.join("api"));
    }
    assert!(file.message().await.unwrap().is_none());
}

#[tokio::test]
async fn new_directories_are_watched_with_what_is_in_them_and_moved_ones_have_their_new_names() {
    let mut agent = Agent::start().await;
    let cwd = agent.cwd.clone();
    fs::create_dir_all(cwd.join("top/old/deep")).unwrap();
    fs::create_dir_all(cwd.join("outside/in")).unwrap();
    fs::write(cwd.join("outside/in/f"), "x").unwrap();
    symlink(cwd.join("outside"), cwd.join("top/link")).unwrap();
    let top = cwd.join("top");
    let mut watch = agent.watch_files("top", true).await.unwrap();

    // However fast it is made, each thing is told as created once.
    fs::create_dir_all(top.join("new/a/b/c")).unwrap();
    for n in 0..50 {
        fs::write(top.join(format!("new/a/b/{n}")), "").unwrap();
    }
    fs::write(top.join("end"), "").unwrap();
    let mut created: Vec<_> =
        watch.until("end").await.into_iter().filter(|event| event.0 == Kind::Create).map(|e| e.1).collect();
    created.sort();
    let mut expected: Vec<_> = ["new", "new/a", "new/a/b", "new/a/b/c"].map(String::from).to_vec();
    expected.extend((0..50).map(|n| format!("new/a/b/{n}")));
    expected.sort();
    assert_eq!(created, expected);

    fs::write(top.join("new/a/b/c/inner.txt"), "x").unwrap();
    watch.expect(&[(Kind::Create, "new/a/b/c/inner.txt"), (Kind::Write, "new/a/b/c/inner.txt")]).await;
    fs::rename(top.join("old"), top.join("moved")).unwrap();
    watch.expect(&[(Kind::Rename, "old"), (Kind::Rename, "moved")]).await;
    fs::write(top.join("moved/deep/f"), "").unwrap();
    watch.expect(&[(Kind::Create, "moved/deep/f")]).await;
    // Out of the tree: nothing there is seen any more. Into it: what is there is told.
    fs::rename(top.join("moved"), cwd.join("outside/moved")).unwrap();
    watch.expect(&[(Kind::Remove, "moved")]).await;
    fs::write(cwd.join("outside/moved/deep/g"), "").unwrap();
    fs::rename(cwd.join("outside/in"), top.join("in")).unwrap();
    watch.expect(&[(Kind::Create, "in"), (Kind::Create, "in/f")]).await;
    // Not through links.
    fs::write(top.join("link/unseen"), "").unwrap();
    fs::remove_dir_all(top.join("in")).unwrap();
    watch.expect(&[(Kind::Remove, "in/f"), (Kind::Remove, "in")]).await;

    fs::remove_file(top.join("link")).unwrap();
    fs::remove_dir_all(top).unwrap();
    let mut last = Vec::new();
    while let Some(event) = watch.next().await {
        last.push(event);
    }
    assert_eq!(last.pop(), Some((Kind::Gone, String::new())));
    assert!(last.iter().all(|(kind, _)| *kind == Kind::Remove), "{last:?}");
    assert_eq!(last.len(), 57, "{last:?}");
}

#[tokio::test]
async fn lost_notifications_are_told_and_directories_made_meanwhile_are_watched() {
    let mut agent = Agent::start().await;
    let cwd = agent.cwd.clone();
    fs::create_dir_all(cwd.join("gone")).unwrap();
    let mut watch = agent.watch_files(".", true).await.unwrap();
    let limit: usize =
        fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    let pid = Pid::from_raw(agent.pid() as i32);
    kill(pid, Signal::SIGSTOP).unwrap();
    for n in 0..limit + 100 {
        fs::write(cwd.join(format!("{n}")), "").unwrap();
    }
    fs::create_dir_all(cwd.join("late/deep")).unwrap();
    fs::rename(cwd.join("gone"), cwd.with_extension("moved")).unwrap();
    kill(pid, Signal::SIGCONT).unwrap();
    let mut created = 0;
    loop {
        match watch.next().await.unwrap() {
            (Kind::Create, _) => created += 1,
            (Kind::Overflow, name) => break assert_eq!(name, ""),
            other => panic!("{other:?}"),
        }
    }
    assert!(created <= limit && created > limit / 2, "{created}");
    // The tree is read again after that was told; a change in it shows when that is done.
    let mut n = 0;
    loop {
        fs::write(cwd.join("late/deep/f"), "x").unwrap();
        fs::write(cwd.join(format!("mark-{n}")), "").unwrap();
        if watch.until(&format!("mark-{n}")).await.iter().any(|(_, name)| name == "late/deep/f") {
            break;
        }
        n += 1;
    }
    fs::write(cwd.with_extension("moved").join("unseen"), "").unwrap();
    fs::write(cwd.join("end"), "").unwrap();
    let rest = watch.until("end").await;
    assert!(rest.iter().all(|(_, name)| name.starts_with("late") || name.starts_with("mark")), "{rest:?}");
}

#[tokio::test]
async fn watches_are_bounded_and_end_with_their_streams() {
    let mut agent = Agent::start().await;
    fs::create_dir_all(&agent.cwd).unwrap();
    nix::unistd::mkfifo(&agent.cwd.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (path, code) in
        [("missing", Code::NotFound), ("pipe", Code::InvalidArgument), ("a\0", Code::InvalidArgument)]
    {
        assert_eq!(agent.watch_files(path, true).await.err().unwrap().code(), code);
    }
    let mut watches = Vec::new();
    for _ in 0..64 {
        watches.push(agent.watch_files(".", true).await.unwrap());
    }
    let error = agent.watch_files(".", true).await.err().unwrap();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    watches.clear();
    while agent.watch_files(".", true).await.is_err() {
        tokio::task::yield_now().await;
    }
}

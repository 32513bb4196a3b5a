//! Programs that stand still, in control groups of this host. Says `SKIP` where there are none to make.

use std::path::PathBuf;

use nullspace_guest_proto as pb;
use tonic::Code;

use crate::agent::{Agent, shell};

/// A directory among this host's control groups. Whoever runs in it is killed at the end.
struct Groups(PathBuf);

impl Groups {
    fn make() -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let at = mounts.find(|words| words.get(2) == Some(&"cgroup2"))?[1].to_string();
        let directory = tempfile::Builder::new().prefix("nullspace-guest-").tempdir_in(at).ok()?;
        Some(Self(directory.keep()))
    }

    fn says(&self, file: &str, line: &str) -> bool {
        std::fs::read_to_string(self.0.join(file)).unwrap().lines().any(|each| each == line)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for name in ["programs", "hooks", ""] {
            let group = self.0.join(name);
            std::fs::write(group.join("cgroup.kill"), "1").unwrap();
            // Those that were killed are gone a moment later.
            while let Err(error) = std::fs::remove_dir(&group) {
                assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy, "{group:?}: {error}");
                std::thread::yield_now();
            }
        }
    }
}

async fn start() -> Option<(Groups, Agent)> {
    let Some(groups) = Groups::make() else {
        eprintln!("SKIP: no control groups, version 2, can be made here");
        return None;
    };
    let agent = Agent::in_groups(&groups.0).await;
    Some((groups, agent))
}

fn freeze(id: &str) -> pb::FreezeRequest {
    pb::FreezeRequest { freeze_id: id.into() }
}

#[tokio::test]
async fn programs_stand_still_starts_wait_and_all_goes_on_with_the_thaw() {
    let Some((groups, mut agent)) = start().await else { return };
    // A shell, its child, and one that reads the kernel's generator for as long as it may.
    let busy = agent
        .start_process("sh -c 'while :; do :; done' & exec dd if=/dev/urandom of=/dev/null bs=64M")
        .await;
    let reply = agent.client.freeze(freeze("one")).await.unwrap().into_inner();
    assert_eq!(reply, pb::FreezeReply { frozen: true, reason: String::new() });
    assert!(groups.says("programs/cgroup.events", "frozen 1"));

    let mut other = agent.client.clone();
    let waiting = tokio::spawn(async move { other.run(shell("echo started")).await.unwrap().into_inner() });
    // Other calls are answered, and killing works.
    let listed = agent.client.list_processes(pb::ListProcessesRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.processes.iter().filter(|process| process.from_api).count(), 1);
    agent.client.kill_process(pb::KillProcessRequest { pid: busy, signal: 0 }).await.unwrap();
    assert_eq!(agent.attach(busy, 0, 0).await.code(), 137);
    agent.client.thaw(pb::ThawRequest { freeze_id: "another".into(), unix_time_ns: 0 }).await.unwrap();
    assert!(groups.says("programs/cgroup.freeze", "1") && !waiting.is_finished());

    for _ in 0..2 {
        agent.client.thaw(pb::ThawRequest { freeze_id: "one".into(), unix_time_ns: 0 }).await.unwrap();
    }
    let outcome = crate::agent::Outcome::collect(waiting.await.unwrap()).await;
    assert_eq!(outcome.text(), "started\n");
    let long = agent.client.freeze(freeze(&"x".repeat(65))).await.unwrap_err();
    assert_eq!(long.code(), Code::InvalidArgument);
    assert!(long.message().contains("freeze_id"), "{long}");
}

#[tokio::test]
async fn a_terminal_is_among_what_stands_still() {
    let Some((groups, mut agent)) = start().await else { return };
    let request = pb::StartTerminalRequest {
        session_id: "one".into(),
        cols: 80,
        rows: 24,
        command: "sleep 1000".into(),
        ..Default::default()
    };
    let terminal = agent.client.start_terminal(request).await.unwrap().into_inner();
    assert!(groups.says("programs/cgroup.procs", &terminal.pid.to_string()));
}

#[tokio::test]
async fn an_adoption_ends_with_a_thaw_and_hooks_run_before_it() {
    let Some((groups, mut agent)) = start().await else { return };
    agent.start_process("while :; do :; done").await;
    std::fs::create_dir_all(&agent.hooks).unwrap();
    let hook = agent.hooks.join("10-looks");
    let state = format!("#!/bin/sh\ngrep frozen {}/programs/cgroup.events", groups.0.display());
    std::fs::write(&hook, state).unwrap();
    std::fs::set_permissions(hook, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();

    assert!(agent.client.freeze(freeze("one")).await.unwrap().into_inner().frozen);
    let request = pb::AdoptRequest { token: "t".repeat(32), ..agent.adopt_request() };
    let reply = agent.client.adopt(request).await.unwrap().into_inner();
    let told: Vec<_> = reply.hooks.iter().map(|hook| (hook.exit_code, &*hook.output)).collect();
    assert_eq!(told, [(0, "frozen 1\n")]);
    assert!(groups.says("programs/cgroup.freeze", "0"));
}

#[tokio::test]
async fn an_adoption_that_is_refused_ends_with_a_thaw_too() {
    let Some((groups, mut agent)) = start().await else { return };
    assert!(agent.client.freeze(freeze("one")).await.unwrap().into_inner().frozen);
    let request = pb::AdoptRequest { hostname: String::new(), ..agent.adopt_request() };
    assert_eq!(agent.client.adopt(request).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(groups.says("programs/cgroup.freeze", "0"));
}

#[tokio::test]
async fn an_agent_without_groups_says_so_and_starts_go_on() {
    let mut agent = Agent::start().await;
    let reply = agent.client.freeze(freeze("one")).await.unwrap().into_inner();
    assert!(!reply.frozen && !reply.reason.is_empty());
    assert_eq!(agent.shell("echo started").await.text(), "started\n");
}

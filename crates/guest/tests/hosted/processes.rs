//! Running programs.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nullspace_guest_proto as pb;
use pb::failed::Reason;
use pb::run_event::Event;
use tonic::Code;

use crate::agent::{Agent, Outcome, shell};

fn program(words: &[&str]) -> pb::RunRequest {
    pb::RunRequest {
        command: words[0].into(),
        args: words[1..].iter().map(|word| word.to_string()).collect(),
        ..Default::default()
    }
}

#[tokio::test]
async fn arguments_environment_and_directory_reach_the_program() {
    let mut agent = Agent::start().await;
    let outcome = agent.run(program(&["printf", "%s|", "a b", "", "$HOME", "'ü'"])).await;
    assert_eq!((outcome.text(), outcome.code()), ("a b||$HOME|'ü'|", 0));

    let mut request = shell("echo $MACHINE, $CALL, $HOME, $USER, $PATH; pwd; cat; echo err >&2; exit 3");
    request.envs = HashMap::from([("CALL".into(), "of the call".into())]);
    let outcome = agent.run(request).await;
    let cwd = agent.cwd.to_str().unwrap().to_string();
    assert_eq!(
        outcome.text(),
        format!(
            "of the machine, of the call, /root, root, /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n{cwd}\n"
        )
    );
    assert_eq!((outcome.stderr.as_slice(), outcome.code()), (&b"err\n"[..], 3));
    let exited = outcome.exited.unwrap();
    assert_eq!((exited.stdout_bytes, exited.stderr_bytes), (outcome.stdout.len() as u64, 4));
    assert!(exited.duration_us > 0 && !exited.timed_out);

    let outcome = agent.run(pb::RunRequest { cwd: "/usr/../".into(), ..shell("pwd") }).await;
    assert_eq!(outcome.text(), "/\n");
}

#[tokio::test]
async fn a_process_starts_clean() {
    let mut agent = Agent::start().await;
    let line = "ls -l /proc/self/fd | grep -cE 'socket|anon_inode' ; \
                grep -E '^Sig(Blk|Ign)' /proc/self/status | cut -f2; ps -o sid=,pgid= -p $$";
    let outcome = agent.shell(line).await;
    let text: Vec<_> = outcome.text().split_ascii_whitespace().collect();
    let pid = outcome.pid.unwrap().to_string();
    let ignored = u64::from_str_radix(text[2], 16).unwrap();
    assert_eq!(
        (text[0], text[1]),
        ("0", "0000000000000000"),
        "no descriptor of the agent, no blocked signal"
    );
    assert_eq!(ignored & 0x7fff_ffff, 0, "what ignores real-time signals is around the tests");
    assert_eq!(text[3..], [&pid, &pid]);
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let mut agent = Agent::start().await;
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain");
    fs::write(&plain, "x").unwrap();
    for (request, reason) in [
        (program(&["no-such-command-here"]), Reason::CommandNotFound),
        (program(&["/no/such/file"]), Reason::CommandNotFound),
        (program(&[plain.to_str().unwrap()]), Reason::NotExecutable),
        (program(&["/"]), Reason::NotExecutable),
        (pb::RunRequest { cwd: "/no/such/directory".into(), ..shell("true") }, Reason::BadCwd),
        (pb::RunRequest { cwd: "/etc/passwd".into(), ..shell("true") }, Reason::BadCwd),
        (pb::RunRequest { cwd: "/workspace/x/../.nullspace".into(), ..shell("true") }, Reason::BadCwd),
        (pb::RunRequest { user: "nobody-of-that-name".into(), ..shell("true") }, Reason::BadUser),
        (program(&["true", &"x".repeat(200 << 10)]), Reason::NoResources),
    ] {
        let outcome = agent.run(request).await;
        assert_eq!(outcome.reason(), reason, "{outcome:?}");
        assert!(!outcome.failed.unwrap().message.is_empty());
    }
    for request in [
        program(&[""]),
        program(&["true", "a\0b"]),
        pb::RunRequest { args: vec!["x".into()], ..shell("true") },
        pb::RunRequest { envs: HashMap::from([("A=".into(), String::new())]), ..shell("true") },
    ] {
        assert_eq!(agent.client.run(request).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_script_without_an_interpreter_line_runs_as_execvp_runs_it() {
    let mut agent = Agent::start().await;
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    fs::write(&script, "echo $0 $1\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut request = program(&["script", "one"]);
    request.envs = HashMap::from([("PATH".into(), format!("/no/such:{}", directory.path().display()))]);
    let outcome = agent.run(request).await;
    assert_eq!(outcome.text(), format!("{} one\n", script.display()));
}

#[tokio::test]
async fn a_process_runs_as_the_user_it_is_to_run_as() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP: needs root to become another user");
        return;
    }
    let mut agent = Agent::start().await;
    let request =
        pb::RunRequest { user: "nobody".into(), ..shell("id -un; id -G; touch mine && stat -c %U mine . ") };
    let outcome = agent.run(request).await;
    assert_eq!(outcome.text(), "nobody\n65534\nnobody\nnobody\n", "{outcome:?}");
}

#[tokio::test]
async fn output_that_is_no_text_arrives_unchanged() {
    let mut agent = Agent::start().await;
    let outcome = agent.shell(r"printf '\377\000\303\050'").await;
    assert_eq!(outcome.stdout, b"\xff\0\xc3(");
}

#[tokio::test]
async fn a_hundred_megabytes_arrive_whole_through_the_log() {
    let mut agent = Agent::start().await;
    let line = "head -c 104857600 /dev/zero | tr '\\0' x; echo -n end >&2";
    let outcome = agent.run(pb::RunRequest { inline_limit: 1 << 20, ..shell(line) }).await;
    assert!(outcome.cut && outcome.code() == 0);
    assert_eq!(outcome.stdout.len() + outcome.stderr.len(), 1 << 20);
    assert_eq!(outcome.exited.unwrap().stdout_bytes, 100 << 20);
    let pid = outcome.pid.unwrap();
    let log = agent.log(pid, pb::Stream::Stdout, 0).await;
    assert!(log.len() == 100 << 20 && log.iter().all(|byte| *byte == b'x'));
    assert_eq!(agent.log(pid, pb::Stream::Stderr, 0).await, b"end");
    // Two pipes have no exact order; what was written last comes last but for what a pipe holds.
    let all = agent.log(pid, pb::Stream::Interleaved, 99 << 20).await;
    assert_eq!(all.len(), (1 << 20) + 3);
    let all = String::from_utf8(all).unwrap();
    assert!(all.contains("end") && all.replace("end", "").bytes().all(|byte| byte == b'x'));
    assert!(resident_kib(&agent).await < 16 << 10, "the log is not in memory");
}

async fn resident_kib(agent: &Agent) -> u64 {
    let pid = agent.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_limit_that_the_output_just_fits_is_no_cut() {
    let mut agent = Agent::start().await;
    let exact = agent.run(pb::RunRequest { inline_limit: 5, ..shell("printf 12345") }).await;
    assert_eq!((exact.text(), exact.cut), ("12345", false));
    let over = agent.run(pb::RunRequest { inline_limit: 5, ..shell("printf 123456") }).await;
    assert_eq!((over.text(), over.cut), ("12345", true));
}

#[tokio::test]
async fn a_timeout_leaves_no_process_of_the_group() {
    let mut agent = Agent::start().await;
    let request =
        pb::RunRequest { timeout_ms: 300, ..shell("sleep 1000 & sleep 1000 & echo $!; trap '' TERM; wait") };
    let outcome = agent.run(request).await;
    let exited = outcome.exited.unwrap();
    assert!(exited.timed_out);
    assert_eq!(exited.exit_code, 137);
    assert!(exited.duration_us >= 300_000);
    let child = outcome.text().trim();
    // The agent is the subreaper: once it has reaped the child, there is no such process.
    let gone = agent.shell(&format!("while kill -0 {child} 2>/dev/null; do sleep 0.01; done")).await;
    assert_eq!(gone.code(), 0);
}

#[tokio::test]
async fn the_exit_does_not_wait_for_a_daemon_that_keeps_the_pipes() {
    let mut agent = Agent::start().await;
    let directory = tempfile::tempdir().unwrap();
    let gate = directory.path().join("gate");
    let line = format!("mkfifo {0}; (read x < {0}; echo later) & echo now", gate.display());
    let outcome = agent.shell(&line).await;
    assert_eq!((outcome.text(), outcome.code()), ("now\n", 0));
    // Its output still goes to the log.
    let open = agent.shell(&format!("echo go > {}", gate.display())).await;
    assert_eq!(open.code(), 0);
    let pid = outcome.pid.unwrap();
    while agent.log(pid, pb::Stream::Stdout, 0).await != b"now\nlater\n" {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_dropped_stream_leaves_the_process_running_and_attach_finds_it() {
    let mut agent = Agent::start().await;
    let pid = {
        let mut events =
            agent.client.run(shell("echo one; read x; echo two >&2; exit 7")).await.unwrap().into_inner();
        let Some(Event::Started(started)) = events.message().await.unwrap().unwrap().event else { panic!() };
        started.pid
    };
    let outcome = agent.attach(pid, 2, 0).await;
    assert_eq!((outcome.text(), outcome.stderr.as_slice(), outcome.code()), ("e\n", &b"two\n"[..], 7));
    assert_eq!(agent.attach(pid, 0, 0).await.text(), "one\n", "also after the end");
    let missing = agent.client.attach(pb::AttachRequest { pid: 4_000_000, ..Default::default() }).await;
    assert_eq!(missing.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn standard_input_reaches_a_background_process_until_it_is_closed() {
    let mut agent = Agent::start().await;
    let pid = agent.start_process("cat; echo over").await;
    for (data, close) in [("one\n", false), ("two\n", true)] {
        let data = bytes::Bytes::from_static(data.as_bytes());
        agent.client.write_stdin(pb::WriteStdinRequest { pid, data, close }).await.unwrap();
    }
    let outcome = agent.attach(pid, 0, 0).await;
    assert_eq!(outcome.text(), "one\ntwo\nover\n");
    let late = pb::WriteStdinRequest { pid, data: b"x"[..].into(), close: false };
    assert_eq!(agent.client.write_stdin(late).await.unwrap_err().code(), Code::FailedPrecondition);
    let foreground = agent.shell("true").await.pid.unwrap();
    let none = pb::WriteStdinRequest { pid: foreground, data: b"x"[..].into(), close: false };
    assert_eq!(agent.client.write_stdin(none).await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn writing_to_a_process_that_does_not_read_ends_with_it() {
    let mut agent = Agent::start().await;
    let pid = agent.start_process("sleep 1000").await;
    let mut writer = agent.client.clone();
    let data = vec![0; 1 << 20].into();
    let write = tokio::spawn(async move {
        writer.write_stdin(pb::WriteStdinRequest { pid, data, close: false }).await.map(|_| ())
    });
    agent.client.kill_process(pb::KillProcessRequest { pid, signal: 0 }).await.unwrap();
    assert_eq!(write.await.unwrap().unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn processes_are_listed_and_killed() {
    let mut agent = Agent::start().await;
    let pid = agent.start_process("sleep 1234 & wait").await;
    let inner = loop {
        let list = agent.client.list_processes(pb::ListProcessesRequest {}).await.unwrap().into_inner();
        let own = list.processes.iter().find(|process| process.pid == pid).unwrap();
        assert_eq!((own.command.as_str(), own.running, own.from_api), ("sleep 1234 & wait", true, true));
        if let Some(inner) = list.processes.iter().find(|p| p.command == "sleep 1234" && !p.from_api) {
            break inner.pid;
        }
    };
    agent.client.kill_process(pb::KillProcessRequest { pid, signal: 0 }).await.unwrap();
    let outcome = agent.attach(pid, 0, 0).await;
    assert_eq!(outcome.code(), 137);
    agent.client.kill_process(pb::KillProcessRequest { pid, signal: 0 }).await.unwrap();
    let list = agent.client.list_processes(pb::ListProcessesRequest {}).await.unwrap().into_inner();
    let ended = list.processes.iter().find(|process| process.pid == pid).unwrap();
    assert_eq!((ended.running, ended.has_exit_code, ended.exit_code), (false, true, 137));
    let gone = agent.shell(&format!("while kill -0 {inner} 2>/dev/null; do sleep 0.01; done")).await;
    assert_eq!(gone.code(), 0, "the whole group went");
    for pid in [0, 1, agent.pid(), 4_000_000, u32::MAX] {
        let refused = agent.client.kill_process(pb::KillProcessRequest { pid, signal: 0 }).await;
        assert_eq!(refused.unwrap_err().code(), Code::NotFound, "{pid}");
    }
}

#[tokio::test]
async fn any_signal_is_sent_to_the_group() {
    let mut agent = Agent::start().await;
    for (signal, code) in [(libc::SIGUSR1, 7), (40, 8)] {
        let line = format!("trap 'exit {code}' {signal}; echo ready; while :; do sleep 0.01; done");
        let mut events = agent.client.run(shell(&line)).await.unwrap().into_inner();
        let mut pid = 0;
        while let pb::run_event::Event::Started(started) =
            events.message().await.unwrap().unwrap().event.unwrap()
        {
            pid = started.pid;
        }
        let signal = signal as u32;
        agent.client.kill_process(pb::KillProcessRequest { pid, signal }).await.unwrap();
        let ended = agent.attach(pid, 0, 0).await.code();
        assert!(ended == code || ended == 128 + signal as i32, "{ended}");
        let refused = agent.client.kill_process(pb::KillProcessRequest { pid, signal: 65 }).await;
        assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn sixty_four_processes_run_at_once() {
    let mut agent = Agent::start().await;
    let directory = tempfile::tempdir().unwrap();
    let gate = directory.path().join("gate");
    assert_eq!(agent.shell(&format!("mkfifo {}", gate.display())).await.code(), 0);
    // Held open for both, so that no process waits for another end, and none is left without.
    let mut gate_ends = fs::File::options().read(true).write(true).open(&gate).unwrap();
    let mut running = Vec::new();
    for number in 0..64 {
        let line = format!("echo started; read x < {}; echo {number}; exit {number}", gate.display());
        let mut events = agent.client.run(shell(&line)).await.unwrap().into_inner();
        let mut outcome = Outcome::default();
        while outcome.stdout != b"started\n" {
            match events.message().await.unwrap().unwrap().event.unwrap() {
                Event::Started(started) => outcome.pid = Some(started.pid),
                Event::Output(output) => outcome.stdout.extend_from_slice(&output.data),
                other => panic!("{other:?}"),
            }
        }
        running.push((outcome, events));
    }
    // One line for each: a reader takes one byte, and that is a line.
    gate_ends.write_all(&[b'\n'; 64]).unwrap();
    for (number, (outcome, events)) in running.into_iter().enumerate() {
        let outcome = outcome.follow(events).await;
        assert_eq!(outcome.text(), format!("started\n{number}\n"));
        assert_eq!(outcome.code(), number as i32);
    }
}

#[tokio::test]
async fn output_for_which_the_disk_has_no_space_is_cut_and_the_process_goes_on() {
    let Some(disk) = SmallDisk::mount() else { return };
    let mut agent = Agent::with_logs(Some(disk.path().join("logs"))).await;
    let outcome =
        agent.run(pb::RunRequest { inline_limit: 1, ..shell("head -c 4000000 /dev/zero; exit 5") }).await;
    assert_eq!(outcome.code(), 5);
    let log = agent.log(outcome.pid.unwrap(), pb::Stream::Stdout, 0).await;
    let data = log.iter().take_while(|byte| **byte == 0).count();
    let mark = String::from_utf8(log[data..].to_vec()).unwrap();
    assert!((64 << 10..4_000_000).contains(&data));
    assert!(
        mark.is_empty()
            || mark == format!("\n[nullspace: output cut here, {} bytes left out]\n", 4_000_000 - data),
        "{mark}"
    );
}

#[tokio::test]
async fn the_same_run_again_follows_the_process_that_was_started_then() {
    let mut agent = Agent::start().await;
    let directory = tempfile::tempdir().unwrap();
    let starts = directory.path().join("starts");
    let request = pb::RunRequest {
        run_id: "run_1".into(),
        stdin: true,
        ..shell(&format!("echo start >> {}; echo one; read x; echo $x; exit 4", starts.display()))
    };
    let mut other = agent.client.clone();
    let (one, two) = tokio::join!(agent.client.run(request.clone()), other.run(request.clone()));
    let (mut one, two) = (one.unwrap().into_inner(), two.unwrap().into_inner());
    let Some(Event::Started(started)) = one.message().await.unwrap().unwrap().event else { panic!() };
    let data = bytes::Bytes::from_static(b"two\n");
    let write = pb::WriteStdinRequest { pid: started.pid, data, close: true };
    agent.client.write_stdin(write).await.unwrap();
    for outcome in [Outcome::collect(two).await, agent.run(request.clone()).await] {
        assert_eq!((outcome.pid, outcome.text(), outcome.code()), (Some(started.pid), "one\ntwo\n", 4));
    }
    let background = pb::RunRequest { background: true, ..request.clone() };
    let again = agent.run(background).await;
    assert!(again.pid == Some(started.pid) && again.exited.is_none());
    assert_eq!(fs::read_to_string(starts).unwrap(), "start\n");

    // What was not started has no name.
    let failing = pb::RunRequest { run_id: "run_2".into(), ..program(&["no-such-command-here"]) };
    assert_eq!(agent.run(failing.clone()).await.reason(), Reason::CommandNotFound);
    assert_eq!(agent.run(pb::RunRequest { command: "true".into(), ..failing }).await.code(), 0);
    let long = agent.client.run(pb::RunRequest { run_id: "x".repeat(65), ..request }).await.unwrap_err();
    assert_eq!(
        (long.code(), long.message()),
        (Code::InvalidArgument, "run_id has 65 bytes; it must have 1 to 64")
    );
}

#[tokio::test]
async fn an_answer_that_may_be_held_comes_with_the_first_output() {
    let mut agent = Agent::start().await;
    let request = pb::RunRequest { hold_ms: 3_600_000, stdin: true, ..shell("echo one; read x; echo two") };
    let mut events = agent.client.run(request).await.unwrap().into_inner();
    let Some(Event::Started(started)) = events.message().await.unwrap().unwrap().event else { panic!() };
    let Some(Event::Output(output)) = events.message().await.unwrap().unwrap().event else { panic!() };
    assert_eq!(&output.data[..], b"one\n");
    let end = pb::WriteStdinRequest { pid: started.pid, data: Default::default(), close: true };
    agent.client.write_stdin(end).await.unwrap();
    let rest = Outcome { pid: Some(started.pid), ..Default::default() }.follow(events).await;
    assert_eq!((rest.text(), rest.code()), ("two\n", 0));
    let silent = pb::RunRequest { hold_ms: 3_600_000, ..shell("exit 3") };
    assert_eq!(agent.run(silent).await.code(), 3);
}

/// Some twenty megabytes in no time, if nobody holds it back.
const FLOOD: &str = "seq 1 2600000";

/// Starts a command that waits for its reader, and waits until it does: what is recorded no longer grows.
async fn held_back(agent: &mut Agent, request: pb::RunRequest) -> (u32, tonic::Streaming<pb::RunEvent>) {
    let request = pb::RunRequest { paced: true, ..request };
    let mut events = agent.client.run(request).await.unwrap().into_inner();
    let Some(Event::Started(started)) = events.message().await.unwrap().unwrap().event else { panic!() };
    let (mut len, mut same) = (0, 0);
    while same < 20 {
        agent.shell("sleep 0.01").await;
        let now = agent.log(started.pid, pb::Stream::Interleaved, 0).await.len();
        same = if now == len && now > 1 << 20 { same + 1 } else { 0 };
        len = now;
    }
    // The window, a pipe, and what the connection takes.
    assert!(len < 8 << 20, "{len} bytes");
    (started.pid, events)
}

#[tokio::test]
async fn a_command_waits_for_a_reader_that_asks_for_it_and_it_gets_every_byte() {
    let mut agent = Agent::start().await;
    let (pid, events) = held_back(&mut agent, shell(FLOOD)).await;
    let outcome = Outcome { pid: Some(pid), ..Default::default() }.follow(events).await;
    let all: String = (1..=2_600_000).map(|n| format!("{n}\n")).collect();
    assert!(outcome.code() == 0 && outcome.text() == all);
}

#[tokio::test]
async fn a_command_goes_on_when_the_reader_it_waits_for_is_gone() {
    let mut agent = Agent::start().await;
    let (pid, events) = held_back(&mut agent, shell(FLOOD)).await;
    let (attached, again) = {
        let request = pb::AttachRequest { pid, paced: true, ..Default::default() };
        (agent.client.attach(request).await.unwrap().into_inner(), agent.attach(pid, 0, 0))
    };
    drop((events, attached));
    let outcome = again.await;
    assert!(outcome.code() == 0 && outcome.text().ends_with("\n2600000\n"));
}

#[tokio::test]
async fn a_command_that_waits_for_its_reader_is_killed_at_once_and_at_its_timeout() {
    let mut agent = Agent::start().await;
    for timeout_ms in [0, 1500] {
        let (pid, events) = held_back(&mut agent, pb::RunRequest { timeout_ms, ..shell("yes") }).await;
        if timeout_ms == 0 {
            agent.client.kill_process(pb::KillProcessRequest { pid, signal: 0 }).await.unwrap();
        }
        // Another one learns of it, though the first does not read.
        let exited = agent.attach(pid, 0, 0).await.exited.unwrap();
        assert_eq!((exited.exit_code, exited.timed_out), (137, timeout_ms > 0));
        let outcome = Outcome { pid: Some(pid), ..Default::default() }.follow(events).await;
        assert_eq!(outcome.stdout.len() as u64, exited.stdout_bytes);
        assert_eq!(outcome.exited.unwrap().exit_code, 137);
    }
}

#[tokio::test]
async fn a_reader_that_is_waited_for_gets_also_what_the_log_has_no_room_for() {
    let Some(disk) = SmallDisk::mount() else { return };
    let mut agent = Agent::with_logs(Some(disk.path().join("logs"))).await;
    let outcome = agent.run(pb::RunRequest { paced: true, ..shell("seq 1 1000000; exit 5") }).await;
    let all: String = (1..=1_000_000).map(|n| format!("{n}\n")).collect();
    assert!(outcome.code() == 5 && outcome.text() == all);
    assert!(agent.log(outcome.pid.unwrap(), pb::Stream::Stdout, 0).await.len() < all.len());
}

/// A file system with room for one megabyte.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let none: Option<&str> = None;
        let options = Some("size=1m,mode=0755");
        let flags = nix::mount::MsFlags::empty();
        if let Err(error) = nix::mount::mount(none, directory.path(), Some("tmpfs"), flags, options) {
            eprintln!("SKIP: a small tmpfs could not be mounted: {error}");
            return None;
        }
        Some(Self(directory))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

//! Programs that the machine's owner has run after each restore, before anybody is handed the machine.
//!
//! They are the executable files of one directory, run one after the other in the order of their names, as
//! root. What would let another user run something as root is refused: a directory or a program that is not
//! root's, or that others may write to. Each has a time, and all together have one; what was refused, failed
//! or killed is told like what went well. What else runs in the machine stands still meanwhile (`freezer`).
//! Deliberately absent: any effect on the adoption, which is done.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use nullspace_guest_proto as pb;
use tokio::io::unix::AsyncFd;
use tonic::Status;

use crate::account::Account;
use crate::freezer::Freezer;
use crate::mounts::{Mounts, elsewhere};
use crate::process::children::{Child, Children};
use crate::process::launch::{Files, Launch, LaunchError};
use crate::process::pipe::{self, Pipe};

/// Where they are in a machine.
pub const DIRECTORY: &str = "/etc/nullspace/after-restore.d";

/// How long one may take, and all together.
const EACH: Duration = Duration::from_secs(10);
const ALL: Duration = Duration::from_secs(30);
/// How long the kernel may take to end one that was killed before it is left behind.
const GRACE: Duration = Duration::from_secs(1);
/// So many are run at most.
const HOOKS: usize = 64;
/// What is told of an output: its end.
const OUTPUT_BYTES: usize = 4 << 10;
/// What is taken at once, and in all after a program has ended.
const READ_BYTES: usize = 16 << 10;
const DRAIN_BYTES: usize = 256 << 10;

/// Exit codes that are not a program's own, as shells have them.
const TIMED_OUT: i32 = 124;
const NOT_RUN: i32 = 126;

/// See the module.
pub struct Hooks {
    directory: PathBuf,
    children: Arc<Children>,
    mounts: Arc<Mounts>,
    freezer: Arc<Freezer>,
}

/// A program of the directory, or why it is none to run.
#[derive(Debug, PartialEq, Eq)]
struct Hook {
    name: String,
    refused: Option<String>,
}

/// A program that runs, and what it writes.
struct Running {
    child: Child,
    output: AsyncFd<OwnedFd>,
}

impl Hooks {
    /// Those of a directory, which need not exist.
    pub fn new(
        directory: PathBuf,
        children: Arc<Children>,
        mounts: Arc<Mounts>,
        freezer: Arc<Freezer>,
    ) -> Self {
        Self { directory, children, mounts, freezer }
    }

    /// Runs them all; answers what became of each, in order.
    pub async fn run(&self, environment: &BTreeMap<String, String>) -> Vec<pb::HookOutcome> {
        let directory = self.directory.clone();
        let listed = self
            .mounts
            .run(false, move || list(&directory).map_err(|error| Status::internal(error.to_string())));
        let hooks = match listed.await {
            Ok(hooks) => hooks,
            Err(status) => return vec![outcome(directory_name(&self.directory), NOT_RUN, status.message())],
        };
        let begun = Instant::now();
        let mut outcomes = Vec::with_capacity(hooks.len());
        for Hook { name, refused } in hooks {
            let (code, output) = match (refused, allowance(begun.elapsed())) {
                (Some(reason), _) => (NOT_RUN, reason),
                (None, None) => (TIMED_OUT, "not run: those before it took all the time there is".into()),
                (None, Some(time)) => self.one(&name, environment, time).await,
            };
            outcomes.push(pb::HookOutcome { name, exit_code: code, output });
        }
        outcomes
    }

    /// Runs one to its end; answers its exit code and the end of its output.
    async fn one(&self, name: &str, environment: &BTreeMap<String, String>, time: Duration) -> (i32, String) {
        let program = self.directory.join(name).to_string_lossy().into_owned();
        let launch = Launch {
            arguments: vec![program.clone()],
            program,
            environment: environment.clone(),
            directory: "/".into(),
            account: Account::root(),
            admission: self.freezer.admit_hook(),
        };
        let running = if self.mounts.may_hang() {
            let children = Arc::clone(&self.children);
            let started = elsewhere(move || start(&launch, &children)).await;
            started.unwrap_or_else(|status| Err(LaunchError::Resources(status.message().into())))
        } else {
            start(&launch, &self.children)
        };
        match running {
            Ok(running) => running.finish(time).await,
            Err(error) => (NOT_RUN, format!("not run: {}", explain(error))),
        }
    }
}

impl Running {
    /// Waits for the end, and brings it about when the time is over.
    async fn finish(self, time: Duration) -> (i32, String) {
        let Self { child: Child { leader, mut exit }, output } = self;
        let (mut tail, mut open, mut killed) = (Tail::default(), true, false);
        let mut timer = pin!(tokio::time::sleep(time));
        let code = loop {
            tokio::select! {
                biased;
                // The reaper lives as long as the agent.
                code = &mut exit => break code.unwrap_or(-1),
                () = &mut timer => {
                    if killed {
                        break TIMED_OUT;
                    }
                    killed = true;
                    leader.kill();
                    timer.as_mut().reset(tokio::time::Instant::now() + GRACE);
                }
                more = tail.follow(&output), if open => open = more,
            }
        };
        // What it has left running may hold the pipe open, and write on.
        let mut drained = 0;
        while drained < DRAIN_BYTES
            && let Ok(read @ 1..) = tail.read(output.get_ref())
        {
            drained += read;
        }
        (if killed { TIMED_OUT } else { code }, tail.text())
    }
}

/// The end of an output.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    /// Takes what comes next; false at the end.
    async fn follow(&mut self, output: &AsyncFd<OwnedFd>) -> bool {
        let Ok(mut ready) = output.readable().await else { return false };
        match ready.try_io(|output| self.read(output.get_ref())) {
            Ok(Ok(read)) => read > 0,
            Ok(Err(_)) => false,
            Err(_not_yet) => true,
        }
    }

    fn read(&mut self, output: &OwnedFd) -> io::Result<usize> {
        let mut buffer = [0; READ_BYTES];
        let read = nix::unistd::read(output.as_fd(), &mut buffer)?;
        self.push(&buffer[..read]);
        Ok(read)
    }

    fn push(&mut self, data: &[u8]) {
        self.0.extend_from_slice(data);
        let over = self.0.len().saturating_sub(OUTPUT_BYTES);
        self.0.drain(..over);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

/// The time that the next one has, when those before took so long.
fn allowance(passed: Duration) -> Option<Duration> {
    let left = ALL.saturating_sub(passed).min(EACH);
    (!left.is_zero()).then_some(left)
}

/// The programs of a directory in the order of their names, with those that are refused.
fn list(directory: &Path) -> io::Result<Vec<Hook>> {
    match fs::symlink_metadata(directory) {
        Ok(metadata) if !metadata.is_dir() => return Err(io::Error::other("not run: it is no directory")),
        Ok(metadata) => owned(&metadata).map_err(io::Error::other)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let mut hooks = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().filter(|name| is_name(name)).map(str::to_string) else {
            continue;
        };
        let metadata = entry.metadata()?;
        if metadata.is_file() && metadata.mode() & 0o111 != 0 {
            hooks.push(Hook { name, refused: owned(&metadata).err() });
        }
    }
    hooks.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    if let Some(first_left_out) = hooks.get_mut(HOOKS) {
        first_left_out.refused =
            Some(format!("not run, nor are those after it: there are more than {HOOKS}"));
        hooks.truncate(HOOKS + 1);
    }
    Ok(hooks)
}

/// As `run-parts` takes them, and with dots: no editor's copies, nothing hidden by a strange name.
fn is_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// Refuses what somebody else could have put there. The agent of a machine is root.
fn owned(metadata: &Metadata) -> Result<(), String> {
    if metadata.uid() != geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        return Err("not run: it must belong to root and be writable by nobody else".into());
    }
    Ok(())
}

fn directory_name(directory: &Path) -> &str {
    directory.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn outcome(name: &str, exit_code: i32, output: &str) -> pb::HookOutcome {
    pb::HookOutcome { name: name.into(), exit_code, output: output.into() }
}

/// The system calls of a start. May block.
fn start(launch: &Launch, children: &Children) -> Result<Running, LaunchError> {
    let (output, null) = (Pipe::from_program()?, pipe::nothing()?);
    let files =
        Files::Three { stdin: null.as_fd(), stdout: output.theirs.as_fd(), stderr: output.theirs.as_fd() };
    let beginning = children.begin();
    let child = beginning.child(launch.execute(&files, false)?);
    Ok(Running { child, output: output.ours })
}

fn explain(error: LaunchError) -> String {
    match error {
        // The file was there a moment ago: it is what should interpret it that is missing.
        LaunchError::NotFound => "its interpreter does not exist".into(),
        LaunchError::NotExecutable(error) | LaunchError::Directory(error) | LaunchError::User(error) => {
            error.desc().into()
        }
        LaunchError::Resources(what) => what,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn put(directory: &Path, name: &str, mode: u32) {
        let path = directory.join(name);
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn names(hooks: &[Hook]) -> Vec<(&str, bool)> {
        hooks.iter().map(|hook| (&*hook.name, hook.refused.is_none())).collect()
    }

    #[test]
    fn what_is_run_is_roots_alone_and_in_the_order_of_the_names() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("hooks");
        assert_eq!(list(&directory).unwrap(), [], "a directory that is not there has none");
        fs::create_dir(&directory).unwrap();
        for (name, mode) in [
            ("20-b.sh", 0o755),
            ("10_a", 0o500),
            ("15-theirs", 0o775),
            ("README.md", 0o644),
            ("copy~", 0o755),
            ("\u{e4}", 0o755),
        ] {
            put(&directory, name, mode);
        }
        fs::create_dir(directory.join("30-directory")).unwrap();
        symlink("20-b.sh", directory.join("40-link")).unwrap();
        let hooks = list(&directory).unwrap();
        assert_eq!(names(&hooks), [("10_a", true), ("15-theirs", false), ("20-b.sh", true)]);
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(list(&directory).unwrap_err().to_string().contains("writable by nobody else"));
    }

    #[test]
    fn too_many_are_cut_and_the_first_that_is_left_out_says_so() {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..HOOKS + 3 {
            put(directory.path(), &format!("{number:03}"), 0o755);
        }
        let hooks = list(directory.path()).unwrap();
        assert_eq!(hooks.len(), HOOKS + 1);
        assert_eq!(hooks.iter().filter(|hook| hook.refused.is_some()).count(), 1);
        assert!(hooks[HOOKS].refused.is_some());
    }

    #[test]
    fn each_has_its_time_and_all_have_theirs() {
        let seconds = |passed| allowance(Duration::from_secs(passed)).map(|time| time.as_secs());
        let allowed = [0, 19, 20, 25, 30, 31].map(seconds);
        assert_eq!(allowed, [Some(10), Some(10), Some(10), Some(5), None, None]);
    }

    #[test]
    fn of_a_long_output_the_end_is_kept() {
        let mut tail = Tail::default();
        tail.push(&[b'x'; 3 * OUTPUT_BYTES]);
        tail.push(b"last \xff");
        let text = tail.text();
        assert!(tail.0.len() == OUTPUT_BYTES && text.starts_with('x') && text.ends_with("last \u{fffd}"));
    }
}

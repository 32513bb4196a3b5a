//! Over groups of this host that are empty, which the kernel calls frozen as soon as they are told to be.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Freezer, LONGEST};

/// A directory of its own among this host's control groups, gone at the end.
struct Root(PathBuf);

impl Root {
    fn make() -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let at = mounts.find(|words| words.get(2) == Some(&"cgroup2"))?[1].to_string();
        let name = tempfile::Builder::new().prefix("nullspace-guest-").tempdir_in(at).ok()?;
        Some(Self(name.keep()))
    }

    fn frozen(&self, group: &str) -> bool {
        std::fs::read_to_string(self.0.join(group).join("cgroup.freeze")).unwrap() == "1\n"
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.0).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                std::fs::remove_dir(entry.path()).unwrap();
            }
        }
        std::fs::remove_dir(&self.0).unwrap();
    }
}

/// A freezer over a root, or none where this host has no control groups to make.
#[allow(clippy::print_stderr, reason = "a test that is skipped says so")]
fn freezer() -> Option<(Root, Arc<Freezer>)> {
    let Some(root) = Root::make() else {
        eprintln!("SKIP: no control groups, version 2, can be made here");
        return None;
    };
    let freezer = Arc::new(Freezer::with_groups(&root.0, false).unwrap());
    Some((root, freezer))
}

#[tokio::test(start_paused = true)]
async fn what_nobody_thaws_goes_on_by_itself_and_starts_wait_until_then() {
    let Some((root, freezer)) = freezer() else { return };
    let begun = tokio::time::Instant::now();
    freezer.freeze("one".into()).await.unwrap();
    assert!(root.frozen("programs") && root.frozen("hooks"));
    freezer.thaw("another").await;
    assert!(root.frozen("programs"), "it is not that freeze's to end");
    drop(freezer.admit().await);
    assert!(begun.elapsed() >= LONGEST && !root.frozen("programs") && !root.frozen("hooks"));
}

#[tokio::test(start_paused = true)]
async fn a_second_freeze_takes_over_from_the_first_and_has_a_clock_of_its_own() {
    let Some((root, freezer)) = freezer() else { return };
    freezer.freeze("one".into()).await.unwrap();
    tokio::time::sleep(LONGEST - Duration::from_secs(1)).await;
    freezer.freeze("two".into()).await.unwrap();
    tokio::time::sleep(LONGEST - Duration::from_secs(1)).await;
    freezer.thaw("one").await;
    assert!(root.frozen("programs"));
    freezer.thaw("two").await;
    freezer.thaw("two").await;
    assert!(!root.frozen("programs"));
}

#[tokio::test(start_paused = true)]
async fn an_adoption_has_no_clock_lets_hooks_run_and_ends_with_a_thaw() {
    let Some((root, freezer)) = freezer() else { return };
    freezer.freeze("one".into()).await.unwrap();
    let mut held = freezer.hold().await;
    tokio::time::sleep(2 * LONGEST).await;
    assert!(root.frozen("programs") && root.frozen("hooks"));
    held.let_hooks_run();
    assert!(root.frozen("programs") && !root.frozen("hooks"));
    drop(held);
    assert!(!root.frozen("programs"));
    drop(freezer.admit().await);
}

#[tokio::test(start_paused = true)]
async fn groups_of_others_are_frozen_too_and_those_that_they_froze_stay_so() {
    let Some((root, freezer)) = freezer() else { return };
    for name in ["theirs", "paused"] {
        std::fs::create_dir(root.0.join(name)).unwrap();
    }
    std::fs::write(root.0.join("paused/cgroup.freeze"), "1").unwrap();
    freezer.freeze("one".into()).await.unwrap();
    assert!(root.frozen("theirs") && root.frozen("paused"));
    freezer.thaw("").await;
    assert!(!root.frozen("theirs") && root.frozen("paused"));
}

#[tokio::test(start_paused = true)]
async fn a_start_that_does_not_end_keeps_programs_from_standing_still_and_nothing_else() {
    let Some((root, freezer)) = freezer() else { return };
    let start = freezer.admit().await;
    let reason = freezer.freeze("one".into()).await.unwrap_err();
    assert!(reason.contains("500ms"), "{reason}");
    assert!(!root.frozen("programs"));
    drop((start, freezer.admit().await));
    freezer.freeze("two".into()).await.unwrap();
    freezer.thaw("two").await;
}

//! Everything at once on one sandbox, and whether the log of it could have come of the rules.

use std::collections::{HashSet, VecDeque};

use futures::future::join_all;
use nullspace_domain::lifecycle::{Action, Birth, Event, State, step};
use nullspace_tests_api::Harness;
use nullspace_types::event::{EventStatus, LifecycleEvent, Operation};
use nullspace_types::id::{IncarnationId, SnapshotId};
use serde_json::json;

/// A word of the log: what the rules record, and nothing else of an event.
type Word = (Operation, EventStatus, Option<String>);

/// Whether some course of events, judged by the rules alone, writes just these words, and where it may end.
fn ends(words: &[Word]) -> HashSet<State> {
    let (incarnation, snapshot) = (IncarnationId::new(), SnapshotId::new());
    let happenings = [
        Event::Create { incarnation, birth: Birth::Create },
        Event::MachineMade { incarnation, generation: 1 },
        Event::MachineFailed { incarnation },
        Event::MachineGone { incarnation },
        Event::Hibernate { snapshot },
        Event::Captured { snapshot },
        Event::CaptureFailed { snapshot },
        Event::Resume { incarnation },
        Event::Destroy,
    ];
    let mut seen = HashSet::from([(State::Absent, 0)]);
    let mut waiting = VecDeque::from([(State::Absent, 0)]);
    let mut ends = HashSet::new();
    while let Some((state, at)) = waiting.pop_front() {
        if at == words.len() {
            ends.insert(state);
        }
        for happening in happenings {
            let Ok((next, actions)) = step(state, happening) else { continue };
            let written = actions.into_iter().filter_map(|action| match action {
                Action::Record { operation, status, reason, .. } => {
                    Some((operation, status, reason.map(str::to_owned)))
                }
                _ => None,
            });
            let written: Vec<Word> = written.collect();
            if words[at..].starts_with(&written) {
                let there = (next, at + written.len());
                if seen.insert(there) {
                    waiting.push_back(there);
                }
            }
        }
    }
    ends
}

/// The words of a sandbox's own life: not of its children, nor of snapshots that were only taken of it.
fn own(events: &[LifecycleEvent], id: &str) -> Vec<Word> {
    let of_life = |event: &&LifecycleEvent| {
        let taken = event.operation == Operation::SnapshotCreated && event.reason.as_deref() == Some("api");
        event.sandbox_id == Some(id.parse().unwrap()) && event.operation != Operation::Fork && !taken
    };
    let word = |event: &LifecycleEvent| (event.operation, event.status, event.reason.clone());
    events.iter().filter(of_life).map(word).collect()
}

async fn call(server: &Harness, id: &str, number: usize, destroy: bool) {
    let path = format!("/v1/sandboxes/{id}");
    let exec = json!({"command": "true"});
    let answer = match number % 5 {
        0 => server.act(&format!("{path}/hibernate")).await,
        1 => server.act(&format!("{path}/resume")).await,
        2 => server.act(&format!("{path}/fork")).await,
        3 => server.post(&format!("{path}/exec"), exec).await,
        _ if destroy && number > 25 => server.delete(&path).await,
        _ => server.act(&format!("{path}/snapshots")).await,
    };
    let code = answer.body["code"].as_str().unwrap_or_default();
    let sound = answer.status < 300
        || matches!(code, "sandbox_not_ready" | "transition_in_progress" | "sandbox_not_found");
    assert!(sound, "call {number}: {answer:?}");
}

async fn mix(destroy: bool) {
    let server = Harness::start().await;
    for auto_resume in [true, false] {
        let body = json!({"auto_resume": auto_resume, "timeout_action": "hibernate"});
        let made = server.post("/v1/sandboxes", body).await.expect(201);
        let id = made["id"].as_str().unwrap().to_owned();
        join_all((0..50).map(|number| call(&server, &id, number, destroy))).await;

        let path = format!("/v1/sandboxes/{id}");
        let shown = server.get(&path).await;
        if destroy {
            shown.refused(404, "sandbox_not_found");
        } else {
            // It still does what it is told.
            assert!(["running", "paused"].contains(&shown.expect(200)["status"].as_str().unwrap()));
            server.act(&format!("{path}/resume")).await.expect(200);
            server.post(&format!("{path}/exec"), json!({"command": "true"})).await.expect(200);
        }
        let state = if destroy {
            |state: &State| *state == State::Destroyed
        } else {
            |state: &State| matches!(state, State::Running { .. })
        };
        let written = server
            .until(|| async {
                let words = own(&server.events(&id).await, &id);
                ends(&words).iter().any(state).then_some(words)
            })
            .await;
        let count =
            |operation, status| written.iter().filter(|word| (word.0, word.1) == (operation, status)).count();
        assert_eq!(count(Operation::Create, EventStatus::Succeeded), 1);
        assert_eq!(count(Operation::Destroy, EventStatus::Succeeded), usize::from(destroy));
    }
    // What is there is what is listed: no machine without a sandbox, no checkpoint without a snapshot.
    let listed = server.get("/v1/sandboxes").await.expect(200);
    let running = listed.as_array().unwrap().iter().filter(|sandbox| sandbox["status"] == "running").count();
    let snapshots = server.get("/v1/snapshots").await.expect(200).as_array().map_or(0, Vec::len);
    server
        .until(|| async {
            let there = (server.host.machines().len(), server.host.checkpoints().len());
            (there == (running, snapshots)).then_some(())
        })
        .await;
}

#[tokio::test]
async fn fifty_mixed_calls_at_once_leave_a_sandbox_and_a_log_that_the_rules_allow() {
    mix(false).await;
}

#[tokio::test]
async fn fifty_mixed_calls_at_once_with_destroys_among_them_leave_nothing_behind() {
    mix(true).await;
}

#[test]
fn a_log_that_the_rules_do_not_allow_is_told_from_one_that_they_do() {
    let word = |operation, status, reason: &str| (operation, status, Some(reason.to_owned()));
    let born = word(Operation::Create, EventStatus::Succeeded, "api");
    let asked = word(Operation::Hibernate, EventStatus::Requested, "manual");
    let paused = word(Operation::Hibernate, EventStatus::Succeeded, "manual");
    let kept = word(Operation::SnapshotCreated, EventStatus::Succeeded, "manual");
    let resumed = word(Operation::ResumeFromSnapshot, EventStatus::Succeeded, "api");
    let whole = [born.clone(), asked.clone(), paused.clone(), kept.clone(), resumed.clone()];
    assert!(
        ends(&whole).iter().all(|state| matches!(state, State::Running { .. })) && !ends(&whole).is_empty()
    );
    assert!(ends(&[born.clone(), asked.clone(), paused.clone(), resumed.clone()]).is_empty());
    assert!(ends(&[born, resumed, asked, paused, kept]).is_empty());
}

//! Random walks through [`step`], beside a model of the node that holds at most what it was asked to make:
//! machines, and checkpoints of hibernations.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// What the world does next. Numbers pick among the few lives that a walk knows.
#[derive(Debug, Clone, Copy)]
enum Move {
    Create(Birth),
    /// The node's answer to the making under way: a machine, or a failure.
    Answer(bool),
    /// The node's answer to the capture under way: a checkpoint, or a failure.
    Capture(bool),
    /// The node's answer to the ending under way.
    Gone,
    /// The machine dies by itself, and the report arrives.
    Die,
    /// A report from another life or from the past.
    StaleLost(bool),
    StaleMade,
    StaleGone,
    StaleCaptured(bool),
    Hibernate,
    Resume,
    Destroy,
    Expire(bool),
    SetTimeout,
    /// The server is killed, and the capture under way was, or was not, published by then.
    Restart(bool),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let birth = prop_oneof![Just(Birth::Create), any::<bool>().prop_map(|first| Birth::Fork { first }),];
    let one = prop_oneof![
        2 => birth.prop_map(Move::Create),
        4 => prop::bool::weighted(0.8).prop_map(Move::Answer),
        4 => prop::bool::weighted(0.7).prop_map(Move::Capture),
        3 => Just(Move::Gone),
        2 => Just(Move::Die),
        1 => any::<bool>().prop_map(Move::StaleLost),
        1 => Just(Move::StaleMade),
        1 => Just(Move::StaleGone),
        1 => any::<bool>().prop_map(Move::StaleCaptured),
        3 => Just(Move::Hibernate),
        3 => Just(Move::Resume),
        1 => Just(Move::Destroy),
        1 => any::<bool>().prop_map(Move::Expire),
        1 => Just(Move::SetTimeout),
        1 => any::<bool>().prop_map(Move::Restart),
    ];
    prop::collection::vec(one, 0..60)
}

struct World {
    state: State,
    birth: Option<Birth>,
    lives: Vec<IncarnationId>,
    /// Machines that exist at the node.
    machines: BTreeSet<IncarnationId>,
    /// Checkpoints that exist at the node.
    checkpoints: BTreeSet<SnapshotId>,
    making: Option<IncarnationId>,
    capturing: Option<SnapshotId>,
    ending: Option<Checkpoints>,
    generation: u64,
    recorded: Vec<(Operation, EventStatus)>,
    was_destroyed: bool,
}

impl World {
    fn new() -> Self {
        Self {
            state: State::Absent,
            birth: None,
            lives: vec![],
            machines: BTreeSet::new(),
            checkpoints: BTreeSet::new(),
            making: None,
            capturing: None,
            ending: None,
            generation: 3,
            recorded: vec![],
            was_destroyed: false,
        }
    }

    fn feed(&mut self, event: Event) -> Result<(), Rejected> {
        let (state, actions) = step(self.state, event)?;
        assert_ne!(self.state, State::Destroyed, "{event:?} was taken by a destroyed sandbox");
        self.state = state;
        for action in actions {
            match action {
                Action::Record { operation, status, .. } => self.recorded.push((operation, status)),
                Action::FreeKey => {}
                Action::MakeMachine(life) => {
                    assert!(self.ending.is_none() && self.capturing.is_none(), "two calls at once");
                    assert!(self.machines.iter().all(|other| *other == life), "two live incarnations");
                    self.making = Some(life);
                    self.lives.push(life);
                }
                Action::Capture(snapshot) => {
                    assert!(self.ending.is_none() && self.making.is_none(), "two calls at once");
                    self.capturing = Some(snapshot);
                }
                Action::Cancel => {
                    assert!(self.making.is_some() || self.capturing.is_some(), "cancelled nothing");
                }
                Action::End(_, checkpoints) => self.ending = Some(checkpoints),
                Action::Drop(snapshot) => {
                    assert!(self.checkpoints.remove(&snapshot), "dropped what is not there");
                }
            }
        }
        self.was_destroyed |= self.state == State::Destroyed;
        Ok(())
    }

    fn current(&self) -> IncarnationId {
        self.lives.last().copied().unwrap_or_else(IncarnationId::new)
    }

    /// The node's answer to a capture of which the machine is gone, or not.
    fn capture(&mut self, snapshot: SnapshotId, works: bool) -> Event {
        let life = self.current();
        if self.checkpoints.contains(&snapshot) || (works && self.machines.remove(&life)) {
            self.checkpoints.insert(snapshot);
            return Event::Captured { snapshot };
        }
        Event::CaptureFailed { snapshot }
    }

    fn play(&mut self, what: Move) {
        let life = self.current();
        let before = self.state;
        let stale = match what {
            Move::Create(birth) => {
                if self.feed(Event::Create { incarnation: IncarnationId::new(), birth }).is_ok() {
                    self.birth = Some(birth);
                }
                false
            }
            Move::Answer(made) => {
                if let Some(life) = self.making.take() {
                    let event = if made {
                        self.machines.insert(life);
                        Event::MachineMade { incarnation: life, generation: self.generation }
                    } else {
                        self.machines.remove(&life);
                        Event::MachineFailed { incarnation: life }
                    };
                    self.feed(event).expect("an answer that is awaited is taken");
                }
                false
            }
            Move::Capture(works) => {
                if let Some(snapshot) = self.capturing.take() {
                    let event = self.capture(snapshot, works);
                    self.feed(event).expect("an answer that is awaited is taken");
                    self.hear_of_loss();
                }
                false
            }
            Move::Gone => {
                if let Some(checkpoints) = self.ending.take() {
                    self.machines.clear();
                    for snapshot in checkpoints.into_iter().flatten() {
                        self.checkpoints.remove(&snapshot);
                    }
                    let incarnation = self.current();
                    self.feed(Event::MachineGone { incarnation }).expect("an awaited end is taken");
                }
                false
            }
            Move::Die => {
                if self.machines.remove(&life) {
                    self.generation += 1;
                    let _ = self.feed(Event::MachineLost { incarnation: life, generation: self.generation });
                }
                false
            }
            Move::StaleLost(other) => {
                let incarnation = if other { IncarnationId::new() } else { life };
                let generation = if other { u64::MAX } else { 0 };
                // One of this life that comes while it is being made is kept and judged at its end.
                let making = matches!(self.state, State::Creating { .. } | State::Resuming { .. });
                let taken = self.feed(Event::MachineLost { incarnation, generation }).is_ok();
                assert!(!taken || (making && !other), "a stale loss was taken");
                !making
            }
            Move::StaleMade => {
                let event = Event::MachineMade { incarnation: IncarnationId::new(), generation: u64::MAX };
                assert!(self.feed(event).is_err());
                true
            }
            Move::StaleGone => {
                let event = Event::MachineGone { incarnation: IncarnationId::new() };
                assert!(self.feed(event).is_err());
                true
            }
            Move::StaleCaptured(works) => {
                let snapshot = SnapshotId::new();
                let event =
                    if works { Event::Captured { snapshot } } else { Event::CaptureFailed { snapshot } };
                assert!(self.feed(event).is_err());
                true
            }
            Move::Hibernate => {
                let _ = self.feed(Event::Hibernate { snapshot: SnapshotId::new() });
                false
            }
            Move::Resume => {
                let _ = self.feed(Event::Resume { incarnation: IncarnationId::new() });
                false
            }
            Move::Destroy => {
                let legal = !matches!(self.state, State::Absent | State::Destroyed);
                assert_eq!(self.feed(Event::Destroy).is_ok(), legal, "delete is legal from every state");
                false
            }
            Move::Expire(hibernate) => {
                let _ = self.feed(Event::Expire { hibernate: hibernate.then(SnapshotId::new) });
                false
            }
            Move::SetTimeout => {
                let _ = self.feed(Event::SetTimeout);
                false
            }
            Move::Restart(published) => {
                // The calls under way die with the server; what they made stays, or not.
                let calls = (self.making.take(), self.capturing.take(), self.ending.take());
                if let (Some(snapshot), true) = (calls.1, published) {
                    self.capture(snapshot, true);
                }
                if self.feed(Event::Restart).is_err() {
                    (self.making, self.capturing, self.ending) = calls;
                }
                self.hear_of_loss();
                false
            }
        };
        if stale {
            assert_eq!(self.state, before, "stale news changed the state");
        }
        self.check();
    }

    /// A machine that is not there any more is heard of, however late.
    fn hear_of_loss(&mut self) {
        let (State::Running { incarnation, .. } | State::Hibernating { incarnation, .. }) = self.state else {
            return;
        };
        if !self.machines.contains(&incarnation) {
            self.generation += 1;
            let event = Event::MachineLost { incarnation, generation: self.generation };
            self.feed(event).expect("a loss is heard of");
        }
    }

    fn check(&self) {
        assert!(self.machines.len() <= 1, "two live incarnations");
        if self.was_destroyed {
            assert_eq!(self.state, State::Destroyed, "a destroyed sandbox came back");
            assert!(self.machines.is_empty(), "a destroyed sandbox left its machine");
            assert!(self.checkpoints.is_empty(), "a destroyed sandbox left a checkpoint");
            assert!(self.making.is_none(), "a destroyed sandbox is still being made");
        }
        let calls = [self.making.is_some(), self.capturing.is_some(), self.ending.is_some()];
        let known: Checkpoints = match self.state {
            State::Running { kept, .. } | State::Lost { kept, .. } => {
                assert_eq!(calls, [false; 3]);
                [kept, None]
            }
            State::Creating { .. } => {
                assert_eq!(calls, [true, false, false]);
                [None; 2]
            }
            State::Hibernating { snapshot, kept, .. } => {
                assert_eq!(calls, [false, true, false]);
                [Some(snapshot), kept]
            }
            State::Paused { snapshot, .. } => {
                assert_eq!(calls, [false; 3]);
                assert!(self.machines.is_empty(), "a paused sandbox has a machine");
                assert!(self.checkpoints.contains(&snapshot), "paused on nothing");
                [Some(snapshot), None]
            }
            State::Resuming { snapshot, .. } => {
                assert_eq!(calls, [true, false, false]);
                assert!(self.checkpoints.contains(&snapshot), "resumed from nothing");
                [Some(snapshot), None]
            }
            State::Destroying { call, checkpoints, .. } => {
                let awaited = [Call::Make, Call::Capture, Call::End].map(|one| one == call);
                assert_eq!(calls, awaited, "an end that nobody will bring");
                checkpoints
            }
            State::Absent | State::Destroyed => [None; 2],
        };
        assert!(self.checkpoints.iter().all(|there| known.contains(&Some(*there))), "a checkpoint leaked");
    }

    /// Asks for the end and lets the node answer: it must come, whatever was before.
    fn finish(&mut self) {
        if self.state != State::Absent && self.state != State::Destroyed {
            self.play(Move::Destroy);
            self.play(Move::Answer(true));
            self.play(Move::Capture(true));
            self.play(Move::Gone);
            assert_eq!(self.state, State::Destroyed, "delete did not end");
        }
        let count = |wanted| self.recorded.iter().filter(|event| **event == wanted).count();
        let both =
            |operation| count((operation, EventStatus::Succeeded)) + count((operation, EventStatus::Failed));
        let (born, silent) = match self.birth {
            None => (0, 0),
            Some(Birth::Create) => (both(Operation::Create), 0),
            // Only the first child tells of a failed fork.
            Some(Birth::Fork { first }) => (both(Operation::Fork), usize::from(!first)),
        };
        let there = usize::from(self.birth.is_some());
        assert!((there.saturating_sub(silent)..=there).contains(&born), "{:?}", self.recorded);
        for operation in [Operation::Destroy, Operation::Hibernate] {
            let requested = count((operation, EventStatus::Requested));
            assert_eq!(requested, both(operation), "{:?}", self.recorded);
        }
        let paused = (Operation::Hibernate, EventStatus::Succeeded);
        let taken = (Operation::SnapshotCreated, EventStatus::Succeeded);
        assert_eq!(count(paused), count(taken));
        for pair in self.recorded.windows(2) {
            assert_eq!(pair[0] == paused, pair[1] == taken, "{:?}", self.recorded);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn whatever_happens_there_is_one_life_and_delete_ends_it_and_nothing_is_left(walk in moves()) {
        let mut world = World::new();
        for step in walk {
            world.play(step);
        }
        world.finish();
    }
}

fn recorded(walk: &[Move]) -> Vec<(Operation, EventStatus)> {
    let mut world = World::new();
    world.play(Move::Create(Birth::Create));
    world.play(Move::Answer(true));
    for step in walk {
        world.play(*step);
    }
    world.recorded
}

#[test]
fn the_events_of_an_ordinary_life_come_in_the_order_of_the_contract() {
    assert_eq!(
        recorded(&[Move::SetTimeout, Move::Expire(false), Move::Gone]),
        [
            (Operation::Create, EventStatus::Succeeded),
            (Operation::TimeoutUpdated, EventStatus::Requested),
            (Operation::TimeoutUpdated, EventStatus::Succeeded),
            (Operation::TimeoutExpired, EventStatus::Succeeded),
            (Operation::Destroy, EventStatus::Requested),
            (Operation::Destroy, EventStatus::Succeeded),
        ]
    );
}

#[test]
fn the_events_of_a_sandbox_that_pauses_at_its_timeout_come_in_the_order_of_the_contract() {
    assert_eq!(
        recorded(&[Move::Expire(true), Move::Capture(true), Move::Resume, Move::Answer(true)]),
        [
            (Operation::Create, EventStatus::Succeeded),
            (Operation::TimeoutExpired, EventStatus::Succeeded),
            (Operation::Hibernate, EventStatus::Requested),
            (Operation::Hibernate, EventStatus::Succeeded),
            (Operation::SnapshotCreated, EventStatus::Succeeded),
            (Operation::ResumeFromSnapshot, EventStatus::Succeeded),
        ]
    );
}

#[test]
fn a_machine_that_dies_before_it_was_handed_over_is_a_failed_create() {
    let incarnation = IncarnationId::new();
    let state = State::Creating { incarnation, lost: None, birth: Birth::Create };
    let (state, actions) = step(state, Event::MachineLost { incarnation, generation: 2 }).unwrap();
    assert!(actions.is_empty());
    let (state, actions) = step(state, Event::MachineMade { incarnation, generation: 1 }).unwrap();
    let checkpoints = [None; 2];
    assert_eq!(
        state,
        State::Destroying { incarnation, call: Call::End, checkpoints, cause: Cause::CreateFailed }
    );
    assert!(actions.contains(&Action::FreeKey) && actions.contains(&Action::End(incarnation, checkpoints)));
}

#[test]
fn a_machine_that_is_lost_while_it_is_captured_is_lost_only_if_the_capture_fails() {
    for captured in [true, false] {
        let incarnation = IncarnationId::new();
        let snapshot = SnapshotId::new();
        let running = State::Running { incarnation, generation: 1, kept: None };
        let (state, _) = step(running, Event::Hibernate { snapshot }).unwrap();
        let (state, _) = step(state, Event::MachineLost { incarnation, generation: 2 }).unwrap();
        if captured {
            let (state, _) = step(state, Event::Captured { snapshot }).unwrap();
            assert_eq!(state, State::Paused { incarnation, snapshot });
        } else {
            let (state, _) = step(state, Event::CaptureFailed { snapshot }).unwrap();
            assert_eq!(state, State::Lost { incarnation, generation: 2, kept: None });
        }
    }
}

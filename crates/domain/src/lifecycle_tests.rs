//! Random walks through [`step`], beside a model of the node that holds at most what it was asked to make.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// What the world does next. Numbers pick among the few lives that a walk knows.
#[derive(Debug, Clone, Copy)]
enum Move {
    Create,
    /// The node's answer to the making under way: a machine, or a failure.
    Answer(bool),
    /// The node's answer to the ending under way.
    Gone,
    /// The machine dies by itself, and the report arrives.
    Die,
    /// A report from another life or from the past.
    StaleLost(bool),
    StaleMade,
    StaleGone,
    Destroy,
    Expire,
    SetTimeout,
    Restart,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        2 => Just(Move::Create),
        4 => any::<bool>().prop_map(Move::Answer),
        3 => Just(Move::Gone),
        2 => Just(Move::Die),
        1 => any::<bool>().prop_map(Move::StaleLost),
        1 => Just(Move::StaleMade),
        1 => Just(Move::StaleGone),
        2 => Just(Move::Destroy),
        1 => Just(Move::Expire),
        1 => Just(Move::SetTimeout),
        1 => Just(Move::Restart),
    ];
    prop::collection::vec(one, 0..40)
}

struct World {
    state: State,
    lives: Vec<IncarnationId>,
    /// Machines that exist at the node, each with its generation.
    machines: BTreeSet<IncarnationId>,
    making: Option<IncarnationId>,
    ending: Option<IncarnationId>,
    generation: u64,
    recorded: Vec<(Operation, EventStatus)>,
    was_destroyed: bool,
}

impl World {
    fn new() -> Self {
        Self {
            state: State::Absent,
            lives: vec![],
            machines: BTreeSet::new(),
            making: None,
            ending: None,
            generation: 3,
            recorded: vec![],
            was_destroyed: false,
        }
    }

    fn feed(&mut self, event: Event) -> Result<(), Rejected> {
        let (state, actions) = step(self.state, event)?;
        if self.state == State::Destroyed {
            panic!("{event:?} was taken by a destroyed sandbox");
        }
        self.state = state;
        for action in actions {
            match action {
                Action::Record { operation, status, .. } => self.recorded.push((operation, status)),
                Action::FreeKey => {}
                Action::MakeMachine(life) => {
                    assert!(self.ending.is_none(), "made while one is being ended");
                    assert!(self.machines.iter().all(|other| *other == life), "two live incarnations");
                    self.making = Some(life);
                }
                Action::CancelMake(life) => {
                    assert_eq!(self.making, Some(life), "cancelled what is not being made")
                }
                Action::EndMachine(life) => self.ending = Some(life),
            }
        }
        self.was_destroyed |= self.state == State::Destroyed;
        Ok(())
    }

    fn current(&self) -> IncarnationId {
        self.lives.last().copied().unwrap_or_else(IncarnationId::new)
    }

    fn play(&mut self, what: Move) {
        let life = self.current();
        let before = self.state;
        let stale = match what {
            Move::Create => {
                let incarnation = IncarnationId::new();
                if self.feed(Event::Create { incarnation }).is_ok() {
                    self.lives.push(incarnation);
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
            Move::Gone => {
                if let Some(life) = self.ending.take() {
                    self.machines.remove(&life);
                    self.feed(Event::MachineGone { incarnation: life }).expect("an awaited end is taken");
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
                let creating = matches!(self.state, State::Creating { .. });
                let taken = self.feed(Event::MachineLost { incarnation, generation }).is_ok();
                assert!(!taken || (creating && !other), "a stale loss was taken");
                !creating
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
            Move::Destroy => {
                let legal = !matches!(self.state, State::Absent | State::Destroyed);
                assert_eq!(self.feed(Event::Destroy).is_ok(), legal, "delete is legal from every state");
                false
            }
            Move::Expire => {
                let _ = self.feed(Event::Expire);
                false
            }
            Move::SetTimeout => {
                let _ = self.feed(Event::SetTimeout);
                false
            }
            Move::Restart => {
                // The calls under way die with the server; what they made stays, or not.
                let (making, ending) = (self.making.take(), self.ending.take());
                if self.feed(Event::Restart).is_err() {
                    (self.making, self.ending) = (making, ending);
                }
                false
            }
        };
        if stale {
            assert_eq!(self.state, before, "stale news changed the state");
        }
        self.check();
    }

    fn check(&self) {
        assert!(self.machines.len() <= 1, "two live incarnations");
        if self.was_destroyed {
            assert_eq!(self.state, State::Destroyed, "a destroyed sandbox came back");
            assert!(self.machines.is_empty(), "a destroyed sandbox left its machine");
            assert!(self.making.is_none(), "a destroyed sandbox is still being made");
        }
        match self.state {
            State::Running { .. } | State::Lost { .. } => {
                assert!(self.making.is_none() && self.ending.is_none());
            }
            State::Creating { .. } => assert!(self.making.is_some() && self.ending.is_none()),
            State::Destroying { making, .. } => {
                assert_eq!(self.making.is_some(), making);
                assert_eq!(self.ending.is_some(), !making, "an end that nobody will bring");
            }
            State::Absent | State::Destroyed => {}
        }
    }

    /// Asks for the end and lets the node answer: it must come, whatever was before.
    fn finish(&mut self) {
        if self.state != State::Absent && self.state != State::Destroyed {
            self.play(Move::Destroy);
            self.play(Move::Answer(true));
            self.play(Move::Gone);
            assert_eq!(self.state, State::Destroyed, "delete did not end");
        }
        let count = |wanted| self.recorded.iter().filter(|event| **event == wanted).count();
        let created = count((Operation::Create, EventStatus::Succeeded))
            + count((Operation::Create, EventStatus::Failed));
        assert_eq!(
            created,
            usize::from(self.state == State::Destroyed),
            "a create is recorded once: {:?}",
            self.recorded
        );
        assert_eq!(
            count((Operation::Destroy, EventStatus::Requested)),
            count((Operation::Destroy, EventStatus::Succeeded)),
            "{:?}",
            self.recorded
        );
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

#[test]
fn the_events_of_an_ordinary_life_come_in_the_order_of_the_contract() {
    let mut world = World::new();
    for step in [Move::Create, Move::Answer(true), Move::SetTimeout, Move::Expire, Move::Gone] {
        world.play(step);
    }
    assert_eq!(
        world.recorded,
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
fn a_machine_that_dies_before_it_was_handed_over_is_a_failed_create() {
    let incarnation = IncarnationId::new();
    let state = State::Creating { incarnation, lost: None };
    let (state, actions) = step(state, Event::MachineLost { incarnation, generation: 2 }).unwrap();
    assert!(actions.is_empty());
    let (state, actions) = step(state, Event::MachineMade { incarnation, generation: 1 }).unwrap();
    assert_eq!(state, State::Destroying { incarnation, making: false, cause: Cause::CreateFailed });
    assert!(actions.contains(&Action::FreeKey) && actions.contains(&Action::EndMachine(incarnation)));
}

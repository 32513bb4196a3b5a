//! How a sandbox's driver begins: with a new sandbox, with a child of a fork, or with what the last server
//! left.

use std::sync::Arc;

use nullspace_domain::lifecycle::{Birth, Event, State, step};
use nullspace_domain::sandbox::key_reused;
use nullspace_node_api::Machine;
use nullspace_store::idempotency::Idempotency;
use nullspace_store::sandbox::Insertion;
use nullspace_types::{Code, Error};

use super::change::Details;
use super::{Alive, Driver};
use crate::fork::Fork;
use crate::making::end_machine;
use crate::record::Unborn;

impl Driver {
    pub(super) async fn create(&mut self, key: Option<Idempotency>) -> Alive {
        self.key = key;
        // The machine is being made while the row is being written: a machine without a row is removed at
        // the next start, and the row of one that is not made yet says so.
        if let Err(error) = self.conceive(Birth::Create) {
            return self.stay_unborn(Unborn::Failed(error)).await;
        }
        let new = self.record.new_sandbox();
        match self.shared.store.sandbox_insert(&new, self.key.as_ref(), &[]).await {
            Ok(Insertion::Inserted(_)) => Alive::Yes,
            Ok(Insertion::Existing(row)) => self.stay_unborn(Unborn::Existing(row)).await,
            Ok(Insertion::KeyReused) => self.stay_unborn(Unborn::Failed(key_reused())).await,
            Err(error) => {
                let error = Error::from(error);
                tracing::warn!(sandbox = %self.id, %error, context = error.context, "a sandbox could not be written");
                self.stay_unborn(Unborn::Failed(error)).await
            }
        }
    }

    /// The rows of a fork's children are written together, while the parent is being captured.
    pub(super) async fn create_child(&mut self, fork: Arc<Fork>) -> Alive {
        self.fork = Some(fork.clone());
        if let Err(error) = self.conceive(fork.birth_of(self.id)) {
            return self.stay_unborn(Unborn::Failed(error)).await;
        }
        // Whoever writes them ends with the server, and then says nothing.
        let written = tokio::select! {
            () = self.shared.stop.cancelled() => return Alive::Stopped,
            written = fork.written() => written,
        };
        match written {
            Ok(()) => Alive::Yes,
            Err(error) => self.stay_unborn(Unborn::Failed(error)).await,
        }
    }

    fn conceive(&mut self, birth: Birth) -> Result<(), Error> {
        let incarnation = self.record.row.desired.incarnation;
        let (state, actions) =
            step(self.record.state, Event::Create { incarnation, birth }).map_err(Error::internal)?;
        self.record.state = state;
        self.carry_out(&actions);
        Ok(())
    }

    /// Ends the machine of a sandbox that has no row.
    async fn stay_unborn(&mut self, why: Unborn) -> Alive {
        self.view.send_modify(|view| view.unborn = Some(why));
        if let Some(key) = &self.key {
            let key = (self.record.row.tenant_id, key.key.clone());
            self.shared.keys.forget(&key, |made| *made == self.id);
        }
        self.shared.registry.remove(self.id);
        self.cancel.cancel();
        if let Some(making) = self.making.take()
            && let Ok(Ok(_)) | Err(_) = making.await
        {
            end_machine(&*self.shared.node, self.id).await;
        }
        Alive::Unborn
    }

    /// Puts what the store knows and what the node has in step.
    pub(super) async fn restart(&mut self, machine: Option<Machine>) -> Alive {
        let incarnation = self.record.row.desired.incarnation;
        let wanted = match self.record.state {
            State::Absent | State::Paused { .. } | State::Destroyed => false,
            State::Creating { .. }
            | State::Running { .. }
            | State::Hibernating { .. }
            | State::Resuming { .. }
            | State::Lost { .. }
            | State::Destroying { .. } => true,
        };
        let (machine, stray) = match machine {
            Some(machine) if wanted && machine.incarnation == incarnation => (Some(machine), None),
            other => (None, other),
        };
        if let Some(stray) = stray {
            // Before anything else: a machine of this life may be made under the same name.
            tracing::warn!(sandbox = %self.id, machine = %stray.incarnation, "ending a machine of another life");
            tokio::select! {
                () = self.shared.stop.cancelled() => return Alive::Stopped,
                () = end_machine(&*self.shared.node, self.id) => {}
            }
        }
        // The node does not keep what must not be written down, such as the values of secrets.
        match machine {
            Some(_) => self.renew_later(),
            None => self.view.send_modify(|view| view.taken_over = true),
        }
        match (self.record.state, machine) {
            // Whoever asked for it is gone with the server that was making it. The key is freed, so that
            // the same request makes a new one.
            (State::Creating { .. }, _) => {
                let message = "the server stopped while the sandbox was being created";
                self.give_up(Error::new(Code::Unavailable, message));
            }
            (State::Running { .. }, Some(machine)) => self.adopt(machine).await,
            (State::Running { generation, .. }, None) => self.missing(generation).await,
            // The node is asked again, and answers the checkpoint if it is there.
            (State::Hibernating { generation, .. }, machine) => {
                self.news(Event::Restart, Details::default()).await;
                if machine.is_none() {
                    self.missing(generation).await;
                }
            }
            (
                State::Absent
                | State::Paused { .. }
                | State::Resuming { .. }
                | State::Lost { .. }
                | State::Destroying { .. }
                | State::Destroyed,
                _,
            ) => self.news(Event::Restart, Details::default()).await,
        }
        Alive::Yes
    }

    async fn missing(&mut self, generation: u64) {
        let incarnation = self.record.row.desired.incarnation;
        let event = Event::MachineLost { incarnation, generation: generation + 1 };
        let message = "the sandbox's machine was not found when the server started".to_owned();
        self.news(event, Details { message: Some(message), ..Details::default() }).await;
    }

    /// Takes over a machine that ran through the server's absence.
    async fn adopt(&mut self, machine: Machine) {
        let State::Running { incarnation, generation, kept } = self.record.state else { return };
        if machine.generation <= generation {
            return;
        }
        self.record.state = State::Running { incarnation, generation: machine.generation, kept };
        self.record.row.observed.generation = machine.generation;
        self.record.row.observed.disk_mb = Some(machine.disk_mb);
        self.publish();
        let observation = self.observation();
        if let Err(error) = self.shared.store.sandbox_observed(self.id, &observation, &[]).await {
            // It is read from the node again at the next start.
            tracing::warn!(sandbox = %self.id, %error, "an adopted machine's generation could not be written");
        }
    }
}

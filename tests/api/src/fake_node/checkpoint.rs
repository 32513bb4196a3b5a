//! Checkpoints of fake machines: a copy of all that they hold.

use std::collections::BTreeMap;

use jiff::Timestamp;
use nullspace_node_api::{Checkpoint, CheckpointMode, DiskDiff, DiskOf, MachineSpec};
use nullspace_types::id::{SandboxId, SnapshotId};
use nullspace_types::snapshot::{DiffEntry, FileDifference};
use nullspace_types::{Code, Error, Result};

use super::{FakeHost, FakeMachine, World};

#[derive(Debug)]
pub(super) struct FakeCheckpoint {
    checkpoint: Checkpoint,
    machine: FakeMachine,
    /// Why nothing can be restored from it.
    refusal: Option<Error>,
}

impl FakeCheckpoint {
    /// What a machine that begins from it holds.
    pub fn restored(&self, spec: MachineSpec) -> Result<FakeMachine> {
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        if spec.shape != self.checkpoint.shape {
            let message = format!("{:?} was captured, {:?} is asked for", self.checkpoint.shape, spec.shape);
            return Err(Error::new(Code::IncompatibleSnapshot, message));
        }
        Ok(FakeMachine { spec, ..self.machine.clone() })
    }
}

impl World {
    pub(super) fn checkpoint(&self, id: SnapshotId) -> Result<&FakeCheckpoint> {
        let missing = || Error::new(Code::SnapshotNotFound, format!("there is no checkpoint {id}"));
        self.checkpoints.get(&id).ok_or_else(missing)
    }

    /// What was held in memory goes with the server that held it.
    pub(super) fn forget_transient(&mut self) {
        self.checkpoints.retain(|_, kept| kept.checkpoint.mode != CheckpointMode::Transient);
    }

    pub(super) fn capture(
        &mut self,
        of: SandboxId,
        id: SnapshotId,
        mode: CheckpointMode,
    ) -> Result<Checkpoint> {
        if let Some(there) = self.checkpoints.get(&id) {
            return Ok(there.checkpoint.clone());
        }
        if let Some(error) = &self.capture_error {
            return Err(error.clone());
        }
        let machine = self.machine(of)?.clone();
        let checkpoint = Checkpoint {
            id,
            sandbox_id: of,
            incarnation: machine.machine.incarnation,
            shape: machine.spec.shape,
            disk_mb: machine.machine.disk_mb,
            size_bytes: 4096 + machine.files.values().map(|content| content.len() as u64).sum::<u64>(),
            created_at: Timestamp::now(),
            mode,
        };
        if mode == CheckpointMode::Hibernate {
            self.machines.remove(&of);
        }
        let fake = FakeCheckpoint { checkpoint: checkpoint.clone(), machine, refusal: None };
        self.checkpoints.insert(id, fake);
        Ok(checkpoint)
    }

    pub(super) fn checkpoint_list(&self) -> Vec<Checkpoint> {
        self.checkpoints.values().map(|kept| kept.checkpoint.clone()).collect()
    }

    fn disk(&self, disk: DiskOf) -> Result<&BTreeMap<String, Vec<u8>>> {
        match disk {
            DiskOf::Machine(id) => match self.machines.get(&id) {
                Some(machine) => Ok(&machine.files),
                None => Err(nullspace_node_api::no_such_machine(id)),
            },
            DiskOf::Checkpoint(id) => Ok(&self.checkpoint(id)?.machine.files),
        }
    }

    pub(super) fn diff(&self, of: DiskOf, against: DiskOf, limit: u32) -> Result<DiskDiff> {
        let (own, other) = (self.disk(of)?, self.disk(against)?);
        let entry = |path: &str, change, content: &[u8]| DiffEntry {
            path: path.to_owned(),
            change,
            r#type: "file".into(),
            size: content.len() as u64,
        };
        let here = own.iter().filter_map(|(path, content)| match other.get(path) {
            None => Some(entry(path, FileDifference::Added, content)),
            Some(before) if before != content => Some(entry(path, FileDifference::Modified, content)),
            Some(_) => None,
        });
        let there = other.iter().filter(|(path, _)| !own.contains_key(*path));
        let there = there.map(|(path, content)| entry(path, FileDifference::Removed, content));
        let mut items: Vec<DiffEntry> = here.chain(there).collect();
        items.sort_by(|one, two| one.path.cmp(&two.path));
        let truncated = items.len() > limit as usize;
        items.truncate(limit as usize);
        Ok(DiskDiff { items, truncated })
    }
}

impl FakeHost {
    /// The checkpoints that are there.
    pub fn checkpoints(&self) -> Vec<SnapshotId> {
        self.world.borrow().checkpoints.keys().copied().collect()
    }

    /// Waits until so many checkpoints are there.
    pub async fn until_checkpoints(&self, count: usize) {
        self.wait_until(|world| world.checkpoints.len() == count).await;
    }

    /// Every capture fails with this from now on; none does with `None`.
    pub fn fail_captures(&self, error: Option<Error>) {
        self.with(|world| world.capture_error = error);
    }

    /// From now on nothing can be restored from a checkpoint; with `None` it can again.
    pub fn refuse_restores(&self, id: SnapshotId, error: Option<Error>) {
        self.with(|world| world.checkpoints.get_mut(&id).expect("the checkpoint is there").refusal = error);
    }
}

//! Forks: children of one instant of a running sandbox, all of them or none. The parent is captured once,
//! into a checkpoint that lives only as long as the fork; every child's driver makes its machine from it and
//! then waits for its siblings, so that none is handed out whose sibling fails.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use nullspace_domain::lifecycle::Birth;
use nullspace_domain::sandbox::key_reused;
use nullspace_domain::snapshot::fork_count;
use nullspace_node_api::{CheckpointMode, Machine, Node};
use nullspace_store::idempotency::Idempotency;
use nullspace_store::sandbox::{Insertions, NewSandbox};
use nullspace_types::id::{SandboxId, SnapshotId, TenantId};
use nullspace_types::snapshot::{SandboxFork, SandboxForked};
use nullspace_types::{Code, Error, Result};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::Control;
use crate::access::{answered, ask, awake, stopping};
use crate::driver::{Begin, Driver};
use crate::keys::Begun;
use crate::making::end_machine;
use crate::metrics::{SANDBOX_FORK, timed};
use crate::record::Record;
use crate::registry::Message;
use crate::sandbox::{created, request_hash};
use crate::shared::Shared;
use crate::underway::Underway;

const UNFINISHED: &str = "the fork is still being worked on";

/// How far a fork is.
#[derive(Debug, Default)]
struct Progress {
    /// Whether the rows of the children were written; none before that was tried.
    written: Option<Result<()>>,
    captured: bool,
    /// Children that have their machine.
    made: usize,
    /// Why it fails. Once all are made it cannot fail any more.
    failure: Option<Error>,
}

/// What the children of one fork share.
#[derive(Debug)]
pub(crate) struct Fork {
    first: SandboxId,
    count: usize,
    progress: watch::Sender<Progress>,
}

impl Fork {
    fn new(children: &[Record]) -> Option<Arc<Self>> {
        let first = children.first()?.row.id;
        let progress = watch::Sender::new(Progress::default());
        Some(Arc::new(Self { first, count: children.len(), progress }))
    }

    /// How this child comes to be.
    pub(crate) fn birth_of(&self, child: SandboxId) -> Birth {
        Birth::Fork { first: child == self.first }
    }

    /// Whether the children have rows.
    pub(crate) async fn written(&self) -> Result<()> {
        let mut progress = self.progress.subscribe();
        let decided = progress.wait_for(|progress| progress.written.is_some()).await;
        decided.map_err(|_| stopping())?.written.clone().unwrap_or_else(|| Err(stopping()))
    }

    fn failure(&self) -> Option<Error> {
        self.progress.borrow().failure.clone()
    }

    /// Lets the fork fail, unless it has succeeded already. Answers whether it fails.
    fn fail(&self, why: &Error) -> bool {
        let mut fails = false;
        self.progress.send_modify(|progress| {
            fails = progress.failure.is_some() || progress.made < self.count;
            if fails {
                progress.failure.get_or_insert_with(|| why.clone());
            }
        });
        fails
    }

    /// Waits for a part of the fork to be reached; fails if the fork does.
    async fn until(&self, reached: impl Fn(&Progress) -> bool) -> Result<()> {
        let mut progress = self.progress.subscribe();
        let decided = progress.wait_for(|progress| progress.failure.is_some() || reached(progress)).await;
        match &decided.map_err(|_| stopping())?.failure {
            Some(failure) => Err(failure.clone()),
            None => Ok(()),
        }
    }

    /// Makes a child's machine once the parent is captured, and hands it out once all siblings have theirs.
    pub(crate) async fn child(
        self: Arc<Self>,
        node: Arc<dyn Node>,
        id: SandboxId,
        make: impl Future<Output = Result<Machine>> + Send,
        cancel: CancellationToken,
    ) -> Result<Machine> {
        let destroyed = async {
            cancel.cancelled().await;
            let message = format!("sandbox {id} was destroyed while it was being forked");
            Err(Error::new(Code::SandboxNotFound, message))
        };
        let made = async {
            self.until(|progress| progress.captured).await?;
            make.await
        };
        // The making hears of the cancelling itself, and ends what it began.
        let machine = made.await.inspect_err(|error| {
            self.fail(error);
        })?;
        self.progress.send_modify(|progress| progress.made += 1);
        let all = tokio::select! {
            biased;
            all = self.until(|progress| progress.made == self.count) => all,
            destroyed = destroyed => destroyed,
        };
        match all {
            Err(error) if self.fail(&error) => {
                end_machine(&*node, id).await;
                Err(error)
            }
            Ok(()) | Err(_) => Ok(machine),
        }
    }

    /// Writes the rows of the children.
    async fn write(
        &self,
        shared: &Shared,
        children: &[NewSandbox],
        key: Option<&Idempotency>,
    ) -> Result<Insertions> {
        let inserted = shared.store.sandbox_insert_fork(children, key, &[]).await.map_err(Error::from);
        let written = match &inserted {
            Ok(Insertions::Inserted) => Ok(()),
            Ok(Insertions::Existing(_) | Insertions::KeyReused) => Err(key_reused()),
            Err(error) => {
                tracing::warn!(%error, context = error.context, "a fork could not be written");
                Err(error.clone())
            }
        };
        self.progress.send_modify(|progress| {
            if let Err(error) = &written {
                progress.failure.get_or_insert_with(|| error.clone());
            }
            progress.written = Some(written);
        });
        inserted
    }

    /// Captures the parent.
    async fn capture(&self, shared: &Shared, parent: SandboxId, checkpoint: SnapshotId) {
        let limit = Duration::from_secs(u64::from(shared.limits.create_secs_max));
        let call = shared.node.checkpoint_create(parent, checkpoint, CheckpointMode::Transient);
        let captured = timeout(limit, call).await.unwrap_or_else(|_| {
            let message = format!("sandbox {parent} was not captured within {} seconds", limit.as_secs());
            Err(Error::new(Code::Unavailable, message))
        });
        match answered(parent, captured) {
            Ok(_) => self.progress.send_modify(|progress| progress.captured = true),
            Err(error) => {
                self.fail(&error);
            }
        }
    }
}

/// Makes all children or none, and answers them in order.
async fn fork(
    shared: Arc<Shared>,
    parent: Arc<Record>,
    checkpoint: SnapshotId,
    count: u32,
    key: Option<Idempotency>,
) -> Result<Vec<SandboxId>> {
    let now = shared.clock.now();
    let children: Vec<Record> = (0..count).map(|_| parent.child(checkpoint, now)).collect();
    let ids = children.iter().map(|child| child.row.id).collect();
    let rows: Vec<NewSandbox> = children.iter().map(Record::new_sandbox).collect();
    let Some(fork) = Fork::new(&children) else { return Ok(ids) };
    let seen: Vec<_> =
        children.into_iter().map(|child| Driver::start(&shared, child, Begin::Fork(fork.clone()))).collect();
    let (written, ()) = tokio::join!(
        fork.write(&shared, &rows, key.as_ref()),
        fork.capture(&shared, parent.row.id, checkpoint),
    );
    let made = join_all(seen.into_iter().map(created)).await;
    shared.drop_checkpoint(checkpoint);
    match written? {
        Insertions::Inserted => {}
        Insertions::Existing(rows) => return Ok(rows.into_iter().map(|row| row.id).collect()),
        Insertions::KeyReused => return Err(key_reused()),
    }
    let Some(error) = fork.failure().or_else(|| made.iter().find_map(|made| made.as_ref().err().cloned()))
    else {
        return Ok(ids);
    };
    // One that could not be written as running takes those along that could.
    for (id, _) in ids.iter().zip(&made).filter(|(_, made)| made.is_ok()) {
        if let Ok(entry) = shared.registry.of_tenant(parent.row.tenant_id, *id) {
            ask(&shared, &entry, |decided| Message::Destroy { decided }).await.unwrap_or_else(|error| {
                tracing::warn!(sandbox = %id, %error, "a child of a failed fork could not be destroyed");
            });
        }
    }
    Err(error)
}

impl Control {
    /// Makes children of a running sandbox that go on from the same instant. Once begun, a fork goes on to
    /// its end whether or not the caller waits; a key makes it at most once, and one that fails frees it.
    pub async fn sandbox_fork(
        &self,
        tenant_id: TenantId,
        idempotency_key: Option<String>,
        id: SandboxId,
        request: SandboxFork,
    ) -> Result<SandboxForked> {
        let shared = &self.shared;
        let count = fork_count(&request)?;
        let hash = request_hash(&(id, count))?;
        let key = idempotency_key.map(|key| (tenant_id, key));
        let before = key.as_ref().map(|key| shared.forks.find(key, hash)).transpose()?.flatten();
        let children = match before {
            Some(before) => before,
            None => {
                let parent = awake(shared, tenant_id, id).await?;
                self.fork_begin(parent, count.unwrap_or(1), key.clone(), hash)?
            }
        };
        let checkpoint = children.id;
        let children = children.outcome(self.limit(), UNFINISHED).await?;
        let mut items = Vec::with_capacity(children.len());
        for child in children {
            let shown = self.replay(tenant_id, child).await.inspect_err(|_| {
                // Children that a server before this one began may come to nothing after they were found: then
                // the store has freed the key, and what is known of it here must not outlive that.
                if let Some(key) = &key {
                    shared.forks.forget(key, |other| other.id == checkpoint);
                }
            });
            items.push(self.with_traffic_token(shown?));
        }
        match count {
            Some(_) => Ok(SandboxForked::Many { items }),
            None => items
                .pop()
                .map(|child| SandboxForked::One(Box::new(child)))
                .ok_or_else(|| Error::internal("a fork without children")),
        }
    }

    fn fork_begin(
        &self,
        parent: Arc<Record>,
        count: u32,
        key: Option<(TenantId, String)>,
        request_hash: [u8; 32],
    ) -> Result<Underway<Vec<SandboxId>>> {
        let shared = &self.shared;
        let begin = |key: Option<(TenantId, String)>| {
            let (checkpoint, own) = (SnapshotId::new(), shared.clone());
            let work = async move {
                let idempotency = key.as_ref().map(|(_, key)| Idempotency {
                    operation: "sandbox_fork",
                    key: key.clone(),
                    request_hash,
                });
                let made = fork(own.clone(), parent, checkpoint, count, idempotency);
                let made = timed(SANDBOX_FORK, made).await;
                if let (Err(_), Some(key)) = (&made, &key) {
                    own.forks.forget(key, |other| other.id == checkpoint);
                }
                made
            };
            Underway::begin(shared, checkpoint, work)
        };
        let Some(key) = key else { return Ok(begin(None)) };
        match shared.forks.begin(&key, request_hash, || begin(Some(key.clone())))? {
            Begun::Now(made) | Begun::Before(made) => Ok(made),
        }
    }
}

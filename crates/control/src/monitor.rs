//! Watching all sandboxes of a tenant: how they are, then what changes, and what they use. Changes come from
//! the log of events, and the sandboxes from the store, which is never behind the log. A watcher is a stream
//! that works only while it is read: what it holds is a batch of changes and one round of samples.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt as _};
use nullspace_store::event::EventFilter;
use nullspace_types::event::LifecycleEvent;
use nullspace_types::id::{SandboxId, TenantId};
use nullspace_types::monitor::{MonitorNews, MonitorSpec};
use nullspace_types::sandbox::SandboxStatus;
use nullspace_types::{Error, Result};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use crate::Control;
use crate::feed::Follower;
use crate::record::{sandbox, status};
use crate::shared::Shared;

/// Calls to the node for samples that are under way at once, of all watchers together.
pub(crate) const SAMPLES: usize = 8;
/// A sandbox that does not answer within this time has no sample in that round.
const ANSWER: Duration = Duration::from_secs(2);

struct Watcher {
    shared: Arc<Shared>,
    tenant: TenantId,
    include_processes: bool,
    changes: Follower,
    /// The sandboxes that were told of, and whether they run.
    known: HashMap<SandboxId, bool>,
    ready: VecDeque<MonitorNews>,
    rounds: Interval,
    /// The samples of the present round.
    samples: Option<BoxStream<'static, MonitorNews>>,
}

impl Watcher {
    async fn next(&mut self) -> Result<MonitorNews> {
        loop {
            if let Some(news) = self.ready.pop_front() {
                return Ok(news);
            }
            tokio::select! {
                events = self.changes.batch() => self.changed(&events?).await?,
                sample = sampled(&mut self.samples) => match sample {
                    Some(news) => self.ready.extend(Some(news).filter(|news| self.runs(news))),
                    None => self.samples = None,
                },
                _ = self.rounds.tick(), if self.samples.is_none() => self.samples = Some(self.sample()),
            }
        }
    }

    /// Whether a sample is of a sandbox that still runs, as far as was told.
    fn runs(&self, news: &MonitorNews) -> bool {
        match news {
            MonitorNews::Metrics(id, _) | MonitorNews::Processes(id, _) => self.known.get(id) == Some(&true),
            MonitorNews::Snapshot(_) | MonitorNews::Update(..) => true,
        }
    }

    /// Tells how the sandboxes are that something happened to, each once.
    async fn changed(&mut self, events: &[LifecycleEvent]) -> Result<()> {
        let mut concerned: Vec<SandboxId> = Vec::new();
        for id in events.iter().filter_map(|event| event.sandbox_id) {
            if !concerned.contains(&id) {
                concerned.push(id);
            }
        }
        for id in concerned {
            let row = match self.shared.store.sandbox_get(self.tenant, id).await {
                Ok(row) => Some(row).filter(|row| status(row) != SandboxStatus::Destroyed),
                Err(nullspace_store::Error::NotFound(_)) => None,
                Err(error) => return Err(error.into()),
            };
            match row {
                Some(row) => {
                    self.known.insert(id, status(&row) == SandboxStatus::Running);
                    self.ready.push_back(MonitorNews::Update(id, Some(Box::new(sandbox(&row)))));
                }
                None if self.known.remove(&id).is_some() => {
                    self.ready.push_back(MonitorNews::Update(id, None));
                }
                None => {}
            }
        }
        Ok(())
    }

    /// A sample of every sandbox that runs.
    fn sample(&self) -> BoxStream<'static, MonitorNews> {
        let running: Vec<SandboxId> =
            self.known.iter().filter(|(_, runs)| **runs).map(|(id, _)| *id).collect();
        let (shared, include_processes) = (self.shared.clone(), self.include_processes);
        stream::iter(running)
            .map(move |id| sample(shared.clone(), id, include_processes))
            .buffer_unordered(SAMPLES)
            .flat_map(stream::iter)
            .boxed()
    }
}

/// The next sample of a round; without a round, never.
async fn sampled(samples: &mut Option<BoxStream<'static, MonitorNews>>) -> Option<MonitorNews> {
    match samples {
        Some(samples) => samples.next().await,
        None => pending().await,
    }
}

async fn sample(shared: Arc<Shared>, id: SandboxId, include_processes: bool) -> Vec<MonitorNews> {
    let mut news = Vec::new();
    if let Some(mut metrics) = answer(&shared, id, shared.node.machine_metrics(id)).await {
        news.extend(metrics.pop().map(|newest| MonitorNews::Metrics(id, newest)));
    }
    if include_processes && let Some(processes) = answer(&shared, id, shared.node.process_list(id)).await {
        let processes = processes.into_iter().map(|process| process.info).collect();
        news.push(MonitorNews::Processes(id, processes));
    }
    news
}

/// What a sandbox answers, if it does so in time.
async fn answer<T>(shared: &Shared, id: SandboxId, call: impl Future<Output = Result<T>>) -> Option<T> {
    // It is never closed.
    let _turn = shared.samples.acquire().await.ok()?;
    match timeout(ANSWER, call).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            tracing::debug!(sandbox = %id, %error, "no sample");
            None
        }
        Err(_) => {
            tracing::debug!(sandbox = %id, "no sample in time");
            None
        }
    }
}

impl Control {
    /// Watches all sandboxes of a tenant: first all of them, then what happens. Ends only with an error.
    pub async fn monitor(
        &self,
        tenant_id: TenantId,
        spec: MonitorSpec,
    ) -> Result<BoxStream<'static, Result<MonitorNews>>> {
        let shared = &self.shared;
        // What is written after this is told, so nothing is missed between the list and the changes.
        let begin = shared.store.event_cursor_latest().await.map_err(Error::from)?;
        let rows = self.all_living(tenant_id).await?;
        let mut rounds = interval(Duration::from_millis(spec.interval_ms.max(1)));
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watcher = Watcher {
            shared: shared.clone(),
            tenant: tenant_id,
            include_processes: spec.include_processes,
            changes: Follower::new(shared, tenant_id, EventFilter::default(), begin),
            known: rows.iter().map(|row| (row.id, status(row) == SandboxStatus::Running)).collect(),
            ready: VecDeque::from([MonitorNews::Snapshot(rows.iter().map(sandbox).collect())]),
            rounds,
            samples: None,
        };
        let news = stream::try_unfold(watcher, |mut watcher| async move {
            let news = watcher.next().await?;
            Ok(Some((news, watcher)))
        });
        Ok(news.boxed())
    }
}

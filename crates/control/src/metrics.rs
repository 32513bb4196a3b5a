//! What the server does, in numbers for its operator. Anybody in the process records through the `metrics`
//! facade; here is where it all goes, and what is counted only when somebody looks. One collection per
//! process, because the facade has one.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use nullspace_types::Result;
use tokio::time::sleep;

use crate::Control;
use crate::shared::Shared;

/// Upper bounds of the histograms' buckets, in seconds.
const BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Recorded values wait in memory until they are put into their buckets, so often.
const UPKEEP: Duration = Duration::from_secs(5);

pub(crate) const SANDBOX_CREATE: &str = "nullspace_sandbox_create_seconds";
pub(crate) const SANDBOX_RESUME: &str = "nullspace_sandbox_resume_seconds";
pub(crate) const SANDBOX_FORK: &str = "nullspace_sandbox_fork_seconds";
pub(crate) const SANDBOX_HIBERNATE: &str = "nullspace_sandbox_hibernate_seconds";
pub(crate) const SNAPSHOT_CREATE: &str = "nullspace_snapshot_create_seconds";

const HISTOGRAMS: [(&str, &str); 6] = [
    (SANDBOX_CREATE, "Making the machine of a new sandbox."),
    (SANDBOX_RESUME, "Making the machine of a paused sandbox."),
    (SANDBOX_FORK, "Making all children of a fork."),
    (SANDBOX_HIBERNATE, "Capturing a sandbox and ending its machine."),
    (SNAPSHOT_CREATE, "Taking a snapshot."),
    ("nullspace_checkpoint_pause_seconds", "How long a captured machine stood still."),
];
const COUNTERS: [(&str, &str); 3] = [
    ("nullspace_api_errors_total", "Requests that were answered with an error, by its code."),
    ("nullspace_webhook_deliveries_total", "Attempts at deliveries: succeeded, to be retried, given up."),
    ("nullspace_events_total", "Lifecycle events since the server started."),
];
const GAUGES: [(&str, &str); 7] = [
    ("nullspace_sandboxes", "Sandboxes of all tenants, by status."),
    ("nullspace_machines", "Machines that run."),
    ("nullspace_spare_machines", "Restored machines that wait for a create."),
    ("nullspace_ready_slots", "Network slots that wait for a machine."),
    ("nullspace_checkpoints", "Checkpoints on the disk, templates not counted."),
    ("nullspace_layers", "Frozen disk layers."),
    ("nullspace_disk_free_bytes", "Bytes free on the node's disk."),
];

static COLLECTION: LazyLock<PrometheusHandle> = LazyLock::new(|| {
    let builder = PrometheusBuilder::new().set_buckets(BUCKETS).expect("there are buckets");
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    if ::metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("the process has another collection of metrics; this server's stays empty");
    }
    for (name, about) in HISTOGRAMS {
        ::metrics::describe_histogram!(name, about);
    }
    for (name, about) in COUNTERS {
        ::metrics::describe_counter!(name, about);
    }
    for (name, about) in GAUGES {
        ::metrics::describe_gauge!(name, about);
    }
    handle
});

/// From here on what is recorded is collected.
pub(crate) fn begin() {
    LazyLock::force(&COLLECTION);
}

/// Keeps what was collected small until the server stops.
pub(crate) async fn collect(shared: Arc<Shared>) {
    while !shared.stop.is_cancelled() {
        COLLECTION.run_upkeep();
        tokio::select! {
            () = shared.stop.cancelled() => {}
            () = sleep(UPKEEP) => {}
        }
    }
}

/// Records how long something took, and whether it succeeded.
pub(crate) async fn timed<T>(name: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let began = Instant::now();
    let result = work.await;
    let outcome = if result.is_ok() { "succeeded" } else { "failed" };
    ::metrics::histogram!(name, "outcome" => outcome).record(began.elapsed().as_secs_f64());
    result
}

impl Control {
    /// All of it, in the Prometheus text format (version 0.0.4). What cannot be counted now is not a number.
    pub async fn metrics(&self) -> Result<String> {
        let shared = &self.shared;
        let counts = shared.store.sandbox_counts_all().await.map_err(nullspace_types::Error::from);
        let counts = counts.inspect_err(|error| {
            tracing::warn!(%error, context = error.context, "sandboxes could not be counted");
        });
        let count = |of: fn(&nullspace_store::sandbox::SandboxCounts) -> u64| {
            counts.as_ref().map_or(f64::NAN, |counts| of(counts) as f64)
        };
        for (status, value) in [
            ("creating", count(|counts| counts.creating)),
            ("running", count(|counts| counts.running)),
            ("paused", count(|counts| counts.paused)),
            ("error", count(|counts| counts.lost)),
            ("destroying", count(|counts| counts.destroying)),
        ] {
            ::metrics::gauge!("nullspace_sandboxes", "status" => status).set(value);
        }
        let usage = shared.node.usage().await.inspect_err(|error| {
            tracing::warn!(%error, context = error.context, "the node could not say how full it is");
        });
        let used = |of: fn(&nullspace_node_api::NodeUsage) -> u64| {
            usage.as_ref().map_or(f64::NAN, |usage| of(usage) as f64)
        };
        for (name, value) in [
            ("nullspace_machines", used(|usage| usage.machines)),
            ("nullspace_spare_machines", used(|usage| usage.spares)),
            ("nullspace_ready_slots", used(|usage| usage.ready_slots)),
            ("nullspace_checkpoints", used(|usage| usage.checkpoints)),
            ("nullspace_layers", used(|usage| usage.layers)),
            ("nullspace_disk_free_bytes", used(|usage| usage.disk_free_bytes)),
        ] {
            ::metrics::gauge!(name).set(value);
        }
        Ok(COLLECTION.render())
    }
}

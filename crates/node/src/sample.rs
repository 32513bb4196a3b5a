//! Samples of what each machine uses: the first when it begins to run, then one from time to time, and one
//! for whoever asks if the last is not fresh. The agent counts; here is the bounded history.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nullspace_guest_proto as proto;
use nullspace_types::Error;
use nullspace_types::sandbox::SandboxMetrics;
use tokio::time::MissedTickBehavior;

use crate::Node;
use crate::guest::{answered, process_error};
use crate::running::Running;

/// Between two samples that nobody asked for. Each costs an idle machine some milliseconds.
const INTERVAL: Duration = Duration::from_secs(15);
/// A sample of this age is new enough for whoever asks.
const FRESH: Duration = Duration::from_secs(1);
/// Samples that are kept of a machine.
const SAMPLES: usize = 240;

/// Takes samples of a machine until it is gone or the node stops.
pub async fn keep(node: Arc<Node>, running: Arc<Running>) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = running.gone() => return,
            () = node.stopping.cancelled() => return,
            _ = interval.tick() => {}
        }
        if let Err(error) = take(&running).await {
            tracing::debug!(sandbox = %running.record.spec.sandbox_id, %error, "no sample of a machine");
        }
    }
}

/// The history, newest last, with a fresh sample at its end.
pub async fn history(running: &Running) -> Result<Vec<SandboxMetrics>, Error> {
    let fresh = {
        let samples = running.samples.lock().expect("no panic under it");
        samples.back().is_some_and(|last| is_fresh(last.timestamp))
    };
    if !fresh {
        take(running).await?;
    }
    let samples = running.samples.lock().expect("no panic under it");
    Ok(samples.iter().cloned().collect())
}

fn is_fresh(time: Timestamp) -> bool {
    Duration::try_from(Timestamp::now().duration_since(time)).is_ok_and(|age| age < FRESH)
}

async fn take(running: &Running) -> Result<(), Error> {
    let mut client = running.client()?;
    let reply = answered(client.metrics(proto::MetricsRequest {})).await;
    let reply = reply.map_err(|status| process_error(&status))?;
    let sample = SandboxMetrics {
        timestamp: Timestamp::now(),
        cpu_percent: reply.cpu_percent,
        cpu_count: reply.cpu_count,
        mem_used_bytes: reply.mem_used_bytes,
        mem_total_bytes: reply.mem_total_bytes,
        disk_used_bytes: reply.disk_used_bytes,
        disk_total_bytes: reply.disk_total_bytes,
        network_rx_bytes: Some(reply.network_rx_bytes),
        network_tx_bytes: Some(reply.network_tx_bytes),
    };
    let mut samples = running.samples.lock().expect("no panic under it");
    if samples.len() == SAMPLES {
        samples.pop_front();
    }
    samples.push_back(sample);
    Ok(())
}

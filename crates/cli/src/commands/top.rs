//! `nullspace top`: all sandboxes in one table, the busiest first, kept true by the monitor.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::pin::pin;
use std::time::Duration;

use clap::Args;
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use nullspace_client::{Client, Error, Monitor};
use nullspace_types::id::SandboxId;
use nullspace_types::monitor::MonitorFrame;
use nullspace_types::sandbox::{Sandbox, SandboxListQuery, SandboxMetrics, SandboxStatus};
use serde::Serialize;
use tokio::time::Instant;

use super::sandbox::{between, status, time_left};
use crate::failure::{Failure, Outcome};
use crate::printer::{self, Cell, Screen};
use crate::session::raw::{self, Endings, Raw};
use crate::session::stdin::Stdin;
use crate::{options, session};

const HEADINGS: [&str; 9] =
    ["ID", "STATUS", "TEMPLATE", "CPU", "MEMORY", "DISK", "NET IN / OUT", "AGE", "ENDS IN"];
/// How often the table is drawn. However much is told meanwhile, no more often.
const REDRAW: Duration = Duration::from_millis(250);
/// How long to wait for a sample of every sandbox, beyond the time between two. One whose machine does not
/// answer has none.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Args)]
pub(crate) struct Top {
    /// Print one table, or with --json one line, and end.
    #[arg(long)]
    once: bool,
    /// Print a line of JSON each time instead of a table.
    #[arg(long)]
    json: bool,
    /// Seconds between two samples of a sandbox.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = options::duration)]
    interval: Duration,
}

/// All sandboxes as far as they are known.
#[derive(Default)]
struct Fleet(BTreeMap<SandboxId, Seen>);

struct Seen {
    sandbox: Sandbox,
    /// The newest sample of a running one.
    metrics: Option<SandboxMetrics>,
}

/// One line of `--json`.
#[derive(Serialize)]
struct Line<'a> {
    timestamp: Timestamp,
    sandboxes: Vec<LineSandbox<'a>>,
}

#[derive(Serialize)]
struct LineSandbox<'a> {
    id: SandboxId,
    status: SandboxStatus,
    template: &'a str,
    created_at: Timestamp,
    timeout_at: Option<Timestamp>,
    metrics: Option<&'a SandboxMetrics>,
}

impl Top {
    pub(crate) fn run(self) -> Outcome {
        let interval_ms = i64::try_from(self.interval.as_millis()).unwrap_or(i64::MAX);
        session::run(async |client| {
            let beginning = begin(&client, interval_ms);
            let (monitor, mut fleet) = session::wait("looking for sandboxes", None, beginning).await?;
            let mut news = pin!(news(monitor));
            let here = io::stdin().is_terminal() && io::stdout().is_terminal();
            if here && !self.once && !self.json {
                return watch(&mut fleet, news.as_mut()).await;
            }
            let measuring = fleet.measure(news.as_mut(), self.interval.saturating_add(PATIENCE));
            session::wait("measuring", None, measuring).await?;
            if !self.json {
                fleet.print()?;
                return Ok(0);
            }
            session::quietly(None, async {
                loop {
                    printer::json_line(&fleet.line())?;
                    if self.once {
                        return Ok(0);
                    }
                    fleet.follow(news.as_mut(), self.interval).await?;
                }
            })
            .await
        })
    }
}

async fn begin(client: &Client, interval_ms: i64) -> Result<(Monitor, Fleet), Error> {
    let monitor = client.monitor(Some(interval_ms), None).await?;
    let sandboxes = client.sandbox_list(&SandboxListQuery::default()).await?;
    Ok((monitor, Fleet::of(sandboxes)))
}

/// What the monitor tells. Unlike its own `next`, waiting for this can be broken off again and again without
/// keeping it from connecting.
fn news(monitor: Monitor) -> impl Stream<Item = Result<MonitorFrame, Error>> {
    futures::stream::unfold(monitor, async |mut monitor| Some((monitor.next().await, monitor)))
}

type News<'a> = std::pin::Pin<&'a mut dyn Stream<Item = Result<MonitorFrame, Error>>>;

impl Fleet {
    fn of(sandboxes: Vec<Sandbox>) -> Self {
        let seen = |sandbox: Sandbox| (sandbox.id, Seen { sandbox, metrics: None });
        Self(sandboxes.into_iter().map(seen).collect())
    }

    fn take(&mut self, frame: MonitorFrame) {
        match frame {
            MonitorFrame::MonitorSnapshot { sandboxes, .. } => *self = Self::of(sandboxes),
            MonitorFrame::MonitorUpdate { sandbox: Some(sandbox), removed: false, .. }
                if sandbox.status != SandboxStatus::Destroyed =>
            {
                let before = self.0.remove(&sandbox.id).and_then(|seen| seen.metrics);
                let metrics = before.filter(|_| sandbox.status == SandboxStatus::Running);
                self.0.insert(sandbox.id, Seen { sandbox: *sandbox, metrics });
            }
            MonitorFrame::MonitorUpdate { sandbox_id, .. } => {
                self.0.remove(&sandbox_id);
            }
            MonitorFrame::MonitorMetrics { sandbox_id, metrics, .. } => {
                if let Some(seen) = self.0.get_mut(&sandbox_id) {
                    seen.metrics = Some(metrics);
                }
            }
            MonitorFrame::MonitorProcesses { .. } | MonitorFrame::MonitorError { .. } => {}
        }
    }

    /// Waits until there is a sample of every running sandbox, but not longer than that.
    async fn measure(&mut self, mut news: News<'_>, limit: Duration) -> Result<(), Failure> {
        let missing = |seen: &Seen| seen.sandbox.status == SandboxStatus::Running && seen.metrics.is_none();
        let measuring = async {
            while self.0.values().any(missing)
                && let Some(frame) = news.next().await
            {
                match frame? {
                    // The list that this began with is whole. The snapshot may be the first part of it.
                    MonitorFrame::MonitorSnapshot { .. } => {}
                    frame => self.take(frame),
                }
            }
            Ok(())
        };
        tokio::time::timeout(limit, measuring).await.unwrap_or(Ok(()))
    }

    /// Takes what the monitor tells for so long.
    async fn follow(&mut self, mut news: News<'_>, time: Duration) -> Result<(), Failure> {
        let until = Instant::now() + time;
        while let Ok(Some(frame)) = tokio::time::timeout_at(until, news.next()).await {
            match frame {
                Ok(frame) => self.take(frame),
                Err(error) if error.is_passing() => {
                    printer::note(format_args!("{}; connecting again", error.message()))?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The busiest first; those of which there is no sample last.
    fn sorted(&self) -> Vec<&Seen> {
        let mut all: Vec<_> = self.0.values().collect();
        let cpu = |seen: &Seen| seen.metrics.as_ref().map_or(-1.0, |metrics| metrics.cpu_percent);
        all.sort_by(|one, other| cpu(other).total_cmp(&cpu(one)));
        all
    }

    fn rows(&self) -> Vec<Vec<Cell>> {
        let now = Timestamp::now();
        self.sorted().into_iter().map(|seen| row(now, seen)).collect()
    }

    fn print(&self) -> io::Result<()> {
        if self.0.is_empty() {
            return printer::note("no sandboxes");
        }
        printer::table(&HEADINGS, &self.rows())
    }

    fn line(&self) -> Line<'_> {
        let sandboxes = self.sorted().into_iter().map(|seen| LineSandbox {
            id: seen.sandbox.id,
            status: seen.sandbox.status,
            template: &seen.sandbox.template,
            created_at: seen.sandbox.created_at,
            timeout_at: seen.sandbox.timeout_at,
            metrics: seen.metrics.as_ref(),
        });
        Line { timestamp: Timestamp::now(), sandboxes: sandboxes.collect() }
    }

    /// How many there are of each status.
    fn summary(&self) -> String {
        let count = |status: SandboxStatus| {
            let count = self.0.values().filter(|seen| seen.sandbox.status == status).count();
            (count > 0).then(|| format!("{count} {}", status.as_str()))
        };
        let counts: Vec<_> = SandboxStatus::ALL.into_iter().filter_map(count).collect();
        if counts.is_empty() { "no sandboxes".to_owned() } else { counts.join(", ") }
    }
}

fn row(now: Timestamp, Seen { sandbox, metrics }: &Seen) -> Vec<Cell> {
    let told = |tell: &dyn Fn(&SandboxMetrics) -> String| {
        Cell::new(metrics.as_ref().map_or_else(|| "-".to_owned(), tell))
    };
    let net = |metrics: &SandboxMetrics| match (metrics.network_rx_bytes, metrics.network_tx_bytes) {
        (None, None) => "-".to_owned(),
        (received, sent) => of(received.unwrap_or(0), sent.unwrap_or(0)),
    };
    vec![
        Cell::new(sandbox.id),
        status(sandbox.status),
        Cell::new(&sandbox.template),
        told(&|metrics| format!("{:.1} %", metrics.cpu_percent)),
        told(&|metrics| of(metrics.mem_used_bytes, metrics.mem_total_bytes)),
        told(&|metrics| of(metrics.disk_used_bytes, metrics.disk_total_bytes)),
        told(&net),
        Cell::new(between(sandbox.created_at, now)),
        time_left(now, sandbox.timeout_at),
    ]
}

/// One amount of bytes and another.
fn of(one: u64, other: u64) -> String {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    format!("{} / {} MiB", mib(one), mib(other))
}

/// Draws the table until somebody leaves.
async fn watch(fleet: &mut Fleet, mut news: News<'_>) -> Outcome {
    let mut endings = Endings::listen()?;
    let mut sizes = raw::window_changes()?;
    let mut raw = Raw::enter()?;
    raw.tidy = true;
    let screen = Screen::enter()?;
    let mut keys = Stdin::open()?;
    let mut redraw = tokio::time::interval(REDRAW);
    let mut lost = None;
    loop {
        tokio::select! {
            _ = redraw.tick() => draw(&screen, fleet, lost.as_deref())?,
            _ = sizes.recv() => draw(&screen, fleet, lost.as_deref())?,
            Some(frame) = news.next() => match frame {
                Ok(frame) => {
                    fleet.take(frame);
                    lost = None;
                }
                Err(error) if error.is_passing() => lost = Some(error.message().to_owned()),
                Err(error) => return Err(error.into()),
            },
            piece = keys.next() => match piece? {
                Some(piece) if !piece.iter().any(|key| matches!(key, b'q' | b'Q' | 0x03)) => {}
                _ => return Ok(0),
            },
            status = endings.next() => return Ok(status),
        }
    }
}

fn draw(screen: &Screen, fleet: &Fleet, lost: Option<&str>) -> io::Result<()> {
    let size = raw::window().map_or((80, 24), |size| (size.cols as usize, size.rows as usize));
    let below = lost.map_or_else(String::new, |why| format!("{why}; connecting again"));
    let text = [format!("nullspace top: {}; q leaves", fleet.summary()), below];
    screen.draw(size, &text, &HEADINGS, &fleet.rows())
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [&str; 3] = [
        "sb_019a0000000070008000000000000001",
        "sb_019a0000000070008000000000000002",
        "sb_019a0000000070008000000000000003",
    ];

    fn sandbox(id: &str, status: &str) -> serde_json::Value {
        serde_json::json!({
            "id": id, "status": status, "config": {"vcpus": 1, "memory_mb": 512, "disk_mb": 2048},
            "template": "base", "metadata": {}, "created_at": "2026-01-02T03:04:05Z", "started_at": null,
            "timeout_at": null, "expires_at": null, "timeout_ms": null, "timeout_action": null, "cwd": null,
            "snapshot_id": null,
        })
    }

    fn frame(kind: &str, mut fields: serde_json::Value) -> MonitorFrame {
        fields["type"] = kind.into();
        fields["id"] = "m".into();
        serde_json::from_value(fields).unwrap()
    }

    fn update(id: &str, status: &str) -> MonitorFrame {
        let sandbox = sandbox(id, status);
        frame("monitor_update", serde_json::json!({"sandbox_id": id, "sandbox": sandbox, "removed": false}))
    }

    fn metrics(id: &str, cpu: f64) -> MonitorFrame {
        let metrics = serde_json::json!({
            "timestamp": "2026-01-02T03:04:05Z", "cpu_percent": cpu, "cpu_count": 1, "mem_used_bytes": 0,
            "mem_total_bytes": 0, "disk_used_bytes": 0, "disk_total_bytes": 0, "network_rx_bytes": null,
            "network_tx_bytes": null,
        });
        frame("monitor_metrics", serde_json::json!({"sandbox_id": id, "metrics": metrics}))
    }

    #[test]
    fn the_busiest_come_first_and_what_is_gone_or_asleep_uses_nothing() {
        let mut fleet = Fleet::default();
        let all: Vec<_> = IDS.map(|id| sandbox(id, "running")).into();
        fleet.take(frame("monitor_snapshot", serde_json::json!({ "sandboxes": all })));
        for (id, cpu) in IDS.into_iter().zip([1.0, 90.0, 5.0]) {
            fleet.take(metrics(id, cpu));
        }
        let order = |fleet: &Fleet| {
            fleet.sorted().into_iter().map(|seen| seen.sandbox.id.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(order(&fleet), [IDS[1], IDS[2], IDS[0]]);
        fleet.take(update(IDS[1], "paused"));
        assert_eq!(order(&fleet), [IDS[2], IDS[0], IDS[1]]);
        assert_eq!(fleet.summary(), "2 running, 1 paused");
        fleet.take(update(IDS[2], "destroyed"));
        fleet.take(metrics(IDS[2], 50.0));
        let gone = serde_json::json!({"sandbox_id": IDS[0], "sandbox": null, "removed": true});
        fleet.take(frame("monitor_update", gone));
        assert_eq!(order(&fleet), [IDS[1]]);
    }
}

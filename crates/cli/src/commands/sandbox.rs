//! `nullspace sandbox`: the sandbox itself. What is made of it, its files and its processes are in their own
//! files.

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use nullspace_types::sandbox::{
    Sandbox, SandboxListQuery, SandboxMetrics, SandboxStatus, SandboxTimeoutSet, TimeoutAction,
};
use serde_json::{Map, Value};

use super::sandbox_json::{Chosen, SandboxJson};
use super::{
    download, file, network, preview, process, sandbox_create, sandbox_fork, sandbox_hibernate, snapshot,
    ssh, terminal, upload,
};
use crate::failure::Outcome;
use crate::printer::{self, Cell, Mood};
use crate::{options, session};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Create a sandbox and wait until it runs. Prints it as JSON.
    Create(Box<sandbox_create::Create>),
    /// List sandboxes.
    List(List),
    /// Print a sandbox as JSON.
    Get(Get),
    /// Run a command in a sandbox and exit with its status.
    ///
    /// Options may stand before or behind the command. Everything behind the command that is none
    /// of them, and everything behind `--`, belongs to the command.
    Exec(process::Exec),
    /// Destroy a sandbox.
    Kill(Kill),
    /// Print what a sandbox uses.
    Metrics(Metrics),
    /// When a sandbox ends.
    #[command(subcommand)]
    Timeout(Timeout),
    /// Freeze a running sandbox, memory and all, and end its machine. Prints the snapshot as JSON.
    ///
    /// The sandbox is paused: it keeps its ID and goes on where it was when it is resumed.
    Hibernate(sandbox_hibernate::Hibernate),
    /// The same as hibernate.
    Pause(sandbox_hibernate::Hibernate),
    /// Let a paused sandbox go on. Prints it as JSON.
    Resume(sandbox_hibernate::Resume),
    /// Make a live copy of a running sandbox. Prints it as JSON.
    ///
    /// With --count all copies go on from the same instant, and are printed as an array. There are as many
    /// as were asked for, or none.
    Fork(sandbox_fork::Fork),
    /// Show a sandbox with all that it was forked from and all that was forked from it.
    Tree(sandbox_fork::Tree),
    /// Show which files differ between a sandbox and a relative of it.
    ///
    /// The disks are compared as they are; neither sandbox is woken.
    Diff(sandbox_fork::Diff),
    /// Snapshots of a sandbox.
    #[command(subcommand)]
    Snapshot(snapshot::OfSandbox),
    /// Files in a sandbox.
    #[command(subcommand)]
    File(file::Command),
    /// Processes in a sandbox.
    #[command(subcommand)]
    Process(process::Command),
    /// Terminal sessions in a sandbox.
    #[command(subcommand)]
    Pty(terminal::Command),
    /// Upload a file, a directory, or standard input.
    ///
    /// What is large goes in parts, each with its checksum: an upload that is interrupted goes on where it
    /// stopped with --resume. A directory is packed first, without what its `.nullspaceignore` and --exclude
    /// name.
    Upload(Box<upload::Upload>),
    /// Download a file.
    ///
    /// A connection that breaks is made again, and the download goes on where it broke.
    Download(download::Download),
    /// Print the host that a port is reached at.
    Host(preview::Host),
    /// Print the URL that a port is reached at, without any token.
    Url(preview::Url),
    /// URLs that open a port for whoever has them, for a while.
    #[command(subcommand)]
    PreviewUrl(preview::UrlCommand),
    /// Targets for a proxy of your own.
    #[command(subcommand)]
    PreviewProxyTarget(preview::ProxyCommand),
    /// Wait until a service in a sandbox answers; exit with 1 if it does not.
    Ready(preview::Ready),
    /// Certify a key for access by SSH, and print the command that logs in.
    SshAccess(ssh::Access),
    /// What a sandbox may reach, and who may reach it.
    #[command(subcommand)]
    Network(network::Command),
}

/// The sandbox a command is about.
#[derive(Args)]
pub(crate) struct Target {
    /// The sandbox's ID.
    #[arg(value_name = "SANDBOX")]
    pub(crate) sandbox: String,
}

#[derive(Args)]
pub(crate) struct List {
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
    /// Only these fields, separated by commas.
    #[arg(long, value_name = "FIELDS", value_parser = options::fields)]
    fields: Option<Fields>,
    /// Only sandboxes in this state; without it, all that are not destroyed.
    #[arg(long, value_enum, ignore_case = true)]
    state: Vec<State>,
    /// Only sandboxes of this template.
    #[arg(long)]
    template: Option<String>,
    /// Only sandboxes whose metadata has this pair.
    #[arg(long, value_name = "KEY=VALUE", value_parser = options::pair)]
    metadata: Vec<(String, String)>,
    /// Only sandboxes whose metadata has all pairs of this JSON object.
    #[arg(long, value_name = "JSON", value_parser = options::object)]
    metadata_json: Option<Map<String, Value>>,
    /// How many to ask for at a time; all are listed in the end.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Begin where an earlier list ended.
    #[arg(long, value_name = "TOKEN")]
    next_token: Option<String>,
}

/// Keeps the parser from taking a list of names for a repeatable option.
type Fields = Vec<String>;

/// As [`SandboxStatus`], for the parser.
#[derive(Clone, Copy, ValueEnum)]
enum State {
    Creating,
    Running,
    Paused,
    Destroyed,
    Error,
}

impl State {
    fn status(self) -> SandboxStatus {
        match self {
            Self::Creating => SandboxStatus::Creating,
            Self::Running => SandboxStatus::Running,
            Self::Paused => SandboxStatus::Paused,
            Self::Destroyed => SandboxStatus::Destroyed,
            Self::Error => SandboxStatus::Error,
        }
    }
}

#[derive(Args)]
pub(crate) struct Get {
    #[command(flatten)]
    target: Target,
    /// Accepted for symmetry: the answer is always JSON.
    #[arg(long)]
    json: bool,
    /// Only these fields, separated by commas.
    #[arg(long, value_name = "FIELDS", value_parser = options::fields)]
    fields: Option<Fields>,
}

#[derive(Args)]
pub(crate) struct Kill {
    #[command(flatten)]
    target: Target,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct Metrics {
    #[command(flatten)]
    target: Target,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
pub(crate) enum Timeout {
    /// Give a sandbox a new window of time from now. Prints it as JSON.
    Set {
        #[command(flatten)]
        target: Target,
        /// Seconds from now.
        #[arg(long, value_name = "SECONDS", value_parser = options::seconds, required = true)]
        seconds: i64,
        /// What happens then; as before when not given.
        #[arg(long, value_enum, ignore_case = true)]
        action: Option<Action>,
    },
}

/// As [`TimeoutAction`], for the parser.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Action {
    Destroy,
    Hibernate,
}

impl Action {
    pub(crate) fn wire(self) -> TimeoutAction {
        match self {
            Self::Destroy => TimeoutAction::Destroy,
            Self::Hibernate => TimeoutAction::Hibernate,
        }
    }
}

impl Command {
    pub(crate) fn run(self) -> Outcome {
        match self {
            Self::Create(create) => create.run(),
            Self::List(list) => list.run(),
            Self::Get(get) => get.run(),
            Self::Exec(exec) => exec.run(),
            Self::Kill(kill) => kill.run(),
            Self::Metrics(metrics) => metrics.run(),
            Self::Timeout(timeout) => timeout.run(),
            Self::Hibernate(hibernate) | Self::Pause(hibernate) => hibernate.run(),
            Self::Resume(resume) => resume.run(),
            Self::Fork(fork) => fork.run(),
            Self::Tree(tree) => tree.run(),
            Self::Diff(diff) => diff.run(),
            Self::Snapshot(command) => command.run(),
            Self::File(command) => command.run(),
            Self::Process(command) => command.run(),
            Self::Pty(command) => command.run(),
            Self::Upload(upload) => upload.run(),
            Self::Download(download) => download.run(),
            Self::Host(host) => host.run(),
            Self::Url(url) => url.run(),
            Self::PreviewUrl(command) => command.run(),
            Self::PreviewProxyTarget(command) => command.run(),
            Self::Ready(ready) => ready.run(),
            Self::SshAccess(access) => access.run(),
            Self::Network(command) => command.run(),
        }
    }
}

impl List {
    fn run(self) -> Outcome {
        let state: Vec<_> = self.state.iter().map(|state| state.status().as_str()).collect();
        let query = SandboxListQuery {
            state: Some(state.join(",")).filter(|state| !state.is_empty()),
            template: self.template,
            metadata: options::metadata(self.metadata_json, self.metadata),
            limit: self.limit.map(|limit| limit.to_string()),
            next_token: self.next_token,
            fields: self.fields.as_ref().map(|fields| fields.join(",")),
        };
        session::run(async |client| {
            if let Some(fields) = &self.fields {
                let listing = client.sandbox_list_values(&query);
                let values = session::wait("listing sandboxes", None, listing).await?;
                let chosen: Vec<_> = values.iter().map(|value| Chosen { value, fields }).collect();
                if self.json {
                    printer::json(&chosen)?;
                } else {
                    for row in chosen {
                        printer::row(row.texts())?;
                    }
                }
                return Ok(0);
            }
            let sandboxes = session::wait("listing sandboxes", None, client.sandbox_list(&query)).await?;
            if self.json {
                printer::json(&sandboxes.iter().map(SandboxJson::new).collect::<Vec<_>>())?;
            } else if sandboxes.is_empty() {
                printer::note("no sandboxes")?;
            } else {
                print_table(&sandboxes)?;
            }
            Ok(0)
        })
    }
}

fn print_table(sandboxes: &[Sandbox]) -> std::io::Result<()> {
    let now = Timestamp::now();
    let rows: Vec<_> = sandboxes
        .iter()
        .map(|sandbox| {
            vec![
                Cell::new(sandbox.id),
                status(sandbox.status),
                Cell::new(&sandbox.template),
                Cell::new(sandbox.config.vcpus),
                Cell::new(format!("{} MiB", sandbox.config.memory_mb)),
                time_left(now, sandbox.timeout_at),
            ]
        })
        .collect();
    printer::table(&["ID", "STATUS", "TEMPLATE", "VCPUS", "MEMORY", "ENDS IN"], &rows)
}

/// A status as a table shows it.
pub(super) fn status(status: SandboxStatus) -> Cell {
    let mood = match status {
        SandboxStatus::Running => Mood::Good,
        SandboxStatus::Error => Mood::Bad,
        SandboxStatus::Creating => Mood::Plain,
        SandboxStatus::Paused | SandboxStatus::Destroyed => Mood::Faint,
    };
    Cell::with(status.as_str(), mood)
}

/// How long until the end, if there is one.
pub(super) fn time_left(now: Timestamp, end: Option<Timestamp>) -> Cell {
    Cell::new(end.map_or_else(|| "-".to_owned(), |end| between(now, end)))
}

/// How long from one to the other, in its two largest units.
pub(super) fn between(from: Timestamp, to: Timestamp) -> String {
    let seconds = to.duration_since(from).as_secs().max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

impl Get {
    fn run(self) -> Outcome {
        let id = self.target.sandbox;
        session::run(async |client| {
            match &self.fields {
                Some(fields) => {
                    let joined = fields.join(",");
                    let getting = client.sandbox_get_fields(&id, &joined);
                    let value = session::wait("looking for the sandbox", None, getting).await?;
                    printer::json(&Chosen { value: &value, fields })?;
                }
                None => {
                    let sandbox =
                        session::wait("looking for the sandbox", None, client.sandbox_get(&id)).await?;
                    printer::json(&SandboxJson::new(&sandbox))?;
                }
            }
            Ok(0)
        })
    }
}

impl Kill {
    fn run(self) -> Outcome {
        let id = self.target.sandbox;
        session::run(async |client| {
            let left = format!("{id} may be destroyed all the same");
            let destroyed =
                session::wait("destroying the sandbox", Some(&left), client.sandbox_destroy(&id)).await?;
            if self.json {
                printer::json(&destroyed)?;
            } else {
                printer::line(format_args!("destroyed {}", destroyed.id))?;
            }
            Ok(0)
        })
    }
}

impl Metrics {
    fn run(self) -> Outcome {
        let id = self.target.sandbox;
        session::run(async |client| {
            let samples = session::wait("measuring", None, client.sandbox_metrics(&id)).await?;
            if self.json {
                printer::json(&samples)?;
            } else if samples.is_empty() {
                printer::note("no metrics yet")?;
            } else {
                let rows: Vec<_> = samples.iter().map(metrics_row).collect();
                printer::table(&["TIME", "CPU", "MEMORY", "DISK", "RECEIVED", "SENT"], &rows)?;
            }
            Ok(0)
        })
    }
}

fn metrics_row(sample: &SandboxMetrics) -> Vec<Cell> {
    let share = |used: u64, total: u64| Cell::new(format!("{} / {}", mib(used), mib(total)));
    let moved = |bytes: Option<u64>| Cell::new(bytes.map_or_else(|| "-".to_owned(), mib));
    vec![
        Cell::new(sample.timestamp),
        Cell::new(format!("{:.1} % of {}", sample.cpu_percent, sample.cpu_count)),
        share(sample.mem_used_bytes, sample.mem_total_bytes),
        share(sample.disk_used_bytes, sample.disk_total_bytes),
        moved(sample.network_rx_bytes),
        moved(sample.network_tx_bytes),
    ]
}

#[expect(clippy::cast_precision_loss, reason = "shown to one tenth")]
pub(super) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

impl Timeout {
    fn run(self) -> Outcome {
        let Self::Set { target, seconds, action } = self;
        let request = SandboxTimeoutSet { timeout_ms: seconds, timeout_action: action.map(Action::wire) };
        session::run(async |client| {
            let id = target.sandbox;
            let sandbox = session::wait("setting the timeout", None, async {
                client.sandbox_timeout_set(&id, &request).await?;
                client.sandbox_get(&id).await
            });
            printer::json(&SandboxJson::new(&sandbox.await?))?;
            Ok(0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_told_in_two_units() {
        let now = Timestamp::UNIX_EPOCH;
        let told = |seconds: i64| between(now, Timestamp::from_second(seconds).unwrap());
        let all = [-5, 42, 299, 3_600, 90_061].map(told);
        assert_eq!(all, ["0s", "42s", "4m 59s", "1h 0m", "1d 1h"]);
    }
}

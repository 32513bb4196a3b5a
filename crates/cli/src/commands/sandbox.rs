//! `nullspace sandbox`: the sandbox itself. Its files and processes are in their own files.

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use nullspace_types::sandbox::{
    Sandbox, SandboxListQuery, SandboxMetrics, SandboxStatus, SandboxTimeoutSet, TimeoutAction,
};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::{download, file, process, sandbox_create, terminal, upload};
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
            Self::File(command) => command.run(),
            Self::Process(command) => command.run(),
            Self::Pty(command) => command.run(),
            Self::Upload(upload) => upload.run(),
            Self::Download(download) => download.run(),
        }
    }
}

impl List {
    fn run(self) -> Outcome {
        let state: Vec<_> = self.state.iter().map(|state| state.status().as_str()).collect();
        let metadata = options::merged(self.metadata_json, self.metadata);
        let query = SandboxListQuery {
            state: Some(state.join(",")).filter(|state| !state.is_empty()),
            template: self.template,
            metadata: Some(Value::Object(metadata.clone()).to_string()).filter(|_| !metadata.is_empty()),
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
            let mood = match sandbox.status {
                SandboxStatus::Running => Mood::Good,
                SandboxStatus::Error => Mood::Bad,
                SandboxStatus::Creating => Mood::Plain,
                SandboxStatus::Paused | SandboxStatus::Destroyed => Mood::Faint,
            };
            vec![
                Cell::new(sandbox.id),
                Cell::with(sandbox.status.as_str(), mood),
                Cell::new(&sandbox.template),
                Cell::new(sandbox.config.vcpus),
                Cell::new(format!("{} MiB", sandbox.config.memory_mb)),
                Cell::new(sandbox.timeout_at.map_or_else(|| "-".to_owned(), |end| left(now, end))),
            ]
        })
        .collect();
    printer::table(&["ID", "STATUS", "TEMPLATE", "VCPUS", "MEMORY", "ENDS IN"], &rows)
}

/// How long until then, in its two largest units.
fn left(now: Timestamp, end: Timestamp) -> String {
    let seconds = end.duration_since(now).as_secs().max(0);
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
fn mib(bytes: u64) -> String {
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

/// A sandbox as the command line prints it: the fields of the contract, in its order.
#[derive(Serialize)]
pub(crate) struct SandboxJson<'a> {
    id: String,
    status: SandboxStatus,
    template: &'a str,
    config: ConfigJson,
    metadata: &'a Map<String, Value>,
    started_at: Option<Timestamp>,
    created_at: Timestamp,
    timeout_ms: Option<u64>,
    timeout_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    timeout_action: Option<TimeoutAction>,
    snapshot_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    volumes: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<&'a str>,
}

#[derive(Serialize)]
struct ConfigJson {
    vcpus: u32,
    memory_mb: u32,
}

impl<'a> SandboxJson<'a> {
    pub(crate) fn new(sandbox: &'a Sandbox) -> Self {
        let config = ConfigJson { vcpus: sandbox.config.vcpus, memory_mb: sandbox.config.memory_mb };
        let volumes = sandbox.metadata.get("volume_attachments");
        Self {
            id: sandbox.id.to_string(),
            status: sandbox.status,
            template: &sandbox.template,
            config,
            metadata: &sandbox.metadata,
            started_at: sandbox.started_at,
            created_at: sandbox.created_at,
            timeout_ms: sandbox.timeout_ms,
            timeout_at: sandbox.timeout_at,
            expires_at: sandbox.expires_at,
            timeout_action: sandbox.timeout_action,
            snapshot_id: sandbox.snapshot_id.as_deref(),
            cwd: sandbox.cwd.as_deref(),
            volumes: volumes.filter(|volumes| volumes.as_array().is_some_and(|all| !all.is_empty())),
            error_message: sandbox.error_message.as_deref(),
        }
    }
}

/// The fields that were asked for, in the order in which they were.
struct Chosen<'a> {
    value: &'a Value,
    fields: &'a [String],
}

impl Chosen<'_> {
    fn texts(&self) -> Vec<String> {
        let text = |field: &String| match self.value.get(field) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        self.fields.iter().map(text).collect()
    }
}

impl Serialize for Chosen<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let present = self.fields.iter().filter_map(|field| Some((field, self.value.get(field)?)));
        let mut map = serializer.serialize_map(None)?;
        for (field, value) in present {
            map.serialize_entry(field, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_told_in_two_units() {
        let now = Timestamp::UNIX_EPOCH;
        let told = |seconds: i64| left(now, Timestamp::from_second(seconds).unwrap());
        let all = [-5, 42, 299, 3_600, 90_061].map(told);
        assert_eq!(all, ["0s", "42s", "4m 59s", "1h 0m", "1d 1h"]);
    }
}

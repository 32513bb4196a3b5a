//! `nullspace sandbox create`: every option of a new sandbox. What this server does not have yet is
//! sent all the same; the server says so.

use clap::{Args, ValueEnum};
use nullspace_types::sandbox::{LifecyclePolicy, OnTimeout, SandboxCreate};
use serde_json::{Map, Value, json};

use super::network;
use super::sandbox::Action;
use super::sandbox_json::SandboxJson;
use crate::failure::{Failure, Outcome};
use crate::{options, printer, session};

#[derive(Args)]
pub(crate) struct Create {
    /// Template to start from.
    #[arg(long, default_value = "base")]
    template: String,
    /// Snapshot to start from, instead of a template.
    #[arg(long, value_name = "ID")]
    snapshot_id: Option<String>,
    /// Warm pool to take the sandbox from.
    #[arg(long, value_name = "ID")]
    warm_pool: Option<String>,
    /// What to do when the warm pool has none ready.
    #[arg(long, value_enum, ignore_case = true)]
    warm_pool_mode: Option<WarmPoolMode>,
    /// Milliseconds to wait for the warm pool.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(0..=30_000))]
    warm_pool_wait: Option<u32>,
    /// Virtual processors.
    #[arg(long, default_value_t = 2, allow_negative_numbers = true)]
    vcpus: i64,
    /// Memory in MiB; 512, or 2048 for the template code-interpreter.
    #[arg(long, value_name = "MIB", allow_negative_numbers = true)]
    memory: Option<i64>,
    /// At least this much root disk, in MiB.
    #[arg(long, value_name = "MIB", allow_negative_numbers = true)]
    disk: Option<i64>,
    /// Seconds until the sandbox ends.
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = options::seconds)]
    timeout: i64,
    /// Default working directory of everything that runs in it.
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Metadata, as a JSON object.
    #[arg(long, value_name = "JSON", value_parser = options::object)]
    metadata_json: Option<Map<String, Value>>,
    /// One pair of metadata.
    #[arg(long, value_name = "KEY=VALUE", value_parser = options::pair)]
    metadata: Vec<(String, String)>,
    /// One variable of the environment of everything that runs in it.
    #[arg(long, value_name = "KEY=VALUE", value_parser = options::pair)]
    env: Vec<(String, String)>,
    /// The environment, as a JSON object.
    #[arg(long, value_name = "JSON", value_parser = options::object)]
    env_json: Option<Map<String, Value>>,
    #[command(flatten)]
    network: network::Rules,
    /// Let the sandbox reach the internet (the default).
    #[arg(long, overrides_with = "no_internet_access")]
    internet_access: bool,
    /// Let the sandbox reach nothing but what a rule allows.
    #[arg(long, overrides_with = "internet_access")]
    no_internet_access: bool,
    /// With the same key at most one sandbox is created, however often the command is run.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// What happens at the end of its time.
    #[arg(long, value_enum)]
    on_timeout: Option<OnTimeoutOption>,
    /// The same, in the words of the API.
    #[arg(long, value_enum, ignore_case = true)]
    timeout_action: Option<Action>,
    /// Wake the sandbox when it is paused and used.
    #[arg(long, overrides_with = "no_auto_resume")]
    auto_resume: bool,
    /// Leave the sandbox paused (the default).
    #[arg(long, overrides_with = "auto_resume")]
    no_auto_resume: bool,
    /// A volume to mount: ref=NAME,mount=DIR[,subpath=DIR][,ro=true].
    #[arg(long, value_name = "SPEC", value_parser = volume)]
    volume: Vec<Value>,
    /// Size of the desktop: WIDTHxHEIGHT.
    #[arg(long, value_name = "WxH", value_parser = resolution)]
    resolution: Option<(u32, u32)>,
    /// Dots per inch of the desktop.
    #[arg(long)]
    dpi: Option<u32>,
    /// Name of the desktop's display, such as :1.
    #[arg(long, value_name = "NAME")]
    display: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum OnTimeoutOption {
    Destroy,
    Pause,
}

#[derive(Clone, Copy, ValueEnum)]
enum WarmPoolMode {
    Prefer,
    Require,
    Bypass,
}

impl Create {
    pub(crate) fn run(self) -> Outcome {
        let key = self.idempotency_key.clone();
        let request = self.request()?;
        session::run(async |client| {
            let left = "the sandbox may have been created: see `nullspace sandbox list`";
            let creating = client.sandbox_create(&request, key.as_deref());
            let sandbox = session::wait("creating the sandbox", Some(left), creating).await?;
            printer::json(&SandboxJson::new(&sandbox))?;
            Ok(0)
        })
    }

    /// A snapshot brings its template, size, environment and disk with it, so those are not sent.
    fn request(self) -> Result<SandboxCreate, Failure> {
        let fresh = self.snapshot_id.is_none();
        let warm_pool = self.warm_pool();
        let desktop = self.desktop();
        let internet_access = !self.no_internet_access;
        if !fresh && !internet_access {
            return Err(Failure::usage("--no-internet-access cannot be given with --snapshot-id"));
        }
        for (option, given) in [
            ("--memory", self.memory.is_some()),
            ("--disk", self.disk.is_some()),
            ("--cwd", self.cwd.is_some()),
            ("--env", !self.env.is_empty()),
            ("--env-json", self.env_json.is_some()),
        ] {
            if !fresh && given {
                let message = format!("{option} cannot be given with --snapshot-id, which brings its own");
                return Err(Failure::usage(message));
            }
        }
        if self.template != "desktop" && desktop.is_some() {
            return Err(Failure::usage("--resolution, --dpi and --display need --template desktop"));
        }
        let memory = self.memory.unwrap_or(if self.template == "code-interpreter" { 2048 } else { 512 });
        Ok(SandboxCreate {
            template: fresh.then_some(self.template),
            snapshot_id: self.snapshot_id,
            vcpus: fresh.then_some(self.vcpus),
            memory_mb: fresh.then_some(memory),
            disk_mb: self.disk,
            timeout_ms: Some(self.timeout),
            timeout_action: self.timeout_action.map(Action::wire),
            lifecycle: self.on_timeout.map(|option| LifecyclePolicy {
                on_timeout: match option {
                    OnTimeoutOption::Destroy => OnTimeout::Destroy,
                    OnTimeoutOption::Pause => OnTimeout::Pause,
                },
            }),
            envs: Some(options::merged_text("--env-json", self.env_json, self.env)?).filter(|_| fresh),
            metadata: Some(options::merged(self.metadata_json, self.metadata)),
            cwd: self.cwd,
            internet_access: fresh.then_some(internet_access),
            auto_resume: Some(self.auto_resume && !self.no_auto_resume),
            network: Some(self.network.object()).filter(|network| !network.is_empty()),
            desktop,
            volumes: Some(self.volume).filter(|volumes| !volumes.is_empty()),
            warm_pool,
        })
    }

    fn warm_pool(&self) -> Option<Value> {
        let mut pool = Map::new();
        if let Some(id) = &self.warm_pool {
            pool.insert("id".to_owned(), json!(id));
        }
        if let Some(mode) = self.warm_pool_mode {
            let mode = match mode {
                WarmPoolMode::Prefer => "prefer",
                WarmPoolMode::Require => "require",
                WarmPoolMode::Bypass => "bypass",
            };
            pool.insert("mode".to_owned(), json!(mode));
        }
        if let Some(wait) = self.warm_pool_wait {
            pool.insert("wait_ms".to_owned(), json!(wait));
        }
        (!pool.is_empty()).then_some(Value::Object(pool))
    }

    fn desktop(&self) -> Option<Value> {
        let mut desktop = Map::new();
        if let Some((width, height)) = self.resolution {
            desktop.insert("resolution".to_owned(), json!({ "width": width, "height": height }));
        }
        if let Some(dpi) = self.dpi {
            desktop.insert("dpi".to_owned(), json!(dpi));
        }
        if let Some(display) = &self.display {
            desktop.insert("display".to_owned(), json!(display));
        }
        (!desktop.is_empty()).then_some(Value::Object(desktop))
    }
}

fn volume(text: &str) -> Result<Value, String> {
    let mut volume = Map::new();
    volume.insert("read_only".to_owned(), json!(false));
    for part in text.split(',') {
        let (key, value) = options::pair(part).map_err(|_| format!("expected KEY=VALUE, not {part:?}"))?;
        let read_only =
            |value: &str| value.parse::<bool>().map_err(|_| "ro must be true or false".to_owned());
        match key.as_str() {
            "ref" => volume.insert("ref".to_owned(), json!(value)),
            "mount" => volume.insert("mount_path".to_owned(), json!(value)),
            "subpath" => volume.insert("subpath".to_owned(), json!(value)),
            "ro" => volume.insert("read_only".to_owned(), json!(read_only(&value)?)),
            other => return Err(format!("{other:?} is none of ref, mount, subpath, ro")),
        };
    }
    match (volume.contains_key("ref"), volume.contains_key("mount_path")) {
        (true, true) => Ok(Value::Object(volume)),
        _ => Err("ref and mount are needed".to_owned()),
    }
}

fn resolution(text: &str) -> Result<(u32, u32), String> {
    let size = |text: &str| text.parse::<u32>().ok().filter(|size| *size > 0);
    text.split_once(['x', 'X'])
        .and_then(|(width, height)| Some((size(width)?, size(height)?)))
        .ok_or_else(|| "expected WIDTHxHEIGHT, such as 1280x800".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_read_from_its_parts() {
        assert_eq!(
            volume("ref=data,mount=/data,ro=true").unwrap(),
            json!({"ref": "data", "mount_path": "/data", "read_only": true})
        );
        for text in ["ref=data", "ref=data,mount=/d,ro=yes", "ref=data,mount=/d,size=3", "data"] {
            assert!(volume(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_resolution_is_two_sizes() {
        assert_eq!(resolution("1280x800"), Ok((1280, 800)));
        for text in ["1280", "0x10", "ax10", "1x-1"] {
            assert!(resolution(text).is_err(), "{text}");
        }
    }
}

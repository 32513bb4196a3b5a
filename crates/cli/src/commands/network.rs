//! What a sandbox may reach, and who may reach it: `sandbox network`, and the same options of
//! `sandbox create`.

use clap::{Args, Subcommand, ValueEnum};
use nullspace_types::network::{Denial, DenialQuery, SandboxNetwork};
use serde_json::{Map, Value, json};

use super::sandbox::Target;
use crate::failure::{Failure, Outcome};
use crate::printer::{self, Cell};
use crate::{options, session};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show what a sandbox may reach, and who may reach it.
    Get(Get),
    /// Change what a sandbox may reach, and who may reach it. In force when it answers.
    ///
    /// Each setting that is named is replaced whole; the others stay as they are.
    Set(Box<Set>),
    /// Show what a sandbox tried to reach and may not.
    Denied(Denied),
}

#[derive(Args)]
pub(crate) struct Get {
    #[command(flatten)]
    target: Target,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

/// The settings of a network as options.
#[derive(Args)]
pub(super) struct Rules {
    /// Network settings, as a JSON object; other options win over it.
    #[arg(long, value_name = "JSON", value_parser = options::object)]
    network_json: Option<Map<String, Value>>,
    /// Let its ports be reached without a token (the default).
    #[arg(long, overrides_with = "private")]
    public: bool,
    /// Have its ports need the traffic token that only its create tells.
    #[arg(long, overrides_with = "public")]
    private: bool,
    /// The Host that its services see: such as localhost:${PORT}.
    #[arg(long, value_name = "HOST")]
    mask_host: Option<String>,
    /// A range of addresses that it may reach whatever else is denied: 192.0.2.0/24.
    #[arg(long, value_name = "RANGE")]
    allow_out: Vec<String>,
    /// A range of addresses that it may not reach.
    #[arg(long, value_name = "RANGE")]
    deny_out: Vec<String>,
    /// A name that it may reach, such as example.com or *.example.com; if there is any, no others.
    #[arg(long, value_name = "NAME")]
    allow_domain: Vec<String>,
    /// A name that it may not reach.
    #[arg(long, value_name = "NAME")]
    deny_domain: Vec<String>,
    /// A header to add to requests for a host, from a stored secret. FORMAT has ${secret} where that comes:
    /// 'api.example.com:authorization=token:Bearer ${secret}'.
    #[arg(long, value_name = "HOST:HEADER=SECRET[:FORMAT]", value_parser = injection)]
    inject: Vec<Value>,
}

#[derive(Args)]
pub(crate) struct Set {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    rules: Rules,
    /// Let it reach what no rule speaks of.
    #[arg(long, overrides_with = "no_internet_access")]
    internet_access: bool,
    /// Let it reach nothing but what a rule allows.
    #[arg(long, overrides_with = "internet_access")]
    no_internet_access: bool,
    /// Put the default of a setting back.
    #[arg(long, value_name = "SETTING", value_enum, ignore_case = true)]
    reset: Vec<Setting>,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

/// A setting by its name.
#[derive(Clone, Copy, ValueEnum)]
enum Setting {
    InternetAccess,
    AllowPublicTraffic,
    MaskRequestHost,
    AllowOut,
    DenyOut,
    AllowDomains,
    DenyDomains,
    Inject,
    Limits,
}

impl Setting {
    fn wire(self) -> &'static str {
        match self {
            Self::InternetAccess => "internet_access",
            Self::AllowPublicTraffic => "allow_public_traffic",
            Self::MaskRequestHost => "mask_request_host",
            Self::AllowOut => "allow_out",
            Self::DenyOut => "deny_out",
            Self::AllowDomains => "allow_domains",
            Self::DenyDomains => "deny_domains",
            Self::Inject => "inject",
            Self::Limits => "limits",
        }
    }
}

#[derive(Args)]
pub(crate) struct Denied {
    #[command(flatten)]
    target: Target,
    /// How many to pass over.
    #[arg(long, default_value_t = 0)]
    offset: u32,
    /// At most this many.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

impl Rules {
    /// As the API takes them; empty if there are none.
    pub(super) fn object(self) -> Map<String, Value> {
        let mut network = self.network_json.unwrap_or_default();
        if self.public || self.private {
            network.insert("allow_public_traffic".to_owned(), json!(self.public));
        }
        if let Some(host) = self.mask_host {
            network.insert("mask_request_host".to_owned(), json!(host));
        }
        for (name, given) in [
            ("allow_out", self.allow_out),
            ("deny_out", self.deny_out),
            ("allow_domains", self.allow_domain),
            ("deny_domains", self.deny_domain),
        ] {
            if !given.is_empty() {
                network.insert(name.to_owned(), json!(given));
            }
        }
        if !self.inject.is_empty() {
            network.insert("inject".to_owned(), Value::Array(self.inject));
        }
        network
    }
}

fn injection(text: &str) -> Result<Value, String> {
    let parts = text.split_once(':').and_then(|(host, rest)| {
        let (header, secret) = rest.split_once('=')?;
        let (secret, format) =
            secret.split_once(':').map_or((secret, None), |(secret, format)| (secret, Some(format)));
        Some((host, header, secret, format)).filter(|_| ![host, header, secret].contains(&""))
    });
    let (host, header, secret, format) =
        parts.ok_or_else(|| "expected HOST:HEADER=SECRET, or HOST:HEADER=SECRET:FORMAT".to_owned())?;
    let mut rule = json!({ "host": host, "header": header, "secret": secret });
    if let Some(format) = format {
        rule["format"] = json!(format);
    }
    Ok(rule)
}

impl Command {
    pub(crate) fn run(self) -> Outcome {
        match self {
            Self::Get(get) => get.run(),
            Self::Set(set) => set.run(),
            Self::Denied(denied) => denied.run(),
        }
    }
}

impl Get {
    fn run(self) -> Outcome {
        session::run(async |client| {
            let asking = client.network_get(&self.target.sandbox);
            let network = session::wait("looking for the network", None, asking).await?;
            print(&network, self.json)?;
            Ok(0)
        })
    }
}

impl Set {
    fn run(self) -> Outcome {
        let Self { target: Target { sandbox }, rules, internet_access, no_internet_access, reset, json } =
            self;
        let mut change = rules.object();
        if internet_access || no_internet_access {
            change.insert("internet_access".to_owned(), Value::Bool(internet_access));
        }
        change.extend(reset.iter().map(|setting| (setting.wire().to_owned(), Value::Null)));
        if change.is_empty() {
            return Err(Failure::usage("there is nothing to change: name a setting"));
        }
        session::run(async |client| {
            let left =
                format!("it may be changed all the same: see `nullspace sandbox network get {sandbox}`");
            let changing = client.network_update(&sandbox, &change);
            let network = session::wait("changing the network", Some(&left), changing).await?;
            print(&network, json)?;
            Ok(0)
        })
    }
}

fn print(network: &SandboxNetwork, json: bool) -> std::io::Result<()> {
    if json {
        return printer::json(network);
    }
    let settings = serde_json::to_value(network)?;
    let rows: Vec<_> = settings
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| vec![Cell::new(name), Cell::new(text(value))])
        .collect();
    printer::table(&["SETTING", "VALUE"], &rows)
}

/// A setting as a person reads it.
fn text(value: &Value) -> String {
    let none = || "-".to_owned();
    match value {
        Value::Null => none(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => none(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(", "),
        Value::Object(fields) if fields.is_empty() => none(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| format!("{name}={}", text(value))).collect::<Vec<_>>().join(" ")
        }
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

impl Denied {
    fn run(self) -> Outcome {
        let query =
            DenialQuery { offset: Some(self.offset.to_string()), limit: Some(self.limit.to_string()) };
        session::run(async |client| {
            let asking = client.network_denied(&self.target.sandbox, &query);
            let page = session::wait("looking for denials", None, asking).await?;
            if self.json {
                printer::json(&page)?;
                return Ok(0);
            }
            if page.items.is_empty() {
                printer::note("nothing was denied")?;
            } else {
                let rows = page.items.iter().map(denied_row).collect::<std::io::Result<Vec<_>>>()?;
                printer::table(&["PROTOCOL", "ADDRESS", "PORT", "NAME", "REASON", "COUNT", "LAST"], &rows)?;
            }
            if page.has_more {
                printer::note("there is more; see it with a larger --offset")?;
            }
            Ok(0)
        })
    }
}

fn denied_row(denial: &Denial) -> std::io::Result<Vec<Cell>> {
    let target = serde_json::to_value(&denial.target)?;
    let cell = |name: &str| Cell::new(text(&target[name]));
    let columns = ["protocol", "address", "port", "name", "reason"].map(cell);
    Ok(columns.into_iter().chain([Cell::new(denial.count), Cell::new(denial.last_at)]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_injection_is_read_from_its_parts() {
        assert_eq!(
            injection("api.test:authorization=token:Bearer ${secret}").unwrap(),
            json!({"host": "api.test", "header": "authorization", "secret": "token", "format": "Bearer ${secret}"})
        );
        assert_eq!(
            injection("api.test:x-key=token").unwrap(),
            json!({"host": "api.test", "header": "x-key", "secret": "token"})
        );
        for text in ["", "api.test", "api.test:x-key", "api.test:=token", ":x-key=token", "api.test:x-key="] {
            assert!(injection(text).is_err(), "{text}");
        }
    }
}

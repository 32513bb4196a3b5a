//! `nullspace doctor`: what this host has, what it lacks for machines, and how to mend it.
//!
//! Every check looks and answers; none changes the host, and one that cannot be made says so as a
//! warning. What is tried is tried where it leaves nothing: a namespace without a name, a port
//! closed again, a boot that is ended. Printing is the command line's; the text for it is
//! [`render`]'s.

mod entrance;
mod machine;
mod network;
mod storage;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::args::DATA_DIR;
use crate::config::Config;

/// Check this host and say how to mend what is missing.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// The server's data directory; it need not exist yet.
    #[arg(long, value_name = "DIR", env = "NULLSPACE_DATA_DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// Address and port that the server is to listen on. Overrides `listen` in the configuration.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// The server's configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Answer with JSON.
    #[arg(long)]
    pub json: bool,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Pass,
    /// Machines run, but not as well as they could, or it could not be found out.
    Warn,
    /// No machine can be made like this.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name, always the same.
    pub name: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was found.
    pub message: String,
    /// How to mend it, where it is known.
    pub fix: Option<String>,
}

impl Check {
    fn pass(name: &'static str, message: impl Into<String>) -> Self {
        Self { name, status: Status::Pass, message: message.into(), fix: None }
    }

    fn warn(name: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, message: message.into(), fix: Some(fix.into()) }
    }

    fn fail(name: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, message: message.into(), fix: Some(fix.into()) }
    }
}

/// The answer in JSON.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    /// Whether nothing failed; the exit status is 1 if not.
    pub ok: bool,
    /// All checks, in their order.
    pub checks: &'a [Check],
}

impl<'a> Report<'a> {
    /// Of these checks.
    pub fn new(checks: &'a [Check]) -> Self {
        Self { ok: checks.iter().all(|check| check.status != Status::Fail), checks }
    }
}

/// Makes all checks. Takes up to some ten seconds, if acceleration was never probed here.
pub async fn examine(args: &DoctorArgs) -> Vec<Check> {
    let mut checks = Vec::new();
    let config = Config::load(args.config.as_deref()).unwrap_or_else(|error| {
        let message = format!("{error:#}; the other checks use the defaults");
        checks.push(Check::fail(
            "configuration",
            message,
            "correct the file; docs/reference/config.md has all keys",
        ));
        Config::default()
    });
    let listen = args.listen.unwrap_or(config.server.listen);
    let data_dir = args.data_dir.clone();

    checks.push(machine::rights());
    checks.extend(machine::engine(&config, &data_dir).await);
    let resolvers = config.network.resolvers.clone();
    let domain = config.gateway.domain.clone();
    checks.extend(
        apart(move || {
            let Config { node, gateway, ssh, .. } = config;
            let mut checks = vec![machine::control_groups(), network::slots()];
            checks.extend(network::forwarding());
            checks.extend([storage::disk(&data_dir, &node), storage::memory(&node)]);
            checks.push(network::port("port", listen, "--listen", &data_dir));
            checks.extend(entrance::gateway(&gateway, &data_dir));
            checks.extend(entrance::relay(&ssh, &data_dir));
            checks
        })
        .await,
    );
    checks.push(network::resolvers(&resolvers).await);
    if let Some(domain) = domain {
        checks.push(entrance::names(&domain).await);
    }
    checks
}

/// Blocking work, away from the runtime's threads.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        // It is never cancelled, so it has panicked.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// The checks as a table for people, with the mending below each, and a line that sums up.
pub fn render(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    let mut counts = [0; 3];
    for Check { name, status, message, fix } in checks {
        let (mark, count) = match status {
            Status::Pass => ("pass", 0),
            Status::Warn => ("warn", 1),
            Status::Fail => ("FAIL", 2),
        };
        counts[count] += 1;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{mark}  {name:width$}  {message}");
        if let Some(fix) = fix {
            let _ = writeln!(text, "      {:width$}  -> {fix}", "");
        }
    }
    let [passed, warned, failed] = counts;
    let verdict = if failed == 0 { "machines can be made here" } else { "no machine can be made here yet" };
    let _ = writeln!(text, "\n{passed} passed, {warned} warned, {failed} failed: {verdict}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failure_makes_the_whole_not_ok_and_each_fix_stands_below_its_check() {
        let mut checks = vec![Check::pass("disk", "much"), Check::warn("dns", "silent", "look at it")];
        assert!(Report::new(&checks).ok);
        checks.push(Check::fail("engine", "no QEMU", "install it"));
        let json = serde_json::to_value(Report::new(&checks)).unwrap();
        assert_eq!(json["ok"], false);
        assert_eq!(
            json["checks"][1],
            serde_json::json!({"name": "dns", "status": "warn", "message": "silent", "fix": "look at it"})
        );
        assert_eq!(json["checks"][0]["fix"], serde_json::Value::Null);
        let expected = "\
pass  disk    much
warn  dns     silent
              -> look at it
FAIL  engine  no QEMU
              -> install it

1 passed, 1 warned, 1 failed: no machine can be made here yet
";
        assert_eq!(render(&checks), expected);
    }

    #[tokio::test]
    async fn a_host_is_examined_without_leaving_anything_and_every_trouble_has_a_remedy() {
        let dir = std::env::temp_dir().join(format!("nullspace-doctor-{}", std::process::id()));
        let config = dir.with_extension("toml");
        // Nothing outside is asked: nobody answers there.
        let image = dir.join("image");
        let text = format!("[network]\nresolvers = [\"127.0.0.1\"]\n[image]\ndir = {image:?}\n");
        std::fs::write(&config, text).unwrap();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = taken.local_addr().ok();
        let args = DoctorArgs { data_dir: dir.clone(), listen, config: Some(config.clone()), json: false };
        let checks = examine(&args).await;
        std::fs::remove_file(&config).unwrap();
        assert!(!dir.exists());
        let status = |name: &str| checks.iter().find(|check| check.name == name).unwrap().status;
        assert_eq!(status("image"), Status::Fail);
        assert_eq!(status("port"), Status::Fail);
        assert_eq!(status("acceleration"), Status::Warn);
        assert!(
            checks.iter().all(|check| (check.status == Status::Pass) == check.fix.is_none()),
            "{checks:#?}"
        );
    }
}

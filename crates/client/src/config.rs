//! Which server and which key: every place they may come from, in order. The first that is not
//! empty wins.
//!
//! | setting | order |
//! |---|---|
//! | key | explicit, `NULLSPACE_API_KEY`, `.env`, `$XDG_CONFIG_HOME/nullspace/config.json`, `~/.nullspace/config.json` (`api_key`) |
//! | URL | explicit, `NULLSPACE_API_URL`, `NULLSPACE_BASE_URL`, `.env` (the same names), the configuration files (`base_url`, `api_url`), `http://localhost:3000` |
//!
//! A key that is given explicitly and is empty is a mistake and is told as one, not passed over.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Where a server listens when nothing says otherwise.
pub const DEFAULT_BASE_URL: &str = "http://localhost:3000";
/// How long a call may stay without a byte of its answer, when nothing says otherwise.
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How a client finds and treats its server.
#[derive(Clone)]
pub struct Config {
    /// Sent as the bearer of every call. Without one only [`crate::Client::health`] works.
    pub api_key: Option<String>,
    /// Scheme, host, port and, if any, a path in front of `/v1`; no `/` at the end.
    pub base_url: String,
    /// How long a call may stay without a byte of its answer. `None` leaves each call its own.
    pub request_timeout: Option<Duration>,
    /// When a call is made again.
    pub retry: RetryPolicy,
}

impl fmt::Debug for Config {
    /// Leaves the key out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("api_key", &self.api_key.as_ref().map(|_| "…"))
            .field("base_url", &self.base_url)
            .field("request_timeout", &self.request_timeout)
            .field("retry", &self.retry)
            .finish()
    }
}

/// When a call is made again. Nothing else is ever repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often a call is repeated after 429, each time after what `Retry-After` says.
    pub rate_limit_retries: u32,
    /// The longest `Retry-After` that is waited for; a longer one is the caller's to wait.
    pub rate_limit_wait_max: Duration,
    /// How often a create is attempted with its one idempotency key while its outcome is unknown.
    pub create_attempts: u32,
    /// The wait before the second attempt of a create; it doubles from one to the next.
    pub create_wait: Duration,
    /// The longest wait between two attempts of a create.
    pub create_wait_max: Duration,
    /// How often in a row what can be taken up again is taken up again after its connection broke: a
    /// download, the output of a process, a call of an upload.
    pub resume_retries: u32,
    /// The wait before the first of them; it doubles from one to the next, and up to a quarter is added.
    pub resume_wait: Duration,
    /// The longest wait between two of them.
    pub resume_wait_max: Duration,
}

impl RetryPolicy {
    /// How long to wait before the retry of this number, counted from 0. The part that is left to chance
    /// keeps many clients from coming back all at once.
    pub(crate) fn resume_delay(&self, retry: u32) -> Duration {
        let wait = self.resume_wait.saturating_mul(1 << retry.min(16)).min(self.resume_wait_max);
        wait.mul_f64(1.0 + rand::random_range(0.0..0.25))
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            rate_limit_retries: 3,
            rate_limit_wait_max: Duration::from_secs(60),
            create_attempts: 30,
            create_wait: Duration::from_millis(500),
            create_wait_max: Duration::from_secs(10),
            resume_retries: 5,
            resume_wait: Duration::from_millis(250),
            resume_wait_max: Duration::from_secs(4),
        }
    }
}

/// What the caller gives itself, before any other place is asked.
#[derive(Clone, Default)]
pub struct Explicit {
    /// The key; empty is refused.
    pub api_key: Option<String>,
    /// The URL; empty means the default.
    pub base_url: Option<String>,
}

impl Config {
    /// Looks in every place of this process's environment.
    ///
    /// # Errors
    /// `missing_api_key` for an explicit empty key, `invalid_request` for a file that cannot be
    /// read or is not what it should be. That there is no key at all is no error yet.
    pub fn resolve(explicit: Explicit) -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok();
        let home = variable("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let xdg = variable("XDG_CONFIG_HOME")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
            .or_else(|| home.as_ref().map(|home| home.join(".config")));
        let mut files = Vec::new();
        files.extend(xdg.map(|path| path.join("nullspace/config.json")));
        files.extend(home.map(|path| path.join(".nullspace/config.json")));
        Self::resolve_in(explicit, &Places { variable: &variable, dotenv: PathBuf::from(".env"), files })
    }

    fn resolve_in(explicit: Explicit, places: &Places<'_>) -> Result<Self> {
        let api_key = match explicit.api_key {
            Some(key) if key.trim().is_empty() => return Err(Error::missing_api_key()),
            Some(key) => Some(key.trim().to_owned()),
            None => places.find(&["NULLSPACE_API_KEY"], &["api_key"])?,
        };
        let base_url = match explicit.base_url {
            Some(url) if url.trim().is_empty() => None,
            Some(url) => Some(url),
            None => places.find(&["NULLSPACE_API_URL", "NULLSPACE_BASE_URL"], &["base_url", "api_url"])?,
        };
        let base_url =
            base_url.as_deref().unwrap_or(DEFAULT_BASE_URL).trim().trim_end_matches('/').to_owned();
        let names = ["NULLSPACE_REQUEST_TIMEOUT_SECONDS", "NULLSPACE_REQUEST_TIMEOUT"];
        let request_timeout = names
            .iter()
            .find_map(|name| (places.variable)(name).filter(|v| !v.trim().is_empty()).map(|v| (*name, v)))
            .map(|(name, value)| seconds(name, &value))
            .transpose()?;
        Ok(Self { api_key, base_url, request_timeout, retry: RetryPolicy::default() })
    }
}

fn seconds(name: &str, value: &str) -> Result<Duration> {
    value
        .trim()
        .parse::<f64>()
        .ok()
        .filter(|seconds| (0.001..=86_400.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| {
            Error::invalid_request(format!("{name} must be a number of seconds from 0.001 to 86400"))
        })
}

/// The places in which settings are looked for.
struct Places<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    dotenv: PathBuf,
    files: Vec<PathBuf>,
}

impl Places<'_> {
    /// A file is opened only when no place before it had an answer.
    fn find(&self, variables: &[&str], keys: &[&str]) -> Result<Option<String>> {
        let full = |value: String| Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        if let Some(value) = variables.iter().find_map(|name| (self.variable)(name).and_then(full)) {
            return Ok(Some(value));
        }
        if let Some(text) = read(&self.dotenv)? {
            let lines: Vec<_> = text.lines().filter_map(assignment).collect();
            let value = |name: &&str| lines.iter().rev().find(|(key, _)| key == name).map(|(_, v)| v.clone());
            if let Some(value) = variables.iter().find_map(|name| value(name).and_then(full)) {
                return Ok(Some(value));
            }
        }
        for path in &self.files {
            let Some(text) = read(path)? else { continue };
            let object: Map<String, Value> = serde_json::from_str(&text).map_err(|error| {
                Error::invalid_request(format!("{} is not a JSON object: {error}", path.display()))
                    .suggest("mend or remove the file")
            })?;
            let value = |key: &&str| object.get(*key).and_then(Value::as_str).map(str::to_owned);
            if let Some(value) = keys.iter().find_map(|key| value(key).and_then(full)) {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }
}

fn read(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        // A place that cannot hold a file holds no setting.
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound
                    | std::io::ErrorKind::NotADirectory
                    | std::io::ErrorKind::IsADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(Error::invalid_request(format!("cannot read {}: {error}", path.display()))
            .suggest("set NULLSPACE_API_KEY and NULLSPACE_API_URL, or make the file readable")),
    }
}

/// `KEY=VALUE`, with an optional `export`, quotes around the value, and `#` for comments.
fn assignment(line: &str) -> Option<(&str, String)> {
    let line = line.trim();
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (key, value) = line.split_once('=').filter(|_| !line.starts_with('#'))?;
    let value = value.trim();
    let quoted = ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote).and_then(|v| v.strip_suffix(quote)));
    Some((key.trim(), quoted.unwrap_or(value).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        variables: Vec<(&'static str, &'static str)>,
        dir: tempfile::TempDir,
    }

    impl World {
        fn new(variables: &[(&'static str, &'static str)], files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (name, content) in files {
                std::fs::write(dir.path().join(name), content).unwrap();
            }
            Self { variables: variables.to_vec(), dir }
        }

        fn resolve(&self, explicit: Explicit) -> Result<Config> {
            let variable = |name: &str| {
                self.variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            };
            let files = vec![self.dir.path().join("xdg.json"), self.dir.path().join("home.json")];
            let places = Places { variable: &variable, dotenv: self.dir.path().join(".env"), files };
            Config::resolve_in(explicit, &places)
        }

        fn key_and_url(&self) -> (String, String) {
            let config = self.resolve(Explicit::default()).unwrap();
            (config.api_key.unwrap_or_default(), config.base_url)
        }
    }

    const FILES: &[(&str, &str)] = &[
        (".env", "# mine\nNULLSPACE_API_KEY='dotenv'\nexport NULLSPACE_BASE_URL=\"http://dotenv:1/\"\n"),
        ("xdg.json", r#"{"api_key":"xdg","api_url":"http://xdg:1"}"#),
        ("home.json", r#"{"api_key":"home","base_url":"http://home:1"}"#),
    ];

    fn pair(key: &str, url: &str) -> (String, String) {
        (key.to_owned(), url.to_owned())
    }

    #[test]
    fn the_first_place_that_has_a_setting_wins() {
        let variables = [("NULLSPACE_API_KEY", " env "), ("NULLSPACE_BASE_URL", "http://env:1/")];
        assert_eq!(World::new(&variables, FILES).key_and_url(), pair("env", "http://env:1"));
        assert_eq!(World::new(&[], FILES).key_and_url(), pair("dotenv", "http://dotenv:1"));
        assert_eq!(World::new(&[], &FILES[1..]).key_and_url(), pair("xdg", "http://xdg:1"));
        assert_eq!(World::new(&[], &FILES[2..]).key_and_url(), pair("home", "http://home:1"));
        assert_eq!(World::new(&[], &[]).key_and_url(), pair("", DEFAULT_BASE_URL));
        let empty = [("NULLSPACE_API_KEY", " "), ("NULLSPACE_API_URL", "")];
        assert_eq!(World::new(&empty, FILES).key_and_url(), pair("dotenv", "http://dotenv:1"));
    }

    #[test]
    fn an_explicit_setting_is_taken_at_its_word() {
        let world = World::new(&[("NULLSPACE_API_KEY", "env")], FILES);
        let explicit =
            |key: &str, url: &str| Explicit { api_key: Some(key.to_owned()), base_url: Some(url.to_owned()) };
        let config = world.resolve(explicit(" mine ", "https://host/prefix/")).unwrap();
        assert_eq!(
            (config.api_key.as_deref(), config.base_url.as_str()),
            (Some("mine"), "https://host/prefix")
        );
        assert_eq!(world.resolve(explicit("mine", "")).unwrap().base_url, DEFAULT_BASE_URL);
        assert_eq!(world.resolve(explicit("", "")).unwrap_err().code(), "missing_api_key");
    }

    #[test]
    fn a_broken_configuration_file_is_named_when_it_is_needed() {
        let files = [("xdg.json", "{")];
        let error = World::new(&[], &files).resolve(Explicit::default()).unwrap_err();
        assert!(error.message().contains("xdg.json is not a JSON object"), "{error}");
        let variables = [("NULLSPACE_API_KEY", "k"), ("NULLSPACE_API_URL", "http://h:1")];
        assert_eq!(World::new(&variables, &files).key_and_url(), pair("k", "http://h:1"));
    }

    #[test]
    fn a_key_is_never_shown() {
        let config =
            World::new(&[("NULLSPACE_API_KEY", "secret")], &[]).resolve(Explicit::default()).unwrap();
        assert!(!format!("{config:?}").contains("secret"));
    }
}

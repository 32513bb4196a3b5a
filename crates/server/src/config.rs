//! The configuration file: one section per component, each a struct with its defaults in code. Unknown
//! sections and keys are refused. The reference page is generated from the same structs, see
//! [`crate::config_reference`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nullspace_control::PreviewAddresses;
use nullspace_domain::limits::UPLOAD_PARTS_MAX;
use nullspace_domain::{Limits, WebhookConfig};
use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The server's own.
    pub server: ServerConfig,
    /// Where the guest image is.
    pub image: ImageConfig,
    /// Where state is kept.
    pub store: StoreConfig,
    /// What callers may ask for.
    pub limits: Limits,
    /// How lifecycle events are sent out.
    pub webhooks: WebhookConfig,
    /// How machines are made.
    pub node: nullspace_node::Config,
    /// What machines may reach.
    pub network: nullspace_node::NetworkConfig,
    /// How the ports of sandboxes are reached.
    pub gateway: nullspace_gateway::Config,
    /// How sandboxes are reached by SSH.
    pub ssh: nullspace_ssh::Config,
    /// How stored secrets are kept.
    pub secrets: SecretsConfig,
}

/// `[server]`: how the API is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Address and port to listen on, unless `--listen` says otherwise.
    pub listen: SocketAddr,
    /// Most connections at once, sockets among them; more wait until one closes.
    pub connections_max: usize,
    /// Where callers reach the API, such as `https://api.example.com`, for the URLs that it gives out. When
    /// absent, they begin with the `Host` that the caller asked.
    pub public_url: Option<String>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3000),
            connections_max: 4096,
            public_url: None,
        }
    }
}

/// `[image]`: the kernel, the initrd and the root file system that machines start from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageConfig {
    /// The image's directory. When absent: `../share/nullspace/image` beside the program if it is there,
    /// else `image/current` in the cache directory (`$NULLSPACE_CACHE`, `$XDG_CACHE_HOME/nullspace` or
    /// `~/.cache/nullspace`).
    pub dir: Option<PathBuf>,
}

/// `[store]`: the database.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// `sqlite://PATH` or `postgres://…`. When absent: `state.db` in the data directory, SQLite.
    pub url: Option<String>,
}

/// `[secrets]`: how stored secrets are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SecretsConfig {
    /// The file with the key that they are sealed with in the database; made at the first start. Whoever has
    /// both can read them, and without it they are lost. When absent: `secrets.key` in the data directory.
    pub key_file: Option<PathBuf>,
}

impl Config {
    /// Reads a file; without one, the defaults.
    pub fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(file) = file else { return Ok(Self::default()) };
        let text = fs_err::read_to_string(file)?;
        Self::parse(&text).with_context(|| format!("the configuration {} is not valid", file.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        // The parser's message has the line, the key and what was expected there.
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> anyhow::Result<()> {
        let limits = &self.limits;
        for (name, low, high) in [
            ("limits.vcpus_max", 1, u64::from(limits.vcpus_max)),
            ("limits.memory_mb_max", u64::from(limits.memory_mb_min), u64::from(limits.memory_mb_max)),
            ("limits.disk_mb_max", u64::from(limits.disk_mb_min), u64::from(limits.disk_mb_max)),
            ("limits.timeout_ms_max", 1, limits.timeout_ms_max),
            ("limits.timeout_ms_default", 1, limits.timeout_ms_default),
            (
                "limits.exec_timeout_secs_max",
                u64::from(limits.exec_timeout_secs_default.max(1)),
                u64::from(limits.exec_timeout_secs_max),
            ),
            ("limits.exec_timeout_secs_default", 1, u64::from(limits.exec_timeout_secs_default)),
            ("limits.create_secs_max", 1, u64::from(limits.create_secs_max)),
            ("limits.upload_bytes_max", 1, limits.upload_bytes_max),
            (
                "limits.upload_part_bytes",
                limits.upload_bytes_max.div_ceil(UPLOAD_PARTS_MAX),
                limits.upload_part_bytes,
            ),
            ("limits.upload_concurrency_max", 1, u64::from(limits.upload_concurrency_max)),
            ("limits.upload_staging_bytes_max", 1, limits.upload_staging_bytes_max),
            ("limits.upload_secs_max", 1, u64::from(limits.upload_secs_max)),
            ("server.connections_max", 1, self.server.connections_max as u64),
            ("ssh.connections_max", 1, self.ssh.connections_max as u64),
            ("ssh.channels_max", 1, self.ssh.channels_max as u64),
            ("ssh.login_secs", 1, u64::from(self.ssh.login_secs)),
            ("webhooks.concurrency_max", 1, self.webhooks.concurrency_max as u64),
            ("webhooks.timeout_secs", 1, u64::from(self.webhooks.timeout_secs)),
        ] {
            anyhow::ensure!(high >= low, "{name} must be at least {low}, got {high}");
        }
        // Any longer window could not be added to a date.
        let years = 1000 * 366 * 24 * 60 * 60 * 1000;
        anyhow::ensure!(
            limits.timeout_ms_max <= years,
            "limits.timeout_ms_max must be at most {years}, got {}",
            limits.timeout_ms_max
        );
        if let Some(url) = &self.server.public_url {
            check_public_url(url)?;
        }
        self.gateway.check().map_err(anyhow::Error::msg)
    }

    /// Where the ports of sandboxes are reached, for a gateway that listens there.
    pub fn preview_addresses(&self, listening: Option<SocketAddr>) -> anyhow::Result<PreviewAddresses> {
        let gateway = &self.gateway;
        Ok(match &gateway.domain {
            Some(domain) => PreviewAddresses::Domain {
                domain: domain.clone(),
                tls: gateway.tls(),
                port: gateway.public_port.unwrap_or(listening.unwrap_or(gateway.listen).port()),
            },
            None => PreviewAddresses::Local {
                bind: gateway.bind,
                ports: gateway.port_range().map_err(anyhow::Error::msg)?,
            },
        })
    }
}

/// What is put before a path must be a URL that has none of what comes behind one.
fn check_public_url(url: &str) -> anyhow::Result<()> {
    let parsed = url.parse::<http::Uri>().ok().filter(|parsed| {
        let authority = parsed.authority().map_or("", http::uri::Authority::as_str);
        matches!(parsed.scheme_str(), Some("http" | "https"))
            && !authority.is_empty()
            && !authority.contains('@')
            && parsed.query().is_none()
            && !url.contains('#')
    });
    anyhow::ensure!(
        parsed.is_some(),
        "server.public_url must be an http or https URL without a user, query or fragment, got {url:?}"
    );
    Ok(())
}

/// Where the image is: as configured, beside the program, or in the cache.
pub fn image_dir(config: &ImageConfig) -> anyhow::Result<PathBuf> {
    if let Some(dir) = &config.dir {
        return Ok(dir.clone());
    }
    let program = std::env::current_exe().context("the program's own path is unknown")?;
    if let Some(prefix) = program.parent().and_then(Path::parent) {
        let installed = prefix.join("share/nullspace/image");
        if installed.join("manifest.json").exists() {
            return Ok(installed);
        }
    }
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("NULLSPACE_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("nullspace")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/nullspace")))
        .context(
            "no place for the guest image: set dir in [image], or the environment variable NULLSPACE_CACHE",
        )?;
    Ok(cache.join("image/current"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_a_wrong_type_and_a_value_out_of_bounds_are_refused_by_name() {
        for (text, says) in [
            ("[server]\nlisten_on = \"x\"", "listen_on"),
            ("[serverr]", "serverr"),
            ("[server]\nlisten = 5", "listen"),
            ("[limits]\nvcpus_max = 0", "limits.vcpus_max must be at least 1, got 0"),
            ("[limits]\nmemory_mb_max = 128", "limits.memory_mb_max must be at least 256, got 128"),
            (
                "[limits]\nupload_part_bytes = 1024",
                "limits.upload_part_bytes must be at least 687195, got 1024",
            ),
            ("[server]\npublic_url = \"example.com\"", "server.public_url must be an http or https URL"),
            ("[server]\npublic_url = \"https://u@example.com\"", "server.public_url"),
            ("[server]\npublic_url = \"https://example.com/?x\"", "server.public_url"),
            ("[server]\npublic_url = \"ftp://example.com\"", "server.public_url"),
            ("[node]\nmax_machine = 3", "max_machine"),
            ("[webhooks]\nconcurrency_max = 0", "webhooks.concurrency_max must be at least 1, got 0"),
            ("[gateway]\nports = \"3000-2999\"", "gateway.ports must be"),
            ("[gateway]\ndomain = \"Example.com\"", "gateway.domain must be"),
            ("[gateway]\ntls_key = \"/k\"", "gateway.tls_certificate and gateway.tls_key must be"),
            ("[ssh]\nchannels_max = 0", "ssh.channels_max must be at least 1, got 0"),
            ("[secrets]\nkey = \"x\"", "key"),
        ] {
            let error = format!("{:#}", Config::parse(text).unwrap_err());
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn an_empty_file_gives_the_defaults_and_the_defaults_can_be_written_and_read_back() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(Config::parse(&text).unwrap(), Config::default());
        assert!(Config::parse("[server]\npublic_url = \"https://example.com/nullspace/\"").is_ok());
    }
}

//! Ports of a sandbox as others reach them: `sandbox host`, `url`, `preview-url`, `preview-proxy-target` and
//! `ready`.
//!
//! What people read has no tokens in it, so that a screen can be shown to others; what programs read has:
//! JSON, and everything with `--raw`.

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use nullspace_client::Client;
use nullspace_types::preview::{
    AuthMode, EDGE_TOKEN_PARAMETER, GrantStatus, PreviewGrant, PreviewGrantQuery, PreviewProxyTarget,
    PreviewReadiness, PreviewUrl, ProxyTargetRequest, SignedPreviewRequest,
};
use serde::Serialize;

use super::preview_wait::{self, Wait};
use super::sandbox::{Target, time_left};
use crate::failure::{Failure, Outcome};
use crate::printer::{self, Cell, Mood};
use crate::{options, session};

/// What stands in the place of a token.
const HIDDEN: &str = "[hidden]";

/// A port of a sandbox.
#[derive(Args)]
pub(crate) struct Port {
    #[command(flatten)]
    target: Target,
    /// The port, which a service in the sandbox listens on at 0.0.0.0.
    #[arg(value_name = "PORT")]
    port: u16,
}

#[derive(Args)]
pub(crate) struct Host {
    #[command(flatten)]
    port: Port,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct Url {
    #[command(flatten)]
    port: Port,
    /// The URL for WebSockets.
    #[arg(long)]
    websocket: bool,
    #[command(flatten)]
    wait: Wait,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
pub(crate) enum UrlCommand {
    /// Make a preview URL that is good for as long as the server usually has it.
    Get(Get),
    /// Make a preview URL that is good for as long as you say.
    Create(Create),
    /// List the sandbox's grants, with how they were used.
    List(List),
    /// Revoke a grant, and cut what it holds open.
    Revoke(Revoke),
}

#[derive(Subcommand)]
pub(crate) enum ProxyCommand {
    /// Make what a proxy of your own needs to reach a port: URLs, and tokens that it sends in a header.
    Create(Proxy),
}

#[derive(Args)]
pub(crate) struct Get {
    #[command(flatten)]
    port: Port,
    /// The URL for WebSockets.
    #[arg(long)]
    websocket: bool,
    /// Show the token too.
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    wait: Wait,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct Create {
    #[command(flatten)]
    get: Get,
    /// How long it is good: seconds, or such as 10m or 1h; from a minute to a day.
    #[arg(long, value_name = "TIME", value_parser = options::span)]
    expires: Option<i64>,
}

#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    target: Target,
    /// Only those of this port.
    #[arg(long)]
    port: Option<u16>,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct Revoke {
    #[command(flatten)]
    target: Target,
    /// The grant's ID.
    #[arg(value_name = "GRANT")]
    grant: String,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct Proxy {
    #[command(flatten)]
    port: Port,
    /// How long it is good: seconds, or such as 10m or 1h; from a minute to a day.
    #[arg(long, value_name = "TIME", value_parser = options::span)]
    expires: Option<i64>,
    /// Only for this; for both without it.
    #[arg(long, value_enum, ignore_case = true)]
    transport: Vec<Transport>,
    /// Show the tokens too.
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    wait: Wait,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Transport {
    Http,
    Websocket,
}

impl Transport {
    fn wire(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Websocket => "websocket",
        }
    }
}

#[derive(Args)]
pub(crate) struct Ready {
    #[command(flatten)]
    port: Port,
    #[command(flatten)]
    probe: preview_wait::Probe,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

impl Host {
    pub(crate) fn run(self) -> Outcome {
        #[derive(Serialize)]
        struct HostJson {
            host: String,
        }
        let Port { target: Target { sandbox }, port } = self.port;
        session::run(async |client| {
            let asking = client.preview_host(&sandbox, port);
            let host = session::wait("asking for the host", None, asking).await?.host;
            if self.json {
                printer::json(&HostJson { host })?
            } else {
                printer::line(host)?
            }
            Ok(0)
        })
    }
}

impl Url {
    pub(crate) fn run(self) -> Outcome {
        #[derive(Serialize)]
        struct UrlJson {
            host: String,
            url: String,
            websocket_url: String,
            access_token_expires_at: Option<Timestamp>,
            access_token_transport: Option<&'static str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            readiness: Option<PreviewReadiness>,
        }
        let Port { target: Target { sandbox }, port } = self.port;
        session::run(async |client| {
            let readiness = self.wait.done(&client, &sandbox, port).await?;
            let asking = client.preview_host(&sandbox, port);
            let info = session::wait("asking for the URL", None, asking).await?;
            if !self.json {
                printer::line(if self.websocket { info.websocket_url } else { info.url })?;
                return Ok(0);
            }
            printer::json(&UrlJson {
                host: info.host,
                url: info.url,
                websocket_url: info.websocket_url,
                access_token_expires_at: None,
                access_token_transport: None,
                readiness,
            })?;
            Ok(0)
        })
    }
}

impl UrlCommand {
    pub(crate) fn run(self) -> Outcome {
        match self {
            Self::Get(get) => get.run(async |client, sandbox, port| client.preview_url(sandbox, port).await),
            Self::Create(Create { get, expires }) => {
                let request = SignedPreviewRequest { expires_in_seconds: expires };
                get.run(async |client, sandbox, port| {
                    client.preview_url_signed(sandbox, port, &request).await
                })
            }
            Self::List(list) => list.run(),
            Self::Revoke(revoke) => revoke.run(),
        }
    }
}

impl Get {
    fn run(
        self,
        make: impl AsyncFnOnce(&Client, &str, u16) -> nullspace_client::Result<PreviewUrl>,
    ) -> Outcome {
        #[derive(Serialize)]
        struct PreviewJson<'a> {
            #[serde(flatten)]
            made: &'a PreviewUrl,
            selected_transport: &'static str,
            selected_url: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            readiness: Option<PreviewReadiness>,
        }
        let Port { target: Target { sandbox }, port } = self.port;
        session::run(async |client| {
            let readiness = self.wait.done(&client, &sandbox, port).await?;
            let left =
                format!("there may be a grant for it: see `nullspace sandbox preview-url list {sandbox}`");
            let making = make(&client, &sandbox, port);
            let made = session::wait("making a preview URL", Some(&left), making).await?;
            let (selected_transport, selected_url) = match self.websocket {
                false => (Transport::Http.wire(), made.url.as_str()),
                true => (Transport::Websocket.wire(), made.websocket_url.as_str()),
            };
            if self.json {
                printer::json(&PreviewJson { made: &made, selected_transport, selected_url, readiness })?;
                return Ok(0);
            }
            let (grant, end) = (made.grant.id, made.access_token_expires_at);
            if self.raw {
                printer::line(selected_url)?;
                printer::note(format_args!("grant {grant}, good until {end}"))?;
            } else {
                printer::line(without_token(selected_url))?;
                printer::note(format_args!(
                    "grant {grant}, good until {end}; see the URL with its token with --raw"
                ))?;
            }
            Ok(0)
        })
    }
}

/// A URL with its token hidden.
fn without_token(url: &str) -> String {
    let parameter = format!("{EDGE_TOKEN_PARAMETER}=");
    let Some((before, rest)) = url.split_once(&parameter) else { return url.to_owned() };
    let after = rest.find(['&', '#']).map_or("", |end| &rest[end..]);
    format!("{before}{parameter}{HIDDEN}{after}")
}

impl List {
    fn run(self) -> Outcome {
        let query = PreviewGrantQuery { port: self.port.map(|port| port.to_string()) };
        session::run(async |client| {
            let listing = client.preview_grant_list(&self.target.sandbox, &query);
            let list = session::wait("listing grants", None, listing).await?;
            if self.json {
                printer::json(&list)?;
            } else if list.items.is_empty() {
                printer::note("no grants")?;
            } else {
                let now = Timestamp::now();
                let rows: Vec<_> = list.items.iter().map(|grant| grant_row(now, grant)).collect();
                printer::table(&["ID", "PORT", "MODE", "STATUS", "USES", "ENDS IN"], &rows)?;
            }
            Ok(0)
        })
    }
}

fn grant_row(now: Timestamp, grant: &PreviewGrant) -> Vec<Cell> {
    let mode = match grant.auth_mode {
        AuthMode::Direct => "direct",
        AuthMode::Proxy => "proxy",
    };
    let (status, end) = match grant.status {
        GrantStatus::Active => (Cell::with("active", Mood::Good), Some(grant.expires_at)),
        GrantStatus::Disabled => (Cell::with("disabled", Mood::Faint), None),
        GrantStatus::Expired => (Cell::with("expired", Mood::Faint), None),
        GrantStatus::Revoked => (Cell::with("revoked", Mood::Bad), None),
    };
    let (id, port, uses) = (Cell::new(grant.id), Cell::new(grant.port), Cell::new(grant.use_count));
    vec![id, port, Cell::new(mode), status, uses, time_left(now, end)]
}

impl Revoke {
    fn run(self) -> Outcome {
        let Self { target: Target { sandbox }, grant, json } = self;
        session::run(async |client| {
            let left = format!("{grant} may be revoked all the same");
            let revoking = client.preview_grant_revoke(&sandbox, &grant);
            let revoked = session::wait("revoking the grant", Some(&left), revoking).await?;
            if json {
                printer::json(&revoked)?;
            } else {
                printer::line(format_args!("revoked {}", revoked.grant.id))?;
            }
            Ok(0)
        })
    }
}

impl ProxyCommand {
    pub(crate) fn run(self) -> Outcome {
        match self {
            Self::Create(proxy) => proxy.run(),
        }
    }
}

impl Proxy {
    fn run(self) -> Outcome {
        #[derive(Serialize)]
        struct TargetJson<'a> {
            #[serde(flatten)]
            made: &'a PreviewProxyTarget,
            #[serde(skip_serializing_if = "Option::is_none")]
            readiness: Option<PreviewReadiness>,
        }
        let Port { target: Target { sandbox }, port } = self.port;
        let transports: Vec<_> = self.transport.iter().map(|transport| transport.wire().to_owned()).collect();
        let request = ProxyTargetRequest {
            expires_in_seconds: self.expires,
            transports: Some(transports).filter(|transports| !transports.is_empty()),
            include_traffic_token_hint: None,
        };
        session::run(async |client| {
            let readiness = self.wait.done(&client, &sandbox, port).await?;
            let left =
                format!("there may be a grant for it: see `nullspace sandbox preview-url list {sandbox}`");
            let making = client.preview_proxy_target(&sandbox, port, &request);
            let made = session::wait("making a proxy target", Some(&left), making).await?;
            if self.json {
                printer::json(&TargetJson { made: &made, readiness })?;
                return Ok(0);
            }
            for (name, value) in target_lines(&made, self.raw) {
                printer::line(format_args!("{name:<16}{value}"))?;
            }
            made.warnings.iter().try_for_each(printer::note)?;
            if !self.raw {
                printer::note("see the tokens with --raw")?;
            }
            Ok(0)
        })
    }
}

fn target_lines(made: &PreviewProxyTarget, raw: bool) -> Vec<(&'static str, String)> {
    let token = |token: &String| if raw { token.clone() } else { HIDDEN.to_owned() };
    let second =
        made.traffic_access_header_name.as_ref().filter(|_| made.traffic_access_required == Some(true));
    let lines = [
        ("http url", made.http_url.clone()),
        ("http token", made.http_token.as_ref().map(token)),
        ("websocket url", made.websocket_url.clone()),
        ("websocket token", made.websocket_token.as_ref().map(token)),
        ("header", Some(made.token_header_name.clone())),
        ("needs also", second.cloned()),
        ("forward", Some(made.required_forwarded_headers.join(" ")).filter(|headers| !headers.is_empty())),
        ("grant", Some(made.grant.id.to_string())),
        ("good until", made.expires_at.map(|end| end.to_string())),
    ];
    lines.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

impl Ready {
    pub(crate) fn run(self) -> Outcome {
        let Port { target: Target { sandbox }, port } = self.port;
        session::run_in(&sandbox, async |client| {
            let readiness = self.probe.ask(&client, &sandbox, port).await?;
            if self.json {
                printer::json(&readiness)?;
                return Ok(u8::from(!readiness.ready));
            }
            if !readiness.ready {
                return Err(preview_wait::not_ready(readiness));
            }
            let PreviewReadiness { elapsed_ms, attempts, .. } = readiness;
            printer::line(format_args!(
                "port {port} is ready after {elapsed_ms} ms and {attempts} attempts"
            ))?;
            Ok::<_, Failure>(0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_hidden_wherever_it_stands_in_a_url() {
        for (url, shown) in [
            ("http://h/?edge_token=nsp_a-b_c", "http://h/?edge_token=[hidden]"),
            ("ws://h/x?a=1&edge_token=nsp_a&b=2#c", "ws://h/x?a=1&edge_token=[hidden]&b=2#c"),
            ("http://h/", "http://h/"),
        ] {
            assert_eq!(without_token(url), shown);
        }
    }
}

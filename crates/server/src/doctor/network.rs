//! What machines and callers are reached over: slots, forwarding, the port, resolvers.

use std::fs::TryLockError;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use super::Check;
use super::machine::chain;

/// How long a resolver is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether network slots can be made: namespaces, taps, pairs and firewall tables.
pub(super) fn slots() -> Check {
    const NAME: &str = "network";
    match nullspace_net::try_host() {
        Ok(()) => Check::pass(NAME, "namespaces, taps, veth, nftables and address translation work"),
        Err(error) => {
            let fix = match &error {
                nullspace_net::Error::ToolMissing { package, .. } => format!("install {package}"),
                nullspace_net::Error::NotPermitted { .. } => "run as root".into(),
                nullspace_net::Error::Tool { tool: "nft", .. } => {
                    "load the kernel modules nf_tables, nft_chain_nat, nft_masq, nft_ct, nft_connlimit, \
                     nft_reject_inet and nft_fib_inet, and use nftables 1.0 or newer"
                        .into()
                }
                _ => "load the kernel modules tun and veth, and run where network namespaces are allowed"
                    .into(),
            };
            Check::fail(NAME, chain(&error), fix)
        }
    }
}

/// Whether what machines send is passed on.
pub(super) fn forwarding() -> Vec<Check> {
    const NAME: &str = "forwarding";
    let setting = match fs_err::read_to_string("/proc/sys/net/ipv4/ip_forward") {
        Ok(text) if text.trim() == "1" => Check::pass(NAME, "net.ipv4.ip_forward is 1"),
        Ok(_) => Check::pass(NAME, "net.ipv4.ip_forward is 0; the server sets it to 1 when it starts"),
        Err(error) => Check::fail(NAME, error.to_string(), "mount /proc"),
    };
    let firewall = match nullspace_net::foreign_drops() {
        Ok(found) => found
            .into_iter()
            .map(|foreign| {
                let (table, chain) = (&foreign.table, &foreign.chain);
                Check::warn(
                    "other firewall",
                    format!("chain {chain} of table {table} drops what is forwarded, unless a rule of its own allows it"),
                    format!(
                        "if machines do not reach the internet: nft insert rule {table} {chain} iifname '\"nsv*\"' accept; \
                         nft insert rule {table} {chain} oifname '\"nsv*\"' ct state established,related accept"
                    ),
                )
            })
            .collect(),
        // The check of slots says what is wrong with nft.
        Err(error) => vec![Check::warn("other firewall", chain(&error), "mend the network check first")],
    };
    [vec![setting], firewall].concat()
}

/// Whether the port is free, or the server of this data directory has it. `setting` is what chooses another.
pub(super) fn port(name: &'static str, listen: SocketAddr, setting: &str, data_dir: &Path) -> Check {
    match TcpListener::bind(listen) {
        Ok(_) => Check::pass(name, format!("{listen} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => match running(data_dir) {
            Ok(Some(pid)) => {
                Check::pass(name, format!("{listen} is in use, and this directory's server runs (PID {pid})"))
            }
            Ok(None) => {
                let fix = format!(
                    "find it with `ss -ltnp 'sport = :{}'`, or choose another port with {setting}",
                    listen.port()
                );
                Check::fail(name, format!("{listen} is in use by another program"), fix)
            }
            Err(error) => {
                Check::warn(name, format!("{listen} is in use: {error}"), "run as root to see by whom")
            }
        },
        Err(error) => {
            let fix =
                format!("choose an address of this host, and a port above 1023 unless root, with {setting}");
            Check::fail(name, format!("{listen} cannot be listened on: {error}"), fix)
        }
    }
}

/// The PID of the server that holds the data directory's lock.
fn running(data_dir: &Path) -> io::Result<Option<String>> {
    let path = data_dir.join("server.lock");
    let file = match std::fs::File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(fs_err::read_to_string(path)?.trim().to_owned())),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether machines can have names resolved. One configured resolver that answers is enough.
pub(super) async fn resolvers(configured: &[IpAddr]) -> Check {
    const NAME: &str = "dns";
    let servers = if configured.is_empty() {
        let path = Path::new(nullspace_net::resolv_conf::PATH);
        match super::apart(move || nullspace_net::resolv_conf::read(path)).await {
            Ok(servers) => servers,
            Err(error) => return Check::warn(NAME, error.to_string(), "set resolvers in [network]"),
        }
    } else {
        configured.iter().map(|&address| SocketAddr::from((address, 53))).collect()
    };
    if servers.is_empty() {
        let message = "no resolver is configured: names do not resolve in machines";
        return Check::warn(NAME, message, "name one in /etc/resolv.conf, or set resolvers in [network]");
    }
    let asked =
        servers.iter().map(|&server| async move { (server, nullspace_net::ask(server, PATIENCE).await) });
    let mut silent = Vec::new();
    for (server, answer) in futures::future::join_all(asked).await {
        match answer {
            Ok(()) => return Check::pass(NAME, format!("{} answers", server.ip())),
            Err(error) => silent.push(format!("{}: {error}", server.ip())),
        }
    }
    let message = format!("no resolver answers ({})", silent.join("; "));
    Check::warn(NAME, message, "correct /etc/resolv.conf, or set resolvers in [network]")
}

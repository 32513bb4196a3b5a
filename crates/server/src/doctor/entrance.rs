//! What people reach sandboxes by: the gateway's addresses, names and certificate, and the SSH relay.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use super::{Check, network};

/// How long a name is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether the gateway can listen, and has what it needs for TLS.
pub(super) fn gateway(config: &nullspace_gateway::Config, data_dir: &Path) -> Vec<Check> {
    const NAME: &str = "previews";
    if config.domain.is_some() {
        let listens = network::port(NAME, config.listen, "listen in [gateway]", data_dir);
        return std::iter::once(listens).chain(certificate(config)).collect();
    }
    let ports = match config.port_range() {
        Ok(ports) => ports,
        Err(error) => return vec![Check::fail(NAME, error, "correct ports in [gateway]")],
    };
    let (first, last, count) = (*ports.start(), *ports.end(), ports.len());
    let free = ports.filter(|&port| TcpListener::bind(SocketAddr::new(config.bind, port)).is_ok()).count();
    let at = config.bind;
    let found = format!("{free} of the {count} ports {first}-{last} are free at {at}");
    vec![match free {
        0 => Check::warn(
            NAME,
            found,
            "choose others with ports, or an address of this host with bind, in [gateway]",
        ),
        _ => Check::pass(NAME, found),
    }]
}

fn certificate(config: &nullspace_gateway::Config) -> Option<Check> {
    const NAME: &str = "preview certificate";
    let (Some(certificate), Some(key)) = (&config.tls_certificate, &config.tls_key) else { return None };
    for (file, marker) in [(certificate, "CERTIFICATE"), (key, "PRIVATE KEY")] {
        let wrong = match fs_err::read_to_string(file) {
            Ok(text) if text.contains("-----BEGIN ") && text.contains(marker) => continue,
            Ok(_) => format!("{} has no {marker} in PEM", file.display()),
            Err(error) => error.to_string(),
        };
        return Some(Check::fail(NAME, wrong, "correct tls_certificate and tls_key in [gateway]"));
    }
    Some(Check::pass(NAME, format!("{} can be read, and its key", certificate.display())))
}

/// Whether names below the domain lead anywhere. Where, only the operator knows.
pub(super) async fn names(domain: &str) -> Check {
    const NAME: &str = "preview names";
    let name = format!("80-nullspace-doctor.{domain}");
    let looking = tokio::net::lookup_host((name.as_str(), 80));
    let found = match tokio::time::timeout(PATIENCE, looking).await {
        Ok(Ok(mut addresses)) => addresses.next().ok_or_else(|| "no address".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    };
    match found {
        Ok(address) => Check::pass(NAME, format!("*.{domain} leads to {}", address.ip())),
        Err(why) => Check::warn(
            NAME,
            format!("{name} does not resolve here: {why}"),
            format!("let DNS lead *.{domain} to this host"),
        ),
    }
}

/// Whether the relay can listen, if there is to be one.
pub(super) fn relay(config: &nullspace_ssh::Config, data_dir: &Path) -> Option<Check> {
    let listen = config.listen.filter(|_| config.enabled)?;
    Some(network::port("ssh", listen, "listen in [ssh]", data_dir))
}

//! Where the log goes: to standard error, in lines for people.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Begins to log. What is logged is chosen by `NULLSPACE_LOG`, else by `RUST_LOG`, else `info`.
pub fn init() -> anyhow::Result<()> {
    let filter = ["NULLSPACE_LOG", "RUST_LOG"].into_iter().find_map(|name| {
        std::env::var(name).ok().filter(|value| !value.is_empty()).map(|value| (name, value))
    });
    let filter = match filter {
        Some((name, value)) => EnvFilter::try_new(&value)
            .map_err(|error| anyhow::anyhow!("{name}={value:?} is no log filter: {error}"))?,
        // The database logs every slow statement as a warning of its own, and the SSH library what every client
        // does; that is for debugging.
        None => EnvFilter::new("info,sqlx=error,russh=error"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init()
        .map_err(|error| anyhow::anyhow!("the log cannot be set up: {error}"))
}

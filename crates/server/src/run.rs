//! `nullspace server`: a server in the foreground, from the first line on the terminal to the last.

use std::io::Write as _;

use nullspace_auth::Admin;
use tokio::signal::unix::{SignalKind, signal};

use crate::compose::local_node;
use crate::server::{Server, ServerOptions};

/// Tells whoever started the server; scripts wait for these lines. That nobody reads them is no fault.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Runs a server until SIGTERM or SIGINT, or until it cannot go on.
pub async fn run(options: ServerOptions) -> anyhow::Result<()> {
    crate::log::init()?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stopped = async {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    let mut stopped = std::pin::pin!(stopped);
    let server = tokio::select! {
        server = Server::start(options, local_node()) => server?,
        _ = stopped.as_mut() => return Ok(()),
    };
    match server.admin_key() {
        (path, Admin::Created) => say(&format!("API key written to {}", path.display())),
        (_, Admin::Kept) => {}
        (_, Admin::Unusable(why)) => tracing::warn!("{why}"),
    }
    say(&format!("listening on http://{}", server.address()));
    server.entrances().iter().for_each(|line| say(line));
    let signal = tokio::select! {
        signal = stopped.as_mut() => signal,
        ready = server.ready() => match ready {
            Ok(()) => {
                say("ready");
                stopped.await
            }
            Err(error) => {
                server.stop().await;
                return Err(error);
            }
        },
    };
    tracing::info!("{signal}: stopping; machines keep running");
    server.stop().await;
    Ok(())
}

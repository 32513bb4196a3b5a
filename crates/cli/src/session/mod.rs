//! The setting in which a client command runs: one configured client, one small runtime, and what
//! happens while it waits: a sign of life on a terminal, and Ctrl-C.

pub(crate) mod detach;
pub(crate) mod raw;
pub(crate) mod stdin;

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use nullspace_client::{Client, Config, Explicit};

use crate::failure::Failure;
use crate::printer::Progress;

/// Shorter waits need no sign of life.
const PATIENCE: Duration = Duration::from_millis(800);

/// Runs a command against the configured server.
pub(crate) fn run<T, F: Future<Output = Result<T, Failure>>>(
    command: impl FnOnce(Client) -> F,
) -> Result<T, Failure> {
    let client = Client::new(Config::resolve(Explicit::default())?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::io("start the runtime"))?;
    let outcome = runtime.block_on(command(client));
    // A read of standard input may still be waiting for a person; do not wait with it.
    runtime.shutdown_background();
    outcome
}

/// As [`run`], for what is done inside a sandbox: one that is paused is resumed first.
pub(crate) fn run_in<T, F: Future<Output = Result<T, Failure>>>(
    sandbox: &str,
    command: impl FnOnce(Client) -> F,
) -> Result<T, Failure> {
    run(async |client| {
        wait("waking the sandbox", None, client.sandbox_connect(sandbox)).await?;
        command(client).await
    })
}

/// Waits for the server, visibly. `left` is what may exist when a person does not wait for it.
pub(crate) async fn wait<T, E: Into<Failure>>(
    doing: &str,
    left: Option<&str>,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    let mut work = pin!(work);
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    let interrupted = || Failure::Interrupted { left: left.map(str::to_owned) };
    tokio::select! {
        done = &mut work => return done.map_err(Into::into),
        _ = &mut interrupt => return Err(interrupted()),
        () = tokio::time::sleep(PATIENCE) => {}
    }
    let _progress = Progress::start(doing);
    tokio::select! {
        done = &mut work => done.map_err(Into::into),
        _ = &mut interrupt => Err(interrupted()),
    }
}

/// Waits for a person or a pipe, so without a sign of life; Ctrl-C still ends it. `left` as in [`wait`].
pub(crate) async fn quietly<T>(
    left: Option<&str>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        done = work => done,
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted { left: left.map(str::to_owned) }),
    }
}

//! `nullspace monitor`.

use clap::{Args, Subcommand};

use super::until::Until;
use crate::failure::Outcome;
use crate::session;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Print what all sandboxes do and use as it happens, one JSON object a line.
    ///
    /// Begins with all sandboxes as they are, and again whenever the connection broke and was made again.
    Stream(Stream),
}

#[derive(Args)]
pub(crate) struct Stream {
    /// Milliseconds between two samples of a sandbox.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(i64).range(1..))]
    interval_ms: Option<i64>,
    /// With what runs in them.
    #[arg(long, overrides_with = "no_include_processes")]
    include_processes: bool,
    /// Without what runs in them (the default).
    #[arg(long, overrides_with = "include_processes")]
    no_include_processes: bool,
    #[command(flatten)]
    until: Until,
}

impl Command {
    pub(crate) fn run(self) -> Outcome {
        let Self::Stream(Stream { interval_ms, include_processes, no_include_processes, until }) = self;
        let processes = (include_processes || no_include_processes).then_some(include_processes);
        session::run(async |client| {
            let opening = client.monitor(interval_ms, processes);
            let mut monitor = session::wait("connecting", None, opening).await?;
            until.print(async || monitor.next().await).await?;
            monitor.close();
            Ok(0)
        })
    }
}

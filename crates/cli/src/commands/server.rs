//! `nullspace server`: the appliance itself, in the foreground. What it does is in the server's
//! crate; only its threads are made here.

use std::time::Duration;

use nullspace_server::{ServerArgs, ServerOptions};

use crate::failure::{Failure, Outcome};

/// More workers than this only get in each other's way.
const WORKERS_MAX: usize = 8;
/// What still blocks a thread after the server has stopped is not waited for any longer.
const LINGER: Duration = Duration::from_secs(1);

pub(crate) fn run(args: ServerArgs) -> Outcome {
    let options = ServerOptions::load(args)?;
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .map_err(Failure::io("start the runtime"))?;
    let ended = runtime.block_on(nullspace_server::run(options));
    runtime.shutdown_timeout(LINGER);
    ended?;
    Ok(0)
}

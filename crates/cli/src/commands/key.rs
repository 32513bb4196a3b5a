//! `nullspace key`: works on the server's store itself, so it needs no key and no running server.

use clap::Args;
use nullspace_server::{KeyAnswer, KeyArgs};

use crate::failure::{Failure, Outcome};
use crate::printer;

#[derive(Args)]
pub(crate) struct Key {
    #[command(flatten)]
    args: KeyArgs,
    /// Answer with JSON.
    #[arg(long, global = true)]
    json: bool,
}

impl Key {
    pub(crate) fn run(self) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Failure::io("start the runtime"))?;
        let answer = runtime.block_on(nullspace_server::key(self.args))?;
        match answer {
            answer if self.json => printer::json(&answer)?,
            // The secret alone is data: `KEY=$(nullspace key create)` must work.
            KeyAnswer::Created { key, secret } => {
                printer::line(secret)?;
                printer::note(format_args!(
                    "key {} of tenant {}; this is the only time its secret is shown",
                    key.id, key.tenant
                ))?;
            }
            answer => answer.to_string().lines().try_for_each(printer::line)?,
        }
        Ok(0)
    }
}

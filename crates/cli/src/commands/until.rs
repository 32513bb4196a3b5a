//! How long a command follows what never ends by itself.

use std::time::Duration;

use clap::Args;
use nullspace_client::Error;
use serde::Serialize;

use crate::failure::Failure;
use crate::{options, printer, session};

#[derive(Args)]
pub(crate) struct Until {
    /// Stop after so many lines.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    max_events: Option<u64>,
    /// Seconds after which to stop; without it, and without --max-events, it goes on until it is interrupted.
    #[arg(long, value_name = "SECONDS", value_parser = options::duration)]
    timeout: Option<Duration>,
}

impl Until {
    /// Prints a line for each thing that comes, until there are enough. A connection that is lost for longer
    /// is told, and tried again for ever.
    pub(crate) async fn print<T: Serialize>(
        &self,
        mut next: impl AsyncFnMut() -> Result<T, Error>,
    ) -> Result<(), Failure> {
        let printing = async {
            let mut printed = 0;
            while self.max_events.is_none_or(|max| printed < max) {
                match next().await {
                    Ok(thing) => printer::json_line(&thing)?,
                    Err(error) if error.is_passing() => {
                        printer::note(format_args!("{}; connecting again", error.message()))?;
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
                printed += 1;
            }
            Ok(())
        };
        session::quietly(None, async {
            match self.timeout {
                Some(timeout) => tokio::time::timeout(timeout, printing).await.unwrap_or(Ok(())),
                None => printing.await,
            }
        })
        .await
    }
}

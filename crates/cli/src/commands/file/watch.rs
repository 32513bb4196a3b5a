//! Watching files.

use std::time::Duration;

use clap::Args;
use nullspace_types::socket::FileEventKind;
use serde::Serialize;

use super::Path;
use crate::failure::Outcome;
use crate::{options, printer, session};

#[derive(Args)]
pub(crate) struct Watch {
    #[command(flatten)]
    at: Path,
    /// With all that is below it.
    #[arg(long)]
    recursive: bool,
    /// Seconds after which to stop; without it the watch goes on until it is interrupted.
    #[arg(long, value_name = "SECONDS", value_parser = options::duration)]
    timeout: Option<Duration>,
}

/// One line of output.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: FileEventKind,
    name: &'a str,
    path: &'a str,
    event_type: FileEventKind,
}

impl Watch {
    pub(super) fn run(self) -> Outcome {
        let Self { at: Path { target, path, user }, recursive, timeout } = self;
        session::run_in(&target.sandbox, async |client| {
            let opening = client.file_watch(&target.sandbox, &path, recursive, user.as_deref(), timeout);
            let mut watch = session::wait("beginning to watch", None, opening).await?;
            session::quietly(None, async {
                while let Some(change) = watch.next().await? {
                    let (kind, name, path) = (change.event, &change.name, &change.path);
                    printer::json_line(&Line { kind, name, path, event_type: kind })?;
                }
                watch.close();
                Ok(0)
            })
            .await
        })
    }
}

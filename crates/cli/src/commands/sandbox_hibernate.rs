//! Pausing a sandbox and letting it go on.

use clap::Args;

use super::sandbox::Target;
use super::sandbox_json::SandboxJson;
use crate::failure::Outcome;
use crate::{printer, session};

#[derive(Args)]
pub(crate) struct Hibernate {
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
pub(crate) struct Resume {
    /// The sandbox's ID, or that of the snapshot it was hibernated to.
    #[arg(value_name = "ID")]
    id: String,
}

impl Hibernate {
    pub(crate) fn run(self) -> Outcome {
        let id = self.target.sandbox;
        session::run(async |client| {
            let left = format!("{id} may be paused all the same");
            let hibernating = client.sandbox_hibernate(&id);
            printer::json(&session::wait("hibernating the sandbox", Some(&left), hibernating).await?)?;
            Ok(0)
        })
    }
}

impl Resume {
    pub(crate) fn run(self) -> Outcome {
        session::run(async |client| {
            let left = "the sandbox may go on all the same: see `nullspace sandbox list`";
            let resuming = client.sandbox_resume(&self.id);
            let sandbox = session::wait("resuming the sandbox", Some(left), resuming).await?;
            printer::json(&SandboxJson::new(&sandbox))?;
            Ok(0)
        })
    }
}

//! `nullspace snapshot`, and `nullspace sandbox snapshot` for those of one sandbox.

use clap::{Args, Subcommand};
use nullspace_types::snapshot::SnapshotListQuery;
use serde_json::{Map, Value};

use super::sandbox::Target;
use crate::failure::Outcome;
use crate::{options, printer, session};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Take a snapshot of a running sandbox, which goes on. Prints it as JSON.
    Create(Create),
    /// Print snapshots as JSON, newest first.
    List {
        /// Only snapshots of this sandbox.
        #[arg(long, value_name = "SANDBOX")]
        sandbox_id: Option<String>,
        #[command(flatten)]
        filter: Filter,
    },
    /// Print a snapshot as JSON.
    Get(One),
    /// Delete a snapshot. Sandboxes that were created from it do not need it.
    Delete(One),
}

/// Snapshots of one sandbox.
#[derive(Subcommand)]
pub(crate) enum OfSandbox {
    /// Take a snapshot of a running sandbox, which goes on. Prints it as JSON.
    Create(Create),
    /// Print the snapshots of a sandbox as JSON, newest first.
    List {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        filter: Filter,
    },
}

#[derive(Args)]
pub(crate) struct Create {
    #[command(flatten)]
    target: Target,
    /// With the same key at most one snapshot is taken, however often the command is run.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

#[derive(Args)]
pub(crate) struct Filter {
    /// Only snapshots whose metadata has this pair.
    #[arg(long, value_name = "KEY=VALUE", value_parser = options::pair)]
    metadata: Vec<(String, String)>,
    /// Only snapshots whose metadata has all pairs of this JSON object.
    #[arg(long, value_name = "JSON", value_parser = options::object)]
    metadata_json: Option<Map<String, Value>>,
}

#[derive(Args)]
pub(crate) struct One {
    /// The snapshot's ID.
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
}

impl Command {
    pub(crate) fn run(self) -> Outcome {
        match self {
            Self::Create(create) => create.run(),
            Self::List { sandbox_id, filter } => filter.list(sandbox_id),
            Self::Get(one) => one.get(),
            Self::Delete(one) => one.delete(),
        }
    }
}

impl OfSandbox {
    pub(crate) fn run(self) -> Outcome {
        match self {
            Self::Create(create) => create.run(),
            Self::List { target, filter } => filter.list(Some(target.sandbox)),
        }
    }
}

impl Create {
    fn run(self) -> Outcome {
        let Self { target: Target { sandbox }, idempotency_key } = self;
        session::run(async |client| {
            let left = "the snapshot may have been taken: see `nullspace snapshot list`";
            let taking = client.snapshot_create(&sandbox, idempotency_key.as_deref());
            printer::json(&session::wait("taking the snapshot", Some(left), taking).await?)?;
            Ok(0)
        })
    }
}

impl Filter {
    fn list(self, sandbox_id: Option<String>) -> Outcome {
        let metadata = options::metadata(self.metadata_json, self.metadata);
        let query = SnapshotListQuery { sandbox_id, metadata };
        session::run(async |client| {
            let listing = client.snapshot_list(&query);
            printer::json(&session::wait("listing snapshots", None, listing).await?)?;
            Ok(0)
        })
    }
}

impl One {
    fn get(self) -> Outcome {
        session::run(async |client| {
            let getting = client.snapshot_get(&self.snapshot);
            printer::json(&session::wait("looking for the snapshot", None, getting).await?)?;
            Ok(0)
        })
    }

    fn delete(self) -> Outcome {
        session::run(async |client| {
            let left = format!("{} may be deleted all the same", self.snapshot);
            let deleting = client.snapshot_delete(&self.snapshot);
            session::wait("deleting the snapshot", Some(&left), deleting).await?;
            Ok(0)
        })
    }
}

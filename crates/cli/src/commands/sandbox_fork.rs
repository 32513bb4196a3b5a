//! Children of a sandbox: making them, the tree they are in, and how relatives differ.

use clap::Args;
use nullspace_types::snapshot::{
    DiffEntry, FileDifference, SandboxDiffQuery, SandboxFork, SandboxForked, SandboxTree, SandboxTreeNode,
};

use super::sandbox::{self, Target};
use super::sandbox_json::SandboxJson;
use crate::failure::Outcome;
use crate::printer::{self, Cell, Mood};
use crate::session;

/// Deeper ones are shown no further to the right.
const INDENT_MAX: u32 = 30;

#[derive(Args)]
pub(crate) struct Fork {
    #[command(flatten)]
    target: Target,
    /// How many copies of the same instant; they are printed as an array then.
    #[arg(long, allow_negative_numbers = true)]
    count: Option<i64>,
    /// With the same key it is done at most once, however often the command is run.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

#[derive(Args)]
pub(crate) struct Tree {
    #[command(flatten)]
    target: Target,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct Diff {
    #[command(flatten)]
    target: Target,
    /// What to compare it with: the ID of a related sandbox, or of a snapshot of one.
    #[arg(value_name = "AGAINST")]
    against: String,
    /// At most this many files.
    #[arg(long)]
    limit: Option<u32>,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

impl Fork {
    pub(crate) fn run(self) -> Outcome {
        let Self { target: Target { sandbox }, count, idempotency_key } = self;
        let request = SandboxFork { count };
        session::run(async |client| {
            let left = format!("it may be forked all the same: see `nullspace sandbox tree {sandbox}`");
            let forking = client.sandbox_fork(&sandbox, &request, idempotency_key.as_deref());
            match session::wait("forking the sandbox", Some(&left), forking).await? {
                SandboxForked::One(child) => printer::json(&SandboxJson::new(&child))?,
                SandboxForked::Many { items } => {
                    printer::json(&items.iter().map(SandboxJson::new).collect::<Vec<_>>())?;
                }
            }
            Ok(0)
        })
    }
}

impl Tree {
    pub(crate) fn run(self) -> Outcome {
        session::run(async |client| {
            let asking = client.sandbox_tree(&self.target.sandbox);
            let tree = session::wait("looking for relatives", None, asking).await?;
            if self.json {
                printer::json(&tree)?;
                return Ok(0);
            }
            print_tree(&tree)?;
            Ok(0)
        })
    }
}

fn print_tree(tree: &SandboxTree) -> std::io::Result<()> {
    let rows: Vec<_> = tree.items.iter().map(tree_row).collect();
    printer::table(&["ID", "STATUS", "SNAPSHOT", "CREATED"], &rows)?;
    if tree.truncated {
        printer::note(format_args!("there are more than these {}", tree.items.len()))?;
    }
    Ok(())
}

fn tree_row(node: &SandboxTreeNode) -> Vec<Cell> {
    let indent = "  ".repeat(node.depth.min(INDENT_MAX) as usize);
    vec![
        Cell::new(format_args!("{indent}{}", node.id)),
        sandbox::status(node.status),
        Cell::new(node.snapshot_id.map_or_else(|| "-".to_owned(), |id| id.to_string())),
        Cell::new(node.created_at),
    ]
}

impl Diff {
    pub(crate) fn run(self) -> Outcome {
        let Self { target: Target { sandbox }, against, limit, json } = self;
        let query = SandboxDiffQuery { against: Some(against), limit: limit.map(|limit| limit.to_string()) };
        session::run(async |client| {
            let comparing = client.sandbox_diff(&sandbox, &query);
            let diff = session::wait("comparing the disks", None, comparing).await?;
            if json {
                printer::json(&diff)?;
                return Ok(0);
            }
            if diff.items.is_empty() {
                printer::note("no file differs")?;
            } else {
                let rows: Vec<_> = diff.items.iter().map(diff_row).collect();
                printer::table(&["CHANGE", "TYPE", "SIZE", "PATH"], &rows)?;
            }
            if diff.truncated {
                printer::note("there is more; see it with a larger --limit")?;
            }
            Ok(0)
        })
    }
}

fn diff_row(entry: &DiffEntry) -> Vec<Cell> {
    let change = match entry.change {
        FileDifference::Added => Cell::with("added", Mood::Good),
        FileDifference::Removed => Cell::with("removed", Mood::Bad),
        FileDifference::Modified => Cell::new("modified"),
    };
    vec![change, Cell::new(&entry.r#type), Cell::new(entry.size), Cell::new(&entry.path)]
}

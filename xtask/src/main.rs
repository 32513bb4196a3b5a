//! Tasks of the repository itself: writing and verifying what is generated, and the table of allowed
//! edges between crates.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

mod deps;
mod generate;
mod proto;

#[derive(Parser)]
#[command(about = "Tasks of the repository itself")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Write what is generated: OpenAPI, protocol stubs, references
    Generate {
        /// Write nothing; fail if a file is not what would be written
        #[arg(long)]
        check: bool,
    },
    /// Print which crate depends on which
    Deps {
        /// Print nothing if all is well; fail on edges that are not in xtask/deps.toml, or no longer used
        #[arg(long)]
        check: bool,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask is not in a repository")?;
    match Arguments::parse().task {
        Task::Generate { check } => generate::run(root, check),
        Task::Deps { check } => deps::run(root, check),
    }
}

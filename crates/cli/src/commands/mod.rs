//! One file per resource. A command parses into a type with a `run`, which calls the client and
//! hands the answer to the printer.

mod doctor;
mod download;
mod explain;
mod file;
mod key;
mod process;
mod process_stream;
mod sandbox;
mod sandbox_create;
mod server;
mod template;
mod terminal;
mod upload;
mod upload_plan;

use clap::{Parser, Subcommand};

use crate::failure::{Failure, Outcome};
use crate::{printer, reference};

/// Real virtual machines that agents create, run code in, and destroy.
#[derive(Parser)]
#[command(name = "nullspace", version, about, max_term_width = 100, subcommand_required = true)]
#[command(arg_required_else_help = true, propagate_version = false)]
pub(crate) struct Root {
    /// Form of the JSON output.
    #[arg(long, value_name = "VERSION", value_parser = ["v1"], default_value = "v1", hide_default_value = true)]
    output_version: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create sandboxes, look at them, use them, destroy them.
    #[command(subcommand)]
    Sandbox(sandbox::Command),
    /// What sandboxes are made from.
    #[command(subcommand)]
    Template(template::Command),
    /// Say what an error code means and what to do about it.
    Explain(explain::Explain),
    /// Run the server in the foreground.
    Server(nullspace_server::ServerArgs),
    /// Manage API keys and the tenants they belong to. Works while the server runs.
    Key(key::Key),
    /// Check this host and say how to mend what is missing.
    Doctor(nullspace_server::doctor::DoctorArgs),
    /// Print the reference of the command line as Markdown.
    #[command(hide = true)]
    Reference,
}

impl Root {
    pub(crate) fn run(self) -> Outcome {
        match self.command {
            Command::Sandbox(command) => command.run(),
            Command::Template(command) => command.run(),
            Command::Explain(command) => command.run(),
            Command::Server(args) => server::run(args),
            Command::Key(key) => key.run(),
            Command::Doctor(args) => doctor::run(args),
            Command::Reference => {
                printer::page(&reference::reference()).map_err(Failure::from)?;
                Ok(0)
            }
        }
    }
}

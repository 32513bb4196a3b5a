//! One file per resource. A command parses into a type with a `run`, which calls the client and
//! hands the answer to the printer.

mod doctor;
mod download;
mod explain;
mod file;
mod gc;
mod key;
mod lifecycle;
mod monitor;
mod network;
mod preview;
mod preview_wait;
mod process;
mod process_stream;
mod sandbox;
mod sandbox_create;
mod sandbox_fork;
mod sandbox_hibernate;
mod sandbox_json;
mod secret;
mod server;
mod snapshot;
mod ssh;
mod ssh_files;
mod template;
mod terminal;
mod top;
mod until;
mod upload;
mod upload_plan;
mod webhook;

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
    /// Sandboxes kept at one instant, memory and all: take them, look at them, delete them.
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// What sandboxes are made from.
    #[command(subcommand)]
    Template(template::Command),
    /// Log in to a sandbox, or run a command in it, with OpenSSH's own client.
    ///
    /// A paused sandbox is resumed first. The exit status is that of ssh.
    Ssh(ssh::Ssh),
    /// Values that are added to what sandboxes send, and that they never hold.
    #[command(subcommand)]
    Secret(secret::Command),
    /// What happened to sandboxes, and who is told.
    #[command(subcommand)]
    Lifecycle(lifecycle::Command),
    /// What all sandboxes do.
    #[command(subcommand)]
    Monitor(monitor::Command),
    /// Show all sandboxes and what they use, live.
    ///
    /// `q` leaves. Without a terminal one table is printed; with --json one line each time, until it is
    /// interrupted.
    Top(top::Top),
    /// Say what an error code means and what to do about it.
    Explain(explain::Explain),
    /// Run the server in the foreground.
    Server(nullspace_server::ServerArgs),
    /// Manage API keys and the tenants they belong to. Works while the server runs.
    Key(key::Key),
    /// Show what lies on the server's disk and nobody needs, or remove it.
    ///
    /// The server does the same by itself in the background. It must run, and this must be run by the user
    /// that it runs as.
    Gc(gc::Gc),
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
            Command::Snapshot(command) => command.run(),
            Command::Template(command) => command.run(),
            Command::Ssh(ssh) => ssh.run(),
            Command::Secret(command) => command.run(),
            Command::Lifecycle(command) => command.run(),
            Command::Monitor(command) => command.run(),
            Command::Top(top) => top.run(),
            Command::Explain(command) => command.run(),
            Command::Server(args) => server::run(args),
            Command::Key(key) => key.run(),
            Command::Gc(gc) => gc.run(),
            Command::Doctor(args) => doctor::run(args),
            Command::Reference => {
                printer::page(&reference::reference()).map_err(Failure::from)?;
                Ok(0)
            }
        }
    }
}

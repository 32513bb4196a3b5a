//! The `nullspace` command line: parses, calls the client (or the server, for `nullspace server`),
//! prints. One file per resource under [`commands`]; every byte of output goes through
//! [`printer`]; what a failure looks like is in [`failure`], and its exit status in [`exit`].
//!
//! Nothing is set up before the arguments are known: no runtime, no logging, no configuration.
//! `nullspace jail` stands in front of every machine that is created and is dispatched before even
//! the arguments are parsed.

mod argv;
mod commands;
mod exit;
mod failure;
mod options;
mod pages;
mod printer;
mod reference;
mod session;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::commands::Root;
use crate::failure::Failure;

pub use crate::reference::reference;

/// Runs the command that this process was started with.
pub fn main() -> ExitCode {
    // On the hot path of every create: nothing may come before it.
    if std::env::args_os().nth(1).is_some_and(|command| command == "jail") {
        return nullspace_jail::main();
    }
    let argv: Vec<OsString> = std::env::args_os().collect();
    let json = argv.iter().skip(1).any(|argument| argument == "--json");
    let command = Root::command();
    let parsed = command
        .clone()
        .try_get_matches_from(argv::reorder(argv, &command))
        .and_then(|matches| Root::from_arg_matches(&matches));
    let outcome = match parsed {
        Ok(root) => root.run(),
        Err(error) => Err(Failure::from(error)),
    };
    let status = match outcome {
        Ok(status) => status,
        Err(failure) => failure.report(json),
    };
    ExitCode::from(status)
}

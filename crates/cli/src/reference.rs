//! The reference of the command line, made from the parser's own definition. It is committed as
//! `docs/reference/cli.md`; `make generate` writes it and `make check` compares.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory};

use crate::commands::Root;

/// Every command with its arguments, as Markdown.
pub fn reference() -> String {
    let mut root = Root::command();
    root.build();
    let mut out = String::from(
        "# Command line\n\nGenerated from the program by `make generate`; do not edit.\n\n\
         The server and the key come from `NULLSPACE_API_URL` and `NULLSPACE_API_KEY`, from `.env`, or from \
         `~/.config/nullspace/config.json`. Data goes to standard output, everything else to standard error. \
         With `--json` anywhere on the command line an error is a JSON document on standard output.\n\n\
         | Exit status | Meaning |\n|---|---|\n| 0 | done |\n| 1 | failed in another way |\n| 2 | wrong usage |\n\
         | 3 | not found |\n| 4 | not authenticated |\n| 5 | not permitted |\n| 6 | quota, capacity or rate |\n\
         | 7 | conflict |\n| 8 | a command in a sandbox failed to run or ran out of time |\n\
         | 124 | a time that you set is over |\n| 130 | interrupted |\n\n\
         `sandbox exec`, `sandbox process stream`, `attach` and `code-run`, and `sandbox pty connect` exit with the \
         status of what ran, `ssh` with that of OpenSSH's client.\n",
    );
    describe(&mut out, &root, "");
    out
}

fn describe(out: &mut String, command: &Command, above: &str) {
    let path = if above.is_empty() {
        command.get_name().to_owned()
    } else {
        format!("{above} {}", command.get_name())
    };
    let groups = command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help");
    let groups: Vec<_> = groups.collect();
    if groups.is_empty() {
        leaf(out, command, &path);
    }
    for sub in groups {
        describe(out, sub, &path);
    }
}

fn leaf(out: &mut String, command: &Command, path: &str) {
    let about = command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string);
    let mut command = command.clone();
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    // Writing to a String cannot fail.
    let about = sentence(&about.unwrap_or_default());
    let _ = write!(out, "\n## {path}\n\n{about}\n\n```\n{usage}\n```\n");
    let shown = |arg: &&Arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version");
    let args: Vec<_> = command.get_arguments().filter(shown).collect();
    if args.is_empty() {
        return;
    }
    out.push_str("\n| Argument | Meaning |\n|---|---|\n");
    for arg in args {
        let _ = writeln!(out, "| `{}` | {} |", name(arg), meaning(arg));
    }
}

fn name(arg: &Arg) -> String {
    let values = arg.get_value_names().unwrap_or_default().iter().map(|name| name.to_string());
    let values = values.collect::<Vec<_>>().join(" ");
    match arg.get_long() {
        Some(long) if arg.get_action().takes_values() => format!("--{long} {values}"),
        Some(long) => format!("--{long}"),
        None => values,
    }
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut text = sentence(&help.replace("\n\n", " ").replace('\n', " ").replace('|', "\\|"));
    let possible: Vec<_> = arg
        .get_possible_values()
        .iter()
        .filter(|_| arg.get_action().takes_values())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if !possible.is_empty() {
        let _ = write!(text, " One of {}.", possible.join(", "));
    }
    let defaults: Vec<_> = arg
        .get_default_values()
        .iter()
        .filter(|_| arg.get_action().takes_values() && !arg.is_hide_default_value_set())
        .map(|value| format!("`{}`", value.to_string_lossy()))
        .collect();
    if !defaults.is_empty() {
        let _ = write!(text, " Default: {}.", defaults.join(", "));
    }
    if matches!(arg.get_action(), clap::ArgAction::Append) && arg.get_long().is_some() {
        text.push_str(" May be given several times.");
    }
    text
}

/// The parser takes the full stop away.
fn sentence(text: &str) -> String {
    if text.is_empty() || text.ends_with(['.', '?', ':']) { text.to_owned() } else { format!("{text}.") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parser_is_sound_and_everything_visible_is_described() {
        Root::command().debug_assert();
        let text = reference();
        assert!(text.contains("## nullspace sandbox exec\n"), "{text}");
        assert!(!text.contains("## nullspace jail"), "{text}");
        for line in text.lines().filter(|line| line.starts_with("| `")) {
            assert!(!line.ends_with("|  |"), "without a meaning: {line}");
        }
    }
}

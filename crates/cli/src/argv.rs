//! What `sandbox exec`, `sandbox process stream` and `ssh` need before parsing. Our own options may stand
//! before or after the command to run (programs put them last), and the command's own options belong to the
//! command. So everything behind the command that is not one of our options is moved behind a `--`.
//!
//! Which options are ours is read from the parser's own definition, never listed twice.

use std::ffi::{OsStr, OsString};

use clap::Command;

/// The commands that take a command.
const RUNNERS: &[&[&str]] = &[&["sandbox", "exec"], &["sandbox", "process", "stream"], &["ssh"]];

/// The same arguments, unambiguous for the parser. Any other command is left alone.
pub(crate) fn reorder(argv: Vec<OsString>, root: &Command) -> Vec<OsString> {
    let Some((start, runner)) = find_runner(&argv, root) else { return argv };
    let mut options = Vec::new();
    let mut positionals: Vec<&OsString> = Vec::new();
    let mut rest = argv[start..].iter();
    while let Some(argument) = rest.next() {
        // The sandbox and the command come first; until then an unknown option is a mistake.
        let in_command = positionals.len() >= 2;
        if argument == "--" {
            positionals.extend(rest.by_ref());
        } else if let Some(option) = ours(runner, argument) {
            options.push(argument);
            if option.takes_next_value {
                options.extend(rest.next());
            }
        } else if !in_command && is_option(argument) {
            return argv;
        } else {
            positionals.push(argument);
        }
    }
    let separator = OsString::from("--");
    let parts = [options, vec![&separator], positionals];
    argv[..start].iter().chain(parts.into_iter().flatten()).cloned().collect()
}

/// Where the arguments of such a command begin, and its definition.
fn find_runner<'a>(argv: &[OsString], root: &'a Command) -> Option<(usize, &'a Command)> {
    let mut at = 1;
    while let Some(option) = argv.get(at).and_then(|argument| ours(root, argument)) {
        at += if option.takes_next_value { 2 } else { 1 };
    }
    let given = argv.get(at..)?;
    let named =
        |names: &&&[&str]| given.len() >= names.len() && given.iter().zip(**names).all(|(a, b)| a == b);
    let names = RUNNERS.iter().find(named)?;
    let runner = names.iter().try_fold(root, |command, name| command.find_subcommand(name))?;
    Some((at + names.len(), runner))
}

struct Ours {
    takes_next_value: bool,
}

fn ours(command: &Command, argument: &OsStr) -> Option<Ours> {
    let long = argument.to_str()?.strip_prefix("--")?;
    let (name, has_value) = match long.split_once('=') {
        Some((name, _)) => (name, true),
        None => (long, false),
    };
    let option = command.get_arguments().find(|option| option.get_long() == Some(name))?;
    Some(Ours { takes_next_value: option.get_action().takes_values() && !has_value })
}

fn is_option(argument: &OsStr) -> bool {
    argument.len() > 1 && argument.as_encoded_bytes().starts_with(b"-")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::commands::Root;

    fn reordered(line: &str) -> String {
        let argv = line.split(' ').map(OsString::from).collect();
        let out = reorder(argv, &Root::command());
        out.iter().map(|argument| argument.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn our_options_are_found_behind_the_command_and_its_own_are_left_to_it() {
        let cases = [
            ("nullspace sandbox exec sb_1 ls -la /tmp --json", "--json -- sb_1 ls -la /tmp"),
            ("nullspace sandbox exec sb_1 ls --help", "-- sb_1 ls --help"),
            (
                "nullspace sandbox exec --timeout 5 sb_1 sleep 9 --cwd=/",
                "--timeout 5 --cwd=/ -- sb_1 sleep 9",
            ),
            ("nullspace sandbox exec sb_1 -- git --json", "-- sb_1 git --json"),
            ("nullspace --output-version v1 sandbox exec sb_1 a -x --env K=V", "--env K=V -- sb_1 a -x"),
        ];
        for (line, expected) in cases {
            assert!(reordered(line).ends_with(&format!("sandbox exec {expected}")), "{}", reordered(line));
            let line = line.replace("sandbox exec", "sandbox process stream");
            let expected = format!("sandbox process stream {expected}");
            assert!(reordered(&line).ends_with(&expected), "{}", reordered(&line));
        }
        let ssh = reordered("nullspace ssh sb_1 --user ann ls -l --ttl 5m");
        assert_eq!(ssh, "nullspace ssh --user ann --ttl 5m -- sb_1 ls -l");
    }

    #[test]
    fn everything_else_is_left_as_it_is() {
        for line in [
            "nullspace sandbox exec --help",
            "nullspace sandbox exec --nonsense sb_1 ls",
            "nullspace sandbox list --json",
            "nullspace sandbox process list sb_1 --json",
            "nullspace exec sandbox -x",
            "nullspace",
        ] {
            assert_eq!(reordered(line), line);
        }
    }
}

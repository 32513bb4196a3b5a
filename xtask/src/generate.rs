//! The generated files: each is a path and the text that belongs there.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::proto;

/// So many differing lines of a file are shown.
const SHOWN: usize = 5;

/// Every generated file of the repository, as far as this build of the task can make it.
fn files(root: &Path) -> Result<Vec<(&'static str, String)>> {
    let mut files = vec![("crates/guest-proto/src/generated.rs", proto::render(root)?)];
    files.extend(of_the_tree()?);
    Ok(files)
}

/// What is made from the crates themselves.
#[cfg(feature = "tree")]
fn of_the_tree() -> Result<Vec<(&'static str, String)>> {
    Ok(vec![
        ("openapi/nullspace.json", nullspace_api::openapi().to_pretty_json()? + "\n"),
        ("docs/reference/config.md", nullspace_server::reference()?),
        ("docs/reference/cli.md", nullspace_cli::reference()),
    ])
}

#[cfg(not(feature = "tree"))]
fn of_the_tree() -> Result<Vec<(&'static str, String)>> {
    Ok(Vec::new())
}

/// Writes the files that are not as they should be, or only says which those are.
pub fn run(root: &Path, check: bool) -> Result<ExitCode> {
    let mut out = anstream::stdout();
    let mut stale = false;
    for (name, wanted) in files(root)? {
        let path = root.join(name);
        let found = match fs_err::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error.into()),
        };
        if found == wanted {
            continue;
        }
        stale = true;
        if check {
            writeln!(out, "{name} is not what would be generated:\n{}", difference(&found, &wanted))?;
        } else {
            if let Some(directory) = path.parent() {
                fs_err::create_dir_all(directory)?;
            }
            fs_err::write(&path, wanted)?;
            writeln!(out, "wrote {name}")?;
        }
    }
    if stale && check {
        writeln!(out, "run `make generate` and commit what it writes")?;
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// What is in one text and not in the other, in short.
fn difference(found: &str, wanted: &str) -> String {
    let (old, new): (Vec<_>, Vec<_>) = (found.lines().collect(), wanted.lines().collect());
    let same = |pair: &(&&str, &&str)| pair.0 == pair.1;
    let head = old.iter().zip(&new).take_while(same).count();
    let tail = old[head..].iter().rev().zip(new[head..].iter().rev()).take_while(same).count();
    let mut lines = vec![format!("  from line {}:", head + 1)];
    for (sign, side) in [("-", &old), ("+", &new)] {
        let changed = &side[head..side.len() - tail];
        lines.extend(changed.iter().take(SHOWN).map(|line| format!("  {sign} {line}")));
        if changed.len() > SHOWN {
            lines.push(format!("  {sign} … {} lines more", changed.len() - SHOWN));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_what_stands_between_the_common_ends() {
        assert_eq!(difference("a\nb\nc\n", "a\nx\ny\nc\n"), "  from line 2:\n  - b\n  + x\n  + y");
        assert_eq!(difference("", "a\n"), "  from line 1:\n  + a");
        assert!(difference("", &"a\n".repeat(9)).ends_with("+ … 4 lines more"));
    }
}

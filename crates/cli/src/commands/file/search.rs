//! Looking into files, and replacing text in them.

use clap::Args;
use nullspace_types::file::{FileFind, FileReplace, FileSearch};
use serde::Serialize;

use super::Path;
use crate::commands::sandbox::Target;
use crate::failure::Outcome;
use crate::{printer, session};

#[derive(Args)]
pub(crate) struct Find {
    #[command(flatten)]
    at: Path,
    /// A regular expression; one that is none is looked for literally.
    #[arg(value_name = "PATTERN")]
    pattern: String,
}

#[derive(Args)]
pub(crate) struct Search {
    #[command(flatten)]
    at: Path,
    /// A glob, such as `*.py`.
    #[arg(value_name = "PATTERN")]
    pattern: String,
}

#[derive(Args)]
pub(crate) struct Replace {
    #[command(flatten)]
    target: Target,
    /// The text, taken literally.
    #[arg(value_name = "PATTERN")]
    pattern: String,
    /// What shall stand in its place.
    #[arg(value_name = "REPLACEMENT")]
    replacement: String,
    /// The files.
    #[arg(value_name = "FILES", required = true)]
    files: Vec<String>,
    /// The user on whose behalf.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
}

impl Find {
    pub(super) fn run(self) -> Outcome {
        let Self { at: Path { target, path, user }, pattern } = self;
        let request = FileFind { path, pattern, user, limit: None };
        session::run_in(&target.sandbox, async |client| {
            let finding = client.file_find(&target.sandbox, &request);
            printer::json(&session::wait("searching", None, finding).await?)?;
            Ok(0)
        })
    }
}

impl Search {
    pub(super) fn run(self) -> Outcome {
        let Self { at: Path { target, path, user }, pattern } = self;
        let request = FileSearch { path, pattern, user, limit: None };
        session::run_in(&target.sandbox, async |client| {
            let searching = client.file_search(&target.sandbox, &request);
            printer::json(&session::wait("searching", None, searching).await?)?;
            Ok(0)
        })
    }
}

impl Replace {
    pub(super) fn run(self) -> Outcome {
        #[derive(Serialize)]
        struct Replaced {
            replacements: u64,
        }
        let Self { target, pattern, replacement, files, user } = self;
        let request = FileReplace { files, pattern, replacement, user, dry_run: None };
        session::run_in(&target.sandbox, async |client| {
            let left = "some of the files may be changed";
            let replacing = client.file_replace(&target.sandbox, &request);
            let replaced = session::wait("replacing", Some(left), replacing).await?;
            printer::json(&Replaced { replacements: replaced.replacements })?;
            Ok(0)
        })
    }
}

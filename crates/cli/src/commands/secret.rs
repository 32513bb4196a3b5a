//! `nullspace secret`: values that are added to what sandboxes send. A value is read from a file or from
//! standard input and never from an argument, which every user of this host could see.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use nullspace_types::vault::StoredSecretCreate;

use crate::failure::{Failure, Outcome};
use crate::printer::{self, Cell};
use crate::{options, session};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Store a secret. Its value is read from standard input unless a file is named, and never shown again.
    Create(Create),
    /// List stored secrets, without their values.
    List(List),
    /// Delete a stored secret. Requests that were to carry it are refused from then on.
    Delete(Delete),
}

#[derive(Args)]
pub(crate) struct Create {
    /// The secret's name, for `--inject`.
    #[arg(value_name = "NAME")]
    name: String,
    /// Read the value from this file. A line break at its end is no part of it.
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct List {
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct Delete {
    /// The secret's name.
    #[arg(value_name = "NAME")]
    name: String,
}

impl Command {
    pub(crate) fn run(self) -> Outcome {
        match self {
            Self::Create(create) => create.run(),
            Self::List(list) => list.run(),
            Self::Delete(delete) => delete.run(),
        }
    }
}

impl Create {
    fn run(self) -> Outcome {
        let request = StoredSecretCreate { value: Some(self.value()?), name: Some(self.name) };
        session::run(async |client| {
            let left = "the secret may be stored all the same: see `nullspace secret list`";
            let storing = client.secret_create(&request);
            let stored = session::wait("storing the secret", Some(left), storing).await?;
            if self.json {
                printer::json(&stored)?;
            } else {
                printer::line(format_args!("stored {}", stored.name))?;
            }
            Ok(0)
        })
    }

    fn value(&self) -> Result<String, Failure> {
        let mut value = match &self.from_file {
            Some(path) => options::file(path)?,
            None => {
                if std::io::IsTerminal::is_terminal(&std::io::stdin()) {
                    printer::note("type the value, and end it with Ctrl-D at the beginning of a line")?;
                }
                options::text("-")?
            }
        };
        for end in ['\n', '\r'] {
            value.truncate(value.strip_suffix(end).unwrap_or(&value).len());
        }
        Ok(value)
    }
}

impl List {
    fn run(self) -> Outcome {
        session::run(async |client| {
            let list = session::wait("listing secrets", None, client.secret_list()).await?;
            if self.json {
                printer::json(&list)?;
            } else if list.items.is_empty() {
                printer::note("no secrets")?;
            } else {
                let rows: Vec<_> = list
                    .items
                    .iter()
                    .map(|secret| vec![Cell::new(&secret.name), Cell::new(secret.created_at)])
                    .collect();
                printer::table(&["NAME", "CREATED"], &rows)?;
            }
            Ok(0)
        })
    }
}

impl Delete {
    fn run(self) -> Outcome {
        session::run(async |client| {
            let left = format!("{} may be deleted all the same", self.name);
            let deleting = client.secret_delete(&self.name);
            session::wait("deleting the secret", Some(&left), deleting).await?;
            printer::line(format_args!("deleted {}", self.name))?;
            Ok(0)
        })
    }
}

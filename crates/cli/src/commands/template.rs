//! `nullspace template`.

use clap::Subcommand;

use crate::failure::Outcome;
use crate::printer::{self, Cell};
use crate::session;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// List the templates.
    List {
        /// Answer with JSON.
        #[arg(long)]
        json: bool,
    },
}

impl Command {
    pub(crate) fn run(self) -> Outcome {
        let Self::List { json } = self;
        session::run(async |client| {
            let templates = session::wait("listing templates", None, client.template_list()).await?;
            if json {
                printer::json(&templates)?;
            } else if templates.is_empty() {
                printer::note("no templates")?;
            } else {
                let rows: Vec<_> = templates
                    .iter()
                    .map(|template| {
                        let disk = format!("{} MiB", template.disk_mb);
                        vec![Cell::new(&template.name), Cell::new(disk), Cell::new(&template.description)]
                    })
                    .collect();
                printer::table(&["NAME", "DISK", "DESCRIPTION"], &rows)?;
            }
            Ok(0)
        })
    }
}

//! Listing a directory, and a file as it is printed.

use clap::Args;
use jiff::Timestamp;
use nullspace_types::file::{FileInfo, FileListQuery, FileType};
use serde::Serialize;

use crate::commands::sandbox::Target;
use crate::failure::Outcome;
use crate::printer::{self, Cell, Mood};
use crate::session;

#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    target: Target,
    /// The directory.
    #[arg(value_name = "PATH", default_value = "/")]
    path: String,
    /// How many levels; 1 is the direct children.
    #[arg(long, value_name = "LEVELS")]
    depth: Option<u32>,
    /// The user on whose behalf.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

impl List {
    pub(super) fn run(self) -> Outcome {
        let query = FileListQuery {
            path: Some(self.path),
            depth: self.depth.map(|depth| depth.to_string()),
            user: self.user,
        };
        session::run_in(&self.target.sandbox, async |client| {
            let listing = client.file_list(&self.target.sandbox, &query);
            let entries = session::wait("listing files", None, listing).await?;
            if self.json {
                printer::json(&entries.iter().map(InfoJson::new).collect::<Vec<_>>())?;
            } else if entries.is_empty() {
                printer::note("no files")?;
            } else {
                let rows: Vec<_> = entries.iter().map(list_row).collect();
                printer::table(&["MODE", "OWNER", "SIZE", "MODIFIED", "TYPE", "PATH"], &rows)?;
            }
            Ok(0)
        })
    }
}

fn list_row(info: &FileInfo) -> Vec<Cell> {
    let kind = match info.kind {
        FileType::File => "file",
        FileType::Dir => "dir",
        FileType::Symlink => "symlink",
        FileType::Other => "other",
    };
    let path = match &info.symlink_target {
        Some(target) => format!("{} -> {target}", info.path),
        None => info.path.clone(),
    };
    vec![
        Cell::new(&info.mode),
        Cell::new(format!("{}:{}", info.owner, info.group)),
        Cell::new(info.size),
        Cell::new(format_args!("{:.0}", info.modified_time)),
        Cell::new(kind),
        Cell::with(path, if info.is_dir { Mood::Good } else { Mood::Plain }),
    ]
}

/// A file as the command line prints it: all fields, those without a value as null.
#[derive(Serialize)]
pub(super) struct InfoJson<'a> {
    name: &'a str,
    path: &'a str,
    is_dir: bool,
    size: u64,
    #[serde(rename = "type")]
    kind: FileType,
    mode: &'a str,
    permissions: &'a str,
    owner: &'a str,
    group: &'a str,
    modified_time: Timestamp,
    symlink_target: Option<&'a str>,
}

impl<'a> InfoJson<'a> {
    pub(super) fn new(info: &'a FileInfo) -> Self {
        Self {
            name: &info.name,
            path: &info.path,
            is_dir: info.is_dir,
            size: info.size,
            kind: info.kind,
            mode: &info.mode,
            permissions: &info.permissions,
            owner: &info.owner,
            group: &info.group,
            modified_time: info.modified_time,
            symlink_target: info.symlink_target.as_deref(),
        }
    }
}
